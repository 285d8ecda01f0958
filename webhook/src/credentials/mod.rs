//! Pull secrets: which Secrets a pod can use, in which order, and their contents.
//!
//! The order is: the Secret that is named for the volume, the `imagePullSecrets` of the pod, those of its service account,
//! the administrator's docker config, and then anonymous (docs/design.md, "Credentials"). The webhook reads only Secrets
//! that a pod names, and only for a pod that requests an artifact. RBAC cannot express that, so this file enforces it.

mod cluster;
mod manifests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use oras_csi_core::credentials::{Administrator, DockerConfig, DockerConfigError};
use oras_csi_core::display::Shown;
use oras_csi_core::dns_name::{InvalidName, ObjectName};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{Keyring, Source};
use tokio::time::{Instant, timeout_at};

use crate::denial::{At, Code, Denial, listed};
use crate::view::Pod;

pub use cluster::ClusterSecrets;
pub use manifests::ManifestSecrets;

/// How many pull secrets of a pod are read.
const MAX_SECRETS: usize = 16;
/// The service account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// A Secret, as far as it is known.
#[derive(Clone, Debug)]
pub enum Secret {
    /// The docker config in the Secret.
    Known(Arc<DockerConfig>),
    /// There is no Secret of that name.
    Missing,
    /// Not known: only the cluster knows whether there is one.
    Unknown,
}

/// Why a Secret cannot be used. The messages never contain credentials.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SecretError {
    /// The webhook lacks the permission to read it.
    #[error("the webhook has no permission to read it ({0})")]
    Forbidden(Shown),
    /// The API server fails or cannot be reached.
    #[error("it cannot be read ({0})")]
    Unavailable(Shown),
    /// No Secret can have that name, so the API server was not asked.
    #[error("{0}")]
    Name(#[from] InvalidName),
    /// It is not a pull secret.
    #[error("it has no .dockerconfigjson")]
    Kind,
    /// Its docker config is invalid.
    #[error("{0}")]
    Config(#[from] DockerConfigError),
}

/// Reads Secrets and service accounts.
#[async_trait]
pub trait Secrets: Send + Sync + 'static {
    /// Reads a pull secret.
    async fn secret(&self, namespace: &str, name: &ObjectName) -> Result<Secret, SecretError>;
    /// Returns `imagePullSecrets` of a service account. The API server accepts any text there, so these are not
    /// [`ObjectName`]s.
    async fn of_service_account(
        &self,
        namespace: &str,
        name: &ObjectName,
    ) -> Result<Vec<String>, SecretError>;
}

/// Reads no Secrets: each Secret that a pod names is an error, and service accounts have none.
#[derive(Clone, Copy, Debug)]
pub struct NoSecrets;

#[async_trait]
impl Secrets for NoSecrets {
    async fn secret(&self, _: &str, _: &ObjectName) -> Result<Secret, SecretError> {
        Err(SecretError::Forbidden(Shown::new("it runs without --read-pull-secrets")))
    }

    async fn of_service_account(&self, _: &str, _: &ObjectName) -> Result<Vec<String>, SecretError> {
        Ok(Vec::new())
    }
}

/// Where credentials come from.
pub struct CredentialSources {
    /// Pull secrets.
    pub secrets: Box<dyn Secrets>,
    /// The administrator's docker config.
    pub administrator: Option<Administrator>,
}

impl Default for CredentialSources {
    fn default() -> Self {
        Self { secrets: Box::new(ManifestSecrets::default()), administrator: None }
    }
}

/// The pull secrets of one pod and their contents.
#[derive(Debug)]
pub(crate) struct PodCredentials {
    secrets: BTreeMap<String, Result<Secret, SecretError>>,
    /// The names in `imagePullSecrets` of the pod, then those of its service account.
    order: Vec<String>,
    administrator: Option<Administrator>,
}

impl CredentialSources {
    /// Reads the pull secrets of a pod, and those that are `named` for its volumes. A volume without a pod has only the
    /// latter.
    pub(crate) async fn read(
        &self,
        pod: Option<&Pod<'_>>,
        namespace: &str,
        named: impl Iterator<Item = &str>,
        deadline: Instant,
    ) -> PodCredentials {
        let mut order: Vec<String> = Vec::new();
        if let Some(pod) = pod {
            let account = pod.service_account().unwrap_or(DEFAULT_ACCOUNT);
            let of_account = self.of_service_account(namespace, account, deadline).await;
            let of_account = of_account.unwrap_or_else(|error| {
                tracing::warn!(namespace, account, %error, "cannot read the pull secrets of a service account; continuing without them");
                Vec::new()
            });
            for name in pod.image_pull_secrets().iter().map(|name| (*name).to_owned()).chain(of_account) {
                if order.len() < MAX_SECRETS && !order.contains(&name) {
                    order.push(name);
                }
            }
        }
        let mut to_read: Vec<&str> = named.collect();
        to_read.extend(order.iter().map(String::as_str));
        to_read.sort_unstable();
        to_read.dedup();
        let reads = to_read
            .into_iter()
            .map(|name| async move { (name.to_owned(), self.secret(namespace, name, deadline).await) });
        let secrets = futures_util::future::join_all(reads).await.into_iter().collect();
        PodCredentials { secrets, order, administrator: self.administrator.clone() }
    }

