//! The kinds of items in a store.

use oras_csi_core::digest::Digest;

use super::keys::{LayerKey, TreeKey};

/// Names an item in the store that can be leased, deleted or quarantined.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// A tree.
    Tree(TreeKey),
    /// A layer.
    Layer(LayerKey),
    /// A blob, complete or partially downloaded.
    Blob(Digest),
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tree(key) => write!(f, "the tree {key}"),
            Self::Layer(key) => write!(f, "the layer {key}"),
            Self::Blob(digest) => write!(f, "the blob {digest}"),
        }
    }
}
