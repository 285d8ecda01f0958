//! The size of a tree.

/// The size of a tree: bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// The bytes in regular files.
    pub bytes: u64,
    /// The number of files, directories and links.
    pub inodes: u64,
}
