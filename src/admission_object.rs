//! The objects that the webhook admits: the pod in a manifest, or a `PersistentVolume`.

use oras_csi_webhook::admit::{Admission, Outcome, VolumePreview};
use oras_csi_webhook::denial::Denial;
use oras_csi_webhook::pod_template::is_persistent_volume;
use serde_json::Value;
use tokio::time::Instant;

use crate::exit_status::Failure;
use crate::yaml_documents::pod_of;

/// An object that can request artifacts.
pub(crate) enum AdmissionObject<'a> {
    /// A pod, or the pod template of a workload.
    Pod(&'a mut Value),
    PersistentVolume(&'a mut Value),
}

impl<'a> AdmissionObject<'a> {
    /// Finds the object in a manifest; returns `None` for a kind that has no pod.
    pub(crate) fn find(document: &'a mut Value) -> Result<Option<Self>, Failure> {
        if is_persistent_volume(document) {
            return Ok(Some(Self::PersistentVolume(document)));
        }
        Ok(pod_of(document)?.map(Self::Pod))
    }

    /// Returns the volumes that the object requests, without any registry request.
    pub(crate) async fn requested_volumes(
        &self,
        admission: &Admission,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Vec<VolumePreview>, Denial> {
        match self {
            Self::Pod(pod) => admission.preview().pod(pod, namespace, deadline).await,
            Self::PersistentVolume(volume) => admission.preview().persistent_volume(volume, deadline).await,
        }
    }

    /// Admits the object as the webhook does.
    pub(crate) async fn admit(
        &self,
        admission: &Admission,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Outcome, Denial> {
        match self {
            Self::Pod(pod) => admission.admit_pod(pod, namespace, deadline).await,
            Self::PersistentVolume(volume) => admission.admit_persistent_volume(volume, deadline).await,
        }
    }

    /// Returns the object, for the JSON patch.
    pub(crate) fn into_object(self) -> &'a mut Value {
        match self {
            Self::Pod(object) | Self::PersistentVolume(object) => object,
        }
    }
}
