//! Opens directories beneath a root without following links.
//!
//! Architecture Invariant: every directory is opened with `openat2` and `RESOLVE_BENEATH`,
//! `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_MAGICLINKS`. So the kernel, and not a string comparison, guarantees
//! that a path from an archive stays inside its tree.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::entry_path::EntryPath;

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens a directory beneath `root` without following links.
pub(crate) fn open_beneath(root: impl AsFd, path: &EntryPath) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let name: &[u8] = if path.is_root() { b"." } else { path.as_bytes() };
    loop {
        match rustix::fs::openat2(&root, OsStr::from_bytes(name), flags, Mode::empty(), BENEATH) {
            // A concurrent rename interrupted the path resolution (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}
