//! Writes the entries of an archive into an image.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::{FileType, Mode, OFlags};

use super::super::budget::Budget;
use super::super::disk_meter::DiskMeter;
use super::super::entries;
use super::super::error::UnpackError;
use super::super::tar::TarError;
use super::super::tree_writer::write_data;
use super::format::{
    BLOCK, Data, Dirent, INODE, Inode, Kind, LINKS_AT, MAX_INLINE, ROOT_AT, SLOT, SUPERBLOCK_AT,
    directory_size, number_at, superblock,
};
use super::{ImageTarget, MAX_FILE};
use crate::disk::files::{DIRECTORY_MODE, file_mode};
use crate::disk::walk::walk;
use crate::disk::{DiskError, EntryPath, Totals, Usage};
use crate::limits::Limits;

/// Files up to this size keep the end of their data behind their inode. In larger ones the rest of the last block is
/// less than a sixteenth.
const MAX_TAIL_PACKED: u64 = 64 << 10;
/// The size of one read of a file that was unpacked before the archive became an image.
const READ_BYTES: usize = 256 << 10;
/// How many bytes of names are kept in memory. An archive with more is unpacked into files.
const MAX_NAMES: u64 = 128 << 20;
/// What a name takes in memory beside its bytes: its allocation and its part of a tree node.
const NAME_BYTES: u64 = 96;

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
enum Child {
    /// A file or symbolic link whose inode is written.
    Written { offset: u64, kind: Kind },
    /// A directory, by its place in [`ImageWriter::directories`].
    Directory(usize),
}

#[derive(Debug)]
struct Directory {
    parent: usize,
    mtime: i64,
    children: BTreeMap<Box<[u8]>, Child>,
}

/// A block that collects inodes until it is full.
#[derive(Debug)]
struct OpenBlock {
    at: u64,
    bytes: Vec<u8>,
}

/// Writes entries into an image.
pub(crate) struct ImageWriter<'a> {
    file: File,
    path: PathBuf,
    limits: &'a Limits,
    budget: &'a Budget,
    meter: DiskMeter<'a>,
    /// The memory that the names take.
    named: u64,
    is_taking_over: bool,
    /// The end of the image, a multiple of the block size.
    end: u64,
    open: Option<OpenBlock>,
    directories: Vec<Directory>,
    /// The directory in which the archive's root is.
    root: usize,
    /// The last directory that was used.
    current: (EntryPath, usize),
    /// The permission to keep names in memory.
    _permit: Box<dyn Send>,
    /// The number of names of files with more than one, by their offset.
    links: HashMap<u64, u32>,
    totals: Totals,
    inodes: u64,
}

