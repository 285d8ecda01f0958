//! The reserve of free space on the store's file system.

use super::percent::Percent;

/// The free space that the store never uses, because other programs of the node use the same file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    percent: Percent,
    max_bytes: u64,
}

impl Reserve {
    /// Returns a reserve of this percentage of the file system.
    pub fn percent(percent: Percent) -> Self {
        Self { percent, max_bytes: u64::MAX }
    }

    /// Returns a reserve of this many bytes.
    pub fn bytes(bytes: u64) -> Self {
        Self { percent: Percent::ALL, max_bytes: bytes }
    }

    /// Limits the reserve to this many bytes.
    #[must_use]
    pub fn at_most(self, bytes: u64) -> Self {
        Self { max_bytes: self.max_bytes.min(bytes), ..self }
    }

    /// Returns the reserve in bytes on a file system of this size.
    pub(crate) fn of(self, total: u64) -> u64 {
        self.percent.of(total).min(self.max_bytes)
    }
}
