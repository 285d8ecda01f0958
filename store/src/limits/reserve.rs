//! The reserve of free bytes or inodes on the store's file system.

use super::percent::Percent;

/// The free bytes or inodes that the store never uses, because other programs of the node use the same file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    percent: Percent,
    max: u64,
}

impl Reserve {
    /// Returns a reserve of this percentage of the file system.
    pub fn percent(percent: Percent) -> Self {
        Self { percent, max: u64::MAX }
    }

    /// Returns a reserve of this many bytes.
    pub fn bytes(bytes: u64) -> Self {
        Self { percent: Percent::ALL, max: bytes }
    }

    /// Returns a reserve of this many inodes.
    pub fn inodes(inodes: u64) -> Self {
        Self { percent: Percent::ALL, max: inodes }
    }

    /// Limits the reserve to this many bytes or inodes.
    #[must_use]
    pub fn at_most(self, max: u64) -> Self {
        Self { max: self.max.min(max), ..self }
    }

    /// Returns the reserve on a file system with this many bytes or inodes.
    pub(crate) fn of(self, total: u64) -> u64 {
        self.percent.of(total).min(self.max)
    }
}
