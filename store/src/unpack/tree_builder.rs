//! Combines unpacked layers and files into a tree by hard links, so that no bytes are copied.
//!
//! The builder works directory by directory with descriptors beneath the two roots. It keeps only a few of them open,
//! however deep a tree is.
//!
//! What happens to an entry if its path exists already:
//!
//! | | a directory exists | something else exists |
//! |---|---|---|
//! | a directory is [added](MergeMode::Add) | merged | error |
//! | a directory is [overlaid](MergeMode::Overlay) | merged | replaced |
//! | anything else is added | error | error, unless it is equal |
//! | anything else is overlaid | replaced, with all its contents | replaced |
//!
//! An overlay also applies whiteouts (OCI image-spec, layer.md): `.wh.NAME` removes `NAME`, and `.wh..wh..opq`
//! removes all entries of its directory that were there before this layer. A filter applies to the paths that a
//! whiteout hides: it removes only paths that the filter keeps.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use oras_csi_core::path::Glob;
use rustix::fs::{AtFlags, FileType, RenameFlags};
use rustix::io::Errno;

use super::budget::{Budget, DiskLimitExceeded};
use super::disk_meter::{ChargeError, DiskMeter};
use super::entries::{
    DirectoryWalk, ListedEntry, Removed, is_directory, is_empty, list, remove, remove_filtered,
};
use super::filter::Filter;
use crate::disk::beneath::open_beneath;
use crate::disk::entry_path::too_long;
use crate::disk::files::{DIRECTORY_MODE, Times, copy_entry, is_equal, link, set_time};
use crate::disk::{DiskError, EntryPath, NameError, Totals, Usage};
use crate::limits::Limits;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";

/// Why a tree cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TreeBuildError {
    /// The path exists already.
    #[error("\"{path}\" exists twice")]
    Exists {
        /// The path in the tree.
        path: EntryPath,
    },
    /// A path becomes too long or too deep beneath the path of its step.
    #[error(transparent)]
    Name(NameError),
    /// A whiteout names no file.
    #[error("the layer has the whiteout \"{path}\", which names no file. Push the layer again without it")]
    InvalidWhiteout {
        /// The path of the whiteout.
        path: EntryPath,
    },
    /// The volume has too many entries.
    #[error(
        "the volume would have more than {limit} entries in all its layers, the limit (--max-entries). Push fewer files, or raise the limit"
    )]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// The volume has too many bytes.
    #[error(
        "the volume would have more than {limit} bytes in all its layers, the limit (--max-unpacked). Push less, or raise the limit"
    )]
    TooManyBytes {
        /// The limit.
        limit: u64,
    },
    /// The volume takes too much of the disk.
    #[error(
        "the volume would take more than {limit} bytes of the disk with all its layers, the limit (--max-unpacked). Each file, directory and link counts, and each copy of a file with too many hard links. Push less, or raise the limit"
    )]
    TooMuchDisk {
        /// The limit.
        limit: u64,
    },
    /// An operation on the store's disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<DiskLimitExceeded> for TreeBuildError {
    fn from(DiskLimitExceeded { limit }: DiskLimitExceeded) -> Self {
        Self::TooMuchDisk { limit }
    }
}

impl From<ChargeError> for TreeBuildError {
    fn from(error: ChargeError) -> Self {
        match error {
            ChargeError::Limit(exceeded) => exceeded.into(),
            ChargeError::Disk(error) => Self::Disk(error),
        }
    }
}

fn disk(step: &'static str, path: &EntryPath, errno: Errno) -> TreeBuildError {
    if errno == Errno::NAMETOOLONG {
        return TreeBuildError::Name(too_long(path));
    }
    TreeBuildError::Disk(DiskError::new(step, PathBuf::from(OsStr::from_bytes(path.as_bytes())), errno))
}

/// What happens if the path of an entry exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MergeMode {
    /// It is an error. Only directories are merged.
    Add,
    /// The entry replaces it. Whiteouts are applied.
    Overlay,
}

