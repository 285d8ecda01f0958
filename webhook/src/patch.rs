//! Plans the JSON Patch (RFC 6902) for a pod or a `PersistentVolume` and its sealed volumes. Pure.
//!
//! The object is never serialized again: each operation adds, replaces or removes one field that this program owns, so
//! fields that it does not know stay untouched. A field that already has its value gets no operation, so applying a patch
//! twice equals applying it once.

use std::collections::BTreeMap;

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation};
use oras_csi_core::keys::{DRIVER, annotation};
use serde_json::{Map, Value, json};

use crate::intent::NewMount;
use crate::view::{Container, Csi, PersistentVolume, Pod};

/// A volume as the pod has to have it.
#[derive(Debug)]
pub(crate) struct PlannedVolume<'a> {
    /// The volume's name.
    pub(crate) name: &'a str,
    /// Its position in `spec.volumes`, or `None` where it has to be added.
    pub(crate) index: Option<usize>,
    /// The Secret that kubelet hands to the driver.
    pub(crate) secret: PlannedSecret<'a>,
    /// The canonical attributes.
    pub(crate) attributes: BTreeMap<&'static str, String>,
    /// The mounts to add.
    pub(crate) mounts: &'a [NewMount],
}

/// What happens to `nodePublishSecretRef`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlannedSecret<'a> {
    /// It stays as it is.
    Unchanged,
    /// It is removed.
    None,
    /// It names this Secret.
    Named(&'a str),
}

/// The values of the annotations that the webhook owns; `None` removes one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PlannedAnnotations<'a> {
    /// `oras.land/pinned`.
    pub(crate) pinned: Option<&'a str>,
    /// `oras.land/pinned-patch`.
    pub(crate) patch: Option<&'a str>,
}

