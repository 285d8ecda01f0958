//! Pull secrets: which of them a pod may use, in which order, and what is in them.
//!
//! First the one that is named for the volume, then the pod's own `imagePullSecrets`, then those of its service
//! account; behind them stand the administrator's credentials, and nobody's. Only Secrets that a pod names are
//! read, and only for a pod that asks for an artifact: RBAC cannot say so, so it is this file's business.

mod cluster;
mod stated;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use oras_csi_core::credentials::{Administrator, DockerConfig, DockerConfigError};
use oras_csi_core::display::Shown;
use oras_csi_core::registry::{Keyring, Source};
use tokio::time::{Instant, timeout_at};

use crate::denial::{At, Code, Denial};
use crate::view::Pod;

pub use cluster::ClusterSecrets;
pub use stated::StatedSecrets;

/// More pull secrets of a pod are not read.
const MOST_SECRETS: usize = 16;
/// The service account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// The keys of pull secrets (`kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`).
pub(crate) const DOCKER_CONFIG_KEYS: [&str; 2] = [".dockerconfigjson", ".dockercfg"];

/// What is known of a Secret.
#[derive(Clone, Debug)]
pub enum Secret {
    /// What is in it.
    Known(Arc<DockerConfig>),
    /// There is none of that name.
    Missing,
    /// Nobody here can say: the cluster has it, or not.
    Unknown,
}

/// Why a Secret cannot be used. Never says what is in it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SecretError {
    /// The webhook has no right to it.
    #[error("the webhook has no right to read it ({0})")]
    Forbidden(Shown),
    /// The API server does not say.
    #[error("it cannot be read ({0})")]
    Unavailable(Shown),
    /// Another kind of Secret.
    #[error("it has no .dockerconfigjson")]
    Kind,
    /// It cannot be parsed.
    #[error("{0}")]
    Config(#[from] DockerConfigError),
}

/// Knows Secrets and service accounts.
#[async_trait]
pub trait Secrets: Send + Sync + 'static {
    /// A pull secret.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Secret, SecretError>;
    /// The names of a service account's `imagePullSecrets`.
    async fn of_service_account(&self, namespace: &str, name: &str) -> Result<Vec<String>, SecretError>;
}

/// Nobody reads any Secret: what a pod names is said to be out of reach, and its service account to have none.
#[derive(Clone, Copy, Debug)]
pub struct NoSecrets;

#[async_trait]
impl Secrets for NoSecrets {
    async fn secret(&self, _: &str, _: &str) -> Result<Secret, SecretError> {
        Err(SecretError::Forbidden(Shown::new("it runs without --read-pull-secrets")))
    }

    async fn of_service_account(&self, _: &str, _: &str) -> Result<Vec<String>, SecretError> {
        Ok(Vec::new())
    }
}

/// Where credentials come from.
pub struct CredentialSources {
    /// Pull secrets.
    pub secrets: Box<dyn Secrets>,
    /// What the administrator gave.
    pub administrator: Option<Administrator>,
}

impl Default for CredentialSources {
    fn default() -> Self {
        Self { secrets: Box::new(StatedSecrets::default()), administrator: None }
    }
}

/// The pull secrets of one pod, read.
pub(crate) struct Purse {
    read: BTreeMap<String, Result<Secret, SecretError>>,
    /// The pod's, then its service account's.
    order: Vec<String>,
    administrator: Option<Administrator>,
}

