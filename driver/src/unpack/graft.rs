//! Lays layer trees and files into a tree by hard links: no byte is copied.
//!
//! Works directory by directory with descriptors beneath the two roots, and holds only a few of them
//! open at a time, however deep a tree is.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use oras_csi_core::path::Glob;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::name::{EntryPath, NameError};
use super::write::{DIRECTORY_MODE, Totals, link_or_copy, open_beneath, set_time, too_long};
use crate::store::DiskError;

/// OCI image-spec, layer.md, "Whiteouts".
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";

/// Why a tree cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum GraftError {
    /// Something is at this path already.
    #[error("\"{path}\" is given twice")]
    Taken {
        /// The path in the tree.
        path: EntryPath,
    },
    /// A path that becomes too long beneath the path of its step.
    #[error(transparent)]
    Long(NameError),
    /// A whiteout of nothing.
    #[error("the layer has the whiteout \"{path}\", which names no file")]
    Whiteout {
        /// Its path.
        path: EntryPath,
    },
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn disk(step: &'static str, path: &EntryPath, errno: Errno) -> GraftError {
    if errno == Errno::NAMETOOLONG {
        return GraftError::Long(too_long(path));
    }
    GraftError::Disk(DiskError::new(step, PathBuf::from(OsStr::from_bytes(path.as_bytes())), errno))
}

/// Which paths of an artifact are kept.
///
/// A glob that names a directory stands for everything beneath it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    include: &'a [Glob],
    exclude: &'a [Glob],
}

impl<'a> Filter<'a> {
    /// Keeps what one of `include` names (all, if there is none), less what one of `exclude` names.
    pub fn new(include: &'a [Glob], exclude: &'a [Glob]) -> Self {
        Self { include, exclude }
    }

    /// Whether everything is kept.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    fn included(&self, path: &EntryPath) -> bool {
        self.include.is_empty() || self.include.iter().any(|glob| glob.matches(&path.to_text()))
    }

    fn excluded(&self, path: &EntryPath) -> bool {
        self.exclude.iter().any(|glob| glob.matches(&path.to_text()))
    }

    /// Whether a file at this path is kept: it, or a directory above it, is named.
    pub fn keeps(&self, path: &EntryPath) -> bool {
        !self.prunes(path) && (self.include.is_empty() || from_here_up(path).any(|path| self.included(&path)))
    }

    /// Whether nothing at or beneath this path is kept.
    fn prunes(&self, path: &EntryPath) -> bool {
        !self.exclude.is_empty() && from_here_up(path).any(|path| self.excluded(&path))
    }
}

/// A path and the directories above it, without the root.
fn from_here_up(path: &EntryPath) -> impl Iterator<Item = EntryPath> {
    let named = |path: &EntryPath| !path.is_root();
    std::iter::successors(Some(path.clone()).filter(named), move |path| {
        path.split().map(|(parent, _)| parent).filter(named)
    })
}

/// What an entry does where there is one already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Laying {
    /// It is an error; only directories merge.
    Beside,
    /// It replaces it, and whiteouts take away: the layers of an image.
    Over,
}

/// A tree that is being put together.
pub struct Grafter<'a> {
    root: &'a OwnedFd,
    totals: Totals,
}

struct Listed {
    name: Vec<u8>,
    kind: FileType,
    size: u64,
}

impl<'a> Grafter<'a> {
    /// Puts together a tree in `root`, an empty directory.
    pub fn new(root: &'a OwnedFd) -> Self {
        Self { root, totals: Totals { bytes: 0, inodes: 1 } }
    }

    /// How much is in it.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Links the file `source_name` of `source`, which has `size` bytes, to `path`.
    pub fn file(
        &mut self,
        source: &OwnedFd,
        source_name: &str,
        size: u64,
        path: &EntryPath,
    ) -> Result<(), GraftError> {
        let Some((parent, name)) = path.split() else { return Err(GraftError::Taken { path: path.clone() }) };
        let folder = self.directories(&parent)?;
        match link_or_copy(source, source_name.as_bytes(), &folder, name) {
            Ok(()) => {
                self.totals.bytes += size;
                self.totals.inodes += 1;
                Ok(())
            }
            Err(Errno::EXIST) => Err(GraftError::Taken { path: path.clone() }),
            Err(errno) => Err(disk("link", path, errno)),
        }
    }

