//! What in a manifest asks for artifacts: a pod, wherever it stands, or a `PersistentVolume`.

use oras_csi_webhook::admit::{Admission, Outcome, VolumePreview};
use oras_csi_webhook::denial::Denial;
use oras_csi_webhook::pod_template::is_persistent_volume;
use serde_json::Value;
use tokio::time::Instant;

use crate::documents::pod_of;
use crate::failure::Failure;

/// One that may ask.
pub(crate) enum Asking<'a> {
    Pod(&'a mut Value),
    PersistentVolume(&'a mut Value),
}

impl<'a> Asking<'a> {
    /// The one in a manifest, or `None` where its kind has none.
    pub(crate) fn of(document: &'a mut Value) -> Result<Option<Self>, Failure> {
        if is_persistent_volume(document) {
            return Ok(Some(Self::PersistentVolume(document)));
        }
        Ok(pod_of(document)?.map(Self::Pod))
    }

    /// What it asks for, without asking any registry.
    pub(crate) async fn asks(
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

    /// What the webhook makes of it.
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

    /// The object, to be changed.
    pub(crate) fn into_object(self) -> &'a mut Value {
        match self {
            Self::Pod(object) | Self::PersistentVolume(object) => object,
        }
    }
}
