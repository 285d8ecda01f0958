//! Lays layer trees and files into a tree by hard links: no byte is copied.
//!
//! Works directory by directory with descriptors beneath the two roots, and holds only a few of them
//! open at a time, however deep a tree is.
//!
//! Where entries meet:
//!
//! | | there is a directory | there is something else |
//! |---|---|---|
//! | a directory comes [beside](Laying::Beside) | they merge | refused |
//! | a directory comes [over](Laying::Over) | they merge | it replaces |
//! | something else comes beside | refused | refused |
//! | something else comes over | it replaces, with all beneath | it replaces |
//!
//! What lies over honours whiteouts as well (OCI image-spec, layer.md): `.wh.NAME` takes away `NAME`, and
//! `.wh..wh..opq` all that was in its directory, of what was laid before this layer. A whiteout stands for the
//! paths that it hides: a filter lets it take away what the filter would let in, and nothing else.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use oras_csi_core::path::Glob;
use rustix::fs::{AtFlags, FileType, RenameFlags};
use rustix::io::Errno;

use super::entries::{Listed, Walk, is_directory, is_empty, list, remove, remove_kept};
use super::filter::Filter;
use crate::disk::beneath::open_beneath;
use crate::disk::entry_path::too_long;
use crate::disk::files::{DIRECTORY_MODE, Times, link_or_copy, set_time};
use crate::disk::{DiskError, EntryPath, NameError, Totals};
use crate::limits::Limits;

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
    /// A path that becomes too long or too deep beneath the path of its step.
    #[error(transparent)]
    Name(NameError),
    /// A whiteout of nothing.
    #[error("the layer has the whiteout \"{path}\", which names no file")]
    Whiteout {
        /// Its path.
        path: EntryPath,
    },
    /// Too many files in the whole.
    #[error("the volume would have more than {limit} entries in all its layers, the limit")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// Too many bytes in the whole.
    #[error("the volume would have more than {limit} bytes in all its layers, the limit")]
    TooManyBytes {
        /// The limit.
        limit: u64,
    },
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn disk(step: &'static str, path: &EntryPath, errno: Errno) -> GraftError {
    if errno == Errno::NAMETOOLONG {
        return GraftError::Name(too_long(path));
    }
    GraftError::Disk(DiskError::new(step, PathBuf::from(OsStr::from_bytes(path.as_bytes())), errno))
}

/// What an entry does where there is one already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Laying {
    /// It is an error; only directories merge.
    Beside,
    /// It replaces it, and whiteouts take away.
    Over,
}

/// Whether a name of this kind takes something away where it lies over.
pub(crate) fn is_whiteout(path: &EntryPath) -> bool {
    path.split().is_some_and(|(_, name)| name.starts_with(WHITEOUT))
}

/// A tree that is being put together.
pub(crate) struct Grafter<'a> {
    root: &'a OwnedFd,
    limits: &'a Limits,
    /// Where in `root` the paths of an artifact begin.
    base: EntryPath,
    /// Where in the whole `root` will lie.
    within: EntryPath,
    totals: Totals,
    changes: u64,
}

impl<'a> Grafter<'a> {
    /// Puts together a tree in `root`, an empty directory.
    pub(crate) fn new(root: &'a OwnedFd, limits: &'a Limits) -> Self {
        Self::apart(root, limits, EntryPath::root())
    }

    /// The same for a part that is merged into a whole at `within`.
    pub(crate) fn apart(root: &'a OwnedFd, limits: &'a Limits, within: EntryPath) -> Self {
        let totals = Totals { bytes: 0, inodes: 1 };
        Self { root, limits, base: EntryPath::root(), within, totals, changes: 0 }
    }

    /// What is laid from now on lies beneath `base`.
    pub(crate) fn enter(&mut self, base: EntryPath) {
        self.base = base;
        self.changes = 0;
    }

    /// How much is in it.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// How many entries were laid or taken away since [`Self::enter`], also where nothing was there to take away.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Links the file `source_name` of `source`, which has `size` bytes, to `path`.
    pub(crate) fn file(
        &mut self,
        source: &OwnedFd,
        source_name: &str,
        size: u64,
        path: &EntryPath,
        laying: Laying,
    ) -> Result<(), GraftError> {
        let Some((parent, name)) = path.split() else { return Err(GraftError::Taken { path: path.clone() }) };
        let folder = self.directories(&parent, laying)?;
        self.link(source, source_name.as_bytes(), &folder, name, size, path, laying)
    }

    /// Takes away what a whiteout of this path hides.
    pub(crate) fn whiteout(&mut self, path: &EntryPath, filter: Filter<'_>) -> Result<(), GraftError> {
        let Some((parent, name)) = path.split() else { return Ok(()) };
        let mut listed = vec![Listed { name: name.to_vec(), kind: FileType::RegularFile, size: 0 }];
        self.white_out(&mut listed, &parent, filter)
    }

