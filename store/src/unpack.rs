//! Unpacks layers: from the bytes of a blob to files in a directory.
//!
//! ```text
//! registry ──► BlobReader ──► compress ──► MeteredReader ─► tar ──► tree_writer ──► disk_meter
//!              size, digest   magic,       limit,           names   openat2 beneath, limit, blocks
//!              of the blob    window       content digest           one name at      and inodes
//!                                                                   a time
//! ```
//!
//! [`plan`] decides what each layer of a manifest becomes. [`unpack_layer`] streams one tar layer into an empty
//! directory. [`tree_builder`] combines layers and files into a tree by hard links. The layers of a volume share a
//! [`budget`] of entries and bytes. See `docs/design.md`, "Unpacking".
//!
//! What happens to the entries of an archive:
//!
//! | entry | in an ORAS directory | in an image layer |
//! |---|---|---|
//! | file | kept, mode a+rX, no setuid, setgid, sticky, owner or xattrs | the same |
//! | symbolic link | kept if it stays inside ([`upward_links`]), else the layer is rejected | kept as it is |
//! | hard link | to an earlier file of the same layer | also to an earlier link |
//! | device, FIFO | skipped, counted, logged (as ORAS does) | the same |
//! | `.wh.` names | ordinary files; whiteouts if an `overlay` step applies them ([`tree_builder`]) | whiteouts for the layers below |
//! | the same name twice | the last one counts; over a directory that is not empty: rejected | the last one counts |
//! | a path through a link of the layer | rejected | resolved beneath the root of the layer ([`links`]) |
//! | sparse file (GNU, pax 0.0, 0.1, 1.0) | a file with holes ([`sparse`]) | the same |
//!
//! Architecture Invariant: nothing in this module makes a tree visible. The caller does, after the digest of every
//! layer has been verified over its whole stream.

pub(crate) mod budget;
pub(crate) mod compress;
mod disk_meter;
pub(crate) mod entries;
pub(crate) mod error;
pub(crate) mod filter;
mod gzip;
pub(crate) mod image;
pub(crate) mod layer;
mod links;
mod metered;
pub(crate) mod plan;
mod sparse;
pub(crate) mod tar;
pub(crate) mod tree_builder;
pub(crate) mod tree_writer;
mod upward_links;
pub(crate) mod zstd_windows;

pub use self::budget::Budget;
pub use self::error::UnpackError;
pub use self::layer::{UnpackOptions, UnpackSummary, unpack_layer};

#[cfg(test)]
mod tests;
