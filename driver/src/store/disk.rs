//! What the disk refuses, in words for the person who has to make room.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// A call on the store's disk that failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No space, no inodes, or a quota.
    #[error(
        "the disk with the store is full: cannot {step} {}: {source}. Make room on it, or give the store a larger one", .path.display()
    )]
    Full {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file system is read-only, often after an error of the disk.
    #[error(
        "the disk with the store is read-only: cannot {step} {}. Look for disk errors in the kernel's log, then mount it read-write",
        .path.display()
    )]
    ReadOnly {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot {step} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Less than what is to be written, known before it is.
    #[error(
        "{wanted} bytes are to be written to the store, and its disk has {free} free, of which {reserve} stay free: make room on it, or give the store a larger one"
    )]
    TooSmall {
        /// What would be written.
        wanted: u64,
        /// What is free.
        free: u64,
        /// What is kept free.
        reserve: u64,
    },
}

impl DiskError {
    /// `step` is a verb ("write"), `path` what it was done to.
    pub(crate) fn new(step: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::Full { step, path, source },
            Some(Errno::ROFS) => Self::ReadOnly { step, path },
            _ => Self::Io { step, path, source },
        }
    }

    /// Whether the disk has no room: later it may have.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::TooSmall { .. })
    }
}
