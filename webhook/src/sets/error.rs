//! Why a set cannot be used. The messages appear in denials and events.

use std::fmt;

use oras_csi_core::display::{Printable, Shown};
use oras_csi_kube_support::call::CallError;
use oras_csi_kube_support::errors::{forbidden_message, is_not_found};

use super::status::INVALID;
use crate::denial::{At, Code, Denial, listed};

/// The kind, namespace and name of a set, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetPlace {
    /// A ClusterArtifactSet.
    Cluster(Shown),
    /// An ArtifactSet.
    Namespaced {
        /// The namespace.
        namespace: Shown,
        /// The name.
        name: Shown,
    },
}

impl SetPlace {
    /// Returns the command that shows the set.
    fn command(&self) -> String {
        match self {
            Self::Cluster(name) => format!("kubectl get clusterartifactset {name} -o yaml"),
            Self::Namespaced { namespace, name } => {
                format!("kubectl get artifactset {name} --namespace {namespace} -o yaml")
            }
        }
    }
}

impl fmt::Display for SetPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(name) => write!(f, "ClusterArtifactSet {name}"),
            Self::Namespaced { namespace, name } => write!(f, "ArtifactSet {namespace}/{name}"),
        }
    }
}

/// Why a cluster set no longer grants the content of a volume that was admitted earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantEnd {
    /// The set was deleted.
    Deleted,
    /// The set does not select the namespace any more.
    Unselected,
    /// The set has another recipe, and its history does not have the recipe of the volume any more.
    Forgotten,
}

impl fmt::Display for GrantEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deleted => "this set does not exist any more",
            Self::Unselected => "its namespaceSelector does not select the namespace any more",
            Self::Forgotten => "neither its recipe nor its history has the recipe of the volume any more",
        })
    }
}

/// Why a set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// No set has that name.
    #[error("is not a set that namespace {namespace} can use")]
    Missing {
        /// The requested name.
        name: Shown,
        /// The namespace of the request.
        namespace: Shown,
        /// Similar names.
        nearest: Vec<String>,
    },
    /// The cluster set does not select the namespace.
    #[error("is a ClusterArtifactSet whose namespaceSelector does not select namespace {namespace}")]
    NotForNamespace {
        /// The name.
        name: Shown,
        /// The namespace of the request.
        namespace: Shown,
    },
    /// The controller has not resolved this generation of the set yet.
    #[error("names {place}, which is new or was changed and is being resolved")]
    NotReady {
        /// The set.
        place: SetPlace,
    },
    /// The controller could not resolve the set.
    #[error("names {place}, which is not ready ({reason}: {message})")]
    Refused {
        /// The set.
        place: SetPlace,
        /// The reason of its condition Ready.
        reason: Shown,
        /// The message of its condition Ready.
        message: Shown,
    },
    /// The spec or the status of the set is invalid.
    #[error("names {place}, which cannot be read ({message})")]
    Broken {
        /// The set.
        place: SetPlace,
        /// What is wrong with it.
        message: Shown,
    },
    /// The volume is of a cluster set, and the name means another set in this namespace.
    #[error("is the ClusterArtifactSet of the volume, but in this namespace the name means {place}")]
    NoClusterSet {
        /// The set.
        place: SetPlace,
    },
    /// The volume is of a cluster set, and its recipe is neither the present nor an earlier recipe of the set.
    #[error(
        "names {place}, which has another recipe than the volume, and its history does not have that recipe"
    )]
    UnknownRecipe {
        /// The set.
        place: SetPlace,
    },
    /// The volume was admitted because a cluster set granted its content, and that right has ended.
    #[error(
        "is the ClusterArtifactSet that granted the content of the volume to namespace {namespace}, but {end}"
    )]
    Ended {
        /// The namespace of the request.
        namespace: Shown,
        /// What has ended.
        end: GrantEnd,
    },
    /// A set was to be created under the name of a cluster set.
    #[error(
        "is the name of a ClusterArtifactSet that this namespace can use, so no ArtifactSet of that name can be created"
    )]
    Shadows {
        /// The name.
        name: Shown,
    },
    /// A set with another recipe has the name.
    #[error("is the name of {place}, whose recipe is {existing}, and not {requested}")]
    Taken {
        /// The set.
        place: SetPlace,
        /// The recipe of that set.
        existing: Shown,
        /// The requested recipe.
        requested: Shown,
    },
    /// The API server does not admit the new set.
    #[error("cannot be created: the API server does not admit the ArtifactSet ({0})")]
    Refusal(Printable),
    /// The webhook lacks a permission, or the kind is not installed.
    #[error("cannot be looked up: the webhook has no permission ({0})")]
    Forbidden(Printable),
    /// The API server fails or does not answer.
    #[error("cannot be looked up: the API server failed or did not answer ({0})")]
    Unavailable(Printable),
    /// The webhook runs without sets.
    #[error("names a set, but sets are disabled in this webhook: it runs without --sets")]
    Off,
}