impl<'a> ImageWriter<'a> {
    /// Creates an image. `disk` is a folder on the same disk.
    pub(crate) fn create(
        target: &ImageTarget<'_>,
        disk: &'a OwnedFd,
        limits: &'a Limits,
        budget: &'a Budget,
        permit: Box<dyn Send>,
    ) -> Result<Self, UnpackError> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o400).open(&target.path);
        let file = file.map_err(|error| DiskError::new("create the image", &target.path, error))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_secs()).unwrap_or_default();
        let mut writer = Self {
            file,
            path: target.path.clone(),
            limits,
            budget,
            meter: DiskMeter::new(disk, limits, budget),
            named: 0,
            is_taking_over: false,
            _permit: permit,
            end: BLOCK as u64,
            open: None,
            directories: vec![Directory { parent: 0, mtime: now, children: BTreeMap::new() }],
            root: 0,
            current: (EntryPath::root(), 0),
            links: HashMap::new(),
            totals: Totals { bytes: 0, inodes: 1 },
            inodes: 1,
        };
        writer.meter.charge(Usage::file(BLOCK as u64))?;
        let plan = target.plan;
        let above = [&b"trees"[..], plan.tree.as_str().as_bytes(), b"files"];
        for name in above.into_iter().chain(plan.at.segments()) {
            writer.root = writer.add_directory(writer.root, name, now)?;
        }
        // The root of the tree counts as one, and the directories above it do not.
        writer.totals.inodes = 1 + plan.at.depth() as u64;
        writer.current = (EntryPath::root(), writer.root);
        Ok(writer)
    }

    /// Counts an entry, unless it was counted when it was unpacked into files.
    fn count_entry(&self) -> Result<(), UnpackError> {
        if self.is_taking_over { Ok(()) } else { self.budget.count_entry(self.limits) }
    }

    /// Copies what is beneath `files` into the image, and deletes it there.
    pub(crate) fn take_over(&mut self, files: &OwnedFd) -> Result<(), UnpackError> {
        self.is_taking_over = true;
        let mut known = HashMap::new();
        let mtime = |stat: &rustix::fs::Stat| stat.st_mtime;
        walk::<UnpackError>(files, |entry| {
            let at = &entry.path;
            match entry.kind {
                FileType::Directory => {
                    // Its time is known when the archive ends.
                    self.directory(at, mtime(&entry.stat))
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(entry.folder, entry.name, Vec::new())
                        .map_err(|errno| self.error("read the link", errno.into()))?;
                    self.symlink(at, target.as_bytes(), mtime(&entry.stat))
                }
                _ if entry.stat.st_nlink > 1 && known.contains_key(&entry.stat.st_ino) => {
                    self.hard_link(at, &known[&entry.stat.st_ino])
                }
                _ => {
                    if entry.stat.st_nlink > 1 {
                        known.insert(entry.stat.st_ino, at.clone());
                    }
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let file = rustix::fs::openat(entry.folder, entry.name, flags, Mode::empty())
                        .map_err(|errno| self.error("open", errno.into()))?;
                    let mut data = BufReader::with_capacity(READ_BYTES, File::from(file));
                    let mode = entry.stat.st_mode;
                    self.file(at, mode, mtime(&entry.stat), entry.size(), &mut data)
                }
            }
        })?;
        self.is_taking_over = false;
        let failed = |errno: rustix::io::Errno| self.error("delete the unpacked files", errno.into());
        for entry in entries::list(files).map_err(failed)? {
            entries::remove(files, &entry.name).map_err(failed)?;
        }
        Ok(())
    }

    /// Sets the times of directories that were taken over, and that the archive names.
    pub(crate) fn set_times<'t>(&mut self, times: impl Iterator<Item = (&'t EntryPath, i64)>) {
        for (path, mtime) in times {
            if let Some(directory) = self.find(path) {
                self.directories[directory].mtime = mtime;
            }
        }
    }

    /// Creates a directory and the directories above it.
    pub(crate) fn directory(&mut self, path: &EntryPath, mtime: i64) -> Result<(), UnpackError> {
        let directory = self.enter(path)?;
        self.directories[directory].mtime = mtime;
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
        if size > MAX_FILE {
            return Err(UnpackError::NotForImage);
        }
        let (directory, name) = self.new_name(path)?;
        let whole = if size <= MAX_INLINE as u64 {
            0
        } else if size % BLOCK as u64 <= MAX_INLINE as u64 && size <= MAX_TAIL_PACKED {
            size / BLOCK as u64
        } else {
            size.div_ceil(BLOCK as u64)
        };
        let whole_bytes = size.min(whole * BLOCK as u64);
        // It fits: a tail is shorter than a block.
        let tail = usize::try_from(size - whole_bytes).unwrap_or(MAX_INLINE);
        let blocks = whole * BLOCK as u64;
        self.meter.charge_file(usage(blocks.saturating_add((INODE + tail) as u64)), whole_bytes)?;
        let first = self.allocate_blocks(whole)?;
        let failed = |errno: rustix::io::Errno| UnpackError::Disk(DiskError::new("write", &self.path, errno));
        write_data(&self.file, first..first + whole_bytes, data, &mut self.meter, failed)?;
        let mut bytes = vec![0; INODE + tail];
        data.read_exact(&mut bytes[INODE..]).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => UnpackError::Tar(TarError::Truncated("a file")),
            _ => UnpackError::from_stream(error),
        })?;
        let mode = file_mode(mode).bits() | FileType::RegularFile.as_raw_mode();
        let data = if tail == 0 { Data::Blocks } else { Data::BlocksAndInline };
        let data = data(block_number(first)?);
        let inode = Inode { mode: low_bits(mode), size, links: 1, mtime, data };
        let offset = self.write_inode(&inode, bytes)?;
        self.totals.bytes += size;
        self.add_written(directory, &name, offset, Kind::File)
    }

    /// Creates a symbolic link.
    pub(crate) fn symlink(&mut self, path: &EntryPath, target: &[u8], mtime: i64) -> Result<(), UnpackError> {
        let (directory, name) = self.new_name(path)?;
        if target.is_empty() || target.contains(&0) || target.len() >= self.limits.path() {
            return Err(UnpackError::LinkTarget { path: path.to_string() });
        }
        if target.len() > MAX_INLINE {
            return Err(UnpackError::NotForImage);
        }
        self.meter.charge(usage((INODE + target.len()) as u64))?;
        let mut bytes = vec![0; INODE];
        bytes.extend_from_slice(target);
        let mode = FileType::Symlink.as_raw_mode() | 0o777;
        let (size, data) = (target.len() as u64, Data::BlocksAndInline(0));
        let inode = Inode { mode: low_bits(mode), size, links: 1, mtime, data };
        let offset = self.write_inode(&inode, bytes)?;
        self.add_written(directory, &name, offset, Kind::Symlink)
    }

    /// Creates a hard link to an earlier file.
    pub(crate) fn hard_link(&mut self, path: &EntryPath, existing: &EntryPath) -> Result<(), UnpackError> {
        let (parent, source) = existing.split().ok_or(UnpackError::NotForImage)?;
        let found = self.find(&parent).and_then(|parent| self.directories[parent].children.get(source));
        let Some(&Child::Written { offset, kind: Kind::File }) = found else {
            return Err(UnpackError::NotForImage);
        };
        let (directory, name) = self.new_name(path)?;
        *self.links.entry(offset).or_insert(1) += 1;
        self.add_name(directory, &name, Child::Written { offset, kind: Kind::File })
    }

    /// Completes the image. Returns what it contains, and what the disk is charged for it.
    pub(crate) fn finish(mut self) -> Result<(Totals, Usage), UnpackError> {
        self.close_block()?;
        let offsets = self.place_directories()?;
        for (place, directory) in self.directories.iter().enumerate() {
            self.write_directory(place, directory, &offsets)?;
        }
        for (offset, links) in &self.links {
            self.write_at(&links.to_le_bytes(), offset + LINKS_AT)?;
        }
        self.write_at(&superblock(self.inodes, block_number(self.end)?), SUPERBLOCK_AT)?;
        self.file.set_len(self.end).map_err(|error| self.error("set the size of", error))?;
        let usage = Usage { bytes: self.end, inodes: 1 };
        Ok((self.totals, usage))
    }

    /// Decides where each directory is: the offset of its inode, and of its blocks if it is larger than a block.
    fn place_directories(&mut self) -> Result<Vec<(u64, Option<u64>)>, UnpackError> {
        let mut offsets = Vec::with_capacity(self.directories.len());
        // The end of the block of inodes that is being filled.
        let (mut at, mut left) = (0, 0);
        for place in 0..self.directories.len() {
            let size = size_of_directory(&self.directories[place]);
            // The root inode has a fixed place without room behind it.
            let inline =
                if place > 0 && size <= MAX_INLINE as u64 { usize::try_from(size).unwrap_or(0) } else { 0 };
            let blocks = if inline == 0 {
                self.meter.charge(usage(size.next_multiple_of(BLOCK as u64)))?;
                Some(self.allocate_blocks(size.div_ceil(BLOCK as u64))?)
            } else {
                None
            };
            if place == 0 {
                offsets.push((ROOT_AT, blocks));
                continue;
            }
            let length = (INODE + inline).next_multiple_of(SLOT);
            if length > left {
                self.meter.charge(usage(BLOCK as u64))?;
                (at, left) = (self.allocate_blocks(1)?, BLOCK);
            }
            offsets.push((at, blocks));
            (at, left) = (at + length as u64, left - length);
        }
        Ok(offsets)
    }

    fn write_directory(
        &self,
        place: usize,
        directory: &Directory,
        offsets: &[(u64, Option<u64>)],
    ) -> Result<(), UnpackError> {
        let number = |place: usize| number_at(offsets[place].0);
        let mut names: Vec<Dirent<'_>> = directory
            .children
            .iter()
            .map(|(name, child)| match *child {
                Child::Written { offset, kind } => Dirent { name, inode: number_at(offset), kind },
                Child::Directory(below) => Dirent { name, inode: number(below), kind: Kind::Directory },
            })
            .collect();
        let subdirectories = names.iter().filter(|entry| entry.kind == Kind::Directory).count();
        for (name, place) in [(&b"."[..], place), (b"..", directory.parent)] {
            let entry = Dirent { name, inode: number(place), kind: Kind::Directory };
            let at = names.partition_point(|other| other.name < name);
            names.insert(at, entry);
        }
        let content = super::format::directory(&names);
        let (offset, blocks) = offsets[place];
        let data = match blocks {
            Some(first) => {
                self.write_at(&content, first)?;
                Data::Blocks(block_number(first)?)
            }
            None => Data::BlocksAndInline(0),
        };
        let inode = Inode {
            mode: low_bits(DIRECTORY_MODE.bits() | FileType::Directory.as_raw_mode()),
            size: content.len() as u64,
            links: u32::try_from(subdirectories).unwrap_or(u32::MAX).saturating_add(2),
            mtime: directory.mtime,
            data,
        };
        let mut bytes = inode.encode(number_at(offset)).to_vec();
        if blocks.is_none() {
            bytes.extend_from_slice(&content);
        }
        self.write_at(&bytes, offset)
    }

    /// Returns the directory `path`, if it exists.
    fn find(&self, path: &EntryPath) -> Option<usize> {
        if *path == self.current.0 {
            return Some(self.current.1);
        }
        path.segments().try_fold(self.root, |at, segment| match self.directories[at].children.get(segment) {
            Some(Child::Directory(below)) => Some(*below),
            _ => None,
        })
    }

    /// Returns the directory `path`. Creates it and the directories above it if they do not exist.
    fn enter(&mut self, path: &EntryPath) -> Result<usize, UnpackError> {
        if *path == self.current.0 {
            return Ok(self.current.1);
        }
        let mut at = self.root;
        for segment in path.segments() {
            at = match self.directories[at].children.get(segment) {
                Some(Child::Directory(below)) => *below,
                Some(Child::Written { .. }) => return Err(UnpackError::NotForImage),
                None => {
                    self.count_entry()?;
                    let mtime = self.directories[0].mtime;
                    self.add_directory(at, segment, mtime)?
                }
            };
        }
        self.current = (path.clone(), at);
        Ok(at)
    }

    /// Returns the directory of a path, and the last name, which must be new in it.
    fn new_name(&mut self, path: &EntryPath) -> Result<(usize, Box<[u8]>), UnpackError> {
        self.count_entry()?;
        let (parent, name) = path.split().ok_or(UnpackError::RootIsNoDirectory)?;
        let directory = self.enter(&parent)?;
        if self.directories[directory].children.contains_key(name) {
            return Err(UnpackError::NotForImage);
        }
        Ok((directory, name.into()))
    }

    fn add_directory(&mut self, parent: usize, name: &[u8], mtime: i64) -> Result<usize, UnpackError> {
        // Its inode, and its entries for itself and for its parent.
        const EMPTY: u64 = 128;
        let place = self.directories.len();
        self.meter.charge(usage(EMPTY))?;
        self.directories.push(Directory { parent, mtime, children: BTreeMap::new() });
        self.named += NAME_BYTES;
        self.totals.inodes += 1;
        self.inodes += 1;
        self.add_name(parent, name, Child::Directory(place))?;
        Ok(place)
    }

    fn add_written(
        &mut self,
        directory: usize,
        name: &[u8],
        offset: u64,
        kind: Kind,
    ) -> Result<(), UnpackError> {
        self.totals.inodes += 1;
        self.inodes += 1;
        self.add_name(directory, name, Child::Written { offset, kind })
    }

    fn add_name(&mut self, directory: usize, name: &[u8], child: Child) -> Result<(), UnpackError> {
        self.meter.charge(Usage { inodes: 0, ..Usage::name(name.len()) })?;
        self.named += NAME_BYTES + name.len() as u64;
        if self.named > MAX_NAMES {
            return Err(UnpackError::NotForImage);
        }
        self.directories[directory].children.insert(name.into(), child);
        Ok(())
    }

    /// Appends blocks to the image, and returns the offset of the first one.
    fn allocate_blocks(&mut self, count: u64) -> Result<u64, UnpackError> {
        let first = self.end;
        self.end =
            count.checked_mul(BLOCK as u64).and_then(|bytes| first.checked_add(bytes)).unwrap_or(u64::MAX);
        block_number(self.end)?;
        Ok(first)
    }

    /// Writes an inode, for which `bytes` has room at its start, with the data behind it. Returns its offset.
    fn write_inode(&mut self, inode: &Inode, mut bytes: Vec<u8>) -> Result<u64, UnpackError> {
        let length = bytes.len().next_multiple_of(SLOT).min(BLOCK);
        bytes.resize(length, 0);
        if self.open.as_ref().is_none_or(|open| open.bytes.len() + length > BLOCK) {
            self.close_block()?;
            let at = self.allocate_blocks(1)?;
            self.open = Some(OpenBlock { at, bytes: Vec::with_capacity(BLOCK) });
        }
        let Some(open) = &mut self.open else { return Err(UnpackError::NotForImage) };
        let offset = open.at + open.bytes.len() as u64;
        bytes[..INODE].copy_from_slice(&inode.encode(number_at(offset)));
        open.bytes.extend_from_slice(&bytes);
        Ok(offset)
    }

    fn close_block(&mut self) -> Result<(), UnpackError> {
        match self.open.take() {
            Some(open) => self.write_at(&open.bytes, open.at),
            None => Ok(()),
        }
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), UnpackError> {
        self.file.write_all_at(bytes, at).map_err(|error| self.error("write", error))
    }

    fn error(&self, step: &'static str, error: std::io::Error) -> UnpackError {
        UnpackError::Disk(DiskError::new(step, &self.path, error))
    }
}

fn size_of_directory(directory: &Directory) -> u64 {
    let mut names: Vec<(&[u8], usize)> =
        directory.children.keys().map(|name| (&**name, name.len())).collect();
    for name in [&b"."[..], b".."] {
        let at = names.partition_point(|other| other.0 < name);
        names.insert(at, (name, name.len()));
    }
    directory_size(names.into_iter().map(|(_, length)| length))
}

fn usage(bytes: u64) -> Usage {
    Usage { bytes, inodes: 0 }
}

/// Returns the number of the block at an offset.
fn block_number(offset: u64) -> Result<u32, UnpackError> {
    // 16 TiB: such an archive is unpacked into files.
    u32::try_from(offset / BLOCK as u64).map_err(|_| UnpackError::NotForImage)
}

/// Returns the 16 bits of a mode that are used.
fn low_bits(mode: u32) -> u16 {
    u16::try_from(mode & 0xffff).unwrap_or_default()
}
