//! Writes the entries of an archive beneath one directory, by descriptors.
//!
//! Architecture Invariant: every directory is opened with `openat2` and `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS` and
//! `RESOLVE_NO_MAGICLINKS`. Entries are created in it by a single name, with `O_EXCL` and `O_NOFOLLOW`. So no path of
//! an archive and no symbolic link that it created leads out of the directory. The kernel enforces this, not a
//! comparison of strings.
//!
//! An image layer can write through its own links: [`super::links`] first replaces a path by one without links.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::BufRead;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::budget::Budget;
use super::disk_meter::DiskMeter;
use super::entries;
use super::error::UnpackError;
use super::links::resolve;
use super::sparse::SparseMap;
use super::tar::TarError;
use crate::disk::beneath::open_beneath;
use crate::disk::entry_path::{EntryPath, too_long};
use crate::disk::files::{DIRECTORY_MODE, Times, copy_entry, file_mode, link, set_time, times, umask};
use crate::disk::{DiskError, Totals, Usage};
use crate::limits::Limits;

/// How many lookups of links an archive can cause, for each entry of the limit.
const LINK_STEPS_PER_ENTRY: u64 = 4;

/// What happens to a path that leads through a symbolic link of the same layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkRule {
    /// The layer is rejected, and so is a hard link to a symbolic link, and an entry that replaces a directory with
    /// something in it.
    Reject,
    /// As containerd does for image layers: the link is followed as if the root of the layer were `/`. An entry replaces
    /// a directory with all its contents.
    Resolve,
}

/// Entries that were removed, because a later entry of the archive replaces them.
#[derive(Default)]
struct Replaced {
    totals: Totals,
    refund: Usage,
    inodes: Vec<u64>,
}

/// Writes entries into a directory.
pub(crate) struct TreeWriter<'a> {
    root: &'a OwnedFd,
    limits: &'a Limits,
    budget: &'a Budget,
    umask: Mode,
    links: LinkRule,
    /// How many links may still be looked up. Without it, an archive could make each of its paths lead through many.
    link_steps: u64,
    /// The last directory that led through links, and the same without links.
    resolved: Option<(EntryPath, EntryPath)>,
    current: Option<(EntryPath, OwnedFd)>,
    times: Times,
    totals: Totals,
    largest: u64,
    meter: DiskMeter<'a>,
    /// What the disk is charged for the files with holes, by their inodes.
    sparse: HashMap<u64, Usage>,
}

fn disk(step: &'static str, path: &EntryPath, errno: Errno) -> UnpackError {
    UnpackError::Disk(DiskError::new(step, PathBuf::from(OsStr::from_bytes(path.as_bytes())), errno))
}

