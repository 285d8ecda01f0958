//! Secrets and service accounts of a cluster, read when a request needs them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use moka::future::Cache;
use oras_csi_core::credentials::DockerConfig;
use oras_csi_core::display::Shown;
use oras_csi_core::dns_name::ObjectName;
use oras_csi_kube_support::errors::forbidden_message;
use oras_csi_kube_support::pull_secret::{PullSecret, read_pull_secret};

use super::{Secret, SecretError, Secrets};

/// How long the list of a service account is cached. Secrets are not cached: a user who corrects one retries at once.
const ACCOUNT_TTL: Duration = Duration::from_secs(10);
/// How many service accounts are cached.
const MAX_ACCOUNTS: u64 = 10_000;

/// Reads Secrets and service accounts from the API server, with the permissions of the webhook.
pub struct ClusterSecrets {
    client: Client,
    accounts: Cache<(String, String), Arc<Vec<String>>>,
}

impl ClusterSecrets {
    /// Makes a reader with this client.
    pub fn new(client: Client) -> Self {
        let accounts = Cache::builder().max_capacity(MAX_ACCOUNTS).time_to_live(ACCOUNT_TTL).build();
        Self { client, accounts }
    }
}

#[async_trait]
impl Secrets for ClusterSecrets {
    async fn secret(&self, namespace: &str, name: &ObjectName) -> Result<Secret, SecretError> {
        let found = read_pull_secret(self.client.clone(), namespace, name).await;
        match found.map_err(|error| failed(&error))? {
            PullSecret::Missing => Ok(Secret::Missing),
            PullSecret::NoDockerConfig => Err(SecretError::Kind),
            PullSecret::DockerConfig(content) => Ok(Secret::Known(Arc::new(DockerConfig::parse(&content)?))),
        }
    }

    async fn of_service_account(
        &self,
        namespace: &str,
        name: &ObjectName,
    ) -> Result<Vec<String>, SecretError> {
        let request = async {
            let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
            let found = api.get_opt(name).await.map_err(|error| failed(&error))?;
            let secrets = found.and_then(|account| account.image_pull_secrets).unwrap_or_default();
            let names = secrets.into_iter().map(|secret| secret.name).filter(|name| !name.is_empty());
            Ok(Arc::new(names.collect::<Vec<_>>()))
        };
        let key = (namespace.to_owned(), name.to_string());
        let found: Result<_, Arc<SecretError>> = self.accounts.try_get_with(key, request).await;
        found.map(|names| names.to_vec()).map_err(|error| (*error).clone())
    }
}

fn failed(error: &kube::Error) -> SecretError {
    match forbidden_message(error) {
        Some(message) => SecretError::Forbidden(Shown::new(message)),
        None => SecretError::Unavailable(Shown::new(&error.to_string())),
    }
}
