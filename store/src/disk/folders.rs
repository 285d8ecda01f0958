//! Creates, opens, syncs and lists folders, and generates unique names.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::error::DiskError;

/// Creates a folder that only its owner can access, and its missing parents.
pub(crate) fn make_private_folder(path: &Path) -> Result<(), DiskError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| DiskError::new("create the folder", path, error))
}

/// Creates one folder with this mode. It must not exist.
pub(crate) fn make_new_folder(path: &Path, mode: u32) -> Result<(), DiskError> {
    let result = std::fs::DirBuilder::new().mode(mode).create(path);
    result.map_err(|error| DiskError::new("create the folder", path, error))
}

/// Opens a folder. Refuses a symbolic link.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd, DiskError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| DiskError::new("open", path, errno))
}

/// Syncs the entries of a folder to the disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(rustix::fs::fsync(&folder)?)
}

/// Moves `from` to the first free name of `NAME.0`, `NAME.1`, … in `folder`. It is no error if `from` does
/// not exist.
pub(crate) fn move_to_free_name(from: &Path, folder: &Path, name: &str) -> Result<(), DiskError> {
    for number in 0..10_000 {
        let to = folder.join(format!("{name}.{number}"));
        match rustix::fs::renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(DiskError::new("quarantine", from, errno)),
        }
    }
    Err(DiskError::new("quarantine", from, Errno::EXIST))
}

/// Lists the names in a folder; none if the folder does not exist.
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
        // The store never creates a name that is not UTF-8.
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    Ok(names)
}

/// Generates names for unfinished files and folders. Clones never return the same name.
#[derive(Clone, Debug)]
pub(crate) struct TmpNames {
    folder: PathBuf,
    next: Arc<AtomicU64>,
}

impl TmpNames {
    /// Returns a generator for this folder, which must be empty.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, next: Arc::default() }
    }

    /// Returns a path that no other call returns.
    pub(crate) fn next(&self) -> PathBuf {
        self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }
}
