//! The trait through which the webhook and the driver read from registries.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;

use super::error::RegistryError;
use crate::credentials::Credential;
use crate::display::Printable;
use crate::manifest::{Descriptor, IndexEntry, VerifiedManifest};
use crate::reference::{PinnedReference, Reference};

/// Reads manifests and blobs. The trait is object safe: both programs hold an `Arc<dyn Registry>`.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Returns the descriptor of the manifest that a reference names now (OCI distribution-spec, "Checking if
    /// content exists in the registry").
    ///
    /// The client sends HEAD. If the registry's response has no digest, it sends GET and hashes the body. If the
    /// reference has a digest, the digest is requested and the tag is ignored.
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError>;

    /// Fetches the manifest with a digest, at most [`Limits::manifest`](super::Limits::manifest) bytes. The bytes
    /// are verified before they are parsed.
    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError>;

    /// Fetches a blob from `offset` to its end. `reference` gives registry and repository; its digest is that of
    /// the manifest.
    ///
    /// The stream yields exactly `blob.size() - offset` bytes or ends with an error. It is one request, which is
    /// not retried after the first byte: the caller requests the rest from the offset that it reached. The bytes
    /// are **not verified**; the caller hashes them.
    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError>;

    /// Lists the manifests that are attached to a manifest (OCI distribution-spec, "Listing Referrers").
    ///
    /// The list comes from the referrers API, or from the referrers tag if the registry has no such API. It is
    /// bounded and holds all artifact types.
    async fn referrers(&self, subject: &PinnedReference) -> Result<Vec<IndexEntry>, RegistryError> {
        Err(RegistryError::NotAllowed {
            at: Printable::new(&subject.to_string()),
            words: "this registry client does not list referrers".into(),
        })
    }

    /// Fetches the bytes `range` of a blob, so that several ranges can be downloaded in parallel.
    ///
    /// Returns `None` if the registry answers with the whole blob (RFC 9110, 14.2, allows that); the caller then
    /// uses [`Self::blob`]. The stream is like that of [`Self::blob`]: exactly these bytes or an error, not
    /// verified, not retried.
    async fn part(
        &self,
        _reference: &PinnedReference,
        _blob: &Descriptor,
        _range: Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        Ok(None)
    }

    /// Returns a client of the same registries that authenticates with `credential`.
    fn with_credential(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry>;
}

/// The bytes of a blob as they arrive, not verified.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>;
