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
use crate::class::ErrorClass;
use crate::store::Tree;
use crate::unpack::entries::Walk;
use crate::unpack::name::EntryPath;
use crate::unpack::write::{Times, copy, open_beneath, set_time};

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
        let source = Source { files, given_away: !store.is_kept() };
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
    copy_tree(source, &unfinished, stop)?;
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

/// The bits that this process takes from the mode of what it makes. Asking the kernel would set them first.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    umask.and_then(|umask| u32::from_str_radix(umask.trim(), 8).ok()).unwrap_or(0o022)
}

fn copy_tree(
    source: &Source,
    unfinished: &Unfinished,
    stop: &CancellationToken,
) -> Result<(), DirectoryError> {
    let mut walk = Walk::new();
    let mut times = Times::default();
    let mut next = Some((EntryPath::root(), ()));
    let mut moved = HashSet::new();
    let umask = umask();
    while let Some((path, ())) = next {
        let mut directories = Vec::new();
        let shown = unfinished.path.join(OsStr::from_bytes(path.as_bytes()));
        let failed = |step, errno: Errno| failed(step, &shown, errno);
        let from = open_beneath(&source.files, &path).map_err(|errno| failed("open in the store", errno))?;
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
                    // The owner may write to what is his; the umask has its say.
                    let mode = Mode::from_raw_mode(((found.st_mode & 0o111) | 0o644) & !umask);
                    // One file under two names becomes two files: a change of one is none of the other.
                    if source.given_away
                        && moved.insert(found.st_ino)
                        && rustix::fs::renameat(&from, os_name, &into, os_name).is_ok()
                    {
                        rustix::fs::chmodat(&into, os_name, mode, AtFlags::empty())
                            .map_err(|errno| failed("set the mode of a file in", errno))?;
                        continue;
                    }
                    let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let source = rustix::fs::openat(&from, os_name, OFlags::RDONLY | nofollow, Mode::empty())
                        .map_err(|errno| failed("open a file in the store for", errno))?;
                    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | nofollow;
                    let file = rustix::fs::openat(&into, os_name, create, mode)
                        .map_err(|errno| failed("make a file in", errno))?;
                    copy(&source, &file).map_err(|errno| failed("copy a file to", errno))?;
                    set_time(&file, found.st_mtime);
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
