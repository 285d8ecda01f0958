//! The webhook's seal: which key signs, and which keys count.
//!
//! A Secret keeps the one private key, and a ConfigMap of the same name the public halves of all keys whose seals
//! count ([`cluster`]); drivers have the ConfigMap alone. Without Kubernetes a folder has both ([`folder`]). Whoever
//! is first makes the key, all others take what is there.
//!
//! # A new key
//!
//! Delete the Secret (or the file). A webhook makes another key, adds its public half to those that count, and goes
//! on signing with the old one until the new one has had time to reach every node. The old public key stays, since
//! kubelet publishes volumes again that were admitted long ago; an administrator drops it from the ConfigMap when
//! every pod from that time is gone. Where a key has leaked, both are done at once: what it signed mounts nowhere
//! from then on, and pods are made again by their controllers.

mod cluster;
mod folder;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use oras_csi_core::display::Shown;
use oras_csi_core::seal::{Holder, KeyError, PublicKeys, SealKey};
use oras_csi_core::volume::CanonicalVolume;

use crate::denial::{At, Code, Denial};

pub use cluster::keep;
pub use folder::{open, read_key};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum SealKeyError {
    /// The API server does not do it.
    #[error("cannot {action} {place}: {source}")]
    Api {
        /// What was tried.
        action: &'static str,
        /// On what.
        place: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// The API server is slow.
    #[error("cannot {action} {place}: the API server did not answer in time")]
    Late {
        /// What was tried.
        action: &'static str,
        /// On what.
        place: String,
    },
    /// Somebody else is always first.
    #[error("{0} changed each time that it was written to")]
    Contended(String),
    /// What is kept is no key.
    #[error("{place}: {source}")]
    Key {
        /// Where it is kept.
        place: String,
        /// What is wrong.
        source: KeyError,
    },
    /// A file.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Which.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The keys of the moment.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Makes seals.
    pub(crate) signing: SealKey,
    /// Whose seals count.
    pub(crate) public: PublicKeys,
}

/// Seals volumes with the key of the moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sealer(Option<Arc<ArcSwapOption<Ring>>>);

impl Sealer {
    /// One that makes no seals and believes none: what a manifest is rendered with where there is no key.
    pub fn none() -> Self {
        Self(None)
    }

    /// One with a key that stays.
    pub fn with_key(signing: SealKey) -> Self {
        let sealer = Self::waiting();
        let public = PublicKeys::from_iter([signing.public().clone()]);
        sealer.set(Ring { signing, public });
        sealer
    }

    /// One that has no key yet.
    pub(crate) fn waiting() -> Self {
        Self(Some(Arc::default()))
    }

    pub(crate) fn set(&self, ring: Ring) {
        if let Some(ours) = &self.0 {
            ours.store(Some(Arc::new(ring)));
        }
    }

    /// Whether every volume gets a seal.
    pub(crate) fn is_sealing(&self) -> bool {
        self.0.is_some()
    }

    /// Whether it can do what it is there for.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.as_ref().is_none_or(|ring| ring.load().is_some())
    }

    /// Whether a volume bears a seal that counts, for `holder`.
    pub(crate) fn believes(&self, volume: &CanonicalVolume, holder: Holder<'_>) -> bool {
        let ring = self.0.as_ref().and_then(|ring| ring.load_full());
        ring.is_some_and(|ring| volume.verify_seal(&ring.public, holder).is_ok())
    }

    /// The volume as it leaves: sealed for `holder`, whatever seal it came with.
    pub(crate) fn seal(
        &self,
        at: At<'_>,
        volume: CanonicalVolume,
        holder: Holder<'_>,
    ) -> Result<CanonicalVolume, Denial> {
        let Some(ring) = &self.0 else { return Ok(volume.without_seal()) };
        match ring.load_full() {
            Some(ring) => Ok(volume.sign(&ring.signing, holder)),
            None => Err(Denial::new(
                Code::Unavailable,
                at,
                None,
                "cannot be sealed: this webhook has no key yet, and its log says why",
                "try again in a few seconds",
            )),
        }
    }
}

/// A place as people know it.
fn place(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {}/{}", Shown::new(namespace), Shown::new(name))
}
