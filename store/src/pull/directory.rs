//! A recipe's files in a directory of the user's: copies, so that whoever writes to them does not write
//! to the store.

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
use crate::unpack::entries::Walk;

/// Why the files are not in the directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// They could not be fetched.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// Something is there.
    #[error("{} is {found}: nothing is ever overwritten; name a directory that does not exist, or is empty", .path.display())]
    Occupied {
        /// The destination.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The disk of the destination.
    #[error("cannot {step} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The copying task is gone.
    #[error("copying was interrupted")]
    Interrupted,
}

impl DirectoryError {
    /// What kind of failure it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Pull(error) => error.class(),
            Self::Occupied { .. } => ErrorClass::BadInput,
            Self::Io { .. } | Self::Interrupted => ErrorClass::Failed,
        }
    }
}

/// Fetches a recipe and copies its files to `destination`, which does not exist or is empty.
///
/// A new directory appears whole, by one rename. Into an empty one that is there already each entry of
/// its top level is moved by a rename; nothing that appears there meanwhile is overwritten.
pub async fn into_directory(
    fetcher: &Arc<Fetcher>,
    recipe: &PinnedRecipe,
    destination: &Path,
    progress: &Arc<dyn Progress>,
) -> Result<Tree, DirectoryError> {
    // Before the download: after it the answer would be late.
    look(destination)?;
    let tree = fetcher.tree(recipe, progress).await?;
    let (store, key, destination) = (fetcher.store().clone(), tree.key().clone(), destination.to_owned());
    let stop = CancellationToken::new();
    // Whoever stops waiting for the files does not want them any more.
    let _stops = stop.clone().drop_guard();
    let copied = tokio::task::spawn_blocking(move || {
        let files = store.tree_files(&key).map_err(PullError::from)?;
        let source = Source { files, given_away: !store.is_persistent() };
        copy_to(&source, &destination, &stop)
    });
    copied.await.map_err(|_| DirectoryError::Interrupted)??;
    Ok(tree)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    EmptyDirectory,
}

fn failed(step: &'static str, path: &Path, source: impl Into<io::Error>) -> DirectoryError {
    DirectoryError::Io { step, path: path.to_owned(), source: source.into() }
}

fn look(destination: &Path) -> Result<There, DirectoryError> {
    let occupied = |found| Err(DirectoryError::Occupied { path: destination.to_owned(), found });
    match std::fs::metadata(destination) {
        Ok(found) if found.is_dir() => {
            match std::fs::read_dir(destination).map_err(|e| failed("list", destination, e))?.next() {
                None => Ok(There::EmptyDirectory),
                Some(_) => occupied("a directory with something in it"),
            }
        }
        Ok(_) => occupied("a file"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match std::fs::symlink_metadata(destination) {
                Ok(_) => occupied("a symbolic link to nothing"),
                Err(_) => Ok(There::Nothing),
            }
        }
        Err(error) => Err(failed("look at", destination, error)),
    }
}

/// Where files come from.
struct Source {
    files: OwnedFd,
    /// Nobody needs them there any more, so that they may be moved.
    given_away: bool,
}

fn copy_to(source: &Source, destination: &Path, stop: &CancellationToken) -> Result<(), DirectoryError> {
    let there = look(destination)?;
    let beside = match there {
        There::EmptyDirectory => destination.to_owned(),
        There::Nothing => {
            let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new(".")).to_owned();
            std::fs::create_dir_all(&parent).map_err(|error| failed("make the directory", &parent, error))?;
            parent
        }
    };
    let unfinished = Unfinished::create(&beside)?;
    if !source.given_away || !move_tree(&source.files, &unfinished, stop)? {
        copy_tree(&source.files, &unfinished, stop)?;
    }
    if stop.is_cancelled() {
        return Err(DirectoryError::Interrupted);
    }
    match there {
        There::Nothing => {
            let moved =
                rustix::fs::renameat_with(CWD, &unfinished.path, CWD, destination, RenameFlags::NOREPLACE);
            match moved {
                Ok(()) => Ok(()),
                Err(Errno::EXIST) => {
                    let path = destination.to_owned();
                    Err(DirectoryError::Occupied { path, found: "there now, since a moment ago" })
                }
                Err(errno) => Err(failed("rename to", destination, errno)),
            }
        }
        There::EmptyDirectory => {
            let into = open(destination)?;
            for name in names(&unfinished.folder).map_err(|e| failed("list", &unfinished.path, e))? {
                let name = OsStr::from_bytes(&name);
                rustix::fs::renameat_with(&unfinished.folder, name, &into, name, RenameFlags::NOREPLACE)
                    .map_err(|errno| failed("move to its place", &destination.join(name), errno))?;
            }
            Ok(())
        }
    }
}

/// A directory that is removed with all in it when this is dropped, if it still has its name.
struct Unfinished {
    path: PathBuf,
    folder: OwnedFd,
}

impl Unfinished {
    fn create(beside: &Path) -> Result<Self, DirectoryError> {
        let id = std::process::id();
        for number in 0..1_000 {
            let path = beside.join(format!(".oras-csi-{id}-{number}"));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { folder: open(&path)?, path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("make the directory", &path, error)),
            }
        }
        Err(failed("make a directory in", beside, Errno::EXIST))
    }
}

