//! A manifest whose digest was checked.

use bytes::Bytes;

use super::{Descriptor, Document, ManifestError};
use crate::digest::Digest;

/// A manifest whose bytes have the digest they were asked by, and what they say.
#[derive(Clone, Debug)]
pub struct ManifestDocument {
    descriptor: Descriptor,
    bytes: Bytes,
    document: Document,
}

impl ManifestDocument {
    /// Parses bytes that were read for `digest`: checks the digest first, then the content.
    ///
    /// `media_type` is the `Content-Type` they came with.
    pub fn verify(digest: &Digest, media_type: Option<&str>, bytes: Bytes) -> Result<Self, ManifestError> {
        if !digest.matches(&bytes) {
            return Err(ManifestError::Digest { wanted: digest.clone(), found: Digest::sha256_of(&bytes) });
        }
        let document = Document::parse(media_type, &bytes)?;
        let size = bytes.len() as u64;
        let descriptor = Descriptor::new(document.media_type(), digest.clone(), size);
        Ok(Self { descriptor, bytes, document })
    }

    /// Type, digest and size of the manifest itself.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The exact bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What they say.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// What they say, without the bytes.
    pub fn into_document(self) -> Document {
        self.document
    }
}
