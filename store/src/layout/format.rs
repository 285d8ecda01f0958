//! The format version of a store: written before and read before everything else.
//!
//! | version | contents and changes |
//! |---|---|
//! | 1 | blobs, layers, trees, volumes |
//! | 2 | `set-aside`, `partial`, `state.json`, `sums` beside layers; damaged items are no longer moved to `tmp` |
//! | 3 | layers and trees that are EROFS images |
//!
//! To upgrade an older store, this module creates the missing folders and then writes the version. A crash in
//! between leaves an old store with a few empty folders. The content is used unchanged. Layers of format 1
//! have no checksums: the first scrub records them, and later scrubs compare with them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::disk::DiskError;
use crate::disk::folders::make_private_folder;
use crate::error_class::ErrorClass;

/// The folders of a store, in the order in which they are created.
const FOLDERS: [&str; 10] = [
    "tmp",
    "set-aside",
    "partial",
    "blobs/sha256",
    "blobs/sha512",
    "layers",
    "trees",
    "volumes",
    "readonly",
    "unsynced",
];

/// The version that this driver writes.
pub(crate) const FORMAT: u32 = 3;
const PREFIX: &str = "oras-csi store ";
/// Entries that a folder can contain before it becomes a store.
const ALLOWED_BEFORE_FORMAT: [&str; 3] = ["lock", "format.new", "lost+found"];

/// The reason why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error(
        "cannot open the store {}: another process has it open, and only one driver (or one pull) can use a store at a time. Stop the other process, or use another folder",
        .0.display()
    )]
    Locked(PathBuf),
    /// The folder is not empty and is not a store.
    #[error(
        "cannot create a store in {}: the folder is not empty (it contains \"{found}\") and is not a store. Use an empty folder",
        .path.display()
    )]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// One entry of the folder.
        found: String,
    },
    /// A newer version of the driver wrote the store.
    #[error(
        "cannot open the store {}: it has format {found}, written by a newer version of this driver, and this version supports formats up to {FORMAT}. Run the newer version, or use an empty folder",
        .path.display()
    )]
    Newer {
        /// The folder.
        path: PathBuf,
        /// The format version of the store.
        found: u32,
    },
    /// The folder is not a store.
    #[error("cannot read the store {}: the folder does not exist or is not a store of this driver, because it has no file \"format\". Check the path", .0.display())]
    Missing(PathBuf),
    /// The format file is damaged.
    #[error(
        "cannot read the format version of the store from {}: the file is damaged. If this is the store's folder and the disk was damaged, remove the whole folder; the driver downloads the content again",
        .0.display()
    )]
    Format(PathBuf),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl StoreError {
    /// Returns the class of the error.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotAStore { .. } | Self::Missing(_) | Self::Locked(_) => ErrorClass::BadInput,
            Self::Newer { .. } | Self::Format(_) | Self::Disk(_) => ErrorClass::Failed,
        }
    }
}

/// Creates a store in `path`, or upgrades one of an older format. Does not change a store of the current
/// format.
pub(crate) fn create_or_upgrade(path: &Path) -> Result<(), StoreError> {
    let found = read(path)?;
    if found.is_none()
        && let Some(found) = foreign_entry(path)?
    {
        return Err(StoreError::NotAStore { path: path.to_owned(), found });
    }
    // Before the folders: a crash in between must leave a store, not a folder that is refused as foreign.
    if found.is_none() {
        write(path)?;
    }
    for folder in FOLDERS {
        make_private_folder(&path.join(folder))?;
    }
    if let Some(found) = found
        && found < FORMAT
    {
        write(path)?;
        tracing::info!(path = %path.display(), found, now = FORMAT, "upgraded the store from an older format");
    }
    Ok(())
}

/// Reads the format version; `None` if the folder has none. An unsupported version is an error.
pub(crate) fn read(path: &Path) -> Result<Option<u32>, StoreError> {
    let file = path.join("format");
    match std::fs::read_to_string(&file) {
        Ok(text) => match text.trim_end().strip_prefix(PREFIX).and_then(|text| text.parse::<u32>().ok()) {
            Some(found @ 1..=FORMAT) => Ok(Some(found)),
            Some(found) if found > FORMAT => Err(StoreError::Newer { path: path.to_owned(), found }),
            _ => Err(StoreError::Format(file)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(StoreError::Format(file)),
        Err(error) => Err(DiskError::new("read", file, error).into()),
    }
}

fn write(path: &Path) -> Result<(), DiskError> {
    let (file, new) = (path.join("format"), path.join("format.new"));
    let write = || {
        let mut written = std::fs::File::create(&new)?;
        writeln!(written, "{PREFIX}{FORMAT}")?;
        written.sync_all()?;
        std::fs::rename(&new, &file)
    };
    write().map_err(|error| DiskError::new("write", &file, error))
}

/// Returns an entry that does not belong to a store, if the folder has one.
fn foreign_entry(path: &Path) -> Result<Option<String>, DiskError> {
    let failed = |error| DiskError::new("list", path, error);
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !ALLOWED_BEFORE_FORMAT.iter().any(|known| name == *known) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}
