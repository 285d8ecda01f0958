//! Sets of a cluster, read from the API server for each request: a watch could lag behind an object that a user has just
//! applied.

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams};
use kube::{Client, Error, ResourceExt as _};
use oras_csi_core::display::Printable;
use oras_csi_kube_support::call::{CallError, call};
use oras_csi_kube_support::status::{ObjectVersion, replace_status};
use oras_csi_kube_support::writes::create_if_absent;

use super::object::{ArtifactSet, ClusterArtifactSet};
use super::{SetError, SetStore};
use crate::FIELD_MANAGER;
use crate::policy::Labels;

/// How long one request can take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How many names are compared with a name that does not exist.
const MAX_NAMES: u32 = 200;

/// Reads and creates the sets of a cluster.
pub struct ClusterSets {
    client: Client,
}

impl ClusterSets {
    /// Makes a store with this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

async fn request<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, SetError> {
    call(REQUEST_TIMEOUT, request).await.map_err(|error| SetError::of_call(&error))
}

#[async_trait]
impl SetStore for ClusterSets {
    async fn cluster_set(&self, name: &str) -> Result<Option<ClusterArtifactSet>, SetError> {
        request(Api::all(self.client.clone()).get_opt(name)).await
    }

    async fn namespaced_set(&self, namespace: &str, name: &str) -> Result<Option<ArtifactSet>, SetError> {
        request(Api::namespaced(self.client.clone(), namespace).get_opt(name)).await
    }

    async fn labels(&self, namespace: &str) -> Result<Labels, SetError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = request(api.get_metadata(namespace)).await?;
        Ok(Labels::Known(found.labels().clone()))
    }

    async fn names(&self, namespace: &str) -> Vec<String> {
        let params = ListParams::default().limit(MAX_NAMES);
        let cluster: Api<ClusterArtifactSet> = Api::all(self.client.clone());
        let namespaced: Api<ArtifactSet> = Api::namespaced(self.client.clone(), namespace);
        let (cluster, namespaced) =
            tokio::join!(request(cluster.list_metadata(&params)), request(namespaced.list_metadata(&params)));
        let cluster = cluster.into_iter().flatten().map(|set| set.name_any());
        cluster.chain(namespaced.into_iter().flatten().map(|set| set.name_any())).collect()
    }

    async fn create(&self, namespace: &str, set: &ArtifactSet) -> Result<Option<ArtifactSet>, SetError> {
        let api: Api<ArtifactSet> = Api::namespaced(self.client.clone(), namespace);
        let name = set.name_any();
        match call(REQUEST_TIMEOUT, create_if_absent(&api, set, FIELD_MANAGER)).await {
            Ok(Some(created)) => {
                tracing::info!(namespace, set = name, "created an ArtifactSet");
                write_first_status(&api, &created, set).await;
                Ok(None)
            }
            Ok(None) => match self.namespaced_set(namespace, &name).await? {
                Some(existing) => Ok(Some(existing)),
                None => Err(SetError::Unavailable("it was deleted before it could be read".into())),
            },
            Err(CallError::Api(error)) => match *error {
                Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
                    Err(SetError::Refusal(Printable::new(&status.message)))
                }
                error => Err(SetError::of(&error)),
            },
            Err(error @ CallError::Timeout) => Err(SetError::of_call(&error)),
        }
    }
}

/// Writes the status of a set that was just created, so that the next pod does not wait for the controller. If the write
/// fails, the controller writes the status.
async fn write_first_status(api: &Api<ArtifactSet>, created: &ArtifactSet, set: &ArtifactSet) {
    let Some(status) = &set.status else { return };
    let version = ObjectVersion::of(&created.metadata);
    if let Err(error) = request(replace_status(api, &version, status, FIELD_MANAGER)).await {
        tracing::debug!(set = version.name, %error, "cannot write the first status of a set; the controller writes it");
    }
}
