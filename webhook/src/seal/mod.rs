//! The seal of the webhook: which private key signs, and the seals of which keys are valid.
//!
//! A Secret holds the private key, and a ConfigMap of the same name holds the public halves of all keys whose seals are
//! valid ([`cluster`]). The driver reads only the ConfigMap. Without Kubernetes, a folder holds both ([`folder`]). The first
//! replica creates the key, and all others use it.
//!
//! # Key rotation
//!
//! To rotate the key, delete the Secret (or the file). The webhook creates another key, adds its public half to the valid
//! keys, and continues to sign with the old key until the new one has had time to reach every node. The old public key
//! stays valid, because kubelet publishes volumes again that were admitted long ago. The administrator removes it from the
//! ConfigMap when every pod from that time is gone. If a key has leaked, do both at once: volumes that it signed do not
//! mount any more, and the controllers of their pods create the pods again.

mod cluster;
mod folder;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use oras_csi_core::display::Shown;
use oras_csi_core::seal::{Holder, KeyError, PublicKeys, SealKey};
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_kube_support::call::CallError;
use oras_csi_kube_support::verb::Verb;

use crate::denial::{At, Code, Denial};

pub use cluster::follow_secret;
pub use folder::{open_folder, read_key};

/// Why there is no key for seals.
#[derive(Debug, thiserror::Error)]
pub enum SealKeyError {
    /// The API server refused, failed or did not answer in time.
    #[error("cannot {verb} {place}: {source}")]
    Api {
        /// The verb of the request.
        verb: Verb,
        /// The object.
        place: String,
        /// The cause.
        source: CallError,
    },
    /// Other writers changed the object each time.
    #[error("cannot write {0}: another client changed it each time")]
    Contended(String),
    /// The stored key is invalid.
    #[error("{place}: {source}")]
    Key {
        /// The object or file.
        place: String,
        /// What is wrong with the key.
        source: KeyError,
    },
    /// A file or folder cannot be used.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was done with it.
        operation: FileOperation,
        /// The path.
        path: String,
        /// The error of the system.
        source: std::io::Error,
    },
}

/// What was done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOperation {
    /// Creating a folder.
    Create,
    /// Listing a folder.
    List,
    /// Reading a file.
    Read,
    /// Writing a file.
    Write,
}

impl fmt::Display for FileOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::List => "list",
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// The keys that are in use now.
#[derive(Debug)]
pub(crate) struct SealKeys {
    /// The key that signs.
    pub(crate) signing: SealKey,
    /// The keys whose seals are valid.
    pub(crate) public: PublicKeys,
}

/// Seals volumes with the key that is in use now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sealer(Option<Arc<ArcSwapOption<SealKeys>>>);

impl Sealer {
    /// Makes a sealer that creates no seals and accepts none: `render` uses it without a key.
    pub fn none() -> Self {
        Self(None)
    }

    /// Makes a sealer with one fixed key.
    pub fn with_key(signing: SealKey) -> Self {
        let sealer = Self::without_keys_yet();
        let public = PublicKeys::from_iter([signing.public().clone()]);
        sealer.set(SealKeys { signing, public });
        sealer
    }

    /// Makes a sealer that refuses to seal until [`Self::set`] is called.
    pub(crate) fn without_keys_yet() -> Self {
        Self(Some(Arc::default()))
    }

    pub(crate) fn set(&self, keys: SealKeys) {
        if let Some(current) = &self.0 {
            current.store(Some(Arc::new(keys)));
        }
    }

    /// Reports whether volumes get a seal.
    pub(crate) fn is_sealing(&self) -> bool {
        self.0.is_some()
    }

    /// Reports whether the keys have been read, or are not used.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.as_ref().is_none_or(|keys| keys.load().is_some())
    }

    /// Reports whether a volume has a valid seal for `holder`.
    pub(crate) fn has_valid_seal(&self, volume: &CanonicalVolume, holder: Holder<'_>) -> bool {
        let keys = self.0.as_ref().and_then(|keys| keys.load_full());
        keys.is_some_and(|keys| volume.verify_seal(&keys.public, holder).is_ok())
    }

    /// Seals a volume for `holder`. A seal that the volume has already is replaced.
    pub(crate) fn seal(
        &self,
        at: At<'_>,
        volume: CanonicalVolume,
        holder: Holder<'_>,
    ) -> Result<CanonicalVolume, Denial> {
        let Some(keys) = &self.0 else { return Ok(volume.without_seal()) };
        match keys.load_full() {
            Some(keys) => Ok(volume.sign(&keys.signing, holder)),
            None => Err(Denial::new(
                Code::Unavailable,
                at,
                None,
                "cannot be sealed: this webhook has no key yet (see its log)",
                "retry in a few seconds",
            )),
        }
    }
}

/// Returns an object as messages name it: `KIND NAMESPACE/NAME`.
fn display_name(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {}/{}", Shown::new(namespace), Shown::new(name))
}
