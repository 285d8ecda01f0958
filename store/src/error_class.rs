//! Kinds of failures: for the exit status of a program, and for metrics and gRPC codes.

/// The three ways in which this crate's operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    /// Network, registry, disk, kernel: trying again later may help.
    Failed,
    /// What was asked for is wrong: asking again in the same words never helps.
    BadInput,
    /// What was fetched is refused: a wrong digest, a path that would leave the tree, a limit.
    Refused,
}

impl ErrorClass {
    /// The exit status of the command for it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::BadInput => 2,
            Self::Refused => 4,
        }
    }
}

/// What a pull's failure means to the one who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PullErrorKind {
    /// No such thing in the registry.
    NotFound,
    /// The registry, or our own rules, do not let us have it.
    Denied,
    /// The registry or the network fails: later it may not.
    Unavailable,
    /// The disk is full: later it may not be.
    NoRoom,
    /// The bytes are not what their digest says.
    Corrupt,
    /// What is in it is refused.
    Refused,
    /// The disk, or this program.
    Internal,
    /// The driver stops.
    Stopped,
}
