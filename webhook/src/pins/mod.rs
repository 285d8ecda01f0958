//! Pins: which digest a tag stands for in all pods of one revision of a workload.
//!
//! The first pod's digest is kept under a key ([`PinKey`]) that all pods of the revision share, and the first to
//! keep one wins: the API server decides it, since an object of one name is made once. So no two pods of a revision
//! differ, whichever replica of the webhook they come to and wherever the tag has moved. A pin says what was
//! meant, not what is allowed: policy looks at its digest like at any other.

mod cluster;
mod error;
mod key;
mod memory;
pub mod object;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use oras_csi_core::digest::Digest;

pub use cluster::ClusterPins;
pub use error::{PinAction, PinError, PinPlace};
pub use key::{PinKey, PinSubject};
pub use memory::MemoryPins;
pub use object::PinMismatch;

/// Keeps pins. Whoever asks bounds the time, and takes [`PinError::TooLate`] when it is over.
#[async_trait]
pub trait Pins: Send + Sync + 'static {
    /// The digest that is kept for a key, where there is one.
    async fn find(&self, namespace: &str, key: &PinKey) -> Result<Option<Digest>, PinError>;
    /// Keeps a digest for a key, unless one is kept already; gives the one that is kept then.
    async fn keep(&self, namespace: &str, key: &PinKey, digest: &Digest) -> Result<Digest, PinError>;
}
