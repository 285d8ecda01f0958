//! The fields of a pod that the webhook reads.

use std::collections::BTreeMap;

use oras_csi_core::keys::DRIVER;

use super::csi::Csi;
use super::json::Json;
use super::node::Node;
use crate::denial::Denial;

/// The fields of a pod.
#[derive(Debug)]
pub(crate) struct Pod<'a> {
    /// The annotations, or `None` where `metadata.annotations` is absent.
    annotations: Option<BTreeMap<&'a str, &'a str>>,
    /// Whether `metadata` is present.
    has_metadata: bool,
    controller: Option<Owner<'a>>,
    revision: Option<&'a str>,
    windows: Option<&'static str>,
    image_pull_secrets: Vec<&'a str>,
    service_account: Option<&'a str>,
    /// `spec.volumes`, or `None` where it is absent.
    volumes: Option<Vec<Volume<'a>>>,
    containers: Vec<Container<'a>>,
}

/// The controller of a pod (meta/v1 `OwnerReference`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner<'a> {
    /// `apiVersion`
    pub(crate) api_version: &'a str,
    /// `kind`
    pub(crate) kind: &'a str,
    /// `name`
    pub(crate) name: &'a str,
    /// `uid`
    pub(crate) uid: &'a str,
}

/// One entry of `spec.volumes`.
#[derive(Debug)]
pub(crate) struct Volume<'a> {
    /// The position in the list.
    pub(crate) index: usize,
    /// The name; empty where absent (the API server refuses that after the webhook).
    pub(crate) name: &'a str,
    /// The `csi` source, if present.
    pub(crate) csi: Option<Csi<'a>>,
    /// Whether kubelet mounts it read-only, whatever the mounts say.
    pub(crate) read_only: bool,
    /// Whether Kubernetes writes its files, so that it has no directory for another mount.
    pub(crate) is_generated: bool,
}

/// The list of the pod that a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerList {
    /// `spec.initContainers`
    Init,
    /// `spec.containers`
    Main,
    /// `spec.ephemeralContainers`. A new pod cannot have any; they are read so that the checks cover them.
    Ephemeral,
}

impl ContainerList {
    /// Returns the name of the field in `spec`.
    pub(crate) fn field(self) -> &'static str {
        match self {
            Self::Init => "initContainers",
            Self::Main => "containers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

/// One container of any of the lists.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    /// The list.
    pub(crate) list: ContainerList,
    /// The position in the list.
    pub(crate) index: usize,
    /// The name.
    pub(crate) name: &'a str,
    /// Whether `volumeMounts` is a list.
    pub(crate) has_mount_list: bool,
    /// `volumeMounts`.
    pub(crate) mounts: Vec<Mount<'a>>,
    /// The `devicePath` and the volume's name of each of `volumeDevices`.
    pub(crate) devices: Vec<(&'a str, &'a str)>,
}

/// One entry of `volumeMounts`.
#[derive(Debug)]
pub(crate) struct Mount<'a> {
    /// The position in the list.
    pub(crate) index: usize,
    /// The volume's name.
    pub(crate) volume: &'a str,
    /// `mountPath`.
    pub(crate) path: &'a str,
    /// `subPath`, empty where absent.
    pub(crate) sub_path: &'a str,
    /// Whether `subPathExpr` is present.
    pub(crate) has_sub_path_expression: bool,
    /// `readOnly`, false where absent.
    pub(crate) read_only: bool,
}

/// The annotation that kubelet gives the API server's copy of a static pod.
const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// The volume sources whose files Kubernetes writes. Kubelet always mounts them read-only.
const GENERATED_SOURCES: [&str; 4] = ["configMap", "downwardAPI", "projected", "secret"];
const WINDOWS: &str = "windows";
const NODE_OS_LABEL: &str = "kubernetes.io/os";
/// The labels with a pod's revision; the first one that is present counts. A StatefulSet and a DaemonSet have a revision
/// for each template, and a Deployment has a ReplicaSet. A Job's template never changes, so a Job needs no revision.
const REVISION_LABELS: [&str; 2] = ["controller-revision-hash", "pod-template-hash"];