/// After how many seconds clients retry if a set is being resolved.
const RETRY_AFTER: u32 = 5;

impl SetError {
    /// Classifies an error of the client.
    pub(super) fn of(error: &kube::Error) -> Self {
        match forbidden_message(error) {
            Some(message) => Self::Forbidden(Printable::new(message)),
            None if is_not_found(error) => Self::Forbidden("the API server does not know the kind".into()),
            None => Self::Unavailable(Printable::new(&error.to_string())),
        }
    }

    /// Classifies the failure of a request.
    pub(super) fn of_call(error: &CallError) -> Self {
        match error {
            CallError::Api(error) => Self::of(error),
            CallError::Timeout => Self::Unavailable("no answer in time".into()),
        }
    }

    /// Returns the denial.
    pub(crate) fn denial(&self, at: At<'_>, name: &str) -> Denial {
        let (code, instead) = match self {
            Self::Missing { nearest, namespace, .. } => {
                let meant = if nearest.is_empty() {
                    String::new()
                } else {
                    format!("did you mean {}? ", listed(nearest.iter().map(String::as_str)))
                };
                let list = format!(
                    "see kubectl get clusterartifactsets, and kubectl get artifactsets --namespace {namespace}"
                );
                (Code::NotFound, format!("{meant}{list}"))
            }
            Self::NotForNamespace { .. } => (
                Code::Forbidden,
                "ask the administrator to select the namespace, or create an ArtifactSet of that name in it"
                    .to_owned(),
            ),
            Self::NotReady { place } => {
                (Code::Unavailable, format!("retry in a few seconds, or see {}", place.command()))
            }
            Self::Refused { place, reason, .. } => {
                let is_invalid = reason.to_string() == INVALID;
                let code = if is_invalid { Code::Unprocessable } else { Code::Unavailable };
                (code, format!("correct it, then wait for its condition Ready: {}", place.command()))
            }
            Self::NoClusterSet { .. } => (Code::Forbidden, "request the set by its name alone".to_owned()),
            Self::UnknownRecipe { place } => (
                Code::BadRequest,
                format!(
                    "request the set by its name alone, or render the manifest again: {}",
                    place.command()
                ),
            ),
            Self::Ended { end, .. } => {
                let instead = match end {
                    GrantEnd::Deleted => "remove the volume, or request a set that exists: kubectl get clusterartifactsets",
                    GrantEnd::Unselected => "ask the administrator to select the namespace, or remove the volume",
                    GrantEnd::Forgotten => "request the set by its name alone, which gives its present recipe",
                };
                (Code::Forbidden, instead.to_owned())
            }
            Self::Broken { place, .. } => (Code::Unprocessable, format!("correct it: {}", place.command())),
            Self::Shadows { .. } => {
                (Code::BadRequest, "request it by its name alone, or choose another name".to_owned())
            }
            Self::Taken { place, .. } => (
                Code::BadRequest,
                format!(
                    "request it by its name alone, choose another name, or change the set: {}",
                    place.command()
                ),
            ),
            Self::Refusal(_) => {
                (Code::Forbidden, "allow the ArtifactSets of the webhook there, or create the set yourself".to_owned())
            }
            Self::Forbidden(_) => (
                Code::Unavailable,
                "ask the administrator to install the permissions and custom resource definitions of the chart".to_owned(),
            ),
            Self::Unavailable(_) => (Code::Unavailable, "retry later".to_owned()),
            Self::Off => (Code::BadRequest, "write references, or ask the administrator to enable sets".to_owned()),
        };
        let wait = if matches!(self, Self::NotReady { .. }) { Some(RETRY_AFTER) } else { None };
        Denial::new(code, at, Some(name), self, instead).with_retry_after(wait)
    }
}
