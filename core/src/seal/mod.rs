//! Seals: the webhook's signature over a volume that it admitted (docs/design.md, "Seal").
//!
//! A seal is an Ed25519 signature (RFC 8032) over the canonical JSON array `["csi.oras.land/seal/v1", namespace,
//! handle, set, id, recipe]`, written `v1.KEYID.BASE64URL`. Signing is deterministic: the same values always give the
//! same seal. The webhook has the private key, and the drivers have public keys only. The key id in the seal makes key
//! rotation possible.
//!
//! This module signs and verifies [`SealedContent`]. [`crate::volume::CanonicalVolume`] states which of its values are
//! signed.

mod keys;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::display::Shown;

pub use self::keys::{KeyError, KeyId, PublicKey, PublicKeys, SealKey};

const VERSION: &str = "v1";
const DOMAIN: &str = "csi.oras.land/seal/v1";
const SIGNATURE_LENGTH: usize = 64;

/// The namespace, and for a PersistentVolume the volume handle, for which a seal is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder<'a> {
    namespace: &'a str,
    handle: &'a str,
}

impl<'a> Holder<'a> {
    /// The pods of a namespace, for an inline volume.
    pub fn pod(namespace: &'a str) -> Self {
        Self { namespace, handle: "" }
    }

    /// The claims of a namespace, for the PersistentVolume with that `volumeHandle`.
    pub fn claim(namespace: &'a str, handle: &'a str) -> Self {
        Self { namespace, handle }
    }
}

impl fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespace {}", Shown::new(self.namespace))?;
        if self.handle.is_empty() {
            return Ok(());
        }
        write!(f, ", volume handle {}", Shown::new(self.handle))
    }
}

/// The values of a volume that a seal signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedContent<'a> {
    /// The name of the ClusterArtifactSet that the recipe comes from; empty without one.
    pub set: &'a str,
    /// The volume id.
    pub id: &'a str,
    /// The canonical JSON of the pinned recipe.
    pub recipe: &'a str,
}

impl SealedContent<'_> {
    /// Returns the bytes that are signed.
    fn payload(&self, holder: Holder<'_>) -> Vec<u8> {
        let parts = [DOMAIN, holder.namespace, holder.handle, self.set, self.id, self.recipe];
        serde_json::Value::from_iter(parts).to_string().into_bytes()
    }
}

/// A seal that was parsed but not verified: see [`PublicKeys::verify`].
///
/// ```
/// use oras_csi_core::digest::Digest;
/// use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
/// use oras_csi_core::reference::Reference;
/// use oras_csi_core::seal::{Holder, PublicKeys, SealError, SealKey};
/// use oras_csi_core::volume::CanonicalVolume;
///
/// let pinned = Reference::parse("ghcr.io/acme/model:v1")?.pin(Digest::sha256_of(b"manifest"));
/// let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))])?;
///
/// // The webhook signs the volume for the pods of one namespace.
/// let key = SealKey::generate()?;
/// let volume = CanonicalVolume::new(None, recipe)?.sign(&key, Holder::pod("team"));
///
/// // The driver verifies the seal with public keys only.
/// let public_keys = PublicKeys::from_iter([key.public().clone()]);
/// assert_eq!(volume.verify_seal(&public_keys, Holder::pod("team")), Ok(()));
/// let error = volume.verify_seal(&public_keys, Holder::pod("other")).unwrap_err();
/// assert!(matches!(error, SealError::Invalid { .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    key: KeyId,
    signature: [u8; SIGNATURE_LENGTH],
}

/// The error for a text that is not a [`Seal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a seal must have the form v1.KEYID.BASE64URL")]
pub struct SealSyntaxError;

impl Seal {
    /// The length of every seal, in characters.
    pub const LENGTH: usize = VERSION.len() + 1 + KeyId::LENGTH + 1 + (SIGNATURE_LENGTH * 4).div_ceil(3);

    /// Returns the id of the key with which the seal claims to be made.
    pub fn key(&self) -> &KeyId {
        &self.key
    }
}

impl FromStr for Seal {
    type Err = SealSyntaxError;

    fn from_str(text: &str) -> Result<Self, SealSyntaxError> {
        let mut parts = text.split('.');
        let (Some(VERSION), Some(key), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SealSyntaxError);
        };
        let key = KeyId::parse(key).ok_or(SealSyntaxError)?;
        // The decoder rejects padding and unused bits at the end, so each signature has one spelling.
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).map_err(|_| SealSyntaxError)?;
        let signature = signature.try_into().map_err(|_| SealSyntaxError)?;
        Ok(Self { key, signature })
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{}.{}", self.key, BASE64_URL_SAFE_NO_PAD.encode(self.signature))
    }
}

/// The error for a volume whose seal is missing or not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The volume has no seal.
    #[error(
        "the volume has no seal (csi.oras.land/seal), so no oras-csi webhook admitted it: create it again through the \
         API server while the webhook is installed and its configuration matches the volume"
    )]
    Missing,
    /// No public key has the key id of the seal.
    #[error(
        "the volume's seal was signed with key {key}, but the trusted keys are: {known}. A new key takes up to two \
         minutes to reach every node. If the administrator removed the key, create the volume's owner again"
    )]
    UnknownKey {
        /// The key id in the seal.
        key: KeyId,
        /// The ids of the trusted keys.
        known: String,
    },
    /// The signature is not valid for the volume and the holder.
    #[error(
        "the volume's seal is not valid for this volume in {holder}: the webhook admitted the volume for another \
         namespace or handle, or the volume was changed. Create it again through the API server, and do not set \
         csi.oras.land/ attributes yourself"
    )]
    Invalid {
        /// The holder for which the seal was verified.
        holder: String,
    },
}

#[cfg(test)]
mod tests;
