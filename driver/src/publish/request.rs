//! What kubelet asks for, read once: whoever holds a [`PublishRequest`] need not check it again.

use std::collections::HashMap;
use std::sync::Arc;

use oras_csi_core::credentials::{DockerConfig, DockerConfigError};
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_store::TreeKey;

use super::PublishError;
use crate::mount::Target;
use crate::proto::csi::NodePublishVolumeRequest;
use crate::proto::csi::volume_capability::AccessType;
use crate::volume_records::Record;

/// The keys of pull secrets (Kubernetes, `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`).
const DOCKER_CONFIG_JSON: &str = ".dockerconfigjson";
const DOCKER_CONFIG: &str = ".dockercfg";
/// Kubelet's own attributes: the pod's namespace, its uid, and whether the pod has the volume inline.
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// A volume that can be published: canonical, for a pod of a namespace, at a target.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    volume: String,
    target: Target,
    namespace: String,
    pod_uid: String,
    is_inline: bool,
    canonical: CanonicalVolume,
    secret: Option<Arc<DockerConfig>>,
}

/// Why a Secret holds no credentials for registries. Never says what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Another kind of Secret.
    #[error("it has no {DOCKER_CONFIG_JSON}: make one with `kubectl create secret docker-registry`")]
    Kind,
    /// It cannot be read.
    #[error("{0}")]
    Config(#[from] DockerConfigError),
}

impl PublishRequest {
    /// Reads the fields of a request. A wish to write is not granted, and not an error: every volume is
    /// read-only.
    pub fn parse(request: &NodePublishVolumeRequest) -> Result<Self, PublishError> {
        if request.volume_id.is_empty() {
            return Err(PublishError::Missing("volume_id"));
        }
        if request.target_path.is_empty() {
            return Err(PublishError::Missing("target_path"));
        }
        let capability = request.volume_capability.as_ref();
        let capability = capability.ok_or(PublishError::Missing("volume_capability"))?;
        if matches!(capability.access_type, Some(AccessType::Block(_))) {
            return Err(PublishError::Block);
        }
        let target = Target::parse(&request.target_path)?;
        let namespace = namespace(&request.volume_context)?;
        let attributes = request.volume_context.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let canonical = CanonicalVolume::from_attributes(attributes)?;
        let secret = secret(&request.secrets)?;
        let (volume, context) = (request.volume_id.clone(), &request.volume_context);
        let pod_uid = context.get(POD_UID).cloned().unwrap_or_default();
        let is_inline = context.get(EPHEMERAL).is_some_and(|ephemeral| ephemeral == "true");
        Ok(Self { volume, target, namespace, pod_uid, is_inline, canonical, secret })
    }

    /// Kubelet's handle.
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// Where it is to appear.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The pull secret that came with it.
    pub fn secret(&self) -> Option<&Arc<DockerConfig>> {
        self.secret.as_ref()
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod's uid, as kubelet says it; empty where it says none.
    pub(super) fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// Whether the pod has the volume inline, and not by a claim.
    pub(super) fn is_inline(&self) -> bool {
        self.is_inline
    }

    /// The volume as it was admitted.
    pub(super) fn canonical(&self) -> &CanonicalVolume {
        &self.canonical
    }

    /// What is written down about it once it has this tree.
    pub(super) fn record(&self, key: &TreeKey) -> Record {
        Record::new(self.volume(), self.target(), key, self.id(), self.namespace()).with_recipe(self.recipe())
    }

    /// The volume's safe id.
    pub fn id(&self) -> &str {
        self.canonical.id().as_str()
    }

    /// What is in it.
    pub fn recipe(&self) -> &PinnedRecipe {
        self.canonical.recipe()
    }
}

/// What kubelet gives of the Secret that `nodePublishSecretRef` names.
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
    namespace.cloned().ok_or(PublishError::Namespace(POD_NAMESPACE))
}
