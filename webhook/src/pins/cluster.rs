//! Pins as objects of a cluster.

use std::time::Duration;

use async_trait::async_trait;
use kube::api::{Api, PostParams};
use kube::core::response::reason;
use kube::{Client, Error};
use oras_csi_core::digest::Digest;
use tokio::time::timeout;

use super::error::is_unknown_kind;
use super::object::ArtifactPin;
use super::{PinAction, PinError, PinKey, PinPlace, Pins};
use crate::FIELD_MANAGER;

/// How long one request may take. A client that was made with kube's defaults asks again for minutes by itself where
/// the API server says 429, 503 or 504.
const LONGEST_REQUEST: Duration = Duration::from_secs(10);
/// How often a pin is made that is gone again when it should be read.
const MOST_TRIES: usize = 3;

/// Reads and makes `ArtifactPin` objects.
pub struct ClusterPins {
    client: Client,
}

impl ClusterPins {
    /// With this client.
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
        let found = timeout(LONGEST_REQUEST, api.get(&name)).await.map_err(|_| PinError::TooLate)?;
        match found {
            Ok(pin) => believed(&pin, namespace, &name, key).map(Some),
            Err(Error::Api(status)) if status.code == 404 && !is_unknown_kind(&status) => Ok(None),
            Err(error) => Err(PinError::of(PinAction::Get, namespace, &name, &error)),
        }
    }

    async fn keep(&self, namespace: &str, key: &PinKey, digest: &Digest) -> Result<Digest, PinError> {
        let api = self.api(namespace);
        let pin = ArtifactPin::of(key, digest);
        let name = key.object_name();
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        for _ in 0..MOST_TRIES {
            let made = timeout(LONGEST_REQUEST, api.create(&params, &pin)).await;
            match made.map_err(|_| PinError::TooLate)? {
                Ok(made) => {
                    tracing::info!(namespace, pin = name, reference = %key.subject(), %digest, "pinned");
                    return believed(&made, namespace, &name, key);
                }
                Err(Error::Api(status)) if status.reason == reason::ALREADY_EXISTS => {}
                Err(error) => return Err(PinError::of(PinAction::Create, namespace, &name, &error)),
            }
            if let Some(digest) = self.find(namespace, key).await? {
                return Ok(digest);
            }
        }
        Err(PinError::Vanishing { place: PinPlace::new(namespace, &name), tries: MOST_TRIES })
    }
}

fn believed(pin: &ArtifactPin, namespace: &str, name: &str, key: &PinKey) -> Result<Digest, PinError> {
    pin.digest_for(key)
        .map_err(|mismatch| PinError::Mismatch { place: PinPlace::new(namespace, name), mismatch })
}
