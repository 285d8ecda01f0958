//! Sets of a cluster, read when they are asked for: a watch would be behind what somebody has just applied.

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::response::reason;
use kube::{Client, Error, ResourceExt as _};
use oras_csi_core::display::Printable;
use serde_json::json;
use tokio::time::timeout;

use super::object::{ArtifactSet, ClusterArtifactSet};
use super::{SetError, SetStore};
use crate::FIELD_MANAGER;
use crate::policy::Labels;

/// How long one request may take.
const LONGEST_REQUEST: Duration = Duration::from_secs(5);
/// How many names are looked at for one that was meant.
const MOST_NAMES: u32 = 200;

/// Reads and makes the objects of a cluster.
pub struct ClusterSets {
    client: Client,
}

impl ClusterSets {
    /// With this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

/// Whatever the API server says, within the time for it.
async fn asked<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, SetError> {
    match timeout(LONGEST_REQUEST, request).await {
        Ok(answer) => answer.map_err(|error| SetError::of(&error)),
        Err(_) => Err(SetError::Unavailable("no answer in time".into())),
    }
}

#[async_trait]
impl SetStore for ClusterSets {
    async fn cluster_set(&self, name: &str) -> Result<Option<ClusterArtifactSet>, SetError> {
        asked(Api::all(self.client.clone()).get_opt(name)).await
    }

    async fn own_set(&self, namespace: &str, name: &str) -> Result<Option<ArtifactSet>, SetError> {
        asked(Api::namespaced(self.client.clone(), namespace).get_opt(name)).await
    }

    async fn labels(&self, namespace: &str) -> Result<Labels, SetError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = asked(api.get_metadata(namespace)).await?;
        Ok(Labels::Known(found.labels().clone()))
    }

    async fn names(&self, namespace: &str) -> Vec<String> {
        let params = ListParams::default().limit(MOST_NAMES);
        let cluster: Api<ClusterArtifactSet> = Api::all(self.client.clone());
        let own: Api<ArtifactSet> = Api::namespaced(self.client.clone(), namespace);
        let (cluster, own) =
            tokio::join!(asked(cluster.list_metadata(&params)), asked(own.list_metadata(&params)));
        let cluster = cluster.into_iter().flatten().map(|set| set.name_any());
        cluster.chain(own.into_iter().flatten().map(|set| set.name_any())).collect()
    }

    async fn make(&self, namespace: &str, set: &ArtifactSet) -> Result<Option<ArtifactSet>, SetError> {
        let api: Api<ArtifactSet> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let name = set.name_any();
        match timeout(LONGEST_REQUEST, api.create(&params, set)).await {
            Err(_) => Err(SetError::Unavailable("no answer in time".into())),
            Ok(Ok(made)) => {
                tracing::info!(namespace, set = name, "made an ArtifactSet");
                self.tell(&api, &made, set).await;
                Ok(None)
            }
            Ok(Err(Error::Api(status))) if status.reason == reason::ALREADY_EXISTS => {
                match self.own_set(namespace, &name).await? {
                    Some(there) => Ok(Some(there)),
                    None => Err(SetError::Unavailable("it was deleted while it was looked at".into())),
                }
            }
            Ok(Err(Error::Api(status))) if (400..500).contains(&status.code) && status.code != 429 => {
                Err(SetError::Refusal(Printable::new(&status.message)))
            }
            Ok(Err(error)) => Err(SetError::of(&error)),
        }
    }
}

impl ClusterSets {
    /// Says in the status of a set that was just made what its recipe is, so that the next pod need not wait; the
    /// controller will where this fails.
    async fn tell(&self, api: &Api<ArtifactSet>, made: &ArtifactSet, set: &ArtifactSet) {
        let Some(status) = &set.status else { return };
        let patch = json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": made.metadata.resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]);
        let Ok(patch) = serde_json::from_value(patch) else { return };
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let (name, patch) = (made.name_any(), Patch::<()>::Json(patch));
        if let Err(error) = asked(api.patch_status(&name, &params, &patch)).await {
            tracing::debug!(set = made.name_any(), %error, "the controller says what it stands for");
        }
    }
}
