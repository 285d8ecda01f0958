//! Layer trees and trees: folders that appear whole.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oras_csi_core::digest::Digest;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{DiskError, LayerKey, Store, TreeKey};
use crate::unpack::Totals;
use crate::unpack::write::DIRECTORY_MODE;

const FILES: &str = "files";
const TREE: &str = "tree.json";
const LAYER: &str = "layer.json";

/// A tar layer that was unpacked.
#[derive(Debug)]
pub struct Layer {
    files: OwnedFd,
    totals: Totals,
}

impl Layer {
    /// The root of its files.
    pub fn files(&self) -> &OwnedFd {
        &self.files
    }

    /// How much is in it.
    pub fn totals(&self) -> Totals {
        self.totals
    }
}

/// A tree that can be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    key: TreeKey,
    totals: Totals,
}

impl Tree {
    /// Its name.
    pub fn key(&self) -> &TreeKey {
        &self.key
    }

    /// How much is in it.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Its root, relative to the folder of all trees.
    pub(crate) fn relative(key: &TreeKey) -> PathBuf {
        Path::new(key.as_str()).join(FILES)
    }
}

/// What a tree is made of, for its `tree.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Made {
    pub(crate) totals: Totals,
    pub(crate) manifests: Vec<Digest>,
    pub(crate) blobs: Vec<Digest>,
    pub(crate) layers: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct LayerNote {
    totals: Totals,
}

/// A folder in `tmp` with a `files` folder in it; it goes when this is dropped, unless it was committed.
#[derive(Debug)]
pub struct Staging<'a> {
    store: &'a Store,
    folder: Unfinished,
    files: OwnedFd,
}

/// A folder that is removed when this is dropped, unless it was renamed.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    renamed: bool,
}

impl Store {
    /// The layer of this name, if it is there.
    pub fn layer(&self, key: &LayerKey) -> Result<Option<Layer>, DiskError> {
        let path = self.path.join("layers").join(key.as_str());
        let Some(note) = self.note::<LayerNote>(&path, LAYER)? else { return Ok(None) };
        Ok(Some(Layer { files: open_folder(&path.join(FILES))?, totals: note.totals }))
    }

    /// The tree of this name, if it is there.
    pub fn tree(&self, key: &TreeKey) -> Result<Option<Tree>, DiskError> {
        let made = self.note::<Made>(&self.trees().join(key.as_str()), TREE)?;
        Ok(made.map(|made| Tree { key: key.clone(), totals: made.totals }))
    }

    /// The files of a tree, for a copy.
    pub(crate) fn tree_files(&self, key: &TreeKey) -> Result<OwnedFd, DiskError> {
        open_folder(&self.trees().join(key.as_str()).join(FILES))
    }

    /// Begins a layer or a tree.
    pub fn stage(&self) -> Result<Staging<'_>, DiskError> {
        let folder = Unfinished::create(self.unfinished(), 0o700)?;
        let inner = folder.path.join(FILES);
        make_folder(&inner, 0o755)?;
        let files = open_folder(&inner)?;
        rustix::fs::fchmod(&files, DIRECTORY_MODE)
            .map_err(|errno| DiskError::new("set the mode of", &inner, errno))?;
        Ok(Staging { store: self, folder, files })
    }

    /// Reads what stands beside the files of a layer or a tree. One that cannot be read is set aside, so
    /// that it is made again.
    fn note<T: for<'de> Deserialize<'de>>(&self, folder: &Path, name: &str) -> Result<Option<T>, DiskError> {
        let path = folder.join(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !folder.exists() {
                    return Ok(None);
                }
                Vec::new()
            }
            Err(error) => return Err(DiskError::new("read", path, error)),
        };
        if let Ok(note) = serde_json::from_slice(&bytes) {
            return Ok(Some(note));
        }
        tracing::warn!(path = %path.display(), "damaged on the disk; set aside, and made again");
        // Not removed yet: it may be mounted. The next start clears it away.
        std::fs::rename(folder, self.unfinished())
            .map_err(|error| DiskError::new("set aside", folder, error))?;
        Ok(None)
    }
}

impl Staging<'_> {
    /// The root of the files.
    pub fn files(&self) -> &OwnedFd {
        &self.files
    }

    /// Makes it the layer `key`.
    pub(crate) fn commit_layer(self, key: &LayerKey, totals: Totals) -> Result<(), DiskError> {
        let name = self.store.path.join("layers").join(key.as_str());
        self.commit(&name, LAYER, &LayerNote { totals })
    }

    /// Makes it the tree `key`.
    pub(crate) fn commit_tree(self, key: &TreeKey, made: &Made) -> Result<(), DiskError> {
        let name = self.store.trees().join(key.as_str());
        self.commit(&name, TREE, made)
    }

    fn commit(mut self, name: &Path, note: &str, content: &impl Serialize) -> Result<(), DiskError> {
        let file = self.folder.path.join(note);
        let text = serde_json::to_vec(content).map_err(|error| DiskError::new("describe", &file, error))?;
        std::fs::write(&file, text).map_err(|error| DiskError::new("write", &file, error))?;
        self.store.sync()?;
        match rustix::fs::renameat_with(CWD, &self.folder.path, CWD, name, RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.folder.renamed = true;
                Ok(())
            }
            // Somebody else made the same: theirs is as good.
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(DiskError::new("keep", name, errno)),
        }
    }
}

impl Unfinished {
    fn create(path: PathBuf, mode: u32) -> Result<Self, DiskError> {
        make_folder(&path, mode)?;
        Ok(Self { path, renamed: false })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove what was unfinished; the next start does");
        }
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<(), DiskError> {
    let result = std::fs::DirBuilder::new().mode(mode).create(path);
    result.map_err(|error| DiskError::new("make the folder", path, error))
}

fn open_folder(path: &Path) -> Result<OwnedFd, DiskError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| DiskError::new("open", path, errno))
}
