//! Why a set cannot be had, in words for whoever reads the event.

use std::fmt;

use oras_csi_core::display::Printable;
use oras_csi_core::display::Shown;

use super::status::INVALID;
use crate::denial::{At, Code, Denial, listed};

/// Where a set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetPlace {
    /// The cluster set of that name.
    Cluster(Shown),
    /// A namespace's.
    Own {
        /// The namespace.
        namespace: Shown,
        /// Its name.
        name: Shown,
    },
}

impl SetPlace {
    /// How somebody asks the API server about it.
    fn command(&self) -> String {
        match self {
            Self::Cluster(name) => format!("kubectl get clusterartifactset {name} -o yaml"),
            Self::Own { namespace, name } => {
                format!("kubectl get artifactset {name} --namespace {namespace} -o yaml")
            }
        }
    }
}

impl fmt::Display for SetPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(name) => write!(f, "ClusterArtifactSet {name}"),
            Self::Own { namespace, name } => write!(f, "ArtifactSet {namespace}/{name}"),
        }
    }
}

/// Why there is no set, or none that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// Nothing has that name.
    #[error("is no set that namespace {namespace} has or may use")]
    Missing {
        /// What was asked for.
        name: Shown,
        /// Where.
        namespace: Shown,
        /// What may have been meant.
        nearest: Vec<String>,
    },
    /// A cluster set that does not select the namespace.
    #[error("is a ClusterArtifactSet whose namespaceSelector does not select namespace {namespace}")]
    NotForNamespace {
        /// Which.
        name: Shown,
        /// Who asked.
        namespace: Shown,
    },
    /// Nobody has looked at this generation of it yet.
    #[error("names {place}, which is new or was changed and is being resolved")]
    NotReady {
        /// Which.
        place: SetPlace,
    },
    /// It was looked at, and it cannot be had.
    #[error("names {place}, which is not ready ({reason}: {words})")]
    Refused {
        /// Which.
        place: SetPlace,
        /// The reason of its condition Ready.
        reason: Shown,
        /// The message of that.
        words: Shown,
    },
    /// What it says cannot be read.
    #[error("names {place}, which cannot be read ({words})")]
    Broken {
        /// Which.
        place: SetPlace,
        /// Why.
        words: Shown,
    },
    /// A volume of a cluster set, where the name means another.
    #[error("is the ClusterArtifactSet that the volume is of, and to this namespace that name means {place}")]
    NoClusterSet {
        /// Which.
        place: SetPlace,
    },
    /// A volume of a cluster set with a recipe that this one is not known to have had.
    #[error("names {place}, which has another recipe than the volume and none of its last ones was that")]
    Unheard {
        /// Which.
        place: SetPlace,
    },
    /// A recipe for a name that a cluster set has.
    #[error(
        "is the name of a ClusterArtifactSet that this namespace may use, and nothing else can be made under it"
    )]
    Shadows {
        /// Which.
        name: Shown,
    },
    /// Another recipe has the name.
    #[error("is the name of {place}, whose recipe is {there}, and not {asked}")]
    Taken {
        /// Which.
        place: SetPlace,
        /// Its recipe.
        there: Shown,
        /// The one that was asked for.
        asked: Shown,
    },
    /// The API server lets nobody make it.
    #[error("cannot be made: the API server does not admit the ArtifactSet ({0})")]
    Refusal(Printable),
    /// The webhook has no right.
    #[error("cannot be looked up: the webhook has no right to ({0})")]
    Forbidden(Printable),
    /// The API server does not answer.
    #[error("cannot be looked up: the API server did not answer ({0})")]
    Unavailable(Printable),
    /// Sets are not looked after here.
    #[error("names a set, and this webhook knows none: it runs without --sets")]
    Off,
}

/// Clients try again after as many seconds.
const SOON: u32 = 5;

impl SetError {
    /// What a client's error means.
    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
                Self::Forbidden(Printable::new(&status.message))
            }
            kube::Error::Api(status) if status.code == 404 => {
                Self::Forbidden("the API server has no such kind".into())
            }
            error => Self::Unavailable(Printable::new(&error.to_string())),
        }
    }

    /// What the user is told.
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
                "ask the administrator to select the namespace, or make an ArtifactSet of that name in it"
                    .to_owned(),
            ),
            Self::NotReady { place } => {
                (Code::Unavailable, format!("try again in a moment, or see {}", place.command()))
            }
            Self::Refused { place, reason, .. } => {
                let is_invalid = reason.to_string() == INVALID;
                let code = if is_invalid { Code::Unprocessable } else { Code::Unavailable };
                (code, format!("mend it, then wait for its condition Ready: {}", place.command()))
            }
            Self::NoClusterSet { .. } => (Code::Forbidden, "ask for the set by its name alone".to_owned()),
            Self::Unheard { place } => (
                Code::BadRequest,
                format!(
                    "ask for the set by its name alone, or render the manifest again: {}",
                    place.command()
                ),
            ),
            Self::Broken { place, .. } => (Code::Unprocessable, format!("mend it: {}", place.command())),
            Self::Shadows { .. } => {
                (Code::BadRequest, "ask for it by its name alone, or choose another name".to_owned())
            }
            Self::Taken { place, .. } => (
                Code::BadRequest,
                format!(
                    "ask for it by its name alone, choose another name, or change the set: {}",
                    place.command()
                ),
            ),
            Self::Refusal(_) => {
                (Code::Forbidden, "let the webhook's ArtifactSets pass there, or make it yourself".to_owned())
            }
            Self::Forbidden(_) => (
                Code::Unavailable,
                "ask the administrator for the chart's rights and custom resource definitions".to_owned(),
            ),
            Self::Unavailable(_) => (Code::Unavailable, "try again later".to_owned()),
            Self::Off => (Code::BadRequest, "write references, or ask the administrator".to_owned()),
        };
        let wait = if matches!(self, Self::NotReady { .. }) { Some(SOON) } else { None };
        Denial::new(code, at, Some(name), self, instead).with_retry_after(wait)
    }
}
