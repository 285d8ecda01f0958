//! Descriptors (OCI image-spec, descriptor.md).

use super::media;
use crate::digest::Digest;

/// What identifies content (OCI image-spec, descriptor.md): its type, its digest and its size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    urls: Vec<String>,
}

impl Descriptor {
    /// A descriptor of `size` bytes that have `digest`.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, urls: Vec::new() }
    }

    /// The same with `urls`, where the content is to be had as well.
    #[must_use]
    pub fn with_urls(self, urls: Vec<String>) -> Self {
        Self { urls, ..self }
    }

    /// `urls`, as somebody wrote them: fetched only from hosts that an administrator lists
    /// ([`HostsConfig`], `foreign_layers`).
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// The media type, as the registry wrote it.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The digest of the content.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The length of the content in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the media type is one of an image index or a manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), media::OCI_INDEX | media::DOCKER_LIST)
    }
}