impl<'a> Pod<'a> {
    /// Reads the fields.
    pub(crate) fn read(pod: &'a impl Json) -> Result<Self, Denial> {
        let root = Node::root("pod", pod);
        root.check_object()?;
        let metadata = root.child("metadata")?;
        let spec = root.child("spec")?;
        let os = spec.child("os")?.child("name")?.text()?;
        let node_os = spec.child("nodeSelector")?.child(NODE_OS_LABEL)?.text()?;
        let mut containers = Vec::new();
        for list in [ContainerList::Init, ContainerList::Main, ContainerList::Ephemeral] {
            for (index, node) in spec.child(list.field())?.items()? {
                containers.push(Container::read(list, index, &node)?);
            }
        }
        let mut image_pull_secrets = Vec::new();
        for (_, secret) in spec.child("imagePullSecrets")?.items()? {
            image_pull_secrets.extend(secret.child("name")?.text()?.filter(|name| !name.is_empty()));
        }
        let service_account = spec.child("serviceAccountName")?.text()?.filter(|name| !name.is_empty());
        let mut controller = None;
        for (_, reference) in metadata.child("ownerReferences")?.items()? {
            controller = controller.or(Owner::read(&reference)?);
        }
        let labels = metadata.child("labels")?;
        let mut revision = None;
        for label in REVISION_LABELS {
            revision = revision.or(labels.child(label)?.text()?.filter(|value| !value.is_empty()));
        }
        let list = spec.child("volumes")?;
        let volumes = list.items()?.map(|(index, node)| Volume::read(index, &node));
        let volumes = volumes.collect::<Result<_, _>>()?;
        let volumes = list.value.is_some().then_some(volumes);
        Ok(Self {
            annotations: metadata.child("annotations")?.texts()?,
            has_metadata: metadata.value.is_some(),
            controller,
            revision,
            image_pull_secrets,
            service_account,
            windows: match (os, node_os) {
                (Some(WINDOWS), _) => Some("spec.os.name"),
                (_, Some(WINDOWS)) => Some("spec.nodeSelector"),
                _ => None,
            },
            volumes,
            containers,
        })
    }

    /// Returns the value of one annotation.
    pub(crate) fn annotation(&self, key: &str) -> Option<&'a str> {
        self.annotations.as_ref()?.get(key).copied()
    }

    /// Returns all annotations, sorted by key.
    pub(crate) fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.annotations.iter().flatten().map(|(key, value)| (*key, *value))
    }

    /// Reports whether the pod is the API server's copy of a static pod, which kubelet runs whatever the API server says.
    ///
    /// A deletion timestamp is no reason to leave a pod alone: the API server removes one that a server-side apply
    /// creates a pod with, but only after the webhooks.
    pub(crate) fn is_mirror_pod(&self) -> bool {
        self.annotation(MIRROR_POD).is_some()
    }

    /// Reports whether `metadata` is present.
    pub(crate) fn has_metadata(&self) -> bool {
        self.has_metadata
    }

    /// Reports whether `metadata.annotations` is present.
    pub(crate) fn has_annotations(&self) -> bool {
        self.annotations.is_some()
    }

    /// Returns the controller that manages the pod.
    pub(crate) fn controller(&self) -> Option<Owner<'a>> {
        self.controller
    }

    /// Returns the value of the revision label.
    pub(crate) fn revision(&self) -> Option<&'a str> {
        self.revision
    }

    /// Returns the names in `spec.imagePullSecrets`.
    pub(crate) fn image_pull_secrets(&self) -> &[&'a str] {
        &self.image_pull_secrets
    }

    /// Returns `spec.serviceAccountName`, if present.
    pub(crate) fn service_account(&self) -> Option<&'a str> {
        self.service_account
    }

    /// Returns the field that says that the pod is for Windows nodes.
    pub(crate) fn windows_field(&self) -> Option<&'static str> {
        self.windows
    }

    /// Reports whether `spec.volumes` is present.
    pub(crate) fn has_volume_list(&self) -> bool {
        self.volumes.is_some()
    }

    /// Returns `spec.volumes`.
    pub(crate) fn volumes(&self) -> &[Volume<'a>] {
        self.volumes.as_deref().unwrap_or_default()
    }

    /// Returns init containers, containers and ephemeral containers, in that order.
    pub(crate) fn containers(&self) -> &[Container<'a>] {
        &self.containers
    }
}

