//! Reads the pull secret of a cluster set from the namespace of the driver. It is read each time it is needed, so that a
//! rotated Secret is used at once.

use std::time::Duration;

use kube::Api;
use kube::api::DynamicObject;
use oras_csi_core::credentials::{DockerConfig, DockerConfigError};
use oras_csi_core::display::Shown;
use oras_csi_core::dns_name::{InvalidName, ObjectName};
use oras_csi_core::registry::{Keyring, Source};
use oras_csi_kube_support::errors::forbidden_message;
use oras_csi_kube_support::pull_secret::{PullSecret, read_pull_secret};

use super::cluster_set;

/// How long the driver waits for the set and its Secret together. It is short because a pod waits.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the pull secrets that cluster sets name.
#[derive(Clone)]
pub struct SetSecrets {
    client: kube::Client,
    namespace: String,
}

/// Why the pull secret of a set could not be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SetSecretError {
    /// The set does not exist, so the name of its pull secret is not known.
    #[error("the ClusterArtifactSet {0} does not exist any more")]
    NoSet(Shown),
    /// The set could not be read.
    #[error("cannot read the ClusterArtifactSet {set}: {reason}")]
    Set {
        /// The set.
        set: Shown,
        /// The cause.
        reason: Shown,
    },
    /// The Secret does not exist.
    #[error(
        "the pull secret {secret} of the ClusterArtifactSet {set} is not in the namespace {namespace}. Create it there"
    )]
    Missing {
        /// The set.
        set: Shown,
        /// The Secret.
        secret: Shown,
        /// The driver's namespace.
        namespace: String,
    },
    /// The driver has no permission to read the Secret.
    #[error(
        "the driver has no permission to read the pull secret {secret} of the ClusterArtifactSet {set}: {reason}. Add its name \
         to the chart value clusterSets.pullSecrets"
    )]
    Forbidden {
        /// The set.
        set: Shown,
        /// The Secret.
        secret: Shown,
        /// The message of the API server.
        reason: Shown,
    },
    /// The set names no Secret: its text is not a name.
    #[error(
        "the ClusterArtifactSet {set} names the pull secret \"{secret}\", and {reason}. Correct spec.pullSecret.name of the set"
    )]
    Name {
        /// The set.
        set: Shown,
        /// The text in the set.
        secret: Shown,
        /// What is wrong with it.
        reason: InvalidName,
    },
    /// The Secret has another type.
    #[error(
        "the pull secret {secret} of the ClusterArtifactSet {set} has no key .dockerconfigjson. Create it with \
         `kubectl create secret docker-registry`"
    )]
    Kind {
        /// The set.
        set: Shown,
        /// The Secret.
        secret: Shown,
    },
    /// The data of the Secret is invalid.
    #[error(
        "cannot use the pull secret {secret} of the ClusterArtifactSet {set}: {source}. Create it again with `kubectl create secret docker-registry`"
    )]
    Config {
        /// The set.
        set: Shown,
        /// The Secret.
        secret: Shown,
        /// The cause, without any data of the Secret.
        source: DockerConfigError,
    },
    /// The API server is unreachable, or did not answer in time.
    #[error("cannot read the pull secret of the ClusterArtifactSet {set} from the API server: {reason}")]
    Unreachable {
        /// The set.
        set: Shown,
        /// The cause.
        reason: Shown,
    },
}

impl SetSecrets {
    pub(super) fn new(client: kube::Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    /// Adds the pull secret of `set` to `keyring`, before the administrator's credentials. Also returns why the secret
    /// could not be added.
    pub(crate) async fn add_to(&self, keyring: &Keyring, set: &str) -> (Keyring, Option<SetSecretError>) {
        let found = tokio::time::timeout(TIMEOUT, self.read(set)).await;
        let timed_out = || SetSecretError::Unreachable {
            set: set.into(),
            reason: Shown::new(&format!("no answer in {} s", TIMEOUT.as_secs())),
        };
        match found.unwrap_or_else(|_| Err(timed_out())) {
            Ok(None) => (keyring.clone(), None),
            Ok(Some((name, config))) => {
                (keyring.clone().with_secret(Source::Secret(name), config.into()), None)
            }
            Err(error) => {
                tracing::warn!(set, %error, "cannot use the pull secret of a cluster set");
                (keyring.clone(), Some(error))
            }
        }
    }

    async fn read(&self, set: &str) -> Result<Option<(String, DockerConfig)>, SetSecretError> {
        let shown = Shown::new(set);
        let unreachable = |error: &kube::Error| SetSecretError::Unreachable {
            set: shown.clone(),
            reason: Shown::new(&error.to_string()),
        };
        let sets: Api<DynamicObject> = Api::all_with(self.client.clone(), &cluster_set::resource());
        let name: ObjectName = set.parse().map_err(|_| SetSecretError::NoSet(shown.clone()))?;
        let object = sets.get_opt(&name).await.map_err(|error| unreachable(&error))?;
        let object = object.ok_or_else(|| SetSecretError::NoSet(shown.clone()))?;
        let name = cluster_set::pull_secret(&object).map_err(|error| SetSecretError::Set {
            set: shown.clone(),
            reason: Shown::new(&error.to_string()),
        })?;
        let Some(name) = name else { return Ok(None) };
        let secret = Shown::new(&name);
        let name: ObjectName = name.parse().map_err(|reason| SetSecretError::Name {
            set: shown.clone(),
            secret: secret.clone(),
            reason,
        })?;
        let found = read_pull_secret(self.client.clone(), &self.namespace, &name).await;
        let found = found.map_err(|error| match forbidden_message(&error) {
            Some(message) => {
                let reason = Shown::new(message);
                SetSecretError::Forbidden { set: shown.clone(), secret: secret.clone(), reason }
            }
            None => unreachable(&error),
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
            Ok(config) => Ok(Some((name.to_string(), config))),
            Err(source) => Err(SetSecretError::Config { set: shown, secret, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use oras_csi_testkit::api_server::ApiServer;
    use serde_json::json;

    use super::*;

    const SET: &str = "/apis/oras.land/v1alpha1/clusterartifactsets/models";

    #[tokio::test]
    async fn a_path_for_a_name_does_not_become_part_of_a_request() {
        let path = "../../kube-system/secrets/x";
        let server = ApiServer::new();
        server.put(
            SET,
            json!({"apiVersion": "oras.land/v1alpha1", "kind": "ClusterArtifactSet",
                "metadata": {"name": "models"}, "spec": {"pullSecret": {"name": path}}}),
        );
        let secrets = SetSecrets::new(server.client(), "oras-csi-system");
        let (_, error) = secrets.add_to(&Keyring::new(None), "models").await;
        let error = error.unwrap().to_string();
        assert!(error.contains(path) && error.contains("Correct spec.pullSecret.name"), "{error}");
        let (_, error) = secrets.add_to(&Keyring::new(None), "../x").await;
        assert!(matches!(error, Some(SetSecretError::NoSet(_))), "{error:?}");
        assert_eq!(server.log(), [format!("GET {SET}")]);
    }
}
