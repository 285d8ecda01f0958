//! How a command ends: a sentence, and an exit status that a script can act on.

use std::fmt;
use std::process::ExitCode;

use oras_csi_core::registry::{RegistryError, RegistryErrorKind};
use oras_csi_driver::class::ErrorClass;
use oras_csi_webhook::denial::{Code, Denial};

/// Why a command did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    status: Status,
    message: String,
}

/// The exit statuses of the command other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Network, registry, disk: trying again may help.
    Failed = 1,
    /// What was asked for is wrong.
    BadInput = 2,
    /// A policy says no.
    Denied = 3,
    /// The content is refused: a digest, a path, a limit.
    Refused = 4,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl fmt::Display) -> Self {
        Self { status, message: message.to_string() }
    }

    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(Status::Failed, message)
    }

    pub(crate) fn bad_input(message: impl fmt::Display) -> Self {
        Self::new(Status::BadInput, message)
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status as u8)
    }

    /// The same with where it happened in front.
    pub(crate) fn at(self, place: impl fmt::Display) -> Self {
        Self { message: format!("{place}: {}", self.message), ..self }
    }
}

impl From<&RegistryError> for Status {
    fn from(error: &RegistryError) -> Self {
        match error.kind() {
            RegistryErrorKind::Untruthful | RegistryErrorKind::TooLarge | RegistryErrorKind::Invalid => {
                Self::Refused
            }
            _ => Self::Failed,
        }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::new(Status::from(&error), error)
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        let status = match denial.code() {
            Code::BadRequest => Status::BadInput,
            Code::Forbidden => Status::Denied,
            Code::Unprocessable => Status::Refused,
            Code::NotFound | Code::TooManyRequests | Code::Unavailable => Status::Failed,
        };
        Self::new(status, denial)
    }
}

impl From<ErrorClass> for Status {
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Failed => Self::Failed,
            ErrorClass::BadInput => Self::BadInput,
            ErrorClass::Refused => Self::Refused,
        }
    }
}