    /// Links everything of the tree `source` that `filter` keeps to beneath `at`.
    pub fn tree(
        &mut self,
        source: &OwnedFd,
        at: &EntryPath,
        filter: Filter<'_>,
        laying: Laying,
    ) -> Result<(), GraftError> {
        if filter.prunes(at) {
            return Ok(());
        }
        // Directories of the source that are still to be laid, and whether they are kept whole.
        let mut waiting = vec![(EntryPath::root(), filter.keeps(at))];
        while let Some((directory, whole)) = waiting.pop() {
            let place = at.join(&directory);
            let from = open_beneath(source, &directory).map_err(|errno| disk("open", &directory, errno))?;
            let mut listed = list(&from).map_err(|errno| disk("list", &directory, errno))?;
            // Filters may leave nothing of a directory: then it is not made.
            let mut into = if whole { Some(self.directories(&place)?) } else { None };
            if laying == Laying::Over {
                self.white_out(&mut listed, &place)?;
            }
            for entry in listed {
                let path = place.child(&entry.name);
                if filter.excluded(&path) {
                    continue;
                }
                let kept = whole || filter.included(&path);
                if entry.kind == FileType::Directory {
                    waiting.push((directory.child(&entry.name), kept));
                    continue;
                }
                if !kept {
                    continue;
                }
                let folder = match &into {
                    Some(folder) => folder,
                    None => into.insert(self.directories(&place)?),
                };
                let link = || link_or_copy(&from, &entry.name, folder, &entry.name);
                match link() {
                    Err(Errno::EXIST) if laying == Laying::Over => {
                        let removed = remove(folder, &entry.name).map_err(|e| disk("replace", &path, e))?;
                        self.forget(removed);
                        link()
                    }
                    other => other,
                }
                .map_err(|errno| match errno {
                    Errno::EXIST => GraftError::Taken { path: path.clone() },
                    errno => disk("link", &path, errno),
                })?;
                self.totals.bytes += entry.size;
                self.totals.inodes += 1;
            }
            if let (Some(folder), Ok(found)) = (&into, rustix::fs::fstat(&from)) {
                set_time(folder, found.st_mtime);
            }
        }
        Ok(())
    }

    /// Moves everything of `other`, a tree that was put together apart, to beneath `at`.
    pub fn merge(&mut self, other: &OwnedFd, totals: Totals, at: &EntryPath) -> Result<(), GraftError> {
        self.totals.bytes += totals.bytes;
        self.totals.inodes += totals.inodes.saturating_sub(1);
        let mut waiting = vec![EntryPath::root()];
        while let Some(directory) = waiting.pop() {
            let place = at.join(&directory);
            let from = open_beneath(other, &directory).map_err(|errno| disk("open", &directory, errno))?;
            let into = self.directories(&place)?;
            for entry in list(&from).map_err(|errno| disk("list", &directory, errno))? {
                let path = place.child(&entry.name);
                let name = OsStr::from_bytes(&entry.name);
                match rustix::fs::renameat_with(&from, name, &into, name, RenameFlags::NOREPLACE) {
                    Ok(()) => {}
                    Err(Errno::EXIST) if entry.kind == FileType::Directory && is_directory(&into, name) => {
                        self.totals.inodes = self.totals.inodes.saturating_sub(1);
                        waiting.push(directory.child(&entry.name));
                    }
                    Err(Errno::EXIST) => return Err(GraftError::Taken { path }),
                    Err(errno) => return Err(disk("move", &path, errno)),
                }
            }
        }
        Ok(())
    }

    fn forget(&mut self, removed: Totals) {
        self.totals.bytes = self.totals.bytes.saturating_sub(removed.bytes);
        self.totals.inodes = self.totals.inodes.saturating_sub(removed.inodes);
    }

