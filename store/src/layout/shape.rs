//! The two ways in which the entries of a tar layer are laid out.

use oras_csi_core::digest::Digest;

use crate::disk::EntryPath;

/// What the entries of a tar layer are relative to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerShape {
    /// An ORAS directory: every entry lies beneath the title, which is taken off.
    Directory {
        /// The title.
        prefix: EntryPath,
        /// The digest of the uncompressed stream, where the manifest says it.
        content: Option<Digest>,
    },
    /// A layer of an image: entries lie beneath the root.
    Image,
}
