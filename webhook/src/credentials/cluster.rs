//! Secrets and service accounts of a cluster, read when they are needed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Secret as SecretObject, ServiceAccount};
use kube::{Api, Client};
use moka::future::Cache;
use oras_csi_core::credentials::DockerConfig;
use oras_csi_core::display::Shown;

use super::{DOCKER_CONFIG_KEYS, Secret, SecretError, Secrets};

/// How long a service account's list is remembered, and how many are. Secrets themselves are not: whoever mends one
/// tries again at once.
const REMEMBERED: Duration = Duration::from_secs(10);
const MOST_ACCOUNTS: u64 = 10_000;

/// Reads from the API server, with the webhook's own rights.
pub struct ClusterSecrets {
    client: Client,
    accounts: Cache<(String, String), Arc<Vec<String>>>,
}

impl ClusterSecrets {
    /// Reads with this client.
    pub fn new(client: Client) -> Self {
        let accounts = Cache::builder().max_capacity(MOST_ACCOUNTS).time_to_live(REMEMBERED).build();
        Self { client, accounts }
    }
}

#[async_trait]
impl Secrets for ClusterSecrets {
    async fn secret(&self, namespace: &str, name: &str) -> Result<Secret, SecretError> {
        let api: Api<SecretObject> = Api::namespaced(self.client.clone(), namespace);
        let Some(found) = api.get_opt(name).await.map_err(|error| failed(&error))? else {
            return Ok(Secret::Missing);
        };
        let data = found.data.unwrap_or_default();
        let content =
            DOCKER_CONFIG_KEYS.into_iter().find_map(|key| data.get(key)).ok_or(SecretError::Kind)?;
        Ok(Secret::Known(Arc::new(DockerConfig::parse(&content.0)?)))
    }

    async fn of_service_account(&self, namespace: &str, name: &str) -> Result<Vec<String>, SecretError> {
        let ask = async {
            let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
            let found = api.get_opt(name).await.map_err(|error| failed(&error))?;
            let secrets = found.and_then(|account| account.image_pull_secrets).unwrap_or_default();
            let names = secrets.into_iter().map(|secret| secret.name).filter(|name| !name.is_empty());
            Ok(Arc::new(names.collect::<Vec<_>>()))
        };
        let key = (namespace.to_owned(), name.to_owned());
        let found: Result<_, Arc<SecretError>> = self.accounts.try_get_with(key, ask).await;
        found.map(|names| names.to_vec()).map_err(|error| (*error).clone())
    }
}

fn failed(error: &kube::Error) -> SecretError {
    match error {
        kube::Error::Api(answer) if matches!(answer.code, 401 | 403) => {
            SecretError::Forbidden(Shown::new(&answer.message))
        }
        error => SecretError::Unavailable(Shown::new(&error.to_string())),
    }
}
