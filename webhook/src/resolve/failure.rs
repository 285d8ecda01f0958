//! Why a reference was not resolved, and what the user is told.

use std::sync::Arc;
use std::time::Duration;

use oras_csi_core::manifest::SelectError;
use oras_csi_core::patch::PatchError;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{RegistryError, RegistryErrorKind};

use crate::contents::Nothing;
use crate::denial::{At, Code, Denial};

/// The highest number of an index's manifests that policies check.
pub(super) const MAX_CANDIDATES: usize = 64;

/// Why there is no digest.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Registry(Arc<RegistryError>),
    #[error("{0}")]
    Platform(SelectError),
    #[error("{0}")]
    Nothing(Nothing),
    #[error("the registry had not answered when the time for it was up, so trying again may do")]
    Deadline,
    #[error("looking it up failed inside the webhook, whose log says why")]
    Crashed,
    #[error("{waiting} requests wait for that registry already, which has not answered for {}.{:03} s", silent.as_secs(), silent.subsec_millis())]
    Busy { waiting: usize, silent: Duration },
    #[error("is an index of {0} manifests, more than policies are asked about ({MAX_CANDIDATES})")]
    TooManyCandidates(usize),
    #[error("{0}")]
    Patch(#[from] PatchError),
}

impl Failure {
    /// What the user is told, with the code that says whose turn it is.
    pub(crate) fn denial(&self, at: At<'_>, reference: &Reference) -> Denial {
        let text = reference.to_string();
        let (code, rule, instead) = match self {
            Self::Registry(error) => return registry_denial(at, &text, error),
            Self::Platform(_) => (Code::NotFound, self.to_string(), "write one of its platforms"),
            Self::Nothing(Nothing::NoMatch { .. }) => {
                (Code::Unprocessable, self.to_string(), "write media types that it has")
            }
            Self::Nothing(Nothing::Patch) => (
                Code::Unprocessable,
                self.to_string(),
                "name it with oras.land/patch or oras.artifact.patch; a step names content, as what the patch names",
            ),
            Self::Patch(_) => (Code::Unprocessable, self.to_string(), ""),
            Self::Nothing(_) => {
                (Code::Unprocessable, self.to_string(), "push files, as `oras push REFERENCE FILE` does")
            }
            Self::TooManyCandidates(_) => {
                (Code::Forbidden, self.to_string(), "write which one with oras.land/platform")
            }
            Self::Deadline | Self::Crashed | Self::Busy { .. } => {
                (Code::Unavailable, format!("was not resolved: {self}"), "")
            }
        };
        Denial::new(code, at, Some(&text), rule, instead)
    }
}

/// Clients of the API server sleep for as long as they are told; a registry does not get to say a day.
const MAX_RETRY_AFTER_SECONDS: u32 = 60;

fn registry_denial(at: At<'_>, text: &str, error: &RegistryError) -> Denial {
    let (code, rule, instead) = match error.kind() {
        RegistryErrorKind::NotFound => {
            (Code::NotFound, "does not exist", "push it, or write a tag or digest that exists")
        }
        RegistryErrorKind::Refused => (
            Code::Forbidden,
            "was refused by its registry",
            "name a Secret with credentials for it in oras.land/pull-secret or in the pod's imagePullSecrets",
        ),
        RegistryErrorKind::NotAllowed => {
            (Code::Forbidden, "is not allowed", "ask the administrator, who can allow it in certs.d")
        }
        RegistryErrorKind::Misconfigured => (
            Code::Unavailable,
            "cannot be asked for",
            "ask the administrator, who can mend the configuration",
        ),
        RegistryErrorKind::RateLimited => {
            (Code::TooManyRequests, "was not resolved, the registry limits requests", "try again later")
        }
        RegistryErrorKind::TooLarge | RegistryErrorKind::Invalid => {
            (Code::Unprocessable, "cannot be read", "push it again as an OCI artifact")
        }
        RegistryErrorKind::Unavailable
        | RegistryErrorKind::Unreachable
        | RegistryErrorKind::Stalled
        | RegistryErrorKind::Untruthful => (Code::Unavailable, "was not resolved", "try again later"),
    };
    let wait = error
        .retry_after()
        .map(|wait| u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).clamp(1, MAX_RETRY_AFTER_SECONDS));
    Denial::new(code, at, Some(text), format_args!("{rule} ({error})"), instead)
        .with_retry_after(wait)
        .of_registry(error.kind())
}