    /// Reads a Secret by a name that a user wrote. The API server accepts any text in `imagePullSecrets`.
    async fn secret(&self, namespace: &str, name: &str, deadline: Instant) -> Result<Secret, SecretError> {
        let name = name.parse()?;
        let read = timeout_at(deadline, self.secrets.secret(namespace, &name)).await;
        read.unwrap_or_else(|_| Err(too_late()))
    }

    async fn of_service_account(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<Vec<String>, SecretError> {
        let name = name.parse()?;
        let read = timeout_at(deadline, self.secrets.of_service_account(namespace, &name)).await;
        read.unwrap_or_else(|_| Err(too_late()))
    }
}

fn too_late() -> SecretError {
    SecretError::Unavailable(Shown::new("the API server did not answer in time"))
}

impl PodCredentials {
    /// Returns the credentials for a volume, in their order. The Secret that is named for the volume must exist. Other
    /// Secrets that cannot be used are skipped, as kubelet does.
    pub(crate) fn keyring(&self, at: At<'_>, named: Option<&str>) -> Result<Keyring, Denial> {
        let mut keyring = Keyring::new(self.administrator.clone());
        if let Some(name) = named {
            match self.secrets.get(name) {
                Some(Ok(Secret::Known(config))) => {
                    keyring = keyring.with_secret(Source::Secret(name.to_owned()), Arc::clone(config));
                }
                // `render` and `explain` have the pod, but not its Secrets: the user's own credentials replace them.
                Some(Ok(Secret::Unknown)) => {
                    keyring = keyring.with_substitute_for(Source::Secret(name.to_owned()));
                }
                Some(Ok(Secret::Missing)) | None => {
                    let rule = "names a Secret that does not exist in the pod's namespace";
                    let instead =
                        format!("create it: kubectl create secret docker-registry {}", Shown::new(name));
                    return Err(Denial::new(Code::NotFound, at, Some(name), rule, instead));
                }
                Some(Err(error)) => return Err(unusable(at, name, error)),
            }
        }
        for name in self.order.iter().filter(|name| Some(name.as_str()) != named) {
            match self.secrets.get(name) {
                Some(Ok(Secret::Known(config))) => {
                    keyring = keyring.with_secret(Source::Secret(name.clone()), Arc::clone(config));
                }
                Some(Err(error)) => {
                    tracing::warn!(secret = name, %error, "skipped a pull secret of a pod");
                }
                _ => {}
            }
        }
        Ok(keyring)
    }

    /// Describes the pull secrets that could not be used for `references`: they may be the reason for a denial. `named` is the
    /// Secret that is named for the volume.
    pub(crate) fn problems<'a>(
        &self,
        named: Option<&str>,
        references: impl IntoIterator<Item = &'a Reference>,
    ) -> Option<String> {
        let unusable = self.secrets.iter().filter_map(|(name, read)| {
            let name = Shown::new(name);
            match read {
                Err(error) => Some(format!("secret {name} was skipped: {error}")),
                Ok(Secret::Missing) => Some(format!("secret {name} does not exist")),
                Ok(Secret::Known(_) | Secret::Unknown) => None,
            }
        });
        let mut problems = unusable.collect::<Vec<_>>();
        problems.extend(self.missing_entries(named, references));
        if problems.is_empty() { None } else { Some(problems.join("; ")) }
    }

    /// Describes the registries for which no Secret has an entry, although there are Secrets. Often the host or the port in
    /// the Secret is another one than in the reference.
    fn missing_entries<'a>(
        &self,
        named: Option<&str>,
        references: impl IntoIterator<Item = &'a Reference>,
    ) -> Option<String> {
        let usable = named.into_iter().chain(self.order.iter().map(String::as_str));
        let known = usable.filter_map(|name| match self.secrets.get(name) {
            Some(Ok(Secret::Known(config))) => Some((name, config)),
            _ => None,
        });
        let known: BTreeMap<&str, &Arc<DockerConfig>> = known.collect();
        let has_entry = |reference: &Reference| {
            let (registry, repository) = (reference.registry(), reference.repository());
            known.values().any(|config| !config.credentials_for(registry, repository).is_empty())
        };
        let without = references.into_iter().filter(|reference| !has_entry(reference));
        let without: BTreeSet<String> = without.map(|reference| reference.registry().to_string()).collect();
        if known.is_empty() || without.is_empty() {
            return None;
        }
        let registries = listed(without.iter().map(String::as_str));
        let secrets = listed(known.keys().copied());
        Some(match known.len() {
            1 => format!("secret {secrets} has no entry for {registries}"),
            _ => format!("none of the secrets {secrets} has an entry for {registries}"),
        })
    }
}

fn unusable(at: At<'_>, name: &str, error: &SecretError) -> Denial {
    let (code, instead) = match error {
        SecretError::Forbidden(_) => (
            Code::Forbidden,
            "ask the administrator to add the namespace to webhook.pullSecrets.namespaces in the values of the chart",
        ),
        SecretError::Unavailable(_) => (Code::Unavailable, "retry later"),
        SecretError::Name(_) => (Code::BadRequest, "write the name of a Secret of the pod's namespace"),
        SecretError::Kind | SecretError::Config(_) => {
            (Code::BadRequest, "create it with kubectl create secret docker-registry")
        }
    };
    Denial::new(code, at, Some(name), format_args!("names a Secret that cannot be used: {error}"), instead)
}
