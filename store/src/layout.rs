//! The names of everything in a store's folder. Nothing here reads what a store holds.

pub(crate) mod format;
mod item;
mod keys;
mod shape;

use std::path::{Path, PathBuf};

use oras_csi_core::digest::{Algorithm, Digest};

pub use self::item::Item;
pub use self::keys::{LayerKey, TreeKey, quarantined_tree};
pub use self::shape::LayerShape;

/// The files of a layer or a tree.
pub(crate) const FILES: &str = "files";
/// What a tree is made of.
pub(crate) const TREE: &str = "tree.json";
/// How much is in a layer.
pub(crate) const LAYER: &str = "layer.json";
/// The checksums of the files that no blob vouches for.
pub(crate) const CHECKSUMS: &str = "sums";

/// The folder with the files of a tree, relative to the folder of all trees.
pub fn tree_files(key: &TreeKey) -> PathBuf {
    Path::new(key.as_str()).join(FILES)
}

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

    pub(crate) fn layer(&self, key: &LayerKey) -> PathBuf {
        self.layers().join(key.as_str())
    }

    /// Where trees are.
    pub fn trees(&self) -> PathBuf {
        self.path.join("trees")
    }

    /// Where this tree is.
    pub fn tree(&self, key: &TreeKey) -> PathBuf {
        self.trees().join(key.as_str())
    }

    /// Where records of volumes are.
    pub fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// Where trees are mounted read-only.
    pub fn readonly(&self) -> PathBuf {
        self.path.join("readonly")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }

    pub(crate) fn quarantine(&self) -> PathBuf {
        self.path.join("set-aside")
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.path.join("partial")
    }

    /// Where it is written down what cluster sets want.
    pub(crate) fn preload_index(&self) -> PathBuf {
        self.path.join("preload.json")
    }

    pub(crate) fn unsynced(&self) -> PathBuf {
        self.path.join("unsynced")
    }

    pub(crate) fn provenance(&self) -> PathBuf {
        self.path.join("given")
    }

    pub(crate) fn node_record(&self) -> PathBuf {
        self.path.join("state.json")
    }
}
