//! Paths and keys in a store's folder. Except for `format`, this module does not access the disk.

pub(crate) mod format;
mod item;
mod keys;
mod shape;

use std::path::{Path, PathBuf};

use oras_csi_core::digest::{Algorithm, Digest};

pub use self::item::Item;
pub use self::keys::{LayerKey, TreeKey, quarantined_tree};
pub use self::shape::LayerShape;

/// The folder with the files of a layer or a tree.
pub(crate) const FILES: &str = "files";
/// The EROFS image of a layer or a tree, in place of files.
pub(crate) const IMAGE: &str = "image";
/// The description of a tree: its size and its parts.
pub(crate) const TREE: &str = "tree.json";
/// The description of a layer: its size.
pub(crate) const LAYER: &str = "layer.json";
/// Which registries and repositories served a layer, a tree or a blob (see `state::provenance`).
const SERVED_BY: &str = "served-by";
/// The checksums of files whose content no blob digest verifies.
pub(crate) const CHECKSUMS: &str = "sums";

/// Returns the folder with the files of a tree, relative to the folder of all trees.
pub fn tree_files(key: &TreeKey) -> PathBuf {
    Path::new(key.as_str()).join(FILES)
}

/// Computes the paths in a store's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    path: PathBuf,
}

impl Layout {
    /// Returns the paths of the store in this folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns the folder of the store.
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

    /// Returns the folder with all trees.
    pub fn trees(&self) -> PathBuf {
        self.path.join("trees")
    }

    /// Returns the folder of a tree.
    pub fn tree(&self, key: &TreeKey) -> PathBuf {
        self.trees().join(key.as_str())
    }

    /// Returns the EROFS image of a tree that has one.
    pub fn tree_image(&self, key: &TreeKey) -> PathBuf {
        self.tree(key).join(IMAGE)
    }

    /// Returns the folder with the records of published volumes.
    pub fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// Returns the folder where `trees` is mounted read-only.
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

    /// Returns the file that lists the trees that cluster sets preload.
    pub(crate) fn preload_index(&self) -> PathBuf {
        self.path.join("preload.json")
    }

    pub(crate) fn unsynced(&self) -> PathBuf {
        self.path.join("unsynced")
    }

    /// Returns the path of an item: a file for a blob, else a folder.
    pub(crate) fn item(&self, item: &Item) -> PathBuf {
        match item {
            Item::Tree(key) => self.tree(key),
            Item::Layer(key) => self.layer(key),
            Item::Blob(digest) => self.blob(digest),
        }
    }

    /// Returns the file that records which registries served an item.
    pub(crate) fn provenance(&self, item: &Item) -> PathBuf {
        match item {
            Item::Tree(key) => self.tree(key).join(SERVED_BY),
            Item::Layer(key) => self.layer(key).join(SERVED_BY),
            Item::Blob(digest) => self.blob_provenance(digest.algorithm()).join(digest.hex()),
        }
    }

    /// Returns the folder that records which registries served the blobs of one digest algorithm.
    pub(crate) fn blob_provenance(&self, algorithm: Algorithm) -> PathBuf {
        self.path.join(SERVED_BY).join(algorithm.name())
    }

    /// Returns the file in which earlier versions recorded which registries served all content.
    pub(crate) fn earlier_provenance(&self) -> PathBuf {
        self.path.join("given")
    }

    pub(crate) fn node_record(&self) -> PathBuf {
        self.path.join("state.json")
    }
}
