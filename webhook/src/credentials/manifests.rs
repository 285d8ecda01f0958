//! Secrets and service accounts in a stream of manifests.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oras_csi_core::credentials::DockerConfig;
use oras_csi_core::dns_name::ObjectName;
use oras_csi_kube_support::pull_secret::DOCKER_CONFIG_KEYS;
use serde_json::Value;

use super::{Secret, SecretError, Secrets};

/// The Secrets and service accounts in a stream of manifests. Other Secrets are unknown.
#[derive(Clone, Debug, Default)]
pub struct ManifestSecrets {
    secrets: BTreeMap<(String, String), Result<Arc<DockerConfig>, SecretError>>,
    accounts: BTreeMap<(String, String), Vec<String>>,
}

impl ManifestSecrets {
    /// Adds a manifest if it is a Secret or a service account. `namespace` is used for a manifest without one.
    pub fn take(&mut self, manifest: &Value, namespace: &str) {
        let Some(name) = manifest["metadata"]["name"].as_str() else { return };
        if manifest["apiVersion"] != "v1" {
            return;
        }
        let namespace = manifest["metadata"]["namespace"].as_str().unwrap_or(namespace);
        let key = (namespace.to_owned(), name.to_owned());
        match manifest["kind"].as_str() {
            Some("Secret") => {
                self.secrets.insert(key, read(manifest));
            }
            Some("ServiceAccount") => {
                let names = manifest["imagePullSecrets"].as_array().into_iter().flatten();
                let names = names.filter_map(|one| one["name"].as_str().map(str::to_owned));
                self.accounts.insert(key, names.collect());
            }
            _ => {}
        }
    }
}

/// Reads the docker config of a Secret. `stringData` takes precedence over `data`, as in the API server.
fn read(manifest: &Value) -> Result<Arc<DockerConfig>, SecretError> {
    for key in DOCKER_CONFIG_KEYS {
        let plain = manifest["stringData"][key].as_str().map(|text| text.as_bytes().to_vec());
        let encoded = || STANDARD.decode(manifest["data"][key].as_str()?).ok();
        if let Some(content) = plain.or_else(encoded) {
            return Ok(Arc::new(DockerConfig::parse(&content)?));
        }
    }
    Err(SecretError::Kind)
}

#[async_trait]
impl Secrets for ManifestSecrets {
    async fn secret(&self, namespace: &str, name: &ObjectName) -> Result<Secret, SecretError> {
        match self.secrets.get(&(namespace.to_owned(), name.to_string())) {
            Some(Ok(config)) => Ok(Secret::Known(Arc::clone(config))),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(Secret::Unknown),
        }
    }

    async fn of_service_account(
        &self,
        namespace: &str,
        name: &ObjectName,
    ) -> Result<Vec<String>, SecretError> {
        Ok(self.accounts.get(&(namespace.to_owned(), name.to_string())).cloned().unwrap_or_default())
    }
}
