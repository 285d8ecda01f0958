//! Pins as objects of a cluster.

use std::time::Duration;

use async_trait::async_trait;
use kube::api::Api;
use kube::{Client, Error};
use oras_csi_core::digest::Digest;
use oras_csi_kube_support::errors::is_unknown_kind;
use oras_csi_kube_support::verb::Verb;
use oras_csi_kube_support::writes::create_if_absent;
use tokio::time::timeout;

use super::object::ArtifactPin;
use super::{PinError, PinKey, PinPlace, Pins};
use crate::FIELD_MANAGER;

/// How long one request can take. A client with the defaults of kube retries by itself for minutes when the API server
/// answers 429, 503 or 504.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the webhook creates a pin that is deleted before it can be read.
const MAX_TRIES: usize = 3;

/// Reads and creates `ArtifactPin` objects.
pub struct ClusterPins {
    client: Client,
}

impl ClusterPins {
    /// Makes a store with this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn api(&self, namespace: &str) -> Api<ArtifactPin> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

#[async_trait]
impl Pins for ClusterPins {
    async fn find(&self, namespace: &str, key: &PinKey) -> Result<Option<Digest>, PinError> {
        let name = key.object_name();
        let api = self.api(namespace);
        let found = timeout(REQUEST_TIMEOUT, api.get(&name)).await.map_err(|_| PinError::TooLate)?;
        match found {
            Ok(pin) => checked_digest(&pin, namespace, &name, key).map(Some),
            Err(Error::Api(status)) if status.code == 404 && !is_unknown_kind(&status) => Ok(None),
            Err(error) => Err(PinError::of(Verb::Get, namespace, &name, &error)),
        }
    }

    async fn get_or_create(
        &self,
        namespace: &str,
        key: &PinKey,
        digest: &Digest,
    ) -> Result<Digest, PinError> {
        let api = self.api(namespace);
        let pin = ArtifactPin::new_for(key, digest);
        let name = key.object_name();
        for _ in 0..MAX_TRIES {
            let created = timeout(REQUEST_TIMEOUT, create_if_absent(&api, &pin, FIELD_MANAGER)).await;
            let created = created.map_err(|_| PinError::TooLate)?;
            match created.map_err(|error| PinError::of(Verb::Create, namespace, &name, &error))? {
                Some(created) => {
                    tracing::info!(namespace, pin = name, reference = %key.subject(), %digest, "created an ArtifactPin");
                    // Another admission webhook may have changed it.
                    return checked_digest(&created, namespace, &name, key);
                }
                None => {
                    if let Some(digest) = self.find(namespace, key).await? {
                        return Ok(digest);
                    }
                }
            }
        }
        Err(PinError::Vanishing { place: PinPlace::new(namespace, &name), tries: MAX_TRIES })
    }
}

fn checked_digest(pin: &ArtifactPin, namespace: &str, name: &str, key: &PinKey) -> Result<Digest, PinError> {
    pin.digest_for(key)
        .map_err(|mismatch| PinError::Mismatch { place: PinPlace::new(namespace, name), mismatch })
}