impl Drop for Unfinished {
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

/// A mode less what the user's umask takes from it.
fn less_umask(mode: Mode) -> Mode {
    mode.difference(umask().unwrap_or(Mode::WGRP | Mode::WOTH))
}

/// What the owner of a file may do with it; the umask has its say.
fn own_mode(mode: u32) -> Mode {
    less_umask(Mode::from_raw_mode((mode & 0o111) | 0o644))
}

/// Moves the files out of a store in which nobody needs them any more; `false` where they lie on another file system.
fn move_tree(
    source: &OwnedFd,
    unfinished: &Unfinished,
    stop: &CancellationToken,
) -> Result<bool, DirectoryError> {
    let mtime = rustix::fs::fstat(source).map(|found| found.st_mtime);
    for name in names(source).map_err(|errno| failed("list for", &unfinished.path, errno))? {
        let name = OsStr::from_bytes(&name);
        match rustix::fs::renameat_with(source, name, &unfinished.folder, name, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // Then it is so with the first of them.
            Err(Errno::XDEV) => return Ok(false),
            Err(errno) => return Err(failed("move a file to", &unfinished.path.join(name), errno)),
        }
    }
    take_over(unfinished, stop)?;
    if let Ok(mtime) = mtime {
        set_time(&unfinished.folder, mtime);
    }
    Ok(true)
}

/// Makes what was moved the user's: the modes that he would have given it, and no file under two names.
fn take_over(unfinished: &Unfinished, stop: &CancellationToken) -> Result<(), DirectoryError> {
    let directory_mode = less_umask(DIRECTORY_MODE);
    let mut walk = Walk::new();
    let mut next = Some((EntryPath::root(), ()));
    let mut seen = HashSet::new();
    while let Some((path, ())) = next {
        let mut directories = Vec::new();
        let shown = unfinished.path.join(OsStr::from_bytes(path.as_bytes()));
        let failed = |step, errno: Errno| failed(step, &shown, errno);
        let folder = open_beneath(&unfinished.folder, &path).map_err(|errno| failed("open", errno))?;
        let before = rustix::fs::fstat(&folder).map_err(|errno| failed("look at", errno))?;
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
                .map_err(|errno| failed("look at a file in", errno))?;
            let mode = own_mode(found.st_mode);
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => directories.push((name, ())),
                FileType::Symlink => {}
                // One file under two names becomes two files: a change of one is none of the other.
                _ if found.st_nlink > 1 && !seen.insert(found.st_ino) => {
                    let source =
                        open_file(&folder, os_name).map_err(|errno| failed("open a file in", errno))?;
                    rustix::fs::unlinkat(&folder, os_name, AtFlags::empty())
                        .map_err(|errno| failed("part two names of a file in", errno))?;
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
    let file = rustix::fs::openat(folder, name, create, mode).map_err(|errno| ("make a file in", errno))?;
    copy(source, &file).map_err(|errno| ("copy a file to", errno))?;
    set_time(&file, mtime);
    Ok(())
}

fn copy_tree(
    source: &OwnedFd,
    unfinished: &Unfinished,
    stop: &CancellationToken,
) -> Result<(), DirectoryError> {
    let mut walk = Walk::new();
    let mut times = Times::default();
    let mut next = Some((EntryPath::root(), ()));
    while let Some((path, ())) = next {
        let mut directories = Vec::new();
        let shown = unfinished.path.join(OsStr::from_bytes(path.as_bytes()));
        let failed = |step, errno: Errno| failed(step, &shown, errno);
        let from = open_beneath(source, &path).map_err(|errno| failed("open in the store", errno))?;
        let into = open_beneath(&unfinished.folder, &path).map_err(|errno| failed("open", errno))?;
        for name in names(&from).map_err(|errno| failed("list in the store", errno))? {
            if stop.is_cancelled() {
                return Err(DirectoryError::Interrupted);
            }
            let os_name = OsStr::from_bytes(&name);
            let found = rustix::fs::statat(&from, os_name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| failed("look at in the store", errno))?;
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => {
                    rustix::fs::mkdirat(&into, os_name, Mode::from_raw_mode(0o755))
                        .map_err(|errno| failed("make a directory in", errno))?;
                    directories.push((name, ()));
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&from, os_name, Vec::new())
                        .map_err(|errno| failed("read a link in", errno))?;
                    rustix::fs::symlinkat(&target, &into, os_name)
                        .map_err(|errno| failed("make a symbolic link in", errno))?;
                }
                _ => {
                    let source = open_file(&from, os_name)
                        .map_err(|errno| failed("open a file in the store for", errno))?;
                    copy_file(&source, &into, os_name, own_mode(found.st_mode), found.st_mtime)
                        .map_err(|(step, errno)| failed(step, errno))?;
                }
            }
        }
        times.remember(path.clone(), rustix::fs::fstat(&from).map_or(0, |found| found.st_mtime));
        walk.push(path, directories);
        next = walk.pop();
    }
    times.set(&unfinished.folder);
    Ok(())
}
