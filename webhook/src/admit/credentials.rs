//! Second stage: collects the credentials that each volume may use.

use std::sync::Arc;

use oras_csi_core::display::Shown;
use oras_csi_core::dns_name::InvalidName;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{Keyring, Source};
use tokio::time::{Instant as Deadline, timeout_at};

use super::context::Context;
use super::locate::{Located, LocatedVolume};
use super::policy::PolicyChecks;
use super::services::Services;
use crate::credentials::{PodCredentials, Secret, SecretError, Secrets};
use crate::denial::{At, Code, Denial};
use crate::intent::VolumeTarget;

/// A located volume with its credentials.
#[derive(Clone)]
pub(super) struct KeyedVolume {
    pub(super) target: Arc<VolumeTarget>,
    pub(super) content: Located,
    pub(super) credentials: Arc<VolumeCredentials>,
}

/// The credentials that a volume may use.
#[derive(Debug)]
pub(super) struct VolumeCredentials {
    pub(super) keyring: Keyring,
    /// The pull secrets of the pod. A cluster set does not use them.
    of_pod: Option<Arc<PodCredentials>>,
}

impl VolumeCredentials {
    /// Adds to a denial which credentials could not be used for `references`, where a registry refused authorization.
    pub(super) fn explain<'a>(
        &self,
        denial: Denial,
        target: &VolumeTarget,
        references: impl IntoIterator<Item = &'a Reference>,
    ) -> Denial {
        let of_pod = self.of_pod.as_ref().filter(|_| denial.is_access_denied());
        let references = references.into_iter().filter(|reference| denial.is_about(reference));
        match of_pod.and_then(|secrets| secrets.problems(target.secret.as_deref(), references)) {
            Some(problems) => denial.with_detail(&problems),
            None => denial,
        }
    }
}

/// Reads the pull secrets of the pod once, and gives each volume its credentials.
pub(super) async fn attach(
    services: &Services,
    volumes: Vec<LocatedVolume>,
    policy: &PolicyChecks<'_>,
    context: &Context<'_>,
) -> Result<Vec<KeyedVolume>, Denial> {
    // A namespace that may use a cluster set gets its content with the set's own credentials.
    let of_pod = || volumes.iter().filter(|volume| !volume.is_of_cluster_set());
    let pod = context.pod.filter(|_| of_pod().next().is_some());
    let named_secrets = of_pod().filter_map(|volume| volume.target.secret.as_deref());
    let scope = context.scope;
    let secrets = services.credentials.read(pod, scope.namespace(), named_secrets, scope.deadline).await;
    let secrets = Arc::new(secrets);
    let mut keyed = Vec::new();
    for LocatedVolume { target, content } in volumes {
        let (keyring, of_pod) = match &content {
            Located::Set(set) if set.found.is_cluster_set() => {
                // The content of a cluster set is only downloaded where a policy looks at it.
                let secret = set.found.secret.as_deref().filter(|_| policy.book.looks_at_contents());
                (cluster_set_keyring(services, set.origin.at(), secret, scope.deadline).await?, None)
            }
            _ => {
                let keyring = secrets.keyring(target.secret_at(), target.secret.as_deref())?;
                (keyring, Some(Arc::clone(&secrets)))
            }
        };
        let credentials = Arc::new(VolumeCredentials { keyring, of_pod });
        keyed.push(KeyedVolume { target, content, credentials });
    }
    Ok(keyed)
}

/// Returns the pull secret that a cluster set names, with the administrator's credentials behind it.
pub(super) async fn cluster_set_keyring(
    services: &Services,
    at: At<'_>,
    secret: Option<&str>,
    deadline: Deadline,
) -> Result<Keyring, Denial> {
    let keyring = Keyring::new(services.credentials.administrator.clone());
    let (Some(name), Some(sets)) = (secret, &services.sets) else { return Ok(keyring) };
    let (secrets, namespace) = sets.secrets();
    if !sets.can_use_secret(name) {
        let rule = format!(
            "is a Secret of namespace {} that the administrator does not list as a pull secret of cluster sets",
            Shown::new(namespace)
        );
        let instead =
            "name it in the chart's values, clusterSets.pullSecrets (--set-pull-secret of the webhook)";
        return Err(Denial::new(Code::Forbidden, at, Some(name), rule, instead));
    }
    with_secret(keyring, secrets, SecretAt { at, namespace, name }, deadline).await
}

/// Returns the pull secret that a namespace's set names, with the administrator's credentials behind it.
pub(super) async fn namespace_set_keyring(
    services: &Services,
    at: At<'_>,
    namespace: &str,
    secret: Option<&str>,
    deadline: Deadline,
) -> Result<Keyring, Denial> {
    let keyring = Keyring::new(services.credentials.administrator.clone());
    let Some(name) = secret else { return Ok(keyring) };
    let secrets = services.credentials.secrets.as_ref();
    with_secret(keyring, secrets, SecretAt { at, namespace, name }, deadline).await
}

/// A pull secret, and where it is named.
#[derive(Clone, Copy)]
struct SecretAt<'a> {
    at: At<'a>,
    namespace: &'a str,
    name: &'a str,
}

async fn with_secret(
    keyring: Keyring,
    secrets: &dyn Secrets,
    SecretAt { at, namespace, name }: SecretAt<'_>,
    deadline: Deadline,
) -> Result<Keyring, Denial> {
    let source = Source::Secret(name.to_owned());
    let refuse = |code, problem: &dyn std::fmt::Display, instead: &str| {
        let rule = format!("is a pull secret of namespace {namespace} that cannot be used ({problem})");
        Err(Denial::new(code, at, Some(name), rule, instead))
    };
    let object = match name.parse() {
        Ok(object) => object,
        Err(error) => {
            let error: InvalidName = error;
            return refuse(Code::BadRequest, &error, "write the name of a Secret");
        }
    };
    let read = timeout_at(deadline, secrets.secret(namespace, &object)).await;
    match read {
        Ok(Ok(Secret::Known(config))) => Ok(keyring.with_secret(source, config)),
        Ok(Ok(Secret::Unknown)) => Ok(keyring.with_substitute_for(source)),
        Ok(Ok(Secret::Missing)) => {
            let instead =
                format!("create it: kubectl create secret docker-registry {name} --namespace {namespace}");
            refuse(Code::NotFound, &"it does not exist", &instead)
        }
        Ok(Err(error)) => {
            let (code, instead) = match &error {
                SecretError::Forbidden(_) => (
                    Code::Forbidden,
                    "name it in the chart's values: clusterSets.pullSecrets for cluster sets, webhook.pullSecrets for others",
                ),
                SecretError::Unavailable(_) => (Code::Unavailable, "try again later"),
                SecretError::Name(_) => (Code::BadRequest, "write the name of a Secret"),
                SecretError::Kind | SecretError::Config(_) => {
                    (Code::Forbidden, "create it again with kubectl create secret docker-registry")
                }
            };
            refuse(code, &error, instead)
        }
        Err(_) => refuse(Code::Unavailable, &"the API server did not answer in time", "try again later"),
    }
}
