//! Descriptors (OCI image-spec, descriptor.md).

use super::media;
use crate::digest::Digest;

/// Identifies content by its media type, its digest and its size (OCI image-spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    urls: Vec<String>,
}

impl Descriptor {
    /// Creates the descriptor of `size` bytes with that digest.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, urls: Vec::new() }
    }

    /// Returns the descriptor with `urls`, from which the content can be downloaded as well.
    #[must_use]
    pub fn with_urls(self, urls: Vec<String>) -> Self {
        Self { urls, ..self }
    }

    /// Returns the `urls` of the descriptor.
    ///
    /// They are untrusted: the registry client downloads only from hosts that the administrator lists as
    /// `foreign_layers` ([`crate::registry::HostsConfig`]).
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Returns the media type, as the manifest states it.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// Returns the digest of the content.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the length of the content in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reports whether the content is an image index or a manifest list, by its media type.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), media::OCI_INDEX | media::DOCKER_LIST)
    }
}