fn name_of(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

impl<'a> TreeWriter<'a> {
    /// Writes into `root`, which must be empty.
    pub(crate) fn new(
        root: &'a OwnedFd,
        limits: &'a Limits,
        budget: &'a Budget,
        links: LinkRule,
    ) -> Result<Self, UnpackError> {
        let totals = Totals { bytes: 0, inodes: 1 };
        let umask = umask().unwrap_or(Mode::RWXU | Mode::RWXG | Mode::RWXO);
        let mut meter = DiskMeter::new(root, limits, budget);
        meter.charge(Usage::directory())?;
        Ok(Self {
            root,
            limits,
            budget,
            umask,
            links,
            link_steps: limits.entries().saturating_mul(LINK_STEPS_PER_ENTRY),
            resolved: None,
            current: None,
            times: Times::default(),
            totals,
            largest: 0,
            meter,
            sparse: HashMap::new(),
        })
    }

    /// Returns what was written so far.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns the size of the largest file that was written.
    pub(crate) fn largest(&self) -> u64 {
        self.largest
    }

    /// Returns what the disk is charged for what was written so far.
    pub(crate) fn usage(&self) -> Usage {
        self.meter.usage()
    }

    /// Returns the directories whose times are set at the end.
    pub(crate) fn times(&self) -> impl Iterator<Item = (&EntryPath, i64)> {
        self.times.iter()
    }

    /// Reports whether an image can contain everything that was written: it has no holes.
    pub(crate) fn can_become_image(&self) -> bool {
        self.links == LinkRule::Reject && self.sparse.is_empty()
    }

    /// Returns the path without symbolic links above its last name.
    fn without_links(&mut self, path: &EntryPath) -> Result<EntryPath, UnpackError> {
        let Some((parent, name)) = path.split() else { return Ok(path.clone()) };
        let is_current = self.current.as_ref().is_some_and(|(current, _)| *current == parent);
        if self.links == LinkRule::Reject || parent.is_root() || is_current {
            return Ok(path.clone());
        }
        if let Some((_, resolved)) = self.resolved.as_ref().filter(|(directory, _)| *directory == parent) {
            let resolved = resolved.child(name);
            resolved.check(self.limits)?;
            return Ok(resolved);
        }
        match open_beneath(self.root, &parent) {
            Ok(folder) => {
                self.current = Some((parent, folder));
                Ok(path.clone())
            }
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                let directory = resolve(self.root, &parent, self.limits, &mut self.link_steps)?;
                let resolved = directory.child(name);
                resolved.check(self.limits)?;
                self.resolved = Some((parent, directory));
                Ok(resolved)
            }
            Err(_) => Ok(path.clone()),
        }
    }

    fn count(&mut self) -> Result<(), UnpackError> {
        self.budget.count_entry(self.limits)
    }

    /// Charges an entry that is about to be created: its inode and blocks, its name, and its checksum.
    fn charge(&mut self, path: &EntryPath, name: &[u8], usage: Usage) -> Result<(), UnpackError> {
        self.charge_file(path, name, usage, 0)
    }

    /// The same for a file whose data is written in pieces.
    fn charge_file(
        &mut self,
        path: &EntryPath,
        name: &[u8],
        usage: Usage,
        size: u64,
    ) -> Result<(), UnpackError> {
        self.meter.charge_file(usage.plus(Usage::name(name.len())), size)?;
        Ok(self.meter.charge_checksum(path.as_bytes().len())?)
    }

    /// Creates a directory and the directories above it.
    pub(crate) fn directory(&mut self, path: &EntryPath, mtime: i64) -> Result<(), UnpackError> {
        self.count()?;
        let path = &self.without_links(path)?;
        if let Some((parent, name)) = path.split() {
            self.enter_directory(&parent)?;
            self.make_directory(&parent, name, path)?;
        }
        self.times.remember(path.clone(), mtime);
        Ok(())
    }

    /// Creates a file with all of `data`.
    pub(crate) fn file(
        &mut self,
        path: &EntryPath,
        mode: u32,
        mtime: i64,
        size: u64,
        data: &mut impl BufRead,
    ) -> Result<(), UnpackError> {
        let path = &self.without_links(path)?;
        let file = self.create_file(path, mode, Usage::file(size), size)?;
        self.write_range(&file, path, 0..size, data)?;
        set_time(&file, mtime);
        self.totals.bytes += size;
        self.largest = self.largest.max(size);
        Ok(())
    }

    /// Creates a file with holes. `data` are the bytes of the ranges in `map`.
    pub(crate) fn sparse_file(
        &mut self,
        path: &EntryPath,
        mode: u32,
        mtime: i64,
        map: &SparseMap,
        data: &mut impl BufRead,
    ) -> Result<(), UnpackError> {
        let path = &self.without_links(path)?;
        let file = self.create_file(path, mode, map.usage(), map.stored())?;
        for range in map.data() {
            self.write_range(&file, path, range.clone(), data)?;
        }
        rustix::fs::ftruncate(&file, map.size()).map_err(|errno| disk("set the size of", path, errno))?;
        set_time(&file, mtime);
        let found = rustix::fs::fstat(&file).map_err(|errno| disk("stat", path, errno))?;
        self.sparse.insert(found.st_ino, map.usage());
        self.totals.bytes += map.size();
        Ok(())
    }

    /// Creates an empty file. `usage` is charged, of which `size` bytes will be written.
    fn create_file(
        &mut self,
        path: &EntryPath,
        mode: u32,
        usage: Usage,
        size: u64,
    ) -> Result<OwnedFd, UnpackError> {
        self.count()?;
        let Some((parent, name)) = path.split() else { return Err(UnpackError::RootIsNoDirectory) };
        self.enter_directory(&parent)?;
        // Before the first byte, so that an archive that claims more than fits writes nothing of it.
        self.charge_file(path, name, usage, size)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = file_mode(mode);
        let folder = self.folder();
        let file = match rustix::fs::openat(folder, name_of(name), flags, mode) {
            Err(Errno::EXIST) => {
                self.remove_existing(name, path)?;
                rustix::fs::openat(self.folder(), name_of(name), flags, mode)
            }
            other => other,
        };
        let file = file.map_err(|errno| disk("create the file", path, errno))?;
        if self.umask.intersects(mode) {
            rustix::fs::fchmod(&file, mode).map_err(|errno| disk("set the mode of", path, errno))?;
        }
        self.totals.inodes += 1;
        Ok(file)
    }

    /// Writes a range of a file from `data`, which must have all of it.
    fn write_range(
        &mut self,
        file: &OwnedFd,
        path: &EntryPath,
        range: Range<u64>,
        data: &mut impl BufRead,
    ) -> Result<(), UnpackError> {
        write_data(file, range, data, &mut self.meter, |errno| disk("write", path, errno))
    }

    /// Creates a symbolic link. Its target is only data: it is never followed here.
    pub(crate) fn symlink(&mut self, path: &EntryPath, target: &[u8], mtime: i64) -> Result<(), UnpackError> {
        self.count()?;
        let path = &self.without_links(path)?;
        let Some((parent, name)) = path.split() else { return Err(UnpackError::RootIsNoDirectory) };
        if target.is_empty() || target.contains(&0) || target.len() >= self.limits.path() {
            return Err(UnpackError::LinkTarget { path: path.to_string() });
        }
        self.charge(path, name, Usage::symlink())?;
        self.resolved = None;
        self.enter_directory(&parent)?;
        let link = |folder: BorrowedFd<'_>| rustix::fs::symlinkat(name_of(target), folder, name_of(name));
        match link(self.folder()) {
            Err(Errno::EXIST) => {
                self.remove_existing(name, path)?;
                link(self.folder())
            }
            other => other,
        }
        .map_err(|errno| disk("create the symbolic link", path, errno))?;
        let _ = rustix::fs::utimensat(self.folder(), name_of(name), &times(mtime), AtFlags::SYMLINK_NOFOLLOW);
        self.totals.inodes += 1;
        Ok(())
    }

    /// Creates a hard link to an earlier file, or to an earlier symbolic link with [`LinkRule::Resolve`].
    pub(crate) fn hard_link(&mut self, path: &EntryPath, existing: &EntryPath) -> Result<(), UnpackError> {
        self.count()?;
        let missing = || UnpackError::HardLink { path: path.to_string(), existing: existing.to_string() };
        let existing_path = self.without_links(existing)?;
        let path = &self.without_links(path)?;
        let Some((parent, name)) = path.split() else { return Err(UnpackError::RootIsNoDirectory) };
        let Some((source_parent, source_name)) = existing_path.split() else { return Err(missing()) };
        if *path == existing_path {
            return Ok(());
        }
        let source = open_beneath(self.root, &source_parent).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => missing(),
            errno => disk("open the directory", &source_parent, errno),
        })?;
        let found = rustix::fs::statat(&source, name_of(source_name), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|_| missing())?;
        let bytes = match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => u64::try_from(found.st_size).unwrap_or(0),
            FileType::Symlink if self.links == LinkRule::Resolve => 0,
            _ => return Err(missing()),
        };
        self.charge(path, name, Usage::default())?;
        self.resolved = None;
        self.enter_directory(&parent)?;
        if self.exists(name) {
            self.remove_existing(name, path)?;
        }
        match link(&source, source_name, self.folder(), name) {
            Err(Errno::MLINK) => {
                self.meter.charge(Usage::file(bytes))?;
                copy_entry(&source, source_name, self.folder(), name)
                    .map_err(|errno| disk("copy a file with too many hard links to", path, errno))?;
                self.totals.bytes += bytes;
                self.totals.inodes += 1;
                Ok(())
            }
            // It was in the directory that the link replaces.
            Err(Errno::NOENT) => Err(missing()),
            linked => linked.map_err(|errno| disk("create the hard link", path, errno)),
        }
    }

    /// Sets the times of the directories after their last change, and returns what was written and what the disk is
    /// charged for it.
    pub(crate) fn finish(self) -> (Totals, Usage) {
        self.times.set(self.root);
        (self.totals, self.meter.usage())
    }

    fn folder(&self) -> BorrowedFd<'_> {
        self.current.as_ref().map_or_else(|| self.root.as_fd(), |(_, folder)| folder.as_fd())
    }

    /// Opens the directory `path` for [`Self::folder`]. Creates it and the directories above it if they do not exist.
    fn enter_directory(&mut self, path: &EntryPath) -> Result<(), UnpackError> {
        match &self.current {
            Some((current, _)) if current == path => return Ok(()),
            None if path.is_root() => return Ok(()),
            _ => {}
        }
        self.current = None;
        if path.is_root() {
            return Ok(());
        }
        let folder = match open_beneath(self.root, path) {
            Err(Errno::NOENT) => {
                let mut created = EntryPath::root();
                for segment in path.segments() {
                    let next = created.child(segment);
                    self.count()?;
                    self.current =
                        if created.is_root() { None } else { Some((created.clone(), self.open(&created)?)) };
                    self.make_directory(&created, segment, &next)?;
                    created = next;
                }
                self.open(path)?
            }
            Err(errno) => return Err(open_error(path, errno)),
            Ok(folder) => folder,
        };
        self.current = Some((path.clone(), folder));
        Ok(())
    }

    fn open(&self, path: &EntryPath) -> Result<OwnedFd, UnpackError> {
        open_beneath(self.root, path).map_err(|errno| open_error(path, errno))
    }

    /// Creates the directory `name` in the current folder. Anything else of that name is replaced, as by tar.
    fn make_directory(
        &mut self,
        parent: &EntryPath,
        name: &[u8],
        path: &EntryPath,
    ) -> Result<(), UnpackError> {
        debug_assert!(self.current.as_ref().map_or(parent.is_root(), |(current, _)| current == parent));
        let make = |folder: BorrowedFd<'_>| rustix::fs::mkdirat(folder, name_of(name), DIRECTORY_MODE);
        match make(self.folder()) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(self.folder(), name_of(name), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| disk("stat", path, errno))?;
                if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                    return Ok(());
                }
                self.remove_existing(name, path)?;
                make(self.folder()).map_err(|errno| disk("create the directory", path, errno))?;
            }
            Err(errno) => return Err(disk("create the directory", path, errno)),
        }
        // Charged when it exists, because archives can list a directory many times.
        self.charge(path, name, Usage::directory())?;
        if self.umask.intersects(DIRECTORY_MODE) {
            rustix::fs::chmodat(self.folder(), name_of(name), DIRECTORY_MODE, AtFlags::empty())
                .map_err(|errno| disk("set the mode of", path, errno))?;
        }
        self.totals.inodes += 1;
        Ok(())
    }

    fn exists(&self, name: &[u8]) -> bool {
        rustix::fs::statat(self.folder(), name_of(name), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Removes an earlier entry of the same name, because the last one counts, as in tar.
    fn remove_existing(&mut self, name: &[u8], path: &EntryPath) -> Result<(), UnpackError> {
        let mut replaced = Replaced::default();
        self.resolved = None;
        self.remove_entry(self.folder(), name, path, &mut replaced)?;
        self.totals.bytes = self.totals.bytes.saturating_sub(replaced.totals.bytes);
        self.totals.inodes = self.totals.inodes.saturating_sub(replaced.totals.inodes);
        self.meter.refund(replaced.refund);
        // The inodes can be used again, by files without holes.
        for inode in replaced.inodes {
            self.sparse.remove(&inode);
        }
        Ok(())
    }

    /// Removes one name. A directory that is not empty is removed with its contents, or the archive is rejected.
    fn remove_entry(
        &self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        path: &EntryPath,
        replaced: &mut Replaced,
    ) -> Result<(), UnpackError> {
        let failed = |errno| disk("replace", path, errno);
        let found = rustix::fs::statat(folder, name_of(name), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let unlink = |flags| rustix::fs::unlinkat(folder, name_of(name), flags);
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            unlink(AtFlags::empty()).map_err(failed)?;
            // With another name, the file still exists.
            if found.st_nlink == 1 {
                self.count_removed(&found, replaced);
            }
            return Ok(());
        }
        match unlink(AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.links == LinkRule::Resolve => {
                let inside = entries::open(folder, name).map_err(failed)?;
                for entry in entries::list(&inside).map_err(failed)? {
                    self.remove_entry(inside.as_fd(), &entry.name, path, replaced)?;
                }
                unlink(AtFlags::REMOVEDIR).map_err(failed)?;
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                return Err(UnpackError::ReplacesDirectory { path: path.to_string() });
            }
            removed => removed.map_err(failed)?,
        }
        replaced.totals.inodes += 1;
        replaced.refund = replaced.refund.plus(Usage::directory());
        Ok(())
    }

    /// Counts a file or link that was removed. Names are not refunded: ext4 does not shrink a directory.
    fn count_removed(&self, found: &Stat, replaced: &mut Replaced) {
        let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
        let bytes = if is_file { u64::try_from(found.st_size).unwrap_or(0) } else { 0 };
        let usage = self.sparse.get(&found.st_ino).copied().unwrap_or_else(|| Usage::file(bytes));
        replaced.totals.bytes += bytes;
        replaced.totals.inodes += 1;
        replaced.refund = replaced.refund.plus(usage);
        replaced.inodes.push(found.st_ino);
    }
}

/// Writes a range of a file from `data`, which must have all of it.
pub(super) fn write_data(
    file: impl AsFd,
    range: Range<u64>,
    data: &mut impl BufRead,
    meter: &mut DiskMeter<'_>,
    failed: impl Fn(Errno) -> UnpackError,
) -> Result<(), UnpackError> {
    let mut at = range.start;
    while at < range.end {
        let piece = data.fill_buf().map_err(UnpackError::from_stream)?;
        if piece.is_empty() {
            return Err(UnpackError::Tar(TarError::Truncated("a file")));
        }
        let length = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(piece.len());
        match rustix::io::pwrite(&file, &piece[..length], at) {
            Ok(count) => {
                data.consume(count);
                at += count as u64;
                meter.wrote(count as u64)?;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

fn open_error(path: &EntryPath, errno: Errno) -> UnpackError {
    match errno {
        Errno::LOOP | Errno::XDEV | Errno::NOTDIR => UnpackError::ThroughLink { path: path.to_string() },
        Errno::NAMETOOLONG => UnpackError::Name(too_long(path)),
        errno => disk("open the directory", path, errno),
    }
}
