//! Writes the files of a recipe to a directory of the user. They are copies, so that changes to them do not change
//! the store.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oras_csi_core::recipe::PinnedRecipe;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::error::PullError;
use super::fetch::Fetcher;
use super::progress::Progress;
use crate::disk::EntryPath;
use crate::disk::beneath::open_beneath;
use crate::disk::files::{DIRECTORY_MODE, Times, copy, set_time, umask};
use crate::error_class::ErrorClass;
use crate::store::trees::Tree;
use crate::unpack::entries::DirectoryWalk;

/// Why the files could not be written to the directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The pull failed.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The destination exists already and is not an empty directory.
    #[error("cannot write to {}: it {found}, and existing files are never overwritten. Name a directory that does not exist or is empty", .path.display())]
    Occupied {
        /// The destination.
        path: PathBuf,
        /// Why it cannot be used, as a verb phrase.
        found: &'static str,
    },
    /// A file operation at the destination failed.
    #[error("cannot {step} {}: {source}", .path.display())]
    Io {
        /// The operation.
        step: &'static str,
        /// Its path.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The task that copies was stopped.
    #[error("copying the files was interrupted: the command was stopped before it ended. Run it again")]
    Interrupted,
}

impl DirectoryError {
    /// Returns the class of the error, which selects the exit code.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Pull(error) => error.class(),
            Self::Occupied { .. } => ErrorClass::BadInput,
            Self::Io { .. } | Self::Interrupted => ErrorClass::Failed,
        }
    }
}

/// Pulls a recipe and writes its files to `destination`, which must not exist or must be empty.
///
/// A new directory appears complete, by one rename. In an existing empty directory each top-level entry is moved into
/// place by a rename. Nothing that appears there in the meantime is overwritten.
pub async fn pull_into_directory(
    fetcher: &Arc<Fetcher>,
    recipe: &PinnedRecipe,
    destination: &Path,
    progress: &Arc<dyn Progress>,
) -> Result<Tree, DirectoryError> {
    // Checked before the download, so that the error comes at once.
    check_destination(destination)?;
    let tree = fetcher.tree(recipe, progress).await?;
    let (store, key, destination) = (fetcher.store().clone(), tree.key().clone(), destination.to_owned());
    let stop = CancellationToken::new();
    // When the caller stops waiting, copying stops as well.
    let _stop_on_drop = stop.clone().drop_guard();
    let copied = tokio::task::spawn_blocking(move || {
        let files = store.tree_files(&key).map_err(PullError::from)?;
        let source = Source { files, can_move: !store.is_persistent() };
        copy_to(&source, &destination, &stop)
    });
    copied.await.map_err(|_| DirectoryError::Interrupted)??;
    Ok(tree)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DestinationState {
    Missing,
    EmptyDirectory,
}

fn failed(step: &'static str, path: &Path, source: impl Into<io::Error>) -> DirectoryError {
    DirectoryError::Io { step, path: path.to_owned(), source: source.into() }
}

fn check_destination(destination: &Path) -> Result<DestinationState, DirectoryError> {
    let occupied = |found| Err(DirectoryError::Occupied { path: destination.to_owned(), found });
    match std::fs::metadata(destination) {
        Ok(found) if found.is_dir() => {
            match std::fs::read_dir(destination).map_err(|e| failed("list", destination, e))?.next() {
                None => Ok(DestinationState::EmptyDirectory),
                Some(_) => occupied("is not empty"),
            }
        }
        Ok(_) => occupied("is a file"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match std::fs::symlink_metadata(destination) {
                Ok(_) => occupied("is a symbolic link whose target does not exist"),
                Err(_) => Ok(DestinationState::Missing),
            }
        }
        Err(error) => Err(failed("check", destination, error)),
    }
}

/// The tree that is copied.
struct Source {
    files: OwnedFd,
    /// The store is ephemeral, so the files may be moved instead of copied.
    can_move: bool,
}

fn copy_to(source: &Source, destination: &Path, stop: &CancellationToken) -> Result<(), DirectoryError> {
    let state = check_destination(destination)?;
    let parent = match state {
        DestinationState::EmptyDirectory => destination.to_owned(),
        DestinationState::Missing => {
            let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new(".")).to_owned();
            std::fs::create_dir_all(&parent)
                .map_err(|error| failed("create the directory", &parent, error))?;
            parent
        }
    };
    let temporary = TemporaryDirectory::create(&parent)?;
    if !source.can_move || !move_tree(&source.files, &temporary, stop)? {
        copy_tree(&source.files, &temporary, stop)?;
    }
    if stop.is_cancelled() {
        return Err(DirectoryError::Interrupted);
    }
    match state {
        DestinationState::Missing => {
            let moved =
                rustix::fs::renameat_with(CWD, &temporary.path, CWD, destination, RenameFlags::NOREPLACE);
            match moved {
                Ok(()) => Ok(()),
                Err(Errno::EXIST) => {
                    let path = destination.to_owned();
                    Err(DirectoryError::Occupied { path, found: "was created during the pull" })
                }
                Err(errno) => Err(failed("rename the files to", destination, errno)),
            }
        }
        DestinationState::EmptyDirectory => {
            let into = open(destination)?;
            for name in names(&temporary.folder).map_err(|e| failed("list", &temporary.path, e))? {
                let name = OsStr::from_bytes(&name);
                rustix::fs::renameat_with(&temporary.folder, name, &into, name, RenameFlags::NOREPLACE)
                    .map_err(|errno| failed("move a file into", &destination.join(name), errno))?;
            }
            Ok(())
        }
    }
}

