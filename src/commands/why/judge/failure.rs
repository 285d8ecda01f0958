//! What a failed mount means: the step, whether kubelet's retries can help, and what to do.

use super::verdict::StepName;
use crate::cluster::events::{Code, MountFailure};
use crate::commands::why::denial::long;
use crate::exit_status::ExitStatus;

/// Why a volume does not get further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) step: StepName,
    /// `None` if it goes on by itself.
    pub(super) status: Option<ExitStatus>,
    pub(super) message: String,
    pub(super) advice: &'static str,
    /// Whether the registry, and not the node, is the cause.
    pub(super) is_about_registry: bool,
}

/// Reads a failure by the code of the driver's answer (`driver/src/status.rs` has the table), or by kubelet's words.
pub(super) fn stop_of(failure: &MountFailure) -> Stop {
    let message = long(&failure.message);
    let has = |words: &str| failure.message.contains(words);
    let failed = Some(ExitStatus::Failed);
    let (step, status, advice, is_about_registry) = match failure.code {
        None if has("not found in the list of registered CSI drivers") => {
            (StepName::Node, failed, "check that a pod of the driver runs on the node", false)
        }
        None if has("NodePublishSecretRef") => {
            (StepName::Credential, Some(ExitStatus::BadInput), "create the Secret that the pod names", false)
        }
        None => (StepName::Mount, failed, "look at what kubelet reports", false),
        Some(Code::Aborted) => {
            (StepName::Pull, None, "wait: kubelet calls again, at most two minutes later", false)
        }
        Some(Code::PermissionDenied) if has("seal") => {
            (StepName::Admission, failed, "create the pod again, so that the webhook signs its volume", false)
        }
        Some(Code::PermissionDenied) => {
            (StepName::Credential, failed, "use credentials that can pull the artifact", true)
        }
        Some(Code::InvalidArgument) if has("nodePublishSecretRef") => {
            (StepName::Credential, Some(ExitStatus::BadInput), "create the Secret again", false)
        }
        Some(Code::InvalidArgument) => (
            StepName::Admission,
            Some(ExitStatus::BadInput),
            "create the pod again, so that the webhook writes its volume",
            false,
        ),
        Some(Code::NotFound) => (
            StepName::Pull,
            failed,
            "push the artifact again, or create the pod again if the tag has moved",
            true,
        ),
        Some(Code::Unavailable) => {
            (StepName::Pull, failed, "kubelet retries. Check that the node can reach the registry", true)
        }
        Some(Code::ResourceExhausted) => {
            (StepName::Pull, failed, "kubelet retries. Free disk space on the node", false)
        }
        Some(Code::DataLoss) => (
            StepName::Pull,
            Some(ExitStatus::Refused),
            "check the registry, and push the artifact again",
            true,
        ),
        Some(Code::FailedPrecondition) => (
            StepName::Pull,
            Some(ExitStatus::Refused),
            "correct the artifact as the message says, push it under another tag, and write that tag: this pod keeps its digest",
            true,
        ),
        Some(Code::AlreadyExists) => (StepName::Mount, failed, "create the pod again", false),
        Some(Code::Internal | Code::Other) => {
            (StepName::Mount, failed, "kubelet retries. Look at the log of the driver on the node", false)
        }
    };
    Stop { step, status, message, advice, is_about_registry }
}
