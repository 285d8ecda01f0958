//! Why a tag is not pinned, in words for whoever reads the event.

use std::borrow::Cow;
use std::error::Error as _;
use std::fmt;

use kube::core::Status;
use kube::core::response::reason;
use oras_csi_core::display::Printable;
use oras_csi_core::display::Shown;

use super::object::PinMismatch;
use crate::denial::{At, Code, Denial};

/// Clients of the API server sleep for as long as they are told.
const LONGEST_WAIT: u32 = 60;
/// What the API server says of a namespace that goes (core/v1, `NamespaceTerminatingCause`).
const TERMINATING: &str = "NamespaceTerminating";

/// What is done with a pin, as a verb of RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinAction {
    /// It is read.
    Get,
    /// It is made.
    Create,
}

impl fmt::Display for PinAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::Create => "create",
        })
    }
}

/// Where a pin is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinPlace {
    namespace: Shown,
    name: Shown,
}

impl PinPlace {
    /// The pin of that name.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PinPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArtifactPin {}/{}", self.namespace, self.name)
    }
}

/// Why there is no pin, or none that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// RBAC has no such right for the webhook.
    #[error("the webhook has no right to {action} {place} ({words})")]
    Forbidden {
        /// What was tried.
        action: PinAction,
        /// With which pin.
        place: PinPlace,
        /// What the API server says.
        words: Printable,
    },
    /// The API server does not know the kind.
    #[error("the API server has no ArtifactPins (v1alpha1 of artifactpins.oras.land)")]
    NoKind,
    /// The namespace goes.
    #[error("namespace {0} is being deleted, and nothing new is made in it")]
    Terminating(Shown),
    /// The namespace has no room.
    #[error("a quota leaves no room for {place} ({words})")]
    Quota {
        /// Which pin.
        place: PinPlace,
        /// What the API server says.
        words: Printable,
    },
    /// Another webhook or a policy of the API server's does not admit it.
    #[error("the API server does not admit {place} ({words})")]
    Refused {
        /// Which pin.
        place: PinPlace,
        /// What the API server says, which names who refuses.
        words: Printable,
    },
    /// It breaks the schema, as that is installed.
    #[error("{place} is not valid by the definition that the cluster has ({words})")]
    Invalid {
        /// Which pin.
        place: PinPlace,
        /// What the API server says.
        words: Printable,
    },
    /// The API server fails, cannot be reached or asks to wait.
    #[error("the API server did not {action} {place} ({words})")]
    Unavailable {
        /// What was tried.
        action: PinAction,
        /// With which pin.
        place: PinPlace,
        /// What it says.
        words: Printable,
        /// The seconds after which trying again makes sense.
        retry_after: Option<u32>,
    },
    /// Nothing came back in time. It may have been made, and is found next time.
    #[error("the API server had not answered in time")]
    TooLate,
    /// It was there when it should be made, and gone when it should be read, again and again.
    #[error("{place} was deleted as often as it was made, {tries} times")]
    Vanishing {
        /// Which pin.
        place: PinPlace,
        /// How often.
        tries: usize,
    },
    /// Something else has its name.
    #[error("{place} is there, and is not the pin that belongs there: {mismatch}")]
    Mismatch {
        /// Which pin.
        place: PinPlace,
        /// What is wrong with it.
        mismatch: PinMismatch,
    },
}

impl PinError {
    /// What a client's error means.
    pub(super) fn of(action: PinAction, namespace: &str, name: &str, error: &kube::Error) -> Self {
        let place = PinPlace::new(namespace, name);
        match error {
            kube::Error::Api(status) => Self::of_status(action, namespace, place, status),
            kube::Error::SerdeError(error) if action == PinAction::Get => {
                let mismatch = PinMismatch::Unreadable(Shown::new(&error.to_string()));
                Self::Mismatch { place, mismatch }
            }
            error => Self::Unavailable { action, place, words: words_of(error), retry_after: None },
        }
    }

