//! Lists and removes the entries of a directory, by descriptor and without following symbolic links.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::filter::Filter;
use crate::disk::{EntryPath, Totals, Usage};

/// An entry of a directory.
pub(super) struct ListedEntry {
    pub(super) name: Vec<u8>,
    pub(super) kind: FileType,
    pub(super) size: u64,
    /// Whether this is the only name of the file or link.
    pub(super) is_only_link: bool,
    /// The bytes of a file that are not holes, or its size if that is less.
    allocated: u64,
}

impl ListedEntry {
    /// Returns an entry that is not on the disk.
    pub(super) fn named(name: &[u8]) -> Self {
        Self { name: name.to_vec(), kind: FileType::RegularFile, size: 0, is_only_link: true, allocated: 0 }
    }

    /// Returns what a tree loses when this file or link is removed.
    pub(super) fn as_removed(&self) -> Removed {
        let usage = if self.is_only_link { Usage::file(self.allocated) } else { Usage::default() };
        Removed { totals: Totals { bytes: self.size, inodes: 1 }, usage }
    }
}

/// What was removed from a tree.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Removed {
    pub(super) totals: Totals,
    /// What the disk is no longer charged for: directories and copies. A file that has other names stays. Names are
    /// not refunded, because ext4 does not shrink a directory.
    pub(super) usage: Usage,
}

impl Removed {
    fn add(&mut self, totals: Totals, usage: Usage) {
        self.totals.bytes += totals.bytes;
        self.totals.inodes += totals.inodes;
        self.usage = self.usage.plus(usage);
    }
}

/// The directories that are still to be visited: the path of each parent with the names of its children. A stack of
/// whole paths could need 4 KiB for each of a million entries.
pub(crate) struct DirectoryWalk<T>(Vec<Siblings<T>>);

/// A directory and the names of some of its children.
type Siblings<T> = (EntryPath, Vec<(Vec<u8>, T)>);

impl<T> DirectoryWalk<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds directories of `parent`, which are visited next.
    pub(crate) fn push(&mut self, parent: EntryPath, directories: Vec<(Vec<u8>, T)>) {
        if !directories.is_empty() {
            self.0.push((parent, directories));
        }
    }

    pub(crate) fn pop(&mut self) -> Option<(EntryPath, T)> {
        loop {
            let (parent, directories) = self.0.last_mut()?;
            if let Some((name, value)) = directories.pop() {
                return Some((parent.child(&name), value));
            }
            self.0.pop();
        }
    }
}

pub(super) fn is_directory(folder: &OwnedFd, name: &OsStr) -> bool {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

pub(super) fn list(folder: &OwnedFd) -> Result<Vec<ListedEntry>, Errno> {
    let mut listed = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        listed.extend(stat_entry(folder, name)?);
    }
    Ok(listed)
}

/// Reports whether a directory has no entries.
pub(super) fn is_empty(folder: &OwnedFd) -> Result<bool, Errno> {
    for entry in Dir::read_from(folder)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn stat_entry(folder: impl AsFd, name: &[u8]) -> Result<Option<ListedEntry>, Errno> {
    match rustix::fs::statat(folder, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
        Ok(found) => {
            let kind = FileType::from_raw_mode(found.st_mode);
            let size =
                if kind == FileType::RegularFile { u64::try_from(found.st_size).unwrap_or(0) } else { 0 };
            let allocated = u64::try_from(found.st_blocks).unwrap_or(0).saturating_mul(512).min(size);
            let (name, is_only_link) = (name.to_vec(), found.st_nlink == 1);
            Ok(Some(ListedEntry { name, kind, size, is_only_link, allocated }))
        }
    }
}

pub(super) fn open(folder: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, OsStr::from_bytes(name), flags, Mode::empty())
}

/// Removes an entry with all its contents. A missing entry is no error.
pub(super) fn remove(folder: impl AsFd, name: &[u8]) -> Result<Removed, Errno> {
    remove_filtered(folder, &EntryPath::root().child(name), Filter::default())
}

/// Removes the entries at and beneath `path` that `filter` keeps. `path` is the path for the filter; its last name is
/// the name in `folder`. A directory is removed if the filter keeps it or if all its contents were removed.
pub(super) fn remove_filtered(
    folder: impl AsFd,
    path: &EntryPath,
    filter: Filter<'_>,
) -> Result<Removed, Errno> {
    let mut removed = Removed::default();
    let Some((_, name)) = path.split() else { return Ok(removed) };
    if filter.prunes(path) {
        return Ok(removed);
    }
    let Some(found) = stat_entry(&folder, name)? else { return Ok(removed) };
    let is_kept = filter.keeps(path);
    if found.kind != FileType::Directory {
        if is_kept {
            rustix::fs::unlinkat(&folder, OsStr::from_bytes(name), AtFlags::empty())?;
            let file = found.as_removed();
            removed.add(file.totals, file.usage);
        }
        return Ok(removed);
    }
    let inside = open(&folder, name)?;
    for entry in list(&inside)? {
        let below = remove_filtered(&inside, &path.child(&entry.name), filter)?;
        removed.add(below.totals, below.usage);
    }
    if (is_kept || removed.totals.inodes > 0) && is_empty(&inside)? {
        rustix::fs::unlinkat(&folder, OsStr::from_bytes(name), AtFlags::REMOVEDIR)?;
        removed.add(Totals { bytes: 0, inodes: 1 }, Usage::directory());
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_of_a_removed_file_are_not_refunded() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::File::create(folder.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        std::fs::write(folder.path().join("plain"), [1; 5_000]).unwrap();
        let opened = OwnedFd::from(std::fs::File::open(folder.path()).unwrap());
        let removed = remove(&opened, b"sparse").unwrap();
        assert_eq!((removed.totals.bytes, removed.usage), (1 << 30, Usage::file(0)));
        assert_eq!(remove(&opened, b"plain").unwrap().usage, Usage::file(5_000));
    }
}
