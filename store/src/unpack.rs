//! From the bytes of a layer to files in a directory.
//!
//! ```text
//! registry ──► BlobReader ──► compress ──► Metered ──────► tar ──► tree_writer
//!              size, digest   magic,       limit, space,   names   openat2 beneath,
//!              of the blob    window       content digest          one name at a time
//! ```
//!
//! [`plan`] decides what a manifest's layers become, [`unpack_layer`] streams one tar layer into an empty
//! directory, [`graft`] lays layer trees and files over each other by hard links. The layers of a volume share a
//! [`budget`] of entries and bytes.
//!
//! What happens to what an archive may hold:
//!
//! | entry | in an ORAS directory | in an image layer |
//! |---|---|---|
//! | file | kept, mode a+rX, no setuid, setgid, sticky, owner or xattrs | the same |
//! | symbolic link | kept if it stays inside, else the layer is refused | kept as it is |
//! | hard link | to an earlier file of the same layer | also to an earlier link |
//! | device, FIFO | left out, counted, logged (as ORAS does) | the same |
//! | `.wh.` names | ordinary files here; whiteouts once an `overlay` step lays them ([`graft`]) | whiteouts of layers below |
//! | the same name twice | the last one counts; over a directory with something in it: refused | the same |
//! | sparse file | refused | refused |
//!
//! Architecture Invariant: nothing here makes a tree visible. Its caller does, after the digest of every
//! layer has been verified over the whole of its stream.

pub(crate) mod budget;
pub(crate) mod compress;
pub(crate) mod entries;
pub(crate) mod error;
pub(crate) mod filter;
pub(crate) mod graft;
pub(crate) mod layer;
mod metered;
pub(crate) mod plan;
pub(crate) mod tar;
pub(crate) mod tree_writer;

pub use self::budget::Budget;
pub use self::error::UnpackError;
pub use self::layer::{Unpacked, Unpacking, unpack_layer};

#[cfg(test)]
mod tests;
