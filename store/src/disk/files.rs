//! Sets modes and times of files, links and copies them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::beneath::open_beneath;
use super::entry_path::EntryPath;

/// Collects the times of directories, which are set when the tree is complete. This is best effort: an error
/// is ignored, and the memory for a million directories with long paths is bounded by dropping the rest.
#[derive(Default)]
pub(crate) struct Times {
    paths: Vec<(EntryPath, i64)>,
    bytes: usize,
}

impl Times {
    const MAX_BYTES: usize = 8 << 20;

    pub(crate) fn remember(&mut self, path: EntryPath, mtime: i64) {
        self.bytes += path.as_bytes().len() + size_of::<(EntryPath, i64)>();
        if self.bytes <= Self::MAX_BYTES {
            self.paths.push((path, mtime));
        }
    }

    /// Returns the directories with their times, in the order in which they were remembered.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&EntryPath, i64)> {
        self.paths.iter().map(|(path, mtime)| (path, *mtime))
    }

    /// Sets the times beneath `root`. If a directory was remembered twice, the last time counts.
    pub(crate) fn set(&self, root: &OwnedFd) {
        for (path, mtime) in &self.paths {
            if let Ok(folder) = open_beneath(root, path) {
                set_time(&folder, *mtime);
            }
        }
    }
}

/// Returns the mode for a file: readable by all, executable by all if any execute bit is set, writable by the
/// owner if it was. Drops the setuid, setgid and sticky bits (docs/design.md, "Unpacking").
pub(crate) fn file_mode(mode: u32) -> Mode {
    let execute = if mode & 0o111 == 0 { 0 } else { 0o111 };
    Mode::from_raw_mode(0o444 | (mode & 0o200) | execute)
}

pub(crate) const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// Returns the umask that this process was started with. It is read from `/proc`, because umask(2) can only
/// read it by changing it.
pub(crate) fn umask() -> Option<Mode> {
    static UMASK: OnceLock<Option<Mode>> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
        u32::from_str_radix(umask.trim(), 8).ok().map(Mode::from_raw_mode)
    })
}

pub(crate) fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

pub(crate) fn set_time(file: impl AsFd, mtime: i64) {
    let _ = rustix::fs::futimens(file, &times(mtime));
}

/// Creates a hard link to a file or a symbolic link. Fails with [`Errno::MLINK`] if it already has as many links as
/// the file system allows: then the caller charges a copy and calls [`copy_entry`].
pub(crate) fn link(
    source: impl AsFd,
    source_name: &[u8],
    folder: impl AsFd,
    name: &[u8],
) -> Result<(), Errno> {
    let (source_name, name) = (OsStr::from_bytes(source_name), OsStr::from_bytes(name));
    rustix::fs::linkat(&source, source_name, &folder, name, AtFlags::empty())
}

/// Copies a file or a symbolic link, which must not be linked again.
pub(crate) fn copy_entry(
    source: impl AsFd,
    source_name: &[u8],
    folder: impl AsFd,
    name: &[u8],
) -> Result<(), Errno> {
    let found = rustix::fs::statat(&source, OsStr::from_bytes(source_name), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
        let target = rustix::fs::readlinkat(&source, OsStr::from_bytes(source_name), Vec::new())?;
        return rustix::fs::symlinkat(&target, &folder, OsStr::from_bytes(name));
    }
    let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = rustix::fs::openat(
        &source,
        OsStr::from_bytes(source_name),
        OFlags::RDONLY | nofollow,
        Mode::empty(),
    )?;
    let found = rustix::fs::fstat(&from)?;
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | nofollow;
    let to = rustix::fs::openat(&folder, OsStr::from_bytes(name), create, Mode::RUSR | Mode::WUSR)?;
    copy(&from, &to)?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(found.st_mode & 0o777))?;
    set_time(&to, found.st_mtime);
    Ok(())
}

/// Reports whether two entries are files with equal content or symbolic links with equal targets.
pub(crate) fn is_equal(
    (folder, name): (&OwnedFd, &[u8]),
    (other_folder, other_name): (&OwnedFd, &[u8]),
) -> Result<bool, Errno> {
    let (name, other_name) = (OsStr::from_bytes(name), OsStr::from_bytes(other_name));
    let found = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let other = rustix::fs::statat(other_folder, other_name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if kind != FileType::from_raw_mode(other.st_mode) || found.st_size != other.st_size {
        return Ok(false);
    }
    match kind {
        FileType::Symlink => Ok(rustix::fs::readlinkat(folder, name, Vec::new())?
            == rustix::fs::readlinkat(other_folder, other_name, Vec::new())?),
        FileType::RegularFile if (found.st_dev, found.st_ino) == (other.st_dev, other.st_ino) => Ok(true),
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(folder, name, flags, Mode::empty())?;
            let other = rustix::fs::openat(other_folder, other_name, flags, Mode::empty())?;
            has_equal_bytes(&file, &other)
        }
        _ => Ok(false),
    }
}

fn has_equal_bytes(file: &OwnedFd, other: &OwnedFd) -> Result<bool, Errno> {
    let (mut bytes, mut other_bytes) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    loop {
        let count = read_full(file, &mut bytes)?;
        let other_count = read_full(other, &mut other_bytes)?;
        if bytes[..count] != other_bytes[..other_count] {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}

/// Fills the buffer, except at the end of the file.
fn read_full(file: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(file, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(filled)
}

/// Copies a file's bytes: as a reflink if the file system supports it, else in the kernel, else through a
/// buffer.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<u64, Errno> {
    let size = u64::try_from(rustix::fs::fstat(from)?.st_size).unwrap_or(0);
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(size);
    }
    let mut done = 0;
    loop {
        match rustix::fs::copy_file_range(from, None, to, None, 1 << 30) {
            Ok(0) => break,
            Ok(count) => done += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if done == 0 => {
                return copy_by_hand(from, to);
            }
            Err(errno) => return Err(errno),
        }
    }
    // Some file systems copy nothing and report no error.
    if done == 0 && size > 0 { copy_by_hand(from, to) } else { Ok(done) }
}

fn copy_by_hand(from: &OwnedFd, to: &OwnedFd) -> Result<u64, Errno> {
    let mut buffer = vec![0; 256 << 10];
    let mut done = 0;
    loop {
        let count = match rustix::io::read(from, &mut buffer[..]) {
            Ok(0) => return Ok(done),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        done += count as u64;
    }
}