    fn of_status(action: PinAction, namespace: &str, place: PinPlace, status: &Status) -> Self {
        let words = Printable::new(&status.message);
        let details = status.details.as_ref();
        let has_cause = |reason: &str| {
            details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == reason))
        };
        match status.code {
            404 if is_unknown_kind(status) => Self::NoKind,
            403 if has_cause(TERMINATING) => Self::Terminating(namespace.into()),
            403 if action == PinAction::Get => Self::Forbidden { action, place, words },
            // A webhook or a ValidatingAdmissionPolicy chooses its code and its words itself.
            400..=499 if is_refusal(&status.message) => Self::Refused { place, words },
            // apiserver, authorization: User "…" cannot create resource "artifactpins" in API group …
            403 if status.message.contains(" cannot create resource ") => {
                Self::Forbidden { action, place, words }
            }
            403 if status.message.contains("exceeded quota") => Self::Quota { place, words },
            403 => Self::Refused { place, words },
            422 => Self::Invalid { place, words },
            _ => {
                let seconds =
                    details.map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0);
                let retry_after = seconds.map(|seconds| seconds.min(LONGEST_WAIT));
                Self::Unavailable { action, place, words, retry_after }
            }
        }
    }

    /// What the user is told, with the code that says whose turn it is: 503 where nothing in the user's namespace
    /// is wrong.
    pub fn denial(&self, at: At<'_>, subject: &impl fmt::Display) -> Denial {
        let (code, instead): (Code, Cow<'static, str>) = match self {
            Self::Forbidden { .. } => (
                Code::Unavailable,
                "ask the administrator for the chart's rights, get and create of artifactpins.oras.land"
                    .into(),
            ),
            Self::NoKind => (
                Code::Unavailable,
                "ask the administrator to install the chart's custom resource definitions (crds.install)"
                    .into(),
            ),
            Self::Invalid { .. } => (
                Code::Unavailable,
                "ask the administrator whether the custom resource definitions are of the webhook's version"
                    .into(),
            ),
            Self::Unavailable { .. } | Self::TooLate | Self::Vanishing { .. } => {
                (Code::Unavailable, "try again later".into())
            }
            Self::Terminating(_) => {
                (Code::Forbidden, "use another namespace, or wait and make it anew".into())
            }
            Self::Quota { .. } => (
                Code::Forbidden,
                "raise the quota, delete workloads that nobody needs, or write the reference with its digest"
                    .into(),
            ),
            Self::Refused { .. } => (
                Code::Forbidden,
                "let the webhook's ArtifactPins pass there, or write the reference with its digest".into(),
            ),
            Self::Mismatch { place, .. } => {
                let PinPlace { namespace, name } = place;
                let instead = format!("delete it: kubectl delete artifactpin {name} --namespace {namespace}");
                (Code::BadRequest, instead.into())
            }
        };
        let rule = format_args!("cannot be pinned for all pods of their controller: {self}");
        let retry_after = match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        };
        Denial::new(code, at, Some(&subject.to_string()), rule, instead).with_retry_after(retry_after)
    }
}

/// Whether a 404 is of the resource, and not of one object: the answer to a path that nobody serves is no `Status`.
pub(super) fn is_unknown_kind(status: &Status) -> bool {
    let names_one = status.details.as_ref().is_some_and(|details| !details.name.is_empty());
    status.code == 404 && !(status.reason == reason::NOT_FOUND && names_one)
}

/// apiserver: `admission webhook "NAME" denied the request: …` and `ValidatingAdmissionPolicy 'NAME' with binding
/// 'NAME' denied request: …`
fn is_refusal(message: &str) -> bool {
    message.contains(" denied the request") || message.contains(" denied request")
}

/// The words of an error and of what caused it; kube's outermost alone may say no more than "client error".
fn words_of(error: &kube::Error) -> Printable {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !words.contains(&more) {
            words.push_str(": ");
            words.push_str(&more);
        }
        cause = inner.source();
    }
    Printable::new(&words)
}
