//! What a node has: blobs, layer trees, trees, and which volumes use them.
//!
//! ```text
//! STORE/                    0700, its owner's alone
//! ├── lock                  flock, exclusive, for as long as a process has the store open
//! ├── format                "oras-csi store 1": the first thing that is written, refused if newer
//! ├── tmp/NUMBER…           everything unfinished; emptied at start, under the lock
//! ├── partial/              big blobs on their way (see `partial`); what nobody goes on with goes after a day
//! ├── blobs/sha256/HEX      verified files: manifests, and layers that are one file (0444)
//! ├── blobs/sha512/HEX
//! ├── layers/KEY/           a tar layer, unpacked once
//! │   ├── files/            its tree
//! │   └── layer.json        how much is in it
//! ├── trees/KEY/            a recipe's tree: hard links to blobs and to files of layers
//! │   ├── files/            what a pod sees
//! │   └── tree.json         how much is in it, and the blobs and layers that it is made of
//! ├── volumes/HASH.json     one published volume each (see `records`)
//! └── readonly/             where `trees` is mounted once more, read-only (see `mount`)
//! ```
//!
//! **Commit points.** A blob, a layer and a tree come into being by one `rename` out of `tmp`: a blob after
//! its file is synced, a layer and a tree (never over another) after the whole file system is (`syncfs`
//! once, instead of `fsync` a hundred thousand times). A volume's record comes into being by a
//! `rename` over the old one, and is not synced: after a power cut its mount is gone as well, and
//! kubelet publishes again.
//!
//! **A crash** of the process at any instruction leaves finished things, and unfinished ones in `tmp`;
//! of the machine, the same. Nothing in `blobs`, `layers` or `trees` is ever written to again.
//!
//! **Locks.** Between processes: `lock`. Within one: whoever makes a blob, a layer or a tree holds the
//! lock of its name in [`crate::pull`], so that one download serves all; were two to make the same, either
//! is as good.
//!
//! **Roots** for a collector: the trees that records in `volumes` name, the trees that are mounted
//! anywhere (mountinfo), and the names that are locked; from a tree, the blobs and layers in its
//! `tree.json`. A name of a file that a tree shares is another link to the same inode: removing a blob
//! or a layer frees nothing that a tree still has, and harms none.
//!
//! Architecture Invariant: nothing is visible under `blobs`, `layers` or `trees` before it is whole and
//! its digests have been verified.

mod blob;
mod disk;
mod key;
mod partial;
mod ranges;
mod tree;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use self::disk::DiskError;
pub use self::key::{LayerKey, TreeKey};
pub(crate) use self::partial::{FORGOTTEN_AFTER, Next, Partial};
pub use self::tree::{Layer, Made, Staging, Tree};
use crate::class::ErrorClass;
use crate::settings::Limits;

/// The version of the format that this driver writes.
const FORMAT: u32 = 1;
const FORMAT_WORDS: &str = "oras-csi store ";

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error(
        "the store {} is in use by another process: only one driver (or one pull) at a time has it; give this one another folder",
        .0.display()
    )]
    Locked(PathBuf),
    /// A folder with other things in it.
    #[error(
        "{} is not empty and is no store (it holds \"{found}\"): give the store a folder of its own",
        .path.display()
    )]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// Something that is in it.
        found: String,
    },
    /// Written by a newer driver.
    #[error(
        "the store {} has format {found}, written by a newer version of this driver, which knows {FORMAT}: run the newer version, or give this one an empty folder",
        .path.display()
    )]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The format file is damaged.
    #[error(
        "the file {} is no version of a store's format: if this is the store's folder and the disk was damaged, remove the whole folder, and it is filled again",
        .0.display()
    )]
    Format(PathBuf),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl StoreError {
    /// What kind of failure it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotAStore { .. } | Self::Locked(_) => ErrorClass::BadInput,
            Self::Newer { .. } | Self::Format(_) | Self::Disk(_) => ErrorClass::Failed,
        }
    }
}

/// The folder, locked.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    root: OwnedFd,
    limits: Limits,
    kept: bool,
    next: AtomicU64,
    // Closed last, which gives the lock back.
    _lock: OwnedFd,
}

