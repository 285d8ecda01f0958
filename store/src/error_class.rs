//! Classes of errors, which callers map to exit codes, metric labels and gRPC codes.

/// Classifies an error by what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    /// The network, the registry, the disk or the kernel failed: a later retry may succeed.
    Failed,
    /// The request is invalid: the same request always fails.
    BadInput,
    /// The content is refused: a wrong digest, a path that leaves the tree, or a limit that is exceeded.
    Refused,
}

impl ErrorClass {
    /// Returns the exit code of the command (docs/design.md, "Command line and exit codes").
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::BadInput => 2,
            Self::Refused => 4,
        }
    }
}

/// Classifies the failure of a pull for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PullErrorKind {
    /// The registry does not have the artifact.
    NotFound,
    /// The registry, or a rule of this program, denies access.
    Denied,
    /// The registry or the network failed: a later retry may succeed.
    Unavailable,
    /// The disk is full: a later retry may succeed.
    DiskFull,
    /// The received bytes do not match their digest.
    Corrupt,
    /// The content of the artifact is refused.
    Refused,
    /// The disk or this program failed.
    Internal,
    /// The driver is stopping.
    Stopped,
}