/// What happens to an entry that the tree has already, with equal content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EqualEntries {
    /// It is skipped: both come from one artifact.
    Skip,
    /// It is an error.
    Reject,
}

/// Reports whether an overlay treats this path as a whiteout.
pub(crate) fn is_whiteout(path: &EntryPath) -> bool {
    path.split().is_some_and(|(_, name)| name.starts_with(WHITEOUT))
}

/// A tree that is being built.
pub(crate) struct TreeBuilder<'a> {
    root: &'a OwnedFd,
    limits: &'a Limits,
    /// The path in `root` where the paths of an artifact begin.
    base: EntryPath,
    /// The path in the volume where `root` will be.
    within: EntryPath,
    totals: Totals,
    meter: DiskMeter<'a>,
    changes: u64,
}

impl<'a> TreeBuilder<'a> {
    /// Builds a tree in `root`, an empty directory. It shares `budget` with the layers of the volume.
    pub(crate) fn new(
        root: &'a OwnedFd,
        limits: &'a Limits,
        budget: &'a Budget,
    ) -> Result<Self, TreeBuildError> {
        Self::new_part(root, limits, budget, EntryPath::root())
    }

    /// Builds a part in `root`, an empty directory. The part will be merged into a tree at `within`.
    pub(crate) fn new_part(
        root: &'a OwnedFd,
        limits: &'a Limits,
        budget: &'a Budget,
        within: EntryPath,
    ) -> Result<Self, TreeBuildError> {
        let totals = Totals { bytes: 0, inodes: 1 };
        let mut meter = DiskMeter::new(root, limits, budget);
        meter.charge(Usage::directory())?;
        Ok(Self { root, limits, base: EntryPath::root(), within, totals, meter, changes: 0 })
    }

    /// Sets the path in the tree where the next artifact begins, and resets [`Self::changes`].
    pub(crate) fn set_base(&mut self, base: EntryPath) {
        self.base = base;
        self.changes = 0;
    }

    /// Returns how many entries and bytes the tree has.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns what the disk is charged for the tree alone: its directories and names, and files that could not be
    /// linked. The files of layers and blobs belong to these.
    pub(crate) fn usage(&self) -> Usage {
        self.meter.usage()
    }

    /// Returns how many entries were added or removed since [`Self::set_base`]. A whiteout counts even if it hides
    /// nothing.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Hard-links the file `source_name` of `source`, which has `size` bytes, to `path`.
    pub(crate) fn link_file(
        &mut self,
        source: &OwnedFd,
        source_name: &str,
        size: u64,
        path: &EntryPath,
        mode: MergeMode,
    ) -> Result<(), TreeBuildError> {
        let Some((parent, name)) = path.split() else {
            return Err(TreeBuildError::Exists { path: path.clone() });
        };
        let folder = self.open_or_create_directory(&parent, mode)?;
        self.link_entry(source, source_name.as_bytes(), &folder, name, size, path, mode)
    }

    /// Removes what the whiteout `path` hides.
    pub(crate) fn apply_whiteout(
        &mut self,
        path: &EntryPath,
        filter: Filter<'_>,
    ) -> Result<(), TreeBuildError> {
        let Some((parent, name)) = path.split() else { return Ok(()) };
        let mut listed = vec![ListedEntry::named(name)];
        self.apply_whiteouts(&mut listed, &parent, filter)
    }