impl Store {
    /// Opens the store in `path`, makes it if the folder is absent or empty, and clears away what an
    /// earlier run left unfinished.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, StoreError> {
        make_folder(path)?;
        // Mount points are compared with what the kernel says: no symbolic link in it.
        let path = path.canonicalize().map_err(|error| DiskError::new("find", path, error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| DiskError::new("open", &path, errno))?;
        let lock = lock(&path, &root)?;
        check_format(&path)?;
        for folder in ["tmp", "blobs/sha256", "blobs/sha512", "layers", "trees", "volumes", "readonly"] {
            make_folder(&path.join(folder))?;
        }
        let store = Self { path, root, limits, kept: true, next: AtomicU64::new(0), _lock: lock };
        store.clear_unfinished()?;
        store.forget_partials(FORGOTTEN_AFTER);
        Ok(store)
    }

    /// The same store for one pull, removed behind it: nothing needs to survive a power cut, and nothing
    /// waits for the disk.
    #[must_use]
    pub fn for_one_pull(mut self) -> Self {
        self.kept = false;
        self
    }

    /// Whether somebody may want what is in it after this pull.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The limits on what is put into it.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Where trees are.
    pub(crate) fn trees(&self) -> PathBuf {
        self.path.join("trees")
    }

    /// Where trees are mounted read-only.
    pub(crate) fn readonly(&self) -> PathBuf {
        self.path.join("readonly")
    }

    /// Where records of volumes are.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// A name for something unfinished.
    pub(crate) fn unfinished(&self) -> PathBuf {
        self.path.join("tmp").join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Fails where `wanted` more bytes would leave less than the reserve.
    pub(crate) fn check_room(&self, wanted: u64) -> Result<(), DiskError> {
        let free = free_bytes(&self.root)?;
        let reserve = self.limits.reserve();
        if wanted > 0 && free < wanted.saturating_add(reserve) {
            return Err(DiskError::TooSmall { wanted, free, reserve });
        }
        Ok(())
    }

    /// Brings everything written so far to the disk.
    fn sync(&self) -> Result<(), DiskError> {
        if !self.kept {
            return Ok(());
        }
        rustix::fs::syncfs(&self.root).map_err(|errno| DiskError::new("sync", &self.path, errno))
    }

    fn clear_unfinished(&self) -> Result<(), DiskError> {
        let tmp = self.path.join("tmp");
        let failed = |error| DiskError::new("clear away", &tmp, error);
        for entry in std::fs::read_dir(&tmp).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_folder = entry.file_type().map_err(failed)?.is_dir();
            let removed = if is_folder {
                std::fs::remove_dir_all(entry.path())
            } else {
                std::fs::remove_file(entry.path())
            };
            removed.map_err(failed)?;
        }
        Ok(())
    }
}

/// How many bytes a process without privileges could still write on the file system of `fd`.
pub(crate) fn free_bytes(fd: impl AsFd) -> Result<u64, DiskError> {
    let found = rustix::fs::fstatvfs(fd)
        .map_err(|errno| DiskError::new("look at the free space of", "the store", errno))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn make_folder(path: &Path) -> Result<(), DiskError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| DiskError::new("make the folder", path, error))
}

fn lock(path: &Path, root: &OwnedFd) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::openat(root, "lock", flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| DiskError::new("open", path.join("lock"), errno))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(StoreError::Locked(path.to_owned())),
        Err(errno) => Err(DiskError::new("lock", path, errno).into()),
    }
}

/// Reads the version; writes it where the folder is new.
fn check_format(path: &Path) -> Result<(), StoreError> {
    let file = path.join("format");
    match std::fs::read_to_string(&file) {
        Ok(text) => {
            let version =
                text.trim_end().strip_prefix(FORMAT_WORDS).and_then(|text| text.parse::<u32>().ok());
            match version {
                Some(1..=FORMAT) => Ok(()),
                Some(found) if found > FORMAT => Err(StoreError::Newer { path: path.to_owned(), found }),
                _ => Err(StoreError::Format(file)),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(found) = foreign_entry(path)? {
                return Err(StoreError::NotAStore { path: path.to_owned(), found });
            }
            let new = path.join("format.new");
            let write = || {
                let mut written = std::fs::File::create(&new)?;
                writeln!(written, "{FORMAT_WORDS}{FORMAT}")?;
                written.sync_all()?;
                std::fs::rename(&new, &file)
            };
            Ok(write().map_err(|error| DiskError::new("write", &file, error))?)
        }
        Err(error) => Err(DiskError::new("read", file, error).into()),
    }
}

/// Something in the folder that no store has before its format is written.
fn foreign_entry(path: &Path) -> Result<Option<String>, DiskError> {
    let failed = |error| DiskError::new("list", path, error);
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !["lock", "format.new", "lost+found"].iter().any(|known| name == *known) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
