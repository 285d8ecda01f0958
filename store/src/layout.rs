//! Where things are in a store's folder. Names only: whether anything is there is not asked.

use std::path::{Path, PathBuf};

use oras_csi_core::digest::{Algorithm, Digest};

use super::TreeKey;

/// The folders that a store has, in the order in which they are made.
pub(super) const FOLDERS: [&str; 10] = [
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

/// The files of a layer or a tree.
pub(crate) const FILES: &str = "files";
/// What a tree is made of.
pub(crate) const TREE: &str = "tree.json";
/// How much is in a layer.
pub(crate) const LAYER: &str = "layer.json";
/// The checksums of the files that no blob vouches for.
pub(crate) const SUMS: &str = "sums";

/// The paths of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    path: PathBuf,
}

impl Layout {
    /// Those of the store in this folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm()).join(digest.hex())
    }

    pub(crate) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.path.join("blobs").join(algorithm.name())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.path.join("layers")
    }

    pub(crate) fn layer(&self, name: &str) -> PathBuf {
        self.layers().join(name)
    }

    pub(crate) fn trees(&self) -> PathBuf {
        self.path.join("trees")
    }

    pub(crate) fn tree(&self, key: &TreeKey) -> PathBuf {
        self.trees().join(key.as_str())
    }

    /// Where records of volumes are.
    pub fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    pub(crate) fn readonly(&self) -> PathBuf {
        self.path.join("readonly")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }

    pub(crate) fn set_aside(&self) -> PathBuf {
        self.path.join("set-aside")
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.path.join("partial")
    }

    /// Where it is written down what cluster sets want.
    pub(crate) fn preload(&self) -> PathBuf {
        self.path.join("preload.json")
    }

    pub(super) fn unsynced(&self) -> PathBuf {
        self.path.join("unsynced")
    }

    pub(super) fn given(&self) -> PathBuf {
        self.path.join("given")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path.join("state.json")
    }
}
