//! What kind of failure an error is, for a program that must exit with a number.

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
