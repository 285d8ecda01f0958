//! The parts of a pod that `status` and `why` need.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerStatus, PersistentVolume, Pod, PodCondition, PodSpec, PodStatus, Volume,
};
use k8s_openapi::jiff::Timestamp;
use oras_csi_core::keys::{ANNOTATION_PREFIX, DRIVER, annotation, canonical};

use super::artifact::{Artifact, artifacts, pinned_lines};

/// The API group of persistent volumes is the core group; a claim is named by namespace and name.
pub(crate) type ClaimName = (String, String);

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodView {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) created: Option<Timestamp>,
    /// Whether the pod is being deleted.
    pub(crate) is_deleted: bool,
    pub(crate) node: Option<String>,
    pub(crate) phase: String,
    /// Whether kubelet has started a container, which it does only after all volumes are mounted.
    pub(crate) has_started: bool,
    /// Why the scheduler has not found a node.
    pub(crate) unscheduled: Option<String>,
    /// Why a container does not run, as `CrashLoopBackOff`.
    pub(crate) waiting: Option<String>,
    /// The controller, as kind and name.
    pub(crate) owner: Option<(String, String)>,
    pub(crate) owner_uid: Option<String>,
    pub(crate) service_account: String,
    /// The annotations of oras-csi.
    pub(crate) annotations: BTreeMap<String, String>,
    /// The volumes of this driver that are inline in the pod.
    pub(crate) volumes: Vec<PodVolume>,
    /// The volumes with a PersistentVolumeClaim, as name and claim.
    pub(crate) claims: Vec<(String, String)>,
}

/// A volume of this driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodVolume {
    /// The name in the pod.
    pub(crate) name: String,
    /// The name by which kubelet's events call it: that of the PersistentVolume, if there is one.
    pub(crate) kubelet_name: String,
    /// The PersistentVolumeClaim, if there is one.
    pub(crate) claim: Option<String>,
    /// The id of a canonical volume. Without it, the webhook has not processed the volume.
    pub(crate) id: Option<String>,
    pub(crate) set: Option<String>,
    pub(crate) secret: Option<String>,
    pub(crate) artifacts: Vec<Artifact>,
    /// The attributes that the user wrote, if the webhook has not processed the volume.
    pub(crate) written: BTreeMap<String, String>,
}

impl PodView {
    /// Reads a pod. Returns `None` if it cannot have a volume of this driver: no annotation, no CSI volume and no claim.
    pub(crate) fn read(pod: Pod) -> Option<Self> {
        let view = Self::of(pod);
        let is_relevant =
            !view.volumes.is_empty() || !view.claims.is_empty() || view.requests_by_annotation();
        is_relevant.then_some(view)
    }

    /// Reads a pod.
    pub(crate) fn of(pod: Pod) -> Self {
        let (metadata, spec) = (pod.metadata, pod.spec.unwrap_or_default());
        let status = pod.status.unwrap_or_default();
        let annotations = own_annotations(metadata.annotations.unwrap_or_default());
        let owner = metadata.owner_references.unwrap_or_default();
        let owner = owner.into_iter().find(|owner| owner.controller == Some(true));
        let pinned = pinned_lines(annotations.get(annotation::PINNED).map(String::as_str));
        let waiting = waiting_reason(&status);
        let unscheduled = condition(&status, "PodScheduled").filter(|found| found.status != "True");
        let unscheduled =
            unscheduled.and_then(|found| found.message.clone().or_else(|| found.reason.clone()));
        Self {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            created: metadata.creation_timestamp.map(|time| time.0),
            is_deleted: metadata.deletion_timestamp.is_some(),
            node: spec.node_name.clone().filter(|node| !node.is_empty()),
            has_started: has_started(&status),
            unscheduled,
            waiting,
            phase: status.phase.unwrap_or_default(),
            owner_uid: owner.as_ref().map(|owner| owner.uid.clone()),
            owner: owner.map(|owner| (owner.kind, owner.name)),
            service_account: spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
            volumes: inline_volumes(&spec, &pinned),
            claims: claims(&spec),
            annotations,
        }
    }

    /// Reports whether an annotation requests an artifact.
    pub(crate) fn requests_by_annotation(&self) -> bool {
        self.annotations.get(annotation::INJECT).is_none_or(|inject| inject != "false")
            && self.requests().next().is_some()
    }

    /// Returns the annotations that request an artifact, with their values.
    pub(crate) fn requests(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        pairs.filter(|(key, _)| is_request(key))
    }

