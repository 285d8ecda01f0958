//! A manifest whose digest was verified.

use bytes::Bytes;

use super::{Descriptor, Manifest, ManifestError};
use crate::digest::Digest;

/// A parsed manifest together with its bytes, which have the digest that was requested.
#[derive(Clone, Debug)]
pub struct VerifiedManifest {
    descriptor: Descriptor,
    bytes: Bytes,
    manifest: Manifest,
    is_self_described: bool,
}

impl VerifiedManifest {
    /// Verifies that `bytes` have `digest`, then parses them.
    ///
    /// `media_type` is the `Content-Type` of the response, if there was one. Fails with
    /// [`ManifestError::Digest`] before anything is parsed when the digest differs.
    pub fn verify(digest: &Digest, media_type: Option<&str>, bytes: Bytes) -> Result<Self, ManifestError> {
        if !digest.matches(&bytes) {
            return Err(ManifestError::Digest {
                expected: digest.clone(),
                actual: Digest::sha256_of(&bytes),
            });
        }
        let (manifest, is_self_described) = Manifest::parse_with_origin(media_type, &bytes)?;
        let size = bytes.len() as u64;
        let descriptor = Descriptor::new(manifest.media_type(), digest.clone(), size);
        Ok(Self { descriptor, bytes, manifest, is_self_described })
    }

    /// Returns media type, digest and size of the manifest itself.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Reports whether the bytes can be parsed to the same manifest without the `Content-Type` of the response.
    pub fn is_self_described(&self) -> bool {
        self.is_self_described
    }

    /// Returns the bytes, exactly as the registry sent them.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the parsed manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the parsed manifest and drops the bytes.
    pub fn into_manifest(self) -> Manifest {
        self.manifest
    }
}