impl CredentialSources {
    /// Reads what a pod of a namespace names, with those that are named for its volumes; a volume without a pod has
    /// those alone.
    pub(crate) async fn open(
        &self,
        pod: Option<&Pod<'_>>,
        namespace: &str,
        named: impl Iterator<Item = &str>,
        deadline: Instant,
    ) -> Purse {
        let mut order: Vec<String> = Vec::new();
        if let Some(pod) = pod {
            let account = pod.service_account().unwrap_or(DEFAULT_ACCOUNT);
            let of_account = timeout_at(deadline, self.secrets.of_service_account(namespace, account)).await;
            let of_account = of_account.unwrap_or_else(|_| Err(too_late())).unwrap_or_else(|error| {
                tracing::warn!(namespace, account, %error, "the pull secrets of a service account are not known");
                Vec::new()
            });
            for name in pod.image_pull_secrets().iter().map(|name| (*name).to_owned()).chain(of_account) {
                if order.len() < MOST_SECRETS && !order.contains(&name) {
                    order.push(name);
                }
            }
        }
        let mut wanted: Vec<&str> = named.collect();
        wanted.extend(order.iter().map(String::as_str));
        wanted.sort_unstable();
        wanted.dedup();
        let reads = wanted.into_iter().map(|name| async move {
            let read = timeout_at(deadline, self.secrets.secret(namespace, name)).await;
            (name.to_owned(), read.unwrap_or_else(|_| Err(too_late())))
        });
        let read = futures_util::future::join_all(reads).await.into_iter().collect();
        Purse { read, order, administrator: self.administrator.clone() }
    }
}

fn too_late() -> SecretError {
    SecretError::Unavailable(Shown::new("the API server had not answered in time"))
}

impl Purse {
    /// The credentials for a volume, in their order. The Secret that is named for it must be there; of the others
    /// those are taken that can be, as kubelet does.
    pub(crate) fn keyring(&self, at: At<'_>, named: Option<&str>) -> Result<Keyring, Denial> {
        let mut keyring = Keyring::new(self.administrator.clone());
        if let Some(name) = named {
            match self.read.get(name) {
                Some(Ok(Secret::Known(config))) => {
                    keyring = keyring.with_secret(Source::Secret(name.to_owned()), Arc::clone(config));
                }
                // Who renders has the pod, and not its Secrets: their own credentials stand in.
                Some(Ok(Secret::Unknown)) => {
                    keyring = keyring.with_substitute_for(Source::Secret(name.to_owned()))
                }
                Some(Ok(Secret::Missing)) | None => {
                    let rule = "names a Secret that does not exist in the pod's namespace";
                    let instead =
                        format!("make it: kubectl create secret docker-registry {}", Shown::new(name));
                    return Err(Denial::new(Code::NotFound, at, Some(name), rule, instead));
                }
                Some(Err(error)) => return Err(unusable(at, name, error)),
            }
        }
        for name in self.order.iter().filter(|name| Some(name.as_str()) != named) {
            match self.read.get(name) {
                Some(Ok(Secret::Known(config))) => {
                    keyring = keyring.with_secret(Source::Secret(name.clone()), Arc::clone(config));
                }
                Some(Err(error)) => {
                    tracing::warn!(secret = name, %error, "a pull secret of a pod is passed over");
                }
                _ => {}
            }
        }
        Ok(keyring)
    }

    /// Pull secrets that could not be used, in words: a refusal may be because of them.
    pub(crate) fn problems(&self) -> Option<String> {
        let problems = self.read.iter().filter_map(|(name, read)| {
            let name = Shown::new(name);
            match read {
                Err(error) => Some(format!("secret {name} was passed over: {error}")),
                Ok(Secret::Missing) => Some(format!("secret {name} does not exist")),
                Ok(Secret::Known(_) | Secret::Unknown) => None,
            }
        });
        let problems = problems.collect::<Vec<_>>();
        if problems.is_empty() { None } else { Some(problems.join("; ")) }
    }
}

fn unusable(at: At<'_>, name: &str, error: &SecretError) -> Denial {
    let (code, instead) = match error {
        SecretError::Forbidden(_) => (
            Code::Forbidden,
            "ask the administrator, who says in the chart's values (webhook.pullSecrets) which namespaces' Secrets are read",
        ),
        SecretError::Unavailable(_) => (Code::Unavailable, "try again later"),
        SecretError::Kind | SecretError::Config(_) => {
            (Code::BadRequest, "make it with kubectl create secret docker-registry")
        }
    };
    Denial::new(code, at, Some(name), format_args!("names a Secret that cannot be used: {error}"), instead)
}
