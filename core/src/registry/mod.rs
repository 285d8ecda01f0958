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
pub mod publish;
pub mod push;

mod auth;
mod body;
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
use crate::display::Printable;
use crate::manifest::{Descriptor, IndexEntry, VerifiedManifest};
use crate::reference::{PinnedReference, Reference};

pub use self::access::{Access, Anonymous, Candidate, Credentials, Keyring, Source};
pub use self::error::{RegistryError, RegistryErrorKind};
pub use self::hosts::{Endpoint, HostsConfig, HostsError};
pub use self::http::{HttpRegistry, Settings};
pub use self::publish::{Publication, PublishError, Publisher};
pub use self::push::{Artifact, Content, PushError, PushLayer, Pusher};

/// Reads manifests and blobs. Object safe: both programs hold an `Arc<dyn Registry>`.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// What a reference names right now (OCI distribution-spec, "Checking if content exists in the
    /// registry"): by HEAD, and by GET with a hash of the body where a registry does not tell the digest.
    /// A reference with a digest is asked for by that digest, whatever its tag.
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError>;

    /// The manifest that a digest names, at most [`Limits::manifest`] bytes, verified before it is parsed.
    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError>;

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