    /// Hard-links everything of the tree `source` that `filter` keeps to beneath `at`.
    pub(crate) fn link_tree(
        &mut self,
        source: &OwnedFd,
        at: &EntryPath,
        filter: Filter<'_>,
        mode: MergeMode,
    ) -> Result<(), TreeBuildError> {
        if filter.prunes(at) {
            return Ok(());
        }
        // The directories of the source that are still to be visited, and whether all of their contents are kept.
        let mut walk = DirectoryWalk::new();
        let mut times = Times::default();
        let mut next = Some((EntryPath::root(), filter.keeps(at)));
        while let Some((directory, is_whole)) = next {
            let mut directories = Vec::new();
            let place = at.join(&directory);
            let from = open_beneath(source, &directory)
                .map_err(|errno| disk("open the directory", &directory, errno))?;
            let mut listed = list(&from).map_err(|errno| disk("list the directory", &directory, errno))?;
            // Whiteouts first: they apply only to entries that were in this directory before the layer.
            if mode == MergeMode::Overlay {
                self.apply_whiteouts(&mut listed, &place, filter)?;
            }
            // A directory of which the filters keep nothing is not created.
            let mut into = if is_whole {
                self.changes += u64::from(!place.is_root());
                Some(self.open_or_create_directory(&place, mode)?)
            } else {
                None
            };
            for entry in listed {
                let path = place.child(&entry.name);
                if filter.is_excluded(&path) {
                    continue;
                }
                let is_kept = is_whole || filter.is_included(&path);
                if entry.kind == FileType::Directory {
                    directories.push((entry.name, is_kept));
                    continue;
                }
                if !is_kept {
                    continue;
                }
                let folder = match &into {
                    Some(folder) => folder,
                    None => into.insert(self.open_or_create_directory(&place, mode)?),
                };
                self.link_entry(&from, &entry.name, folder, &entry.name, entry.size, &path, mode)?;
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

    /// Moves everything of `source`, a tree that is not needed any more, to beneath `at`. Only for added layers whose
    /// names were checked with their final paths.
    pub(crate) fn move_tree(
        &mut self,
        source: &OwnedFd,
        (totals, usage): (Totals, Usage),
        at: &EntryPath,
    ) -> Result<(), TreeBuildError> {
        let mtime = rustix::fs::fstat(source).map(|found| found.st_mtime);
        self.merge(source, (totals, usage), at, EqualEntries::Skip)?;
        self.set_base(EntryPath::root());
        if let (Ok(mtime), Ok(folder)) = (mtime, open_beneath(self.root, at)) {
            set_time(folder, mtime);
        }
        Ok(())
    }

    /// Moves everything of `other`, a part that was built separately, to beneath `at`.
    pub(crate) fn merge_tree(
        &mut self,
        other: &OwnedFd,
        size: (Totals, Usage),
        at: &EntryPath,
    ) -> Result<(), TreeBuildError> {
        self.merge(other, size, at, EqualEntries::Reject)
    }

    fn merge(
        &mut self,
        other: &OwnedFd,
        (totals, usage): (Totals, Usage),
        at: &EntryPath,
        equal_entries: EqualEntries,
    ) -> Result<(), TreeBuildError> {
        self.set_base(at.clone());
        self.count(totals.inodes.saturating_sub(1), totals.bytes)?;
        // Without its root, which is deleted.
        self.meter.adopt(usage.minus(Usage::directory()));
        let mut walk = DirectoryWalk::new();
        let mut next = Some((EntryPath::root(), ()));
        while let Some((directory, ())) = next {
            let mut directories = Vec::new();
            let from = open_beneath(other, &directory)
                .map_err(|errno| disk("open the directory", &directory, errno))?;
            let into = self.open_or_create_directory(&directory, MergeMode::Add)?;
            for entry in list(&from).map_err(|errno| disk("list the directory", &directory, errno))? {
                let path = at.join(&directory).child(&entry.name);
                let name = OsStr::from_bytes(&entry.name);
                match rustix::fs::renameat_with(&from, name, &into, name, RenameFlags::NOREPLACE) {
                    Ok(()) => self.meter.charge(Usage::name(entry.name.len()))?,
                    Err(Errno::EXIST) if entry.kind == FileType::Directory && is_directory(&into, name) => {
                        self.totals.inodes = self.totals.inodes.saturating_sub(1);
                        self.meter.refund(Usage::directory());
                        directories.push((entry.name, ()));
                    }
                    Err(Errno::EXIST)
                        if equal_entries == EqualEntries::Skip
                            && is_equal((&from, &entry.name), (&into, &entry.name))
                                .map_err(|errno| disk("compare", &path, errno))? =>
                    {
                        // With another name, the file is in the tree.
                        if entry.is_only_link {
                            self.subtract(entry.as_removed());
                        }
                    }
                    Err(Errno::EXIST) => return Err(TreeBuildError::Exists { path }),
                    Err(errno) => return Err(disk("move", &path, errno)),
                }
            }
            walk.push(directory, directories);
            next = walk.pop();
        }
        Ok(())
    }

    /// Removes every entry that `glob` matches, a directory with its contents, and returns how many entries it
    /// matched.
    pub(crate) fn remove_matching(&mut self, glob: &Glob) -> Result<u64, TreeBuildError> {
        let mut matched = 0;
        let mut walk = DirectoryWalk::new();
        let mut next = Some((EntryPath::root(), ()));
        while let Some((directory, ())) = next {
            let mut directories = Vec::new();
            let folder = open_beneath(self.root, &directory)
                .map_err(|errno| disk("open the directory", &directory, errno))?;
            for entry in list(&folder).map_err(|errno| disk("list the directory", &directory, errno))? {
                let path = directory.child(&entry.name);
                if glob.matches(&path.to_text()) {
                    let removed =
                        remove(&folder, &entry.name).map_err(|errno| disk("remove", &path, errno))?;
                    self.subtract(removed);
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

    /// Reports whether the directory `path` of the tree has entries.
    pub(crate) fn has_entries_at(&self, path: &EntryPath) -> Result<bool, TreeBuildError> {
        match open_beneath(self.root, path) {
            Ok(folder) => {
                is_empty(&folder).map(|empty| !empty).map_err(|errno| disk("list the directory", path, errno))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(false),
            Err(errno) => Err(disk("open the directory", path, errno)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the source, the target, and what happens if it exists")]
    fn link_entry(
        &mut self,
        from: &OwnedFd,
        from_name: &[u8],
        folder: &OwnedFd,
        name: &[u8],
        size: u64,
        path: &EntryPath,
        mode: MergeMode,
    ) -> Result<(), TreeBuildError> {
        self.check_path(&self.base.join(path))?;
        self.meter.charge(Usage::name(name.len()))?;
        let link = || link(from, from_name, folder, name);
        let mut linked = link();
        if linked == Err(Errno::EXIST) && mode == MergeMode::Overlay {
            let removed = remove(folder, name).map_err(|errno| disk("replace", path, errno))?;
            self.subtract(removed);
            linked = link();
        }
        // `oras push d d/f` packs the file twice: in the archive of the directory, and alone.
        if linked == Err(Errno::EXIST)
            && mode == MergeMode::Add
            && is_equal((from, from_name), (folder, name)).map_err(|errno| disk("compare", path, errno))?
        {
            self.changes += 1;
            return Ok(());
        }
        if linked == Err(Errno::MLINK) {
            self.meter.charge(Usage::file(size))?;
            self.meter.charge_checksum(self.base.join(path).as_bytes().len())?;
            linked = copy_entry(from, from_name, folder, name);
        }
        linked.map_err(|errno| match errno {
            Errno::EXIST => TreeBuildError::Exists { path: self.base.join(path) },
            errno => disk("link", path, errno),
        })?;
        self.changes += 1;
        self.count(1, size)
    }

    fn count(&mut self, inodes: u64, bytes: u64) -> Result<(), TreeBuildError> {
        self.totals.inodes = self.totals.inodes.saturating_add(inodes);
        self.totals.bytes = self.totals.bytes.saturating_add(bytes);
        if self.totals.inodes > self.limits.entries() {
            return Err(TreeBuildError::TooManyEntries { limit: self.limits.entries() });
        }
        if self.totals.bytes > self.limits.unpacked() {
            return Err(TreeBuildError::TooManyBytes { limit: self.limits.unpacked() });
        }
        Ok(())
    }

    fn check_path(&self, path: &EntryPath) -> Result<(), TreeBuildError> {
        self.within.join(path).check(self.limits).map_err(TreeBuildError::Name)
    }

    fn subtract(&mut self, removed: Removed) {
        self.totals.bytes = self.totals.bytes.saturating_sub(removed.totals.bytes);
        self.totals.inodes = self.totals.inodes.saturating_sub(removed.totals.inodes);
        self.meter.refund(removed.usage);
    }

    /// Opens the directory `place` of the artifact. Creates it and the directories above it if they do not exist.
    ///
    /// If one of them exists and is not a directory, it is replaced by an overlay, and otherwise
    /// [`TreeBuildError::Exists`] is returned.
    fn open_or_create_directory(
        &mut self,
        place: &EntryPath,
        mode: MergeMode,
    ) -> Result<OwnedFd, TreeBuildError> {
        let path = self.base.join(place);
        match open_beneath(self.root, &path) {
            Ok(folder) => return Ok(folder),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
            Err(errno) => return Err(disk("open the directory", &path, errno)),
        }
        self.check_path(&path)?;
        let mut created = EntryPath::root();
        for segment in path.segments() {
            let folder = open_beneath(self.root, &created)
                .map_err(|errno| disk("open the directory", &created, errno))?;
            created = created.child(segment);
            let name = OsStr::from_bytes(segment);
            let create = || rustix::fs::mkdirat(&folder, name, DIRECTORY_MODE);
            match create() {
                Err(Errno::EXIST) if is_directory(&folder, name) => continue,
                Err(Errno::EXIST) if mode == MergeMode::Overlay => {
                    let removed =
                        remove(&folder, segment).map_err(|errno| disk("replace", &created, errno))?;
                    self.subtract(removed);
                    create()
                }
                other => other,
            }
            .map_err(|errno| match errno {
                Errno::EXIST => TreeBuildError::Exists { path: created.clone() },
                errno => disk("create the directory", &created, errno),
            })?;
            self.meter.charge(Usage::directory().plus(Usage::name(segment.len())))?;
            rustix::fs::chmodat(&folder, name, DIRECTORY_MODE, AtFlags::empty())
                .map_err(|errno| disk("set the mode of", &created, errno))?;
            self.count(1, 0)?;
        }
        open_beneath(self.root, &path).map_err(|errno| disk("open the directory", &path, errno))
    }

    /// Removes the whiteouts from `listed`, and the entries that they hide from the tree.
    fn apply_whiteouts(
        &mut self,
        listed: &mut Vec<ListedEntry>,
        place: &EntryPath,
        filter: Filter<'_>,
    ) -> Result<(), TreeBuildError> {
        let mut hidden = Vec::new();
        let mut opaque = false;
        for entry in listed.iter() {
            if entry.name == OPAQUE {
                opaque = true;
            } else if entry.name.starts_with(RESERVED) {
                // Internal names of AUFS.
            } else if let Some(name) = entry.name.strip_prefix(WHITEOUT) {
                if matches!(name, b"" | b"." | b"..") {
                    return Err(TreeBuildError::InvalidWhiteout { path: place.child(&entry.name) });
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
            Err(errno) => return Err(disk("open the directory", &path, errno)),
        };
        if opaque {
            let all = list(&folder).map_err(|errno| disk("list the directory", &path, errno))?;
            hidden.extend(all.into_iter().map(|below| below.name));
        }
        for name in hidden {
            let below = place.child(&name);
            let removed = remove_filtered(&folder, &below, filter)
                .map_err(|errno| disk("apply the whiteout of", &below, errno))?;
            self.changes += removed.totals.inodes;
            self.subtract(removed);
        }
        Ok(())
    }
}