impl<'a> Owner<'a> {
    /// Reads an owner that is the controller. An owner without all fields is ignored: the API server refuses it after the
    /// webhook.
    fn read(node: &Node<'_, 'a, impl Json>) -> Result<Option<Self>, Denial> {
        let part = |key| node.child(key)?.text().map(Option::unwrap_or_default);
        let owner = Self {
            api_version: part("apiVersion")?,
            kind: part("kind")?,
            name: part("name")?,
            uid: part("uid")?,
        };
        let is_controller = node.child("controller")?.flag()?;
        let parts = [owner.api_version, owner.kind, owner.name, owner.uid];
        let is_complete = parts.iter().all(|part| !part.is_empty());
        Ok(Some(owner).filter(|_| is_complete && is_controller))
    }
}

impl<'a> Volume<'a> {
    fn read(index: usize, node: &Node<'_, 'a, impl Json>) -> Result<Self, Denial> {
        let csi = Csi::read(&node.child("csi")?)?;
        let is_claim_read_only = node.child("persistentVolumeClaim")?.child("readOnly")?.flag()?;
        let mut read_only =
            is_claim_read_only || csi.as_ref().is_some_and(|csi| csi.read_only || csi.driver == DRIVER);
        let mut is_generated = false;
        for source in GENERATED_SOURCES {
            is_generated |= node.child(source)?.value.is_some();
        }
        read_only |= is_generated || node.child("image")?.value.is_some();
        let name = node.child("name")?.text()?.unwrap_or_default();
        Ok(Self { index, name, csi, read_only, is_generated })
    }
}

impl<'a> Container<'a> {
    fn read(list: ContainerList, index: usize, node: &Node<'_, 'a, impl Json>) -> Result<Self, Denial> {
        let mounts = node.child("volumeMounts")?;
        let has_mount_list = mounts.value.is_some();
        let mounts =
            mounts.items()?.map(|(index, node)| Mount::read(index, &node)).collect::<Result<_, _>>()?;
        let mut devices = Vec::new();
        for (_, device) in node.child("volumeDevices")?.items()? {
            let path = device.child("devicePath")?.text()?.unwrap_or_default();
            devices.push((path, device.child("name")?.text()?.unwrap_or_default()));
        }
        let name = node.child("name")?.text()?.unwrap_or_default();
        Ok(Self { list, index, name, has_mount_list, mounts, devices })
    }
}

