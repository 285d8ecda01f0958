//! What the disk refuses, in words for the person who has to make room.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A call on the store's disk that failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No space, no inodes, or a quota.
    #[error(
        "the disk with the store is full: cannot {step} {}: {source}. Make room on it (`df` and `df -i` say whether bytes or inodes are gone), or give the store a larger one", .path.display()
    )]
    Full {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No room for another file, though there may be room for bytes.
    #[error(
        "the disk with the store has no inodes left: cannot {step} {}. Remove files on it (many small ones take them up), or give the store a file system with more", .path.display()
    )]
    NoInodes {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
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
    /// Something that was about to be used is not what was written.
    #[error(
        "{what} was found damaged on the disk while it was in use: it is fetched again with the next attempt"
    )]
    Damaged {
        /// The blob or layer.
        what: String,
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
    pub fn new(step: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC) if has_no_inodes(&path) => Self::NoInodes { step, path },
            Some(Errno::NOSPC | Errno::DQUOT) => Self::Full { step, path, source },
            Some(Errno::ROFS) => Self::ReadOnly { step, path },
            _ => Self::Io { step, path, source },
        }
    }

    /// Whether the disk has no room: later it may have.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::NoInodes { .. } | Self::TooSmall { .. })
    }

    /// Whether the disk does not give back what was written to it: what is there is lost, and may be made again.
    pub(crate) fn is_damage(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        let damage = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NOENT, Errno::NOTDIR, Errno::LOOP];
        Errno::from_io_error(source).is_some_and(|errno| damage.contains(&errno))
    }
}

/// Whether the file system of `path`, or of the nearest folder above it that can be seen, has no inode left.
fn has_no_inodes(path: &Path) -> bool {
    let nearest = path.ancestors().find_map(|above| rustix::fs::statvfs(above).ok());
    // Some file systems make inodes as they need them, and say 0 of 0.
    nearest.is_some_and(|found| found.f_files > 0 && found.f_favail == 0)
}