    /// Links everything of the tree `source` that `filter` keeps to beneath `at`.
    pub(crate) fn tree(
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
        let mut walk = Walk::new();
        let mut times = Times::default();
        let mut next = Some((EntryPath::root(), filter.keeps(at)));
        while let Some((directory, whole)) = next {
            let mut directories = Vec::new();
            let place = at.join(&directory);
            let from = open_beneath(source, &directory).map_err(|errno| disk("open", &directory, errno))?;
            let mut listed = list(&from).map_err(|errno| disk("list", &directory, errno))?;
            // Before anything of the layer is laid into this directory: only what was there loses something.
            if laying == Laying::Over {
                self.white_out(&mut listed, &place, filter)?;
            }
            // Filters may leave nothing of a directory: then it is not made.
            let mut into = if whole {
                self.changes += u64::from(!place.is_root());
                Some(self.directories(&place, laying)?)
            } else {
                None
            };
            for entry in listed {
                let path = place.child(&entry.name);
                if filter.excluded(&path) {
                    continue;
                }
                let kept = whole || filter.included(&path);
                if entry.kind == FileType::Directory {
                    directories.push((entry.name, kept));
                    continue;
                }
                if !kept {
                    continue;
                }
                let folder = match &into {
                    Some(folder) => folder,
                    None => into.insert(self.directories(&place, laying)?),
                };
                self.link(&from, &entry.name, folder, &entry.name, entry.size, &path, laying)?;
            }
            if let (Some(_), Ok(found)) = (&into, rustix::fs::fstat(&from)) {
                times.remember(self.base.join(&place), found.st_mtime);
            }
            walk.push(directory, directories);
            next = walk.pop();
        }
        times.set(self.root);
        Ok(())
    }

    /// Moves everything of `source`, a tree that nobody needs where it is, to beneath `at`. For what lies beside, with
    /// names that were checked as they will be.
    pub(crate) fn take(
        &mut self,
        source: &OwnedFd,
        totals: Totals,
        at: &EntryPath,
    ) -> Result<(), GraftError> {
        let mtime = rustix::fs::fstat(source).map(|found| found.st_mtime);
        self.merge(source, totals, at)?;
        self.enter(EntryPath::root());
        if let (Ok(mtime), Ok(folder)) = (mtime, open_beneath(self.root, at)) {
            set_time(folder, mtime);
        }
        Ok(())
    }

    /// Moves everything of `other`, a tree that was put together apart, to beneath `at`.
    pub(crate) fn merge(
        &mut self,
        other: &OwnedFd,
        totals: Totals,
        at: &EntryPath,
    ) -> Result<(), GraftError> {
        self.enter(at.clone());
        self.count(totals.inodes.saturating_sub(1), totals.bytes)?;
        let mut walk = Walk::new();
        let mut next = Some((EntryPath::root(), ()));
        while let Some((directory, ())) = next {
            let mut directories = Vec::new();
            let from = open_beneath(other, &directory).map_err(|errno| disk("open", &directory, errno))?;
            let into = self.directories(&directory, Laying::Beside)?;
            for entry in list(&from).map_err(|errno| disk("list", &directory, errno))? {
                let path = at.join(&directory).child(&entry.name);
                let name = OsStr::from_bytes(&entry.name);
                match rustix::fs::renameat_with(&from, name, &into, name, RenameFlags::NOREPLACE) {
                    Ok(()) => {}
                    Err(Errno::EXIST) if entry.kind == FileType::Directory && is_directory(&into, name) => {
                        self.totals.inodes = self.totals.inodes.saturating_sub(1);
                        directories.push((entry.name, ()));
                    }
                    Err(Errno::EXIST) => return Err(GraftError::Taken { path }),
                    Err(errno) => return Err(disk("move", &path, errno)),
                }
            }
            walk.push(directory, directories);
            next = walk.pop();
        }
        Ok(())
    }

    /// Takes away everything whose path `glob` matches, a directory with all beneath, and says how many it matched.
    pub(crate) fn remove(&mut self, glob: &Glob) -> Result<u64, GraftError> {
        let mut matched = 0;
        let mut walk = Walk::new();
        let mut next = Some((EntryPath::root(), ()));
        while let Some((directory, ())) = next {
            let mut directories = Vec::new();
            let folder =
                open_beneath(self.root, &directory).map_err(|errno| disk("open", &directory, errno))?;
            for entry in list(&folder).map_err(|errno| disk("list", &directory, errno))? {
                let path = directory.child(&entry.name);
                if glob.matches(&path.to_text()) {
                    let removed =
                        remove(&folder, &entry.name).map_err(|errno| disk("remove", &path, errno))?;
                    self.forget(removed);
                    matched += 1;
                } else if entry.kind == FileType::Directory {
                    directories.push((entry.name, ()));
                }
            }
            walk.push(directory, directories);
            next = walk.pop();
        }
        Ok(matched)
    }

