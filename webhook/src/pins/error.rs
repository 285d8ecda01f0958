//! Why a tag cannot be pinned. The messages appear in the events of the controller of the pod.

use std::borrow::Cow;
use std::fmt;

use kube::core::Status;
use oras_csi_core::display::{Printable, Shown};
use oras_csi_kube_support::errors::{is_unknown_kind, message_with_causes};
use oras_csi_kube_support::verb::Verb;

use super::object::PinMismatch;
use crate::denial::{At, Code, Denial};

/// The longest wait that is passed on: clients of the API server sleep for as long as the answer says, in seconds.
const MAX_RETRY_AFTER: u32 = 60;
/// The cause that the API server gives while a namespace is being deleted (core/v1, `NamespaceTerminatingCause`).
const TERMINATING: &str = "NamespaceTerminating";

/// The namespace and the name of a pin, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinPlace {
    namespace: Shown,
    name: Shown,
}

impl PinPlace {
    /// The pin of that name in a namespace.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PinPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArtifactPin {}/{}", self.namespace, self.name)
    }
}

/// Why a tag or a set cannot be pinned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// The webhook lacks a permission in RBAC.
    #[error("the webhook has no permission to {action} {place} ({message})")]
    Forbidden {
        /// The verb of the request.
        action: Verb,
        /// The pin.
        place: PinPlace,
        /// The message of the API server.
        message: Printable,
    },
    /// The API server does not know the kind.
    #[error("the API server has no ArtifactPins (v1alpha1 of artifactpins.oras.land)")]
    NoKind,
    /// The namespace is being deleted.
    #[error("namespace {0} is being deleted, and no object can be created in it")]
    Terminating(Shown),
    /// A ResourceQuota is exceeded.
    #[error("a ResourceQuota does not allow {place} ({message})")]
    Quota {
        /// The pin.
        place: PinPlace,
        /// The message of the API server.
        message: Printable,
    },
    /// Another admission webhook or a ValidatingAdmissionPolicy denies the pin.
    #[error("the API server does not admit {place} ({message})")]
    Refused {
        /// The pin.
        place: PinPlace,
        /// The message of the API server, which names the webhook or policy.
        message: Printable,
    },
    /// The pin breaks the schema that is installed.
    #[error("{place} is not valid by the custom resource definition in the cluster ({message})")]
    Invalid {
        /// The pin.
        place: PinPlace,
        /// The message of the API server.
        message: Printable,
    },
    /// The API server fails, cannot be reached or is overloaded.
    #[error("the API server did not {action} {place} ({message})")]
    Unavailable {
        /// The verb of the request.
        action: Verb,
        /// The pin.
        place: PinPlace,
        /// The message of the API server or of the client.
        message: Printable,
        /// After how many seconds to retry.
        retry_after: Option<u32>,
    },
    /// The API server did not answer in time. The pin may exist, and is found by the next request.
    #[error("the API server did not answer in time")]
    TooLate,
    /// Each time that the pin was to be created it existed, and each time that it was to be read it was deleted.
    #[error("{place} was deleted each time before it could be read, {tries} times")]
    Vanishing {
        /// The pin.
        place: PinPlace,
        /// How often it was tried.
        tries: usize,
    },
    /// Another object has the name of the pin.
    #[error("{place} exists, and is not the expected pin: {mismatch}")]
    Mismatch {
        /// The pin.
        place: PinPlace,
        /// The difference.
        mismatch: PinMismatch,
    },
}

impl PinError {
    /// Classifies an error of the client.
    pub(super) fn of(action: Verb, namespace: &str, name: &str, error: &kube::Error) -> Self {
        let place = PinPlace::new(namespace, name);
        match error {
            kube::Error::Api(status) => Self::of_status(action, namespace, place, status),
            kube::Error::SerdeError(error) if action == Verb::Get => {
                let mismatch = PinMismatch::Unreadable(Shown::new(&error.to_string()));
                Self::Mismatch { place, mismatch }
            }
            error => Self::Unavailable {
                action,
                place,
                message: Printable::new(&message_with_causes(error)),
                retry_after: None,
            },
        }
    }

    fn of_status(action: Verb, namespace: &str, place: PinPlace, status: &Status) -> Self {
        let message = Printable::new(&status.message);
        let details = status.details.as_ref();
        let has_cause = |reason: &str| {
            details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == reason))
        };
        match status.code {
            404 if is_unknown_kind(status) => Self::NoKind,
            403 if has_cause(TERMINATING) => Self::Terminating(namespace.into()),
            403 if action == Verb::Get => Self::Forbidden { action, place, message },
            // A webhook or a ValidatingAdmissionPolicy chooses its code and its message itself.
            400..=499 if is_refusal(&status.message) => Self::Refused { place, message },
            // apiserver, authorization: User "…" cannot create resource "artifactpins" in API group …
            403 if status.message.contains(" cannot create resource ") => {
                Self::Forbidden { action, place, message }
            }
            403 if status.message.contains("exceeded quota") => Self::Quota { place, message },
            403 => Self::Refused { place, message },
            422 => Self::Invalid { place, message },
            _ => {
                let seconds =
                    details.map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0);
                let retry_after = seconds.map(|seconds| seconds.min(MAX_RETRY_AFTER));
                Self::Unavailable { action, place, message, retry_after }
            }
        }
    }

    /// Returns the denial. The code is 503 if the cause is not in the namespace of the user.
    pub fn denial(&self, at: At<'_>, subject: &impl fmt::Display) -> Denial {
        let (code, instead): (Code, Cow<'static, str>) = match self {
            Self::Forbidden { .. } => (
                Code::Unavailable,
                "ask the administrator to grant the permissions of the chart, get and create of artifactpins.oras.land"
                    .into(),
            ),
            Self::NoKind => (
                Code::Unavailable,
                "ask the administrator to install the chart's custom resource definitions (crds.install)"
                    .into(),
            ),
            Self::Invalid { .. } => (
                Code::Unavailable,
                "ask the administrator to install the custom resource definitions of the webhook's version"
                    .into(),
            ),
            Self::Unavailable { .. } | Self::TooLate | Self::Vanishing { .. } => {
                (Code::Unavailable, "retry later".into())
            }
            Self::Terminating(_) => {
                (Code::Forbidden, "use another namespace, or create the namespace again when it is deleted".into())
            }
            Self::Quota { .. } => (
                Code::Forbidden,
                "raise the quota, delete unused workloads, or write the reference with its digest"
                    .into(),
            ),
            Self::Refused { .. } => (
                Code::Forbidden,
                "allow the ArtifactPins of the webhook there, or write the reference with its digest".into(),
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

/// apiserver: `admission webhook "NAME" denied the request: …` and `ValidatingAdmissionPolicy 'NAME' with binding
/// 'NAME' denied request: …`
fn is_refusal(message: &str) -> bool {
    message.contains(" denied the request") || message.contains(" denied request")
}
