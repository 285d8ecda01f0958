//! Errors of the disk that holds the store, with what an administrator can do about them.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A failed operation on the store's disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No space, no inodes, or a quota.
    #[error(
        "cannot {step} {}: the disk with the store is full ({source}). Free space on it (`df` and `df -i` show whether bytes or inodes ran out), or move the store to a larger disk", .path.display()
    )]
    Full {
        /// The operation, as a verb.
        step: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file system has no free inodes. It may have free bytes.
    #[error(
        "cannot {step} {}: the disk with the store has no inodes left. Remove files from it (many small files use up the inodes), or move the store to a file system with more inodes", .path.display()
    )]
    NoInodes {
        /// The operation, as a verb.
        step: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// The file system is read-only, often after a disk error.
    #[error(
        "cannot {step} {}: the disk with the store is read-only. Look for disk errors in the kernel log, then mount it read-write",
        .path.display()
    )]
    ReadOnly {
        /// The operation, as a verb.
        step: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// Any other error.
    #[error("cannot {step} {}: {source}", .path.display())]
    Io {
        /// The operation, as a verb.
        step: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// An item that was about to be used differs from its recorded checksum.
    #[error("cannot use {what}: it was found damaged on the disk. The next attempt downloads it again")]
    Damaged {
        /// The blob or layer.
        what: String,
    },
    /// The free space is too small for the data to be written, which is known in advance.
    #[error(
        "cannot write {wanted} bytes to the store: its disk has {free} bytes free that no running pull needs, of which {reserve} are reserved (--keep-free). Free space on it, or move the store to a larger disk"
    )]
    TooSmall {
        /// How many bytes would be written.
        wanted: u64,
        /// How many bytes are free, without those that running pulls have reserved.
        free: u64,
        /// How many bytes must stay free.
        reserve: u64,
    },
    /// There are too few free inodes for the files to be written.
    #[error(
        "cannot write {wanted} more files and directories to the store: its disk has {free} free inodes that no running pull needs, of which {reserve} are reserved (--keep-free-inodes). Remove files from it (`df -i` shows its inodes), or move the store to a file system with more inodes"
    )]
    TooFewInodes {
        /// How many inodes would be used.
        wanted: u64,
        /// How many inodes are free, without those that running pulls have reserved.
        free: u64,
        /// How many inodes must stay free.
        reserve: u64,
    },
}

impl DiskError {
    /// Returns the error for an operation `step` (a verb, as "write") on `path`.
    pub fn new(step: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC) if has_no_inodes(&path) => Self::NoInodes { step, path },
            Some(Errno::NOSPC | Errno::DQUOT) => Self::Full { step, path, source },
            Some(Errno::ROFS) => Self::ReadOnly { step, path },
            _ => Self::Io { step, path, source },
        }
    }

    /// Reports whether the disk is full. A later retry may succeed.
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Full { .. } | Self::NoInodes { .. } | Self::TooSmall { .. } | Self::TooFewInodes { .. }
        )
    }

    /// Reports whether the disk lost data that was written to it. Such an item must be created again.
    pub(crate) fn is_damage(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        let damage = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NOENT, Errno::NOTDIR, Errno::LOOP];
        Errno::from_io_error(source).is_some_and(|errno| damage.contains(&errno))
    }
}

/// Reports whether the file system of `path`, or of its nearest accessible parent folder, has no free inodes.
fn has_no_inodes(path: &Path) -> bool {
    let nearest = path.ancestors().find_map(|above| rustix::fs::statvfs(above).ok());
    // Some file systems allocate inodes on demand and report 0 of 0.
    nearest.is_some_and(|found| found.f_files > 0 && found.f_favail == 0)
}
