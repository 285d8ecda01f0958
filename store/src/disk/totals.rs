//! The size of a tree.

/// What a tree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// Bytes in files.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}
