//! Opens directories beneath a root, without following any link.
//!
//! Architecture Invariant: every directory is opened with `openat2` and `RESOLVE_BENEATH`,
//! `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_MAGICLINKS`. The kernel, not a comparison of strings, keeps a path of an
//! archive inside its tree.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::entry_path::EntryPath;

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens a directory beneath `root`, following no link.
pub(crate) fn open_beneath(root: impl AsFd, path: &EntryPath) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let name: &[u8] = if path.is_root() { b"." } else { path.as_bytes() };
    loop {
        match rustix::fs::openat2(&root, OsStr::from_bytes(name), flags, Mode::empty(), BENEATH) {
            // A rename elsewhere raced with the walk (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}
