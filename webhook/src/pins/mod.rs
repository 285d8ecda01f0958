//! Pins: the digest of a tag for all pods of one revision of a workload.
//!
//! The digest of the first pod is stored under a key ([`PinKey`]) that all pods of the revision share. The first writer
//! wins, and the API server decides who that is, because an object of one name can be created only once. So all pods of a
//! revision get one digest, whichever replica of the webhook admits them and even if the tag moves. A pin does not grant
//! anything: policies apply to its digest as to any other.

mod cluster;
mod error;
mod key;
mod memory;
pub mod object;
mod owner;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use oras_csi_core::digest::Digest;

pub use cluster::ClusterPins;
pub use error::{PinError, PinPlace};
pub use key::{PinKey, PinSubject, SetKind};
pub use memory::MemoryPins;
pub use object::PinMismatch;
pub use owner::{InvalidOwner, PinOwner};

/// Stores pins. The caller limits the time, and uses [`PinError::TooLate`] when it is over.
#[async_trait]
pub trait Pins: Send + Sync + 'static {
    /// Returns the digest that is pinned for a key, if there is one.
    async fn find(&self, namespace: &str, key: &PinKey) -> Result<Option<Digest>, PinError>;
    /// Pins a digest for a key, unless another one is pinned already. Returns the digest that is pinned.
    async fn get_or_create(&self, namespace: &str, key: &PinKey, digest: &Digest)
    -> Result<Digest, PinError>;
}