/// A temporary directory beside the destination. Dropping it removes it with its contents, unless it was renamed.
struct TemporaryDirectory {
    path: PathBuf,
    folder: OwnedFd,
}

impl TemporaryDirectory {
    fn create(parent: &Path) -> Result<Self, DirectoryError> {
        let id = std::process::id();
        for number in 0..1_000 {
            let path = parent.join(format!(".oras-csi-{id}-{number}"));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { folder: open(&path)?, path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("create the directory", &path, error)),
            }
        }
        Err(failed("create a temporary directory in", parent, Errno::EXIST))
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn open(path: &Path) -> Result<OwnedFd, DirectoryError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed("open", path, errno))
}

fn names(folder: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_bytes().to_vec());
        }
    }
    Ok(names)
}

/// Removes the bits of the user's umask from a mode.
fn apply_umask(mode: Mode) -> Mode {
    mode.difference(umask().unwrap_or(Mode::WGRP | Mode::WOTH))
}

/// Returns the mode of a file for the user: readable, writable by the owner, and executable if it was. The umask
/// applies.
fn user_file_mode(mode: u32) -> Mode {
    apply_umask(Mode::from_raw_mode((mode & 0o111) | 0o644))
}

/// Moves the files out of the ephemeral store. Returns `false` if the destination is on another file system.
fn move_tree(
    source: &OwnedFd,
    temporary: &TemporaryDirectory,
    stop: &CancellationToken,
) -> Result<bool, DirectoryError> {
    let mtime = rustix::fs::fstat(source).map(|found| found.st_mtime);
    for name in names(source).map_err(|errno| failed("list the files for", &temporary.path, errno))? {
        let name = OsStr::from_bytes(&name);
        match rustix::fs::renameat_with(source, name, &temporary.folder, name, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // All entries are on the same file system, so the first one shows it.
            Err(Errno::XDEV) => return Ok(false),
            Err(errno) => return Err(failed("move a file to", &temporary.path.join(name), errno)),
        }
    }
    fix_modes_and_hard_links(temporary, stop)?;
    if let Ok(mtime) = mtime {
        set_time(&temporary.folder, mtime);
    }
    Ok(true)
}

