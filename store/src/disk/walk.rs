//! Walks a directory tree by file descriptors, without following links, in a fixed order.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

use super::beneath::open_beneath;
use super::entry_path::EntryPath;
use super::error::DiskError;

/// An entry of the walked tree.
pub(crate) struct Entry<'a> {
    pub(crate) path: EntryPath,
    pub(crate) name: &'a OsStr,
    /// The folder that contains the entry.
    pub(crate) folder: BorrowedFd<'a>,
    pub(crate) kind: FileType,
    pub(crate) stat: Stat,
}

impl Entry<'_> {
    pub(crate) fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }
}

pub(crate) fn failed(step: &'static str, path: &EntryPath, errno: Errno) -> DiskError {
    DiskError::new(step, PathBuf::from(OsStr::from_bytes(path.as_bytes())), errno)
}

/// Calls `visit` for every entry beneath `root`, each directory before its content. The root itself is not
/// visited.
pub(crate) fn walk<E: From<DiskError>>(
    root: &OwnedFd,
    mut visit: impl FnMut(&Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut waiting = vec![EntryPath::root()];
    while let Some(path) = waiting.pop() {
        let folder = open_beneath(root, &path).map_err(|errno| failed("open", &path, errno))?;
        let mut names = Vec::new();
        let listed = Dir::read_from(&folder).map_err(|errno| failed("list", &path, errno))?;
        for entry in listed {
            let entry = entry.map_err(|errno| failed("list", &path, errno))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_bytes().to_vec());
            }
        }
        names.sort_unstable();
        for name in names {
            let below = path.child(&name);
            let name = OsStr::from_bytes(&name);
            let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| failed("inspect", &below, errno))?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory {
                waiting.push(below.clone());
            }
            let folder = std::os::fd::AsFd::as_fd(&folder);
            visit(&Entry { path: below, name, folder, kind, stat })?;
        }
    }
    Ok(())
}
