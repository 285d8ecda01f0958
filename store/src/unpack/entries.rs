//! Looking at the entries of a directory and taking them away, by descriptor and following nothing.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::filter::Filter;
use crate::disk::{EntryPath, Totals};

/// An entry of a directory.
pub(super) struct Listed {
    pub(super) name: Vec<u8>,
    pub(super) kind: FileType,
    pub(super) size: u64,
}

/// Directories that are still to be gone through: the names of siblings, and of their parents the paths. A stack of
/// whole paths would hold a million times four kilobytes for an archive that was made for it.
pub(crate) struct Walk<T>(Vec<Siblings<T>>);

/// A directory, and names in it.
type Siblings<T> = (EntryPath, Vec<(Vec<u8>, T)>);

impl<T> Walk<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Goes to the directories of `parent` next.
    pub(crate) fn push(&mut self, parent: EntryPath, directories: Vec<(Vec<u8>, T)>) {
        if !directories.is_empty() {
            self.0.push((parent, directories));
        }
    }

    pub(crate) fn pop(&mut self) -> Option<(EntryPath, T)> {
        loop {
            let (parent, directories) = self.0.last_mut()?;
            if let Some((name, with)) = directories.pop() {
                return Some((parent.child(&name), with));
            }
            self.0.pop();
        }
    }
}

pub(super) fn is_directory(folder: &OwnedFd, name: &OsStr) -> bool {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

pub(super) fn list(folder: &OwnedFd) -> Result<Vec<Listed>, Errno> {
    let mut listed = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        listed.extend(look(folder, name)?);
    }
    Ok(listed)
}

/// Whether a directory has no entry.
pub(super) fn is_empty(folder: &OwnedFd) -> Result<bool, Errno> {
    for entry in Dir::read_from(folder)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn look(folder: impl AsFd, name: &[u8]) -> Result<Option<Listed>, Errno> {
    match rustix::fs::statat(folder, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
        Ok(found) => {
            let kind = FileType::from_raw_mode(found.st_mode);
            let size =
                if kind == FileType::RegularFile { u64::try_from(found.st_size).unwrap_or(0) } else { 0 };
            Ok(Some(Listed { name: name.to_vec(), kind, size }))
        }
    }
}

fn open(folder: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, OsStr::from_bytes(name), flags, Mode::empty())
}

/// Removes an entry with everything beneath it; what is not there is no error.
pub(super) fn remove(folder: impl AsFd, name: &[u8]) -> Result<Totals, Errno> {
    remove_kept(folder, &EntryPath::root().child(name), Filter::default())
}

/// Removes what `filter` keeps of an entry and of everything beneath it. `path` is how the filter knows the entry,
/// its last name the one in `folder`. A directory goes where it is kept itself or loses all that was in it.
pub(super) fn remove_kept(folder: impl AsFd, path: &EntryPath, filter: Filter<'_>) -> Result<Totals, Errno> {
    let mut removed = Totals::default();
    let Some((_, name)) = path.split() else { return Ok(removed) };
    if filter.prunes(path) {
        return Ok(removed);
    }
    let Some(found) = look(&folder, name)? else { return Ok(removed) };
    let kept = filter.keeps(path);
    if found.kind != FileType::Directory {
        if kept {
            rustix::fs::unlinkat(&folder, OsStr::from_bytes(name), AtFlags::empty())?;
            removed = Totals { bytes: found.size, inodes: 1 };
        }
        return Ok(removed);
    }
    let inside = open(&folder, name)?;
    for entry in list(&inside)? {
        let below = remove_kept(&inside, &path.child(&entry.name), filter)?;
        removed.bytes += below.bytes;
        removed.inodes += below.inodes;
    }
    if (kept || removed.inodes > 0) && is_empty(&inside)? {
        rustix::fs::unlinkat(&folder, OsStr::from_bytes(name), AtFlags::REMOVEDIR)?;
        removed.inodes += 1;
    }
    Ok(removed)
}
