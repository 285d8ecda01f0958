//! The part of a file system that stays free.

use super::percent::Percent;

/// What stays free on the file system of the store: other programs of the node live on it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    percent: Percent,
    most: u64,
}

impl Reserve {
    /// Such a part of the file system.
    pub fn percent(percent: Percent) -> Self {
        Self { percent, most: u64::MAX }
    }

    /// So many bytes.
    pub fn bytes(bytes: u64) -> Self {
        Self { percent: Percent::ALL, most: bytes }
    }

    /// No more than so many bytes of it.
    #[must_use]
    pub fn at_most(self, bytes: u64) -> Self {
        Self { most: self.most.min(bytes), ..self }
    }

    /// The reserve on a file system with this many bytes.
    pub(crate) fn of(self, total: u64) -> u64 {
        self.percent.of(total).min(self.most)
    }
}