/// Gives moved files the modes that a copy would have, and makes each hard link a file of its own.
fn fix_modes_and_hard_links(
    temporary: &TemporaryDirectory,
    stop: &CancellationToken,
) -> Result<(), DirectoryError> {
    let directory_mode = apply_umask(DIRECTORY_MODE);
    let mut walk = DirectoryWalk::new();
    let mut next = Some((EntryPath::root(), ()));
    let mut seen = HashSet::new();
    while let Some((path, ())) = next {
        let mut directories = Vec::new();
        let shown = temporary.path.join(OsStr::from_bytes(path.as_bytes()));
        let failed = |step, errno: Errno| failed(step, &shown, errno);
        let folder = open_beneath(&temporary.folder, &path).map_err(|errno| failed("open", errno))?;
        let before = rustix::fs::fstat(&folder).map_err(|errno| failed("stat", errno))?;
        if Mode::from_raw_mode(before.st_mode) != directory_mode {
            rustix::fs::fchmod(&folder, directory_mode).map_err(|errno| failed("set the mode of", errno))?;
        }
        let mut has_changed = false;
        for name in names(&folder).map_err(|errno| failed("list", errno))? {
            if stop.is_cancelled() {
                return Err(DirectoryError::Interrupted);
            }
            let os_name = OsStr::from_bytes(&name);
            let found = rustix::fs::statat(&folder, os_name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| failed("stat a file in", errno))?;
            let mode = user_file_mode(found.st_mode);
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => directories.push((name, ())),
                FileType::Symlink => {}
                // A hard link becomes a file of its own: a change of one must not change the other.
                _ if found.st_nlink > 1 && !seen.insert(found.st_ino) => {
                    let source =
                        open_file(&folder, os_name).map_err(|errno| failed("open a file in", errno))?;
                    rustix::fs::unlinkat(&folder, os_name, AtFlags::empty())
                        .map_err(|errno| failed("remove a hard link in", errno))?;
                    copy_file(&source, &folder, os_name, mode, found.st_mtime)
                        .map_err(|(step, errno)| failed(step, errno))?;
                    has_changed = true;
                }
                _ if Mode::from_raw_mode(found.st_mode) == mode => {}
                _ => rustix::fs::chmodat(&folder, os_name, mode, AtFlags::empty())
                    .map_err(|errno| failed("set the mode of a file in", errno))?,
            }
        }
        if has_changed {
            set_time(&folder, before.st_mtime);
        }
        walk.push(path, directories);
        next = walk.pop();
    }
    Ok(())
}

fn open_file(folder: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

/// Copies a file to a new one.
fn copy_file(
    source: &OwnedFd,
    folder: impl AsFd,
    name: &OsStr,
    mode: Mode,
    mtime: i64,
) -> Result<(), (&'static str, Errno)> {
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, create, mode).map_err(|errno| ("create a file in", errno))?;
    copy(source, &file).map_err(|errno| ("copy a file to", errno))?;
    set_time(&file, mtime);
    Ok(())
}

fn copy_tree(
    source: &OwnedFd,
    temporary: &TemporaryDirectory,
    stop: &CancellationToken,
) -> Result<(), DirectoryError> {
    let mut walk = DirectoryWalk::new();
    let mut times = Times::default();
    let mut next = Some((EntryPath::root(), ()));
    while let Some((path, ())) = next {
        let mut directories = Vec::new();
        let shown = temporary.path.join(OsStr::from_bytes(path.as_bytes()));
        let failed = |step, errno: Errno| failed(step, &shown, errno);
        let from =
            open_beneath(source, &path).map_err(|errno| failed("open the files in the store for", errno))?;
        let into = open_beneath(&temporary.folder, &path).map_err(|errno| failed("open", errno))?;
        for name in names(&from).map_err(|errno| failed("list the files in the store for", errno))? {
            if stop.is_cancelled() {
                return Err(DirectoryError::Interrupted);
            }
            let os_name = OsStr::from_bytes(&name);
            let found = rustix::fs::statat(&from, os_name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| failed("stat a file in the store for", errno))?;
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => {
                    rustix::fs::mkdirat(&into, os_name, Mode::from_raw_mode(0o755))
                        .map_err(|errno| failed("create a directory in", errno))?;
                    directories.push((name, ()));
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&from, os_name, Vec::new())
                        .map_err(|errno| failed("read a symbolic link in the store for", errno))?;
                    rustix::fs::symlinkat(&target, &into, os_name)
                        .map_err(|errno| failed("create a symbolic link in", errno))?;
                }
                _ => {
                    let source = open_file(&from, os_name)
                        .map_err(|errno| failed("open a file in the store for", errno))?;
                    copy_file(&source, &into, os_name, user_file_mode(found.st_mode), found.st_mtime)
                        .map_err(|(step, errno)| failed(step, errno))?;
                }
            }
        }
        times.remember(path.clone(), rustix::fs::fstat(&from).map_or(0, |found| found.st_mtime));
        walk.push(path, directories);
        next = walk.pop();
    }
    times.set(&temporary.folder);
    Ok(())
}