    /// Opens the directory `path` of the tree; makes it and those above it where they are not.
    ///
    /// Something else in its place is [`GraftError::Taken`]; [`Self::tree`] takes it away first where
    /// layers replace.
    fn directories(&mut self, path: &EntryPath) -> Result<OwnedFd, GraftError> {
        match open_beneath(self.root, path) {
            Ok(folder) => return Ok(folder),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                return Err(GraftError::Taken { path: path.clone() });
            }
            Err(errno) => return Err(disk("open", path, errno)),
        }
        let mut made = EntryPath::root();
        for segment in path.segments() {
            let folder = open_beneath(self.root, &made).map_err(|errno| match errno {
                Errno::NOTDIR | Errno::LOOP | Errno::XDEV => GraftError::Taken { path: made.clone() },
                errno => disk("open", &made, errno),
            })?;
            made = made.child(segment);
            let name = OsStr::from_bytes(segment);
            match rustix::fs::mkdirat(&folder, name, DIRECTORY_MODE) {
                Ok(()) => {
                    rustix::fs::chmodat(&folder, name, DIRECTORY_MODE, AtFlags::empty())
                        .map_err(|errno| disk("set the mode of", &made, errno))?;
                    self.totals.inodes += 1;
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(disk("make the directory", &made, errno)),
            }
        }
        open_beneath(self.root, path).map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP | Errno::XDEV => GraftError::Taken { path: path.clone() },
            errno => disk("open", path, errno),
        })
    }

    /// Takes from `listed` what is a whiteout, and from the tree what it hides or what a directory of
    /// this layer replaces. Done before anything of the layer is laid into this directory, so that only
    /// lower layers lose something.
    fn white_out(&mut self, listed: &mut Vec<Listed>, place: &EntryPath) -> Result<(), GraftError> {
        let folder = match open_beneath(self.root, place) {
            Ok(folder) => Some(folder),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(disk("open", place, errno)),
        };
        let mut hidden = Vec::new();
        for entry in listed.iter() {
            if entry.name == OPAQUE {
                if let Some(folder) = &folder {
                    let all = list(folder).map_err(|errno| disk("list", place, errno))?;
                    hidden.extend(all.into_iter().map(|below| below.name));
                }
            } else if entry.name.starts_with(RESERVED) {
                // Notes of an old union file system to itself.
            } else if let Some(name) = entry.name.strip_prefix(WHITEOUT) {
                if matches!(name, b"" | b"." | b"..") {
                    return Err(GraftError::Whiteout { path: place.child(&entry.name) });
                }
                hidden.push(name.to_vec());
            } else if entry.kind == FileType::Directory
                && let Some(folder) = &folder
                && !is_directory(folder, OsStr::from_bytes(&entry.name))
            {
                hidden.push(entry.name.clone());
            }
        }
        listed.retain(|entry| !entry.name.starts_with(WHITEOUT));
        if let Some(folder) = &folder {
            for name in hidden {
                let removed = remove(folder, &name).map_err(|e| disk("hide", &place.child(&name), e))?;
                self.forget(removed);
            }
        }
        Ok(())
    }
}

fn is_directory(folder: &OwnedFd, name: &OsStr) -> bool {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

fn list(folder: &OwnedFd) -> Result<Vec<Listed>, Errno> {
    let mut listed = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let found = rustix::fs::statat(folder, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(found.st_mode);
        let size = if kind == FileType::RegularFile { u64::try_from(found.st_size).unwrap_or(0) } else { 0 };
        listed.push(Listed { name: name.to_vec(), kind, size });
    }
    Ok(listed)
}

/// Removes an entry with everything beneath it, following nothing; what is not there is no error.
fn remove(folder: impl AsFd, name: &[u8]) -> Result<Totals, Errno> {
    let mut removed = Totals::default();
    let os_name = OsStr::from_bytes(name);
    match rustix::fs::statat(&folder, os_name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(removed),
        Err(errno) => return Err(errno),
        Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Directory => {
            removed.inodes = 1;
            if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile {
                removed.bytes = u64::try_from(found.st_size).unwrap_or(0);
            }
            rustix::fs::unlinkat(&folder, os_name, AtFlags::empty())?;
            return Ok(removed);
        }
        Ok(_) => {}
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = rustix::fs::openat(&folder, os_name, flags, Mode::empty())?;
    for entry in list(&inside)? {
        let below = remove(&inside, &entry.name)?;
        removed.bytes += below.bytes;
        removed.inodes += below.inodes;
    }
    rustix::fs::unlinkat(&folder, os_name, AtFlags::REMOVEDIR)?;
    removed.inodes += 1;
    Ok(removed)
}
