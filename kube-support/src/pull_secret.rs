//! Pull secrets: Secrets that hold a docker config.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, Error};

/// The keys of pull secrets, of the types `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`.
pub const DOCKER_CONFIG_KEYS: [&str; 2] = [".dockerconfigjson", ".dockercfg"];

/// A Secret as it was read for its docker config.
pub enum PullSecret {
    /// There is no Secret of that name.
    Missing,
    /// The Secret has neither of [`DOCKER_CONFIG_KEYS`].
    NoDockerConfig,
    /// The docker config, not parsed.
    DockerConfig(Vec<u8>),
}

/// Reads the docker config of a Secret.
pub async fn read_pull_secret(client: Client, namespace: &str, name: &str) -> Result<PullSecret, Error> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let Some(secret) = api.get_opt(name).await? else { return Ok(PullSecret::Missing) };
    let mut data = secret.data.unwrap_or_default();
    let content = DOCKER_CONFIG_KEYS.into_iter().find_map(|key| data.remove(key));
    Ok(content.map_or(PullSecret::NoDockerConfig, |content| PullSecret::DockerConfig(content.0)))
}
