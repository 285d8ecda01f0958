//! The things that a store holds.

use oras_csi_core::digest::Digest;

use super::keys::{LayerKey, TreeKey};

/// Something that can be leased, and taken away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// A tree.
    Tree(TreeKey),
    /// A layer.
    Layer(LayerKey),
    /// A blob, whole or in part.
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
