//! Secrets and service accounts that manifests have.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oras_csi_core::credentials::DockerConfig;
use serde_json::Value;

use super::{DOCKER_CONFIG_KEYS, Secret, SecretError, Secrets};

/// What a stream of manifests says; of everything else nothing is known.
#[derive(Clone, Debug, Default)]
pub struct StatedSecrets {
    secrets: BTreeMap<(String, String), Result<Arc<DockerConfig>, SecretError>>,
    accounts: BTreeMap<(String, String), Vec<String>>,
}

impl StatedSecrets {
    /// Takes a manifest in, if it is a Secret or a service account; `namespace` is that of one that names none.
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

/// `stringData` wins over `data`, as in the API server.
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
impl Secrets for StatedSecrets {
    async fn secret(&self, namespace: &str, name: &str) -> Result<Secret, SecretError> {
        match self.secrets.get(&(namespace.to_owned(), name.to_owned())) {
            Some(Ok(config)) => Ok(Secret::Known(Arc::clone(config))),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(Secret::Unknown),
        }
    }

    async fn of_service_account(&self, namespace: &str, name: &str) -> Result<Vec<String>, SecretError> {
        Ok(self.accounts.get(&(namespace.to_owned(), name.to_owned())).cloned().unwrap_or_default())
    }
}
