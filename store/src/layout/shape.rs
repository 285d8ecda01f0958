//! The two layouts of entries in a tar layer.

use oras_csi_core::digest::Digest;

use crate::disk::EntryPath;

/// Defines the root of the entries in a tar layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerShape {
    /// An ORAS directory: every entry is beneath the title, which is removed from its path.
    Directory {
        /// The title of the layer.
        prefix: EntryPath,
        /// The digest of the uncompressed stream, if the manifest states it.
        content: Option<Digest>,
    },
    /// A layer of an image: entries are relative to the root of the tree.
    Image,
}
