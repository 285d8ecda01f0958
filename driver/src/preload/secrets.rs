//! The pull secret of a cluster set: read by its name, from the driver's own namespace, each time it is needed, so that
//! one that was rotated counts at once.

use std::time::Duration;

use kube::Api;
use kube::api::DynamicObject;
use oras_csi_core::credentials::{DockerConfig, DockerConfigError};
use oras_csi_core::display::Shown;
use oras_csi_core::registry::{Keyring, Source};
use oras_csi_kube_support::errors::forbidden_message;
use oras_csi_kube_support::pull_secret::{PullSecret, read_pull_secret};

use super::cluster_set;

/// How long the API server has for the set and its Secret together: a pod waits.
const LONGEST: Duration = Duration::from_secs(5);

/// Reads the pull secrets that cluster sets name.
#[derive(Clone)]
pub struct SetSecrets {
    client: kube::Client,
    namespace: String,
}

/// Why a set's pull secret is not used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SetSecretError {
    /// Nobody says which it is.
    #[error("there is no ClusterArtifactSet {0} any more, which would name its pull secret")]
    NoSet(Shown),
    /// The set cannot be read.
    #[error("the ClusterArtifactSet {set} cannot be read: {words}")]
    Set {
        /// The set.
        set: Shown,
        /// Why.
        words: Shown,
    },
    /// There is none.
    #[error(
        "the pull secret {secret} of the ClusterArtifactSet {set} is not in the namespace {namespace}: make it there"
    )]
    Missing {
        /// The set.
        set: Shown,
        /// The Secret.
        secret: Shown,
        /// The driver's namespace.
        namespace: String,
    },
    /// The driver has no right to it.
    #[error(
        "the driver may not read the pull secret {secret} of the ClusterArtifactSet {set}: name it in the chart's value \
         clusterSets.pullSecrets ({words})"
    )]
    Forbidden {
        /// The set.
        set: Shown,
        /// The Secret.
        secret: Shown,
        /// What the API server said.
        words: Shown,
    },
    /// It is no pull secret.
    #[error(
        "the pull secret {secret} of the ClusterArtifactSet {set} has no .dockerconfigjson: make one with `kubectl create \
         secret docker-registry`"
    )]
    Kind {
        /// The set.
        set: Shown,
        /// The Secret.
        secret: Shown,
    },
    /// What is in it cannot be read.
    #[error("the pull secret {secret} of the ClusterArtifactSet {set} cannot be used: {source}")]
    Config {
        /// The set.
        set: Shown,
        /// The Secret.
        secret: Shown,
        /// Why; never says what is in it.
        source: DockerConfigError,
    },
    /// The API server does not answer.
    #[error("the API server cannot be asked for the pull secret of the ClusterArtifactSet {set}: {words}")]
    Silent {
        /// The set.
        set: Shown,
        /// What happened.
        words: Shown,
    },
}

impl SetSecrets {
    pub(super) fn new(client: kube::Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    /// `keyring` with the pull secret of `set` before what the administrator gave; and why not, where that is so.
    pub(crate) async fn add_to(&self, keyring: &Keyring, set: &str) -> (Keyring, Option<SetSecretError>) {
        let asked = tokio::time::timeout(LONGEST, self.of(set)).await;
        let late = || SetSecretError::Silent {
            set: set.into(),
            words: Shown::new(&format!("no answer in {} s", LONGEST.as_secs())),
        };
        match asked.unwrap_or_else(|_| Err(late())) {
            Ok(None) => (keyring.clone(), None),
            Ok(Some((name, config))) => {
                (keyring.clone().with_secret(Source::Secret(name), config.into()), None)
            }
            Err(error) => {
                tracing::warn!(set, %error, "a set's pull secret is not used");
                (keyring.clone(), Some(error))
            }
        }
    }

    async fn of(&self, set: &str) -> Result<Option<(String, DockerConfig)>, SetSecretError> {
        let shown = Shown::new(set);
        let silent = |error: &kube::Error| SetSecretError::Silent {
            set: shown.clone(),
            words: Shown::new(&error.to_string()),
        };
        let sets: Api<DynamicObject> = Api::all_with(self.client.clone(), &cluster_set::resource());
        let object = sets.get_opt(set).await.map_err(|error| silent(&error))?;
        let object = object.ok_or_else(|| SetSecretError::NoSet(shown.clone()))?;
        let name = cluster_set::pull_secret(&object).map_err(|error| SetSecretError::Set {
            set: shown.clone(),
            words: Shown::new(&error.to_string()),
        })?;
        let Some(name) = name else { return Ok(None) };
        let secret = Shown::new(&name);
        let found = read_pull_secret(self.client.clone(), &self.namespace, &name).await;
        let found = found.map_err(|error| match forbidden_message(&error) {
            Some(message) => {
                let words = Shown::new(message);
                SetSecretError::Forbidden { set: shown.clone(), secret: secret.clone(), words }
            }
            None => silent(&error),
        })?;
        let content = match found {
            PullSecret::Missing => {
                return Err(SetSecretError::Missing {
                    set: shown,
                    secret,
                    namespace: self.namespace.clone(),
                });
            }
            PullSecret::NoDockerConfig => return Err(SetSecretError::Kind { set: shown, secret }),
            PullSecret::DockerConfig(content) => content,
        };
        match DockerConfig::parse(&content) {
            Ok(config) => Ok(Some((name, config))),
            Err(source) => Err(SetSecretError::Config { set: shown, secret, source }),
        }
    }
}