    /// Whether the directory `path` of the tree has something in it.
    pub(crate) fn has_something_at(&self, path: &EntryPath) -> Result<bool, GraftError> {
        match open_beneath(self.root, path) {
            Ok(folder) => is_empty(&folder).map(|empty| !empty).map_err(|errno| disk("list", path, errno)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(false),
            Err(errno) => Err(disk("open", path, errno)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a file, where it is, and where it goes")]
    fn link(
        &mut self,
        from: &OwnedFd,
        from_name: &[u8],
        folder: &OwnedFd,
        name: &[u8],
        size: u64,
        path: &EntryPath,
        laying: Laying,
    ) -> Result<(), GraftError> {
        self.check_name(&self.base.join(path))?;
        let link = || link_or_copy(from, from_name, folder, name);
        match link() {
            Err(Errno::EXIST) if laying == Laying::Over => {
                let removed = remove(folder, name).map_err(|errno| disk("replace", path, errno))?;
                self.forget(removed);
                link()
            }
            other => other,
        }
        .map_err(|errno| match errno {
            Errno::EXIST => GraftError::Taken { path: self.base.join(path) },
            errno => disk("link", path, errno),
        })?;
        self.changes += 1;
        self.count(1, size)
    }

    fn count(&mut self, inodes: u64, bytes: u64) -> Result<(), GraftError> {
        self.totals.inodes = self.totals.inodes.saturating_add(inodes);
        self.totals.bytes = self.totals.bytes.saturating_add(bytes);
        if self.totals.inodes > self.limits.entries() {
            return Err(GraftError::TooManyEntries { limit: self.limits.entries() });
        }
        if self.totals.bytes > self.limits.unpacked() {
            return Err(GraftError::TooManyBytes { limit: self.limits.unpacked() });
        }
        Ok(())
    }

    fn check_name(&self, path: &EntryPath) -> Result<(), GraftError> {
        self.within.join(path).check(self.limits).map_err(GraftError::Name)
    }

    fn forget(&mut self, removed: Totals) {
        self.totals.bytes = self.totals.bytes.saturating_sub(removed.bytes);
        self.totals.inodes = self.totals.inodes.saturating_sub(removed.inodes);
    }

    /// Opens the directory `place` of the artifact; makes it and those above it where they are not.
    ///
    /// Something else in the place of one of them is [`GraftError::Taken`], or goes where layers replace.
    fn directories(&mut self, place: &EntryPath, laying: Laying) -> Result<OwnedFd, GraftError> {
        let path = self.base.join(place);
        match open_beneath(self.root, &path) {
            Ok(folder) => return Ok(folder),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
            Err(errno) => return Err(disk("open", &path, errno)),
        }
        self.check_name(&path)?;
        let mut made = EntryPath::root();
        for segment in path.segments() {
            let folder = open_beneath(self.root, &made).map_err(|errno| disk("open", &made, errno))?;
            made = made.child(segment);
            let name = OsStr::from_bytes(segment);
            let create = || rustix::fs::mkdirat(&folder, name, DIRECTORY_MODE);
            match create() {
                Err(Errno::EXIST) if is_directory(&folder, name) => continue,
                Err(Errno::EXIST) if laying == Laying::Over => {
                    let removed = remove(&folder, segment).map_err(|errno| disk("replace", &made, errno))?;
                    self.forget(removed);
                    create()
                }
                other => other,
            }
            .map_err(|errno| match errno {
                Errno::EXIST => GraftError::Taken { path: made.clone() },
                errno => disk("make the directory", &made, errno),
            })?;
            rustix::fs::chmodat(&folder, name, DIRECTORY_MODE, AtFlags::empty())
                .map_err(|errno| disk("set the mode of", &made, errno))?;
            self.count(1, 0)?;
        }
        open_beneath(self.root, &path).map_err(|errno| disk("open", &path, errno))
    }

    /// Takes from `listed` what is a whiteout, and from the tree what it hides.
    fn white_out(
        &mut self,
        listed: &mut Vec<Listed>,
        place: &EntryPath,
        filter: Filter<'_>,
    ) -> Result<(), GraftError> {
        let mut hidden = Vec::new();
        let mut opaque = false;
        for entry in listed.iter() {
            if entry.name == OPAQUE {
                opaque = true;
            } else if entry.name.starts_with(RESERVED) {
                // Notes of an old union file system to itself.
            } else if let Some(name) = entry.name.strip_prefix(WHITEOUT) {
                if matches!(name, b"" | b"." | b"..") {
                    return Err(GraftError::Whiteout { path: place.child(&entry.name) });
                }
                hidden.push(name.to_vec());
            }
        }
        listed.retain(|entry| !entry.name.starts_with(WHITEOUT));
        if hidden.is_empty() && !opaque {
            return Ok(());
        }
        let kept = hidden.iter().filter(|name| filter.keeps(&place.child(name))).count() as u64;
        self.changes += kept + u64::from(opaque && !filter.prunes(place));
        let path = self.base.join(place);
        let folder = match open_beneath(self.root, &path) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(()),
            Err(errno) => return Err(disk("open", &path, errno)),
        };
        if opaque {
            let all = list(&folder).map_err(|errno| disk("list", &path, errno))?;
            hidden.extend(all.into_iter().map(|below| below.name));
        }
        for name in hidden {
            let below = place.child(&name);
            let removed =
                remove_kept(&folder, &below, filter).map_err(|errno| disk("hide", &below, errno))?;
            self.changes += removed.inodes;
            self.forget(removed);
        }
        Ok(())
    }
}