/// Plans the operations that give `pod` the volumes, their mounts and the annotations.
pub(crate) fn plan(
    pod: &Pod<'_>,
    volumes: &[PlannedVolume<'_>],
    annotations: PlannedAnnotations<'_>,
) -> Patch {
    let mut plan = Plan(Vec::new());
    plan.volumes(pod, volumes);
    for (position, container) in pod.containers().iter().enumerate() {
        plan.mounts(position, container, volumes);
    }
    plan.annotations(
        pod,
        [(annotation::PINNED, annotations.pinned), (annotation::PINNED_PATCH, annotations.patch)],
    );
    Patch(plan.0)
}

/// Plans the operations that make a `PersistentVolume` canonical, for a claim of `namespace`.
pub(crate) fn plan_persistent(
    current: &PersistentVolume<'_>,
    volume: &PlannedVolume<'_>,
    namespace: &str,
) -> Patch {
    let mut plan = Plan(Vec::new());
    let at = [token("spec"), token("csi")];
    plan.source(&at, Some(&current.csi), volume, |name| json!({"name": name, "namespace": namespace}));
    // A Secret's name without a namespace stays, and gets the namespace of the claim.
    let has_right_name = match volume.secret {
        PlannedSecret::Named(needed) => current.csi.secret == Some(needed),
        PlannedSecret::Unchanged => current.csi.secret.is_some(),
        PlannedSecret::None => false,
    };
    if has_right_name && current.secret_namespace.is_none() {
        let [spec, csi] = at;
        plan.add([spec, csi, token("nodePublishSecretRef"), token("namespace")], json!(namespace));
    }
    Patch(plan.0)
}

struct Plan(Vec<PatchOperation>);

impl Plan {
    fn add<const N: usize>(&mut self, path: [Token<'_>; N], value: Value) {
        self.0.push(PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path), value }));
    }

    fn volumes(&mut self, pod: &Pod<'_>, volumes: &[PlannedVolume<'_>]) {
        let mut has_list = pod.has_volume_list();
        for volume in volumes {
            let Some(index) = volume.index else {
                let mut new = json!({
                    "name": volume.name,
                    "csi": {"driver": DRIVER, "readOnly": true, "volumeAttributes": volume.attributes},
                });
                if let PlannedSecret::Named(secret) = volume.secret {
                    new["csi"]["nodePublishSecretRef"] = json!({"name": secret});
                }
                if has_list {
                    self.add([token("spec"), token("volumes"), token("-")], new);
                } else {
                    self.add([token("spec"), token("volumes")], json!([new]));
                    has_list = true;
                }
                continue;
            };
            let current =
                pod.volumes().iter().find(|one| one.index == index).and_then(|one| one.csi.as_ref());
            let at = [token("spec"), token("volumes"), index.into(), token("csi")];
            self.source(&at, current, volume, |name| json!({"name": name}));
        }
    }

    /// Makes the `csi` source at a path canonical.
    fn source(
        &mut self,
        at: &[Token<'_>],
        current: Option<&Csi<'_>>,
        volume: &PlannedVolume<'_>,
        reference: impl Fn(&str) -> Value,
    ) {
        let field = |name| PointerBuf::from_tokens(at.iter().cloned().chain([token(name)]));
        let mut add =
            |name, value| self.0.push(PatchOperation::Add(AddOperation { path: field(name), value }));
        if current.is_none_or(|csi| !csi.read_only) {
            add("readOnly", json!(true));
        }
        let secret = current.and_then(|csi| csi.secret);
        match volume.secret {
            PlannedSecret::Named(needed) if secret != Some(needed) => {
                add("nodePublishSecretRef", reference(needed));
            }
            PlannedSecret::None if secret.is_some() => {
                let path = field("nodePublishSecretRef");
                self.0.push(PatchOperation::Remove(RemoveOperation { path }));
            }
            _ => {}
        }
        let needed = volume.attributes.iter().map(|(key, value)| (*key, value.as_str()));
        if current.is_none_or(|csi| !csi.attributes.iter().map(|(key, value)| (*key, *value)).eq(needed)) {
            let (path, value) = (field("volumeAttributes"), json!(volume.attributes));
            self.0.push(PatchOperation::Add(AddOperation { path, value }));
        }
    }

    fn mounts(&mut self, position: usize, container: &Container<'_>, volumes: &[PlannedVolume<'_>]) {
        let list =
            || [token("spec"), token(container.list.field()), container.index.into(), token("volumeMounts")];
        for mount in &container.mounts {
            let is_ours = volumes.iter().any(|volume| volume.name == mount.volume);
            if is_ours && !mount.read_only {
                let [spec, containers, index, mounts] = list();
                self.add(
                    [spec, containers, index, mounts, mount.index.into(), token("readOnly")],
                    json!(true),
                );
            }
        }
        let mut new = Vec::new();
        for volume in volumes {
            // They are in the order of the containers.
            let first = volume.mounts.partition_point(|mount| mount.container < position);
            for mount in volume.mounts[first..].iter().take_while(|mount| mount.container == position) {
                let mut value =
                    json!({"name": volume.name, "mountPath": mount.path.as_str(), "readOnly": true});
                if let Some(sub_path) = &mount.sub_path {
                    value["subPath"] = json!(sub_path);
                }
                new.push(value);
            }
        }
        if new.is_empty() {
            return;
        }
        if !container.has_mount_list {
            self.add(list(), Value::Array(new));
            return;
        }
        for mount in new {
            let [spec, containers, index, mounts] = list();
            self.add([spec, containers, index, mounts, token("-")], mount);
        }
    }

    /// Sets the annotations that the webhook owns, and replaces what the user wrote current.
    fn annotations<const N: usize>(&mut self, pod: &Pod<'_>, annotations: [(&'static str, Option<&str>); N]) {
        let at = |key| [token("metadata"), token("annotations"), token(key)];
        let mut new = Map::new();
        for (key, value) in annotations {
            match value {
                value if pod.annotation(key) == value => {}
                None => {
                    let path = PointerBuf::from_tokens(at(key));
                    self.0.push(PatchOperation::Remove(RemoveOperation { path }));
                }
                Some(value) if pod.has_annotations() => self.add(at(key), json!(value)),
                Some(value) => _ = new.insert(key.to_owned(), json!(value)),
            }
        }
        if new.is_empty() {
            return;
        }
        if pod.has_metadata() {
            self.add([token("metadata"), token("annotations")], Value::Object(new));
        } else {
            self.add([token("metadata")], json!({"annotations": new}));
        }
    }
}

/// Returns a token of a JSON pointer, escaped as RFC 6901 requires (`oras.land~1pinned`).
fn token(name: &str) -> Token<'_> {
    Token::new(name)
}