impl<'a> Mount<'a> {
    fn read(index: usize, node: &Node<'_, 'a, impl Json>) -> Result<Self, Denial> {
        Ok(Self {
            index,
            volume: node.child("name")?.text()?.unwrap_or_default(),
            path: node.child("mountPath")?.text()?.unwrap_or_default(),
            sub_path: node.child("subPath")?.text()?.unwrap_or_default(),
            has_sub_path_expression: node.child("subPathExpr")?.text()?.is_some_and(|text| !text.is_empty()),
            read_only: node.child("readOnly")?.flag()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"metadata": null, "spec": null}))]
    #[case(json!({"metadata": {"annotations": null, "deletionTimestamp": null}, "spec": {"volumes": null,
        "initContainers": null, "containers": null, "nodeSelector": null, "os": null}}))]
    #[case(json!({"metadata": {"labels": null, "ownerReferences": null}}))]
    #[case(json!({"metadata": {"labels": {"pod-template-hash": null, "controller-revision-hash": ""},
        "ownerReferences": [null, {"controller": null}, {"controller": true, "uid": null}]}}))]
    #[case(json!({"spec": {"containers": [null, {"volumeMounts": null, "volumeDevices": null}],
        "volumes": [null]}}))]
    fn null_is_absent(#[case] pod: Value) {
        let pod = Pod::read(&pod).unwrap();
        assert!(pod.windows_field().is_none() && !pod.has_annotations());
        assert_eq!((pod.controller(), pod.revision()), (None, None));
        assert!(pod.volumes().is_empty() && pod.containers().len() <= 1);
        assert!(pod.containers().iter().all(|container| container.mounts.is_empty()));
    }

    #[rstest]
    #[case(json!([]), "pod: is a list, but Kubernetes requires an object")]
    #[case(json!({"spec": 1}), "pod.spec: is a number")]
    #[case(json!({"spec": {"volumes": {}}}), "pod.spec.volumes: is an object, but Kubernetes requires a list")]
    #[case(json!({"spec": {"volumes": [{}, {"name": 7}]}}), "pod.spec.volumes[1].name: is a number")]
    #[case(json!({"spec": {"containers": [{"volumeMounts": [{"readOnly": "yes"}]}]}}),
        "pod.spec.containers[0].volumeMounts[0].readOnly: is a string, but Kubernetes requires true or false")]
    #[case(json!({"metadata": {"annotations": {"a": true}}}), "pod.metadata.annotations.a: is a boolean")]
    #[case(json!({"metadata": {"labels": {"pod-template-hash": 7}}}),
        "pod.metadata.labels.pod-template-hash: is a number, but Kubernetes requires a string")]
    #[case(json!({"metadata": {"ownerReferences": {}}}), "pod.metadata.ownerReferences: is an object")]
    #[case(json!({"metadata": {"ownerReferences": [{"controller": true, "uid": "u"}, {"uid": 1}]}}),
        "pod.metadata.ownerReferences[1].uid: is a number")]
    #[case(json!({"metadata": {"ownerReferences": [{"controller": "true"}]}}),
        "pod.metadata.ownerReferences[0].controller: is a string, but Kubernetes requires true or false")]
    fn a_wrong_type_is_denied_with_its_path(#[case] pod: Value, #[case] words: &str) {
        let denial = Pod::read(&pod).unwrap_err();
        assert!(denial.message().contains(words), "{denial}");
        assert_eq!(denial.code().number(), 400);
    }

    #[rstest]
    #[case(json!({"os": {"name": "windows"}}), Some("spec.os.name"))]
    #[case(json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), Some("spec.nodeSelector"))]
    #[case(json!({"os": {"name": "linux"}, "nodeSelector": {"kubernetes.io/os": "linux"}}), None)]
    fn recognizes_pods_for_windows_nodes(#[case] spec: Value, #[case] windows: Option<&str>) {
        assert_eq!(Pod::read(&json!({ "spec": spec })).unwrap().windows_field(), windows);
    }

    #[test]
    fn finds_the_controller_of_a_pod() {
        let owner = |kind: &str, more: Value| {
            let mut owner = json!({"apiVersion": "apps/v1", "kind": kind, "name": "n", "uid": "u",
                "blockOwnerDeletion": true, "fromTheFuture": 1});
            owner.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            owner
        };
        let controller = |owners: Value| {
            let pod = json!({"metadata": {"ownerReferences": owners}});
            let pod = Pod::read(&pod).unwrap();
            pod.controller()
                .map(|owner| format!("{} {} {} {}", owner.api_version, owner.kind, owner.name, owner.uid))
        };
        let whole = Some("apps/v1 ReplicaSet n u".to_owned());
        let replica_set = owner("ReplicaSet", json!({"controller": true}));
        assert_eq!(controller(json!([replica_set])), whole);
        assert_eq!(
            controller(json!([
                owner("Other", json!({})),
                replica_set,
                owner("Third", json!({"controller": true}))
            ])),
            whole
        );
        assert_eq!(controller(json!([owner("Other", json!({"controller": false}))])), None);
        for part in ["apiVersion", "kind", "name", "uid"] {
            assert_eq!(controller(json!([owner("ReplicaSet", json!({"controller": true, part: ""}))])), None);
        }
    }

    #[rstest]
    #[case(json!({"controller-revision-hash": "web-1", "pod-template-hash": "2"}), Some("web-1"))]
    #[case(json!({"controller-revision-hash": "", "pod-template-hash": "2"}), Some("2"))]
    #[case(json!({"batch.kubernetes.io/controller-uid": "3", "job-name": "4"}), None)]
    fn finds_the_revision_of_a_pod(#[case] labels: Value, #[case] revision: Option<&str>) {
        let pod = json!({"metadata": {"labels": labels}});
        assert_eq!(Pod::read(&pod).unwrap().revision(), revision);
    }
}
