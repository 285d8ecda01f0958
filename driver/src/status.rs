//! Errors as gRPC statuses: the only place that builds one.
//!
//! What a code means to kubelet (`isFinalError` in `pkg/volume/csi`): with `CANCELLED`,
//! `DEADLINE_EXCEEDED`, `UNAVAILABLE`, `RESOURCE_EXHAUSTED` and `ABORTED` the volume may be in the making,
//! so an unpublish follows sooner or later, whatever happens to the pod. Any other code is final: kubelet
//! forgets the attempt, and an unpublish may never come. So a final code is given only where nothing is
//! left behind, and nothing in the background would mount (a pull never does).
//!
//! | what | code | final |
//! |---|---|---|
//! | a field missing, not canonical, no namespace, a block volume | `INVALID_ARGUMENT` | yes |
//! | another call for the target, a pull or a question in progress, the driver stops | `ABORTED` | no |
//! | the registry fails or cannot be reached, or says no without the secret of a set | `UNAVAILABLE` | no |
//! | the disk is full | `RESOURCE_EXHAUSTED` | no |
//! | no such artifact, or no such volume | `NOT_FOUND` | yes |
//! | the registry or our rules say no, no seal that counts | `PERMISSION_DENIED` | yes |
//! | bytes that are not what their digest says | `DATA_LOSS` | yes |
//! | refused content; something foreign at the target | `FAILED_PRECONDITION` | yes |
//! | another volume at the target | `ALREADY_EXISTS` | yes |
//! | kernel or disk | `INTERNAL` | yes |

use oras_csi_store::{DiskError, PullErrorKind};
use tonic::{Code, Status};

use crate::metrics::CallOutcome;
use crate::mount::MountError;
use crate::publish::{PublishError, RightError, SealRefusal, StatsError, UnpublishError};

/// An error that has a code.
pub(crate) trait Coded: std::error::Error {
    /// The code of the table above.
    fn code(&self) -> Code;
}

/// The status for an error; also written to the log, since kubelet shows it only in a pod's events.
pub(crate) fn status(call: &'static str, error: &impl Coded) -> Status {
    let code = error.code();
    if code == Code::Aborted {
        tracing::info!(call, %error, "not done yet");
    } else {
        tracing::warn!(call, code = ?code, %error, "a call failed");
    }
    Status::new(code, error.to_string())
}

/// A call that this driver does not have.
pub(crate) fn unimplemented(call: &'static str) -> Status {
    Status::new(Code::Unimplemented, format!("{call}: csi.oras.land has no such capability"))
}

/// What a code counts as.
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

fn of_pull(kind: PullErrorKind) -> Code {
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
            Self::Missing(_) | Self::Block | Self::Namespace(_) | Self::Volume(_) | Self::Secret(_) => {
                Code::InvalidArgument
            }
            Self::Seal(SealRefusal::Keys { .. }) => Code::Internal,
            Self::Seal(SealRefusal::Seal(_) | SealRefusal::Forged { .. }) => Code::PermissionDenied,
            Self::Busy(_) | Self::Pulling { .. } | Self::Asking { .. } | Self::Interrupted => Code::Aborted,
            Self::Pull(error) | Self::Right(RightError::Refused(error)) => of_pull(error.kind()),
            // It may be let in once the secret can be read.
            Self::PullWithoutSecret { error, .. } => match error.kind() {
                PullErrorKind::Denied | PullErrorKind::NotFound => Code::Unavailable,
                kind => of_pull(kind),
            },
            Self::Right(RightError::NotAsked { .. }) => Code::Unavailable,
            Self::Conflict { .. } => Code::AlreadyExists,
            Self::Mount(error) => error.code(),
            Self::Disk(error) => error.code(),
        }
    }
}

impl Coded for UnpublishError {
    fn code(&self) -> Code {
        match self {
            Self::Missing(_) => Code::InvalidArgument,
            Self::Busy(_) | Self::Interrupted => Code::Aborted,
            Self::Other { .. } => Code::NotFound,
            Self::Mount(error) => error.code(),
            Self::Disk(error) => error.code(),
        }
    }
}

impl Coded for StatsError {
    fn code(&self) -> Code {
        match self {
            Self::Missing(_) => Code::InvalidArgument,
            Self::NotPublished { .. } => Code::NotFound,
            Self::Interrupted => Code::Aborted,
            Self::Disk(error) => error.code(),
            Self::Mount(error) => error.code(),
        }
    }
}
