//! Parses and validates a publish request of kubelet. A [`PublishRequest`] needs no further checks of its fields.

use std::collections::HashMap;
use std::sync::Arc;

use oras_csi_core::credentials::{DockerConfig, DockerConfigError};
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::trace::TraceParent;
use oras_csi_core::volume::{CanonicalVolume, trace_parent};
use oras_csi_store::TreeKey;

use super::{PodName, PublishError};
use crate::mount::Target;
use crate::proto::csi::NodePublishVolumeRequest;
use crate::proto::csi::volume_capability::AccessType;
use crate::volume_records::Record;

/// The keys of pull secrets (Kubernetes, `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`).
const DOCKER_CONFIG_JSON: &str = ".dockerconfigjson";
const DOCKER_CONFIG: &str = ".dockercfg";
/// Kubelet's attributes: the pod's namespace, name and uid, and whether the volume is inline in the pod
/// (`podInfoOnMount` of the CSIDriver object).
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// A valid publish request: a canonical volume, for a pod of a namespace, at a target.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    volume: String,
    target: Target,
    namespace: String,
    pod_name: Option<String>,
    pod_uid: String,
    is_inline: bool,
    canonical: CanonicalVolume,
    trace: Option<TraceParent>,
    secret: Option<Arc<DockerConfig>>,
}

/// Why the Secret of a request has no credentials for registries. The message never contains data of the Secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The Secret has another type.
    #[error("it has no key {DOCKER_CONFIG_JSON}. Create it with `kubectl create secret docker-registry`")]
    Kind,
    /// The Docker config is invalid.
    #[error("{0}. Create it again with `kubectl create secret docker-registry`")]
    Config(#[from] DockerConfigError),
}

impl PublishRequest {
    /// Parses a request. A request for a writable volume is not an error: every volume is mounted read-only.
    pub fn parse(request: &NodePublishVolumeRequest) -> Result<Self, PublishError> {
        if request.volume_id.is_empty() {
            return Err(PublishError::MissingField("volume_id"));
        }
        if request.target_path.is_empty() {
            return Err(PublishError::MissingField("target_path"));
        }
        let capability = request.volume_capability.as_ref();
        let capability = capability.ok_or(PublishError::MissingField("volume_capability"))?;
        if matches!(capability.access_type, Some(AccessType::Block(_))) {
            return Err(PublishError::Block);
        }
        let target = Target::parse(&request.target_path)?;
        let namespace = namespace(&request.volume_context)?;
        let attributes = || request.volume_context.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let canonical = CanonicalVolume::from_attributes(attributes())?;
        let trace = trace_parent(attributes());
        let secret = secret(&request.secrets)?;
        let (volume, context) = (request.volume_id.clone(), &request.volume_context);
        let pod_name = context.get(POD_NAME).cloned();
        let pod_uid = context.get(POD_UID).cloned().unwrap_or_default();
        let is_inline = context.get(EPHEMERAL).is_some_and(|ephemeral| ephemeral == "true");
        Ok(Self { volume, target, namespace, pod_name, pod_uid, is_inline, canonical, trace, secret })
    }

    /// Returns kubelet's handle of the volume.
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// Returns where the volume must be mounted.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns the pull secret of the request.
    pub fn secret(&self) -> Option<&Arc<DockerConfig>> {
        self.secret.as_ref()
    }

    /// Returns the pod's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the pod as messages name it.
    pub fn pod(&self) -> PodName {
        PodName::new(&self.namespace, self.pod_name.as_deref())
    }

    /// Returns the pod's name, if kubelet's attributes have it.
    pub(crate) fn pod_name(&self) -> Option<&str> {
        self.pod_name.as_deref()
    }

    /// Returns the pod's uid in kubelet's attributes; empty if there is none.
    pub(crate) fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// Returns the trace of the pod's admission, if the volume carries one.
    pub(crate) fn trace(&self) -> Option<TraceParent> {
        self.trace
    }

    /// Reports whether the volume is inline in the pod, and not bound by a PersistentVolumeClaim.
    pub(super) fn is_inline(&self) -> bool {
        self.is_inline
    }

    /// Returns the canonical volume.
    pub(super) fn canonical(&self) -> &CanonicalVolume {
        &self.canonical
    }

    /// Returns the record of this volume with its tree.
    pub(super) fn record(&self, key: &TreeKey) -> Record {
        Record::new(self.volume(), self.target(), key, self.id(), self.namespace())
            .with_pod(self.pod_name.as_deref())
            .with_recipe(self.recipe())
    }

    /// Returns the volume's id, which is safe in file names and messages.
    pub fn id(&self) -> &str {
        self.canonical.id().as_str()
    }

    /// Returns the recipe of the volume.
    pub fn recipe(&self) -> &PinnedRecipe {
        self.canonical.recipe()
    }
}

/// Parses the data of the Secret that `nodePublishSecretRef` names.
fn secret(secrets: &HashMap<String, String>) -> Result<Option<Arc<DockerConfig>>, SecretError> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let text = [DOCKER_CONFIG_JSON, DOCKER_CONFIG].into_iter().find_map(|key| secrets.get(key));
    let config = DockerConfig::parse(text.ok_or(SecretError::Kind)?.as_bytes())?;
    Ok(Some(Arc::new(config)))
}

fn namespace(context: &HashMap<String, String>) -> Result<String, PublishError> {
    let namespace = context.get(POD_NAMESPACE).filter(|namespace| !namespace.is_empty());
    namespace.cloned().ok_or(PublishError::MissingNamespace(POD_NAMESPACE))
}
