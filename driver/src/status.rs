//! Maps errors to gRPC statuses. No other module builds a status.
//!
//! Kubelet treats codes differently (`isFinalError` in `pkg/volume/csi`). With `CANCELLED`, `DEADLINE_EXCEEDED`,
//! `UNAVAILABLE`, `RESOURCE_EXHAUSTED` and `ABORTED` the volume may be in progress, so kubelet calls unpublish sooner or
//! later, whatever happens to the pod. Any other code is final: kubelet forgets the attempt and may never call
//! unpublish. So a call returns a final code only if it left nothing behind and nothing in the background would mount
//! (a pull never mounts).
//!
//! | cause | code | final |
//! |---|---|---|
//! | a missing field, no canonical volume, no namespace, a block volume | `INVALID_ARGUMENT` | yes |
//! | another call for the target, a pull or an authorization check in progress, a shutdown | `ABORTED` | no |
//! | the registry fails or is unreachable, or denies a pull without the pull secret of a set | `UNAVAILABLE` | no |
//! | the disk is full | `RESOURCE_EXHAUSTED` | no |
//! | the artifact or the volume does not exist | `NOT_FOUND` | yes |
//! | the registry denies the pull, or the volume has no valid seal | `PERMISSION_DENIED` | yes |
//! | content that does not match its digest | `DATA_LOSS` | yes |
//! | rejected content, or something at the target that the driver did not mount | `FAILED_PRECONDITION` | yes |
//! | another volume at the target | `ALREADY_EXISTS` | yes |
//! | a failure of the kernel or the disk | `INTERNAL` | yes |

use oras_csi_store::{DiskError, PullErrorKind};
use tonic::{Code, Status};

use crate::metrics::CallOutcome;
use crate::mount::MountError;
use crate::publish::{AuthorizationError, PublishError, SealRejection, StatsError, UnpublishError};

/// An error with a gRPC code.
pub(crate) trait Coded: std::error::Error {
    /// Returns the code of the table above.
    fn code(&self) -> Code;
}

/// Returns the status for an error. Also logs the error, because kubelet shows it only in the events of the pod.
pub(crate) fn status(call: &'static str, error: &impl Coded) -> Status {
    let code = error.code();
    if code == Code::Aborted {
        tracing::info!(call, %error, "the call is not complete; kubelet retries");
    } else {
        tracing::warn!(call, code = ?code, %error, "the call failed");
    }
    Status::new(code, error.to_string())
}

/// Returns the status for a call that this driver does not implement.
pub(crate) fn unimplemented(call: &'static str) -> Status {
    Status::new(
        Code::Unimplemented,
        format!("{call} is not implemented: the driver csi.oras.land does not have this capability"),
    )
}

/// Returns the outcome of a call for the metrics.
pub(crate) fn outcome(code: Code) -> CallOutcome {
    match code {
        Code::Aborted => CallOutcome::InProgress,
        Code::Unavailable | Code::ResourceExhausted | Code::Internal => CallOutcome::Failed,
        _ => CallOutcome::Refused,
    }
}

impl Coded for MountError {
    fn code(&self) -> Code {
        match self {
            Self::Path(_) => Code::InvalidArgument,
            Self::NoParent(_) | Self::Foreign { .. } | Self::OldKernel => Code::FailedPrecondition,
            Self::Forbidden { .. } | Self::System { .. } | Self::Flags { .. } => Code::Internal,
        }
    }
}

impl Coded for DiskError {
    fn code(&self) -> Code {
        if self.is_full() { Code::ResourceExhausted } else { Code::Internal }
    }
}

fn pull_code(kind: PullErrorKind) -> Code {
    match kind {
        PullErrorKind::NotFound => Code::NotFound,
        PullErrorKind::Denied => Code::PermissionDenied,
        PullErrorKind::Unavailable => Code::Unavailable,
        PullErrorKind::DiskFull => Code::ResourceExhausted,
        PullErrorKind::Corrupt => Code::DataLoss,
        PullErrorKind::Refused => Code::FailedPrecondition,
        PullErrorKind::Internal => Code::Internal,
        PullErrorKind::Stopped => Code::Aborted,
    }
}

impl Coded for PublishError {
    fn code(&self) -> Code {
        match self {
            Self::MissingField(_)
            | Self::Block
            | Self::MissingNamespace(_)
            | Self::Volume(_)
            | Self::Secret(_) => Code::InvalidArgument,
            Self::Seal(SealRejection::Keys { .. }) => Code::Internal,
            Self::Seal(SealRejection::Seal(_) | SealRejection::Forged { .. }) => Code::PermissionDenied,
            Self::Busy(_) | Self::Pulling { .. } | Self::CheckingPermission { .. } | Self::Interrupted => {
                Code::Aborted
            }
            Self::Pull(error) | Self::Authorization(AuthorizationError::Rejected { source: error, .. }) => {
                pull_code(error.kind())
            }
            // The registry may accept the pull when the secret can be read.
            Self::PullWithoutSecret { error, .. } => match error.kind() {
                PullErrorKind::Denied | PullErrorKind::NotFound => Code::Unavailable,
                kind => pull_code(kind),
            },
            Self::Authorization(AuthorizationError::Unreachable { .. }) => Code::Unavailable,
            Self::Conflict { .. } => Code::AlreadyExists,
            Self::Mount(error) => error.code(),
            Self::Disk(error) => error.code(),
        }
    }
}

impl Coded for UnpublishError {
    fn code(&self) -> Code {
        match self {
            Self::MissingField(_) => Code::InvalidArgument,
            Self::Busy(_) | Self::Interrupted => Code::Aborted,
            Self::OtherVolume { .. } => Code::NotFound,
            Self::Mount(error) => error.code(),
            Self::Disk(error) => error.code(),
        }
    }
}

impl Coded for StatsError {
    fn code(&self) -> Code {
        match self {
            Self::MissingField(_) => Code::InvalidArgument,
            Self::NotPublished { .. } => Code::NotFound,
            Self::Interrupted => Code::Aborted,
            Self::Disk(error) => error.code(),
            Self::Mount(error) => error.code(),
        }
    }
}