    /// Adds the volumes of this driver that are bound by a claim.
    pub(crate) fn add_claimed(&mut self, volumes: &BTreeMap<ClaimName, PodVolume>) {
        for (name, claim) in &self.claims {
            let Some(volume) = volumes.get(&(self.namespace.clone(), claim.clone())) else { continue };
            self.volumes.push(PodVolume { name: name.clone(), ..volume.clone() });
        }
    }

    /// Reports whether the pod has ended.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }
}

/// Reports whether an annotation requests an artifact by itself.
pub(crate) fn is_request(key: &str) -> bool {
    let is_artifact =
        key.strip_prefix(annotation::ARTIFACT).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    is_artifact || [annotation::RECIPE, annotation::ARTIFACT_SET, annotation::PATCH].contains(&key)
}

/// Keeps the annotations of oras-csi.
pub(crate) fn own_annotations(annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
    annotations.into_iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX)).collect()
}

/// Returns the volumes of this driver that are inline in the pod.
fn inline_volumes(spec: &PodSpec, pinned: &BTreeMap<String, Vec<String>>) -> Vec<PodVolume> {
    let read = |volume: &Volume| {
        let source = volume.csi.as_ref().filter(|source| source.driver == DRIVER)?;
        let lines = pinned.get(&volume.name).map(Vec::as_slice).unwrap_or_default();
        let secret = source.node_publish_secret_ref.as_ref().map(|secret| secret.name.clone());
        Some(PodVolume {
            name: volume.name.clone(),
            kubelet_name: volume.name.clone(),
            secret,
            ..of_attributes(source.volume_attributes.clone().unwrap_or_default(), lines)
        })
    };
    spec.volumes.iter().flatten().filter_map(read).collect()
}

fn claims(spec: &PodSpec) -> Vec<(String, String)> {
    let claim = |volume: &Volume| {
        let claim = volume.persistent_volume_claim.as_ref()?;
        Some((volume.name.clone(), claim.claim_name.clone()))
    };
    spec.volumes.iter().flatten().filter_map(claim).collect()
}

/// Reads a PersistentVolume of this driver that is bound to a claim.
pub(crate) fn claimed_volume(volume: PersistentVolume) -> Option<(ClaimName, PodVolume)> {
    let (name, spec) = (volume.metadata.name?, volume.spec?);
    let source = spec.csi.filter(|source| source.driver == DRIVER)?;
    let claim = spec.claim_ref?;
    let claim = (claim.namespace?, claim.name?);
    let secret = source.node_publish_secret_ref.and_then(|secret| secret.name);
    let found = of_attributes(source.volume_attributes.unwrap_or_default(), &[]);
    let found = PodVolume { kubelet_name: name, claim: Some(claim.1.clone()), secret, ..found };
    Some((claim, found))
}

