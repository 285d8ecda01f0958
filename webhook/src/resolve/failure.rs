//! Why a reference was not resolved, and the denial for it.

use std::sync::Arc;
use std::time::Duration;

use oras_csi_core::manifest::SelectError;
use oras_csi_core::patch::PatchError;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{RegistryError, RegistryErrorKind};

use crate::contents::NothingToMount;
use crate::denial::{At, Code, Denial};

/// The highest number of an index's manifests that policies check.
pub(super) const MAX_CANDIDATES: usize = 64;

/// Why a reference could not be resolved.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Registry(Arc<RegistryError>),
    #[error("{0}")]
    Platform(SelectError),
    #[error("{0}")]
    NothingToMount(NothingToMount),
    #[error("the registry did not answer before the deadline of the request")]
    Deadline,
    #[error("the lookup failed inside the webhook, see its log")]
    Crashed,
    #[error("{waiting} requests already wait for the registry, which has not answered for {}.{:03} s", silent.as_secs(), silent.subsec_millis())]
    Busy { waiting: usize, silent: Duration },
    #[error("is an index of {0} manifests, more than policies can check ({MAX_CANDIDATES})")]
    TooManyCandidates(usize),
    #[error("{0}")]
    Patch(#[from] PatchError),
}

impl Failure {
    /// Returns the denial. Its code says whether the user, the registry or time can fix it.
    pub(crate) fn denial(&self, at: At<'_>, reference: &Reference) -> Denial {
        let text = reference.to_string();
        let (code, rule, instead) = match self {
            Self::Registry(error) => return registry_denial(at, &text, error),
            Self::Platform(_) => (Code::NotFound, self.to_string(), "write one of its platforms"),
            Self::NothingToMount(NothingToMount::NoMatch { .. }) => {
                (Code::Unprocessable, self.to_string(), "write media types that it has")
            }
            Self::NothingToMount(NothingToMount::Patch) => (
                Code::Unprocessable,
                self.to_string(),
                "apply it with oras.land/patch or oras.artifact.patch: an add or overlay step must name content",
            ),
            Self::Patch(_) => (Code::Unprocessable, self.to_string(), ""),
            Self::NothingToMount(_) => {
                (Code::Unprocessable, self.to_string(), "push files, as `oras push REFERENCE FILE` does")
            }
            Self::TooManyCandidates(_) => {
                (Code::Forbidden, self.to_string(), "select one with oras.land/platform")
            }
            Self::Deadline | Self::Crashed | Self::Busy { .. } => {
                (Code::Unavailable, format!("cannot be resolved: {self}"), "try again later")
            }
        };
        Denial::new(code, at, Some(&text), rule, instead)
    }
}

/// The maximum `Retry-After`, in seconds. Clients of the API server wait for as long as it says, so a registry must not
/// be able to make them wait for a day.
const MAX_RETRY_AFTER_SECONDS: u32 = 60;

fn registry_denial(at: At<'_>, text: &str, error: &RegistryError) -> Denial {
    let (code, rule, instead) = match error.kind() {
        RegistryErrorKind::Refused if matches!(error, RegistryError::Redirected { .. }) => (
            Code::Unavailable,
            "cannot be pulled: the host that the registry redirected to refused",
            "ask the operator of the registry to check its storage, or try again later",
        ),
        RegistryErrorKind::NotFound => {
            (Code::NotFound, "does not exist", "push it, or write a tag or digest that exists")
        }
        RegistryErrorKind::Refused => (
            Code::Forbidden,
            "cannot be pulled: the registry denied access",
            "name a Secret with credentials for it in oras.land/pull-secret or in the pod's imagePullSecrets",
        ),
        RegistryErrorKind::NotAllowed => {
            (Code::Forbidden, "is not allowed", "ask the administrator to allow it in certs.d")
        }
        RegistryErrorKind::Misconfigured => (
            Code::Unavailable,
            "cannot be pulled with the current registry configuration",
            "ask the administrator to fix the configuration",
        ),
        RegistryErrorKind::Certificate => (
            Code::Unavailable,
            "cannot be resolved: the TLS certificate is not accepted",
            "ask the administrator to fix the certificate or the registry configuration",
        ),
        RegistryErrorKind::RateLimited => (
            Code::TooManyRequests,
            "cannot be resolved: the registry limits the request rate",
            "try again later",
        ),
        RegistryErrorKind::TooLarge | RegistryErrorKind::Invalid => {
            (Code::Unprocessable, "cannot be read", "push it again as an OCI artifact")
        }
        RegistryErrorKind::Unavailable
        | RegistryErrorKind::Unreachable
        | RegistryErrorKind::Stalled
        | RegistryErrorKind::Untruthful => (Code::Unavailable, "cannot be resolved", "try again later"),
    };
    let wait = error
        .retry_after()
        .map(|wait| u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).clamp(1, MAX_RETRY_AFTER_SECONDS));
    Denial::new(code, at, Some(text), format_args!("{rule} ({error})"), instead)
        .with_retry_after(wait)
        .with_registry_error(error.kind())
}
