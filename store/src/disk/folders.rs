//! Folders and names on the store's disk: making, syncing, numbering.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::error::DiskError;

/// Makes a folder that only its owner can read, with those above it.
pub(crate) fn make_private_folder(path: &Path) -> Result<(), DiskError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| DiskError::new("make the folder", path, error))
}

/// Makes one folder with this mode. It must not exist.
pub(crate) fn make_new_folder(path: &Path, mode: u32) -> Result<(), DiskError> {
    let result = std::fs::DirBuilder::new().mode(mode).create(path);
    result.map_err(|error| DiskError::new("make the folder", path, error))
}

/// Opens a folder, not through a symbolic link.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd, DiskError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| DiskError::new("open", path, errno))
}

/// Writes the names in a folder to the disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(rustix::fs::fsync(&folder)?)
}

/// Moves `from` to `NAME.0`, `NAME.1`, … in `folder`, the first that is free. A `from` that does not exist is no error.
pub(crate) fn move_to_free_name(from: &Path, folder: &Path, name: &str) -> Result<(), DiskError> {
    for number in 0..10_000 {
        let to = folder.join(format!("{name}.{number}"));
        match rustix::fs::renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(DiskError::new("set aside", from, errno)),
        }
    }
    Err(DiskError::new("set aside", from, Errno::EXIST))
}

/// The names in a folder that is there; none in one that is not.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>, DiskError> {
    let failed = |error| DiskError::new("list", folder, error);
    let listed = match std::fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in listed {
        // Another name is not one that was given here.
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    Ok(names)
}

/// Gives names to unfinished files and folders; clones never give the same name.
#[derive(Clone, Debug)]
pub(crate) struct TmpNames {
    folder: PathBuf,
    next: Arc<AtomicU64>,
}

impl TmpNames {
    /// Names in this folder, which is empty.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, next: Arc::default() }
    }

    /// A path that no other call gets.
    pub(crate) fn next(&self) -> PathBuf {
        self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }
}
