//! The version of a store's format: written first, read before anything else.
//!
//! | version | what it brought |
//! |---|---|
//! | 1 | blobs, layers, trees, volumes |
//! | 2 | `set-aside`, `partial`, `state.json`, `sums` beside layers; a damaged thing no longer goes to `tmp` |
//!
//! An older store is taken over by making the folders that it lacks, and then writing the version: a crash in
//! between leaves an old store with a few empty folders. What is in it is served as it is. Its layers have no
//! checksums; the first scrub takes those of what it finds, and compares from then on.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::disk::DiskError;
use crate::disk::folders::make_private_folder;
use crate::error_class::ErrorClass;

/// The folders that a store has, in the order in which they are made.
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
pub(crate) const FORMAT: u32 = 2;
const WORDS: &str = "oras-csi store ";
/// What may lie in a folder that is no store yet.
const BEFORE: [&str; 3] = ["lock", "format.new", "lost+found"];

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
    /// There is none to be looked at.
    #[error("{} is no store of this driver: it has no file \"format\"", .0.display())]
    Missing(PathBuf),
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
            Self::NotAStore { .. } | Self::Missing(_) | Self::Locked(_) => ErrorClass::BadInput,
            Self::Newer { .. } | Self::Format(_) | Self::Disk(_) => ErrorClass::Failed,
        }
    }
}

/// Makes a store of `path`, an older one a current one, and leaves a current one as it is.
pub(crate) fn take(path: &Path) -> Result<(), StoreError> {
    let found = read(path)?;
    if found.is_none()
        && let Some(found) = foreign_entry(path)?
    {
        return Err(StoreError::NotAStore { path: path.to_owned(), found });
    }
    // A new store is one from its first folder on, else a crash would leave a folder that is none.
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
        tracing::info!(path = %path.display(), found, now = FORMAT, "took over a store of an older format");
    }
    Ok(())
}

/// The version that is there, if it is one that this driver knows; `None` where there is none.
pub(crate) fn read(path: &Path) -> Result<Option<u32>, StoreError> {
    let file = path.join("format");
    match std::fs::read_to_string(&file) {
        Ok(text) => match text.trim_end().strip_prefix(WORDS).and_then(|text| text.parse::<u32>().ok()) {
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
        writeln!(written, "{WORDS}{FORMAT}")?;
        written.sync_all()?;
        std::fs::rename(&new, &file)
    };
    write().map_err(|error| DiskError::new("write", &file, error))
}

/// Something in the folder that no store has before its format is written.
fn foreign_entry(path: &Path) -> Result<Option<String>, DiskError> {
    let failed = |error| DiskError::new("list", path, error);
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !BEFORE.iter().any(|known| name == *known) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}
