//! Reading from OCI registries: one trait, and the HTTP client behind it.
//!
//! [`Registry`] is what the webhook and the driver see: a tag becomes a digest, a digest becomes a
//! verified manifest, a blob becomes a bounded stream. [`HttpRegistry`] is the one that talks to the
//! network, configured by containerd's `certs.d` ([`HostsConfig`]); [`Pusher`] writes.
//!
//! Architecture Invariant: nothing a registry sends is believed. Bodies are bounded while they are read,
//! manifests are hashed before they are parsed, headers are checked against what was asked for, redirects
//! and token realms are followed only where [`guard`] lets them be dialled, and every word of a registry
//! that reaches an error has passed [`Printable`].

#![cfg_attr(test, allow(clippy::expect_used, clippy::panic, clippy::unwrap_used))]

pub mod access;
pub mod error;
pub mod guard;
pub mod hosts;
pub mod http;
pub mod layer;
pub mod manifest;
pub mod publish;
pub mod push;

mod auth;
mod body;
mod json;
mod proxy;
mod retry;
mod tls;
mod transport;

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;

use crate::credentials::Credential;
use crate::digest::Digest;
use crate::reference::{PinnedReference, Reference};

pub use self::access::{Access, Anonymous, Candidate, Credentials, Keyring, Source};
pub use self::error::{Printable, RegistryError, RegistryErrorKind};
pub use self::hosts::{Endpoint, HostsConfig, HostsError};
pub use self::http::{HttpRegistry, Settings};
pub use self::layer::LayerFiles;
pub use self::manifest::{
    Document, EntryPlatform, ImageManifest, Index, IndexEntry, LayerDescriptor, ManifestError, SelectError,
};
pub use self::publish::{Publication, PublishError, Publisher};
pub use self::push::{Artifact, Content, PushError, PushLayer, Pusher};

/// Media types of what a reference can name, in the order of the `Accept` header.
pub mod media {
    /// OCI image-spec, manifest.md.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image-spec, image-index.md.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// Docker image manifest version 2, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker image manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// The artifact manifest of the candidates for OCI image-spec 1.1: read for patches alone.
    pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
    /// OCI image-spec, manifest.md, "Guidance for an Empty Descriptor".
    pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
}

/// Reads manifests and blobs. Object safe: both programs hold an `Arc<dyn Registry>`.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// What a reference names right now (OCI distribution-spec, "Checking if content exists in the
    /// registry"): by HEAD, and by GET with a hash of the body where a registry does not tell the digest.
    /// A reference with a digest is asked for by that digest, whatever its tag.
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError>;

    /// The manifest that a digest names, at most [`Limits::manifest`] bytes, verified before it is parsed.
    async fn manifest(&self, reference: &PinnedReference) -> Result<ManifestDocument, RegistryError>;

    /// A blob from `offset` on. `reference` says registry and repository; its digest is the manifest's.
    ///
    /// The stream gives exactly `blob.size() - offset` bytes, or ends in an error: never more, and never
    /// fewer without one. It is one request and is not retried once bytes have come: ask again from the
    /// offset reached. The bytes are **not verified**; whoever writes them hashes them.
    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError>;

    /// The manifests that are attached to one (OCI distribution-spec, "Listing Referrers"): by the referrers API, or
    /// by the referrers tag where a registry has no such API. Bounded, and of any artifact type.
    async fn referrers(&self, subject: &PinnedReference) -> Result<Vec<IndexEntry>, RegistryError> {
        Err(RegistryError::NotAllowed {
            at: Printable::new(&subject.to_string()),
            words: "what is attached to it is not listed here".into(),
        })
    }

    /// The bytes `range` of a blob, and no others, so that several parts come side by side; `None` where the registry
    /// gives no parts (RFC 9110, 14.2, lets it answer with everything): then [`Self::blob`] is the way.
    ///
    /// The stream is as that of [`Self::blob`]: exactly these bytes or an error, not verified, not retried.
    async fn part(
        &self,
        _reference: &PinnedReference,
        _blob: &Descriptor,
        _range: Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        Ok(None)
    }

    /// The same registries in the name of another credential.
    fn seen_by(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry>;
}

/// The bytes of a blob as they arrive, not verified.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>;

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

/// How much a registry may send before it is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    manifest: u64,
    token: u64,
    error: u64,
    redirects: u8,
}

impl Limits {
    /// The longest manifest in bytes: 4 MiB, what the OCI distribution-spec asks registries to accept.
    pub fn manifest(&self) -> u64 {
        self.manifest
    }

    /// The longest answer of a token service in bytes.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// How many bytes of an error's body are read.
    pub fn error(&self) -> u64 {
        self.error
    }

    /// How many redirects in a row are followed.
    pub fn redirects(&self) -> u8 {
        self.redirects
    }

    /// The same limits with another longest manifest.
    #[must_use]
    pub fn with_manifest(mut self, bytes: u64) -> Self {
        self.manifest = bytes;
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { manifest: 4 << 20, token: 64 << 10, error: 64 << 10, redirects: 10 }
    }
}