fn of_attributes(attributes: BTreeMap<String, String>, pinned: &[String]) -> PodVolume {
    let id = attributes.get(canonical::ID).cloned();
    PodVolume {
        set: attributes.get(canonical::SET).cloned(),
        artifacts: artifacts(&attributes, pinned),
        written: if id.is_none() { attributes } else { BTreeMap::new() },
        id,
        ..PodVolume::default()
    }
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn containers(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let all = [&status.init_container_statuses, &status.container_statuses];
    all.into_iter().flatten().flatten()
}

/// Reports whether kubelet has made the sandbox or started a container. Before both it mounts all volumes (kubelet,
/// `SyncPod`).
fn has_started(status: &PodStatus) -> bool {
    let has_sandbox =
        condition(status, "PodReadyToStartContainers").is_some_and(|found| found.status == "True");
    let has_run = |container: &ContainerStatus| {
        let state = container.state.as_ref();
        let is_running = state.is_some_and(|state| state.running.is_some() || state.terminated.is_some());
        is_running || container.restart_count > 0 || container.container_id.is_some()
    };
    has_sandbox || containers(status).any(has_run)
}

fn waiting_reason(status: &PodStatus) -> Option<String> {
    containers(status).find_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.clone())
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) const DIGEST: &str = "sha256:4fe6f3e48881647c22bea5c5ca02872b6f5d9ff75931a692e00c50f59de3f429";

    /// Reads a pod of JSON.
    pub(crate) fn pod(object: Value) -> PodView {
        PodView::of(serde_json::from_value(object).unwrap_or_default())
    }

    /// Returns a pod with an admitted volume.
    pub(crate) fn admitted(name: &str, status: &Value) -> Value {
        let recipe = format!(r#"[{{"add":"ghcr.io/acme/model@{DIGEST}"}}]"#);
        let pinned = format!(r#"{{"oras-artifacts":["ghcr.io/acme/model:v1@{DIGEST}"]}}"#);
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "team", "uid": format!("uid-of-{name}"),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"oras.land/artifact": "ghcr.io/acme/model:v1", "oras.land/pinned": pinned, "x": "y"}},
            "spec": {"nodeName": "node-1", "containers": [], "volumes": [
                {"name": "oras-artifacts", "csi": {"driver": "csi.oras.land", "readOnly": true,
                    "volumeAttributes": {"csi.oras.land/id": "model-1", "csi.oras.land/recipe": recipe}}},
                {"name": "other", "csi": {"driver": "other.example.com"}}]},
            "status": status})
    }

    #[test]
    fn a_pod_has_its_volumes_with_tags() {
        let view = pod(admitted("web", &json!({"phase": "Pending"})));
        assert_eq!((view.node.as_deref(), view.has_started), (Some("node-1"), false));
        assert_eq!(view.annotations.len(), 2);
        let [volume] = view.volumes.as_slice() else { unreachable!("{:?}", view.volumes) };
        assert_eq!(volume.id.as_deref(), Some("model-1"));
        assert_eq!(volume.artifacts[0].reference, "ghcr.io/acme/model:v1");
        assert_eq!(view.requests().collect::<Vec<_>>(), [("oras.land/artifact", "ghcr.io/acme/model:v1")]);
    }

    #[test]
    fn volumes_are_mounted_when_a_container_or_the_sandbox_has_started() {
        let has_started = |status: Value| pod(admitted("web", &status)).has_started;
        assert!(!has_started(json!({"containerStatuses": [
            {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ContainerCreating"}}}]})));
        assert!(has_started(json!({"initContainerStatuses": [
            {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"running": {}}}]})));
        assert!(has_started(json!({"containerStatuses": [
            {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]})));
        assert!(has_started(
            json!({"conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]})
        ));
    }

    #[test]
    fn pods_without_artifacts_are_left_out() {
        let read = |metadata: Value, volumes: Value| {
            let object = json!({"metadata": metadata, "spec": {"containers": [], "volumes": volumes}});
            PodView::read(serde_json::from_value(object).unwrap_or_default()).is_some()
        };
        assert!(!read(json!({"annotations": {"oras.land/mount-path": "/x"}}), json!([])));
        assert!(read(json!({"annotations": {"oras.land/artifact.m": "a.b/c"}}), json!([])));
        assert!(!read(
            json!({"annotations": {"oras.land/artifact": "a.b/c", "oras.land/inject": "false"}}),
            json!([])
        ));
        assert!(read(json!({}), json!([{"name": "v", "csi": {"driver": "csi.oras.land"}}])));
        assert!(read(json!({}), json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}])));
        assert!(!read(json!({}), json!([{"name": "v", "emptyDir": {}}])));
    }

    #[test]
    fn a_claim_leads_to_the_volume_of_its_persistent_volume() {
        let recipe = format!(r#"[{{"add":"ghcr.io/acme/model@{DIGEST}"}}]"#);
        let volume = json!({"metadata": {"name": "pv-1"}, "spec": {
            "claimRef": {"namespace": "team", "name": "models"},
            "csi": {"driver": "csi.oras.land", "volumeHandle": "h", "nodePublishSecretRef": {"name": "s", "namespace": "team"},
                "volumeAttributes": {"csi.oras.land/id": "model-1", "csi.oras.land/recipe": recipe}}}});
        let found = claimed_volume(serde_json::from_value(volume).unwrap_or_default());
        let volumes: BTreeMap<_, _> = found.into_iter().collect();
        let mut view = pod(
            json!({"metadata": {"name": "web", "namespace": "team"}, "spec": {"containers": [], "volumes": [
            {"name": "v", "persistentVolumeClaim": {"claimName": "models"}},
            {"name": "w", "persistentVolumeClaim": {"claimName": "others"}}]}}),
        );
        view.add_claimed(&volumes);
        let [volume] = view.volumes.as_slice() else { unreachable!("{:?}", view.volumes) };
        assert_eq!((volume.name.as_str(), volume.kubelet_name.as_str()), ("v", "pv-1"));
        assert_eq!((volume.claim.as_deref(), volume.secret.as_deref()), (Some("models"), Some("s")));
    }
}
