//! Pushes blobs and manifests (OCI distribution-spec 1.1, "Push").
//!
//! oci-client sends the uploads ([`super::oci_push`]). This module does what oci-client cannot do, with the client that
//! reads:
//!
//! - the check whether a blob exists, and the token for the upload, both under this client's credential rules;
//! - uploads to endpoints that oci-client does not support (see [`super::oci_push`]);
//! - the second try after oci-client failed: this client answers a challenge, waits for `Retry-After`, and returns an
//!   error with the registry's message, bounded and without secrets;
//! - the lists of referrers at the endpoint that accepts pushes.
//!
//! Every upload has its digest in its address, so repeating one changes nothing.

use std::path::PathBuf;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use url::Url;

use super::client::{HttpRegistry, Inner};
use super::route::{Attempt, Capability, Operation, Route, Target};
use crate::digest::Digest;
use crate::manifest::IndexEntry;
use crate::reference::Reference;
use crate::registry::error::{RegistryError, RegistryErrorKind};
use crate::registry::transport::{Answer, utf8_text};

/// A blob to push.
#[derive(Clone, Debug)]
pub(in crate::registry) struct Blob {
    pub(in crate::registry) digest: Digest,
    pub(in crate::registry) size: u64,
    pub(in crate::registry) content: BlobContent,
}

/// The bytes of a blob.
#[derive(Clone, Debug)]
pub(in crate::registry) enum BlobContent {
    Bytes(Bytes),
    File(PathBuf),
}

impl BlobContent {
    /// Returns all bytes in memory.
    async fn read(&self) -> std::io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::File(path) => tokio::fs::read(path).await.map(Bytes::from),
        }
    }
}

impl HttpRegistry {
    /// Pushes a blob to the repository of `to`, unless it exists there.
    pub(in crate::registry) async fn put_blob(
        &self,
        to: &Reference,
        blob: &Blob,
    ) -> Result<(), RegistryError> {
        let route = self.push_route(to).await?;
        // The first endpoint with the capability is pushed to, as in containerd.
        let mut attempts = route.attempts(Capability::Push);
        let Some(attempt) = attempts.next() else { return Err(attempts.into_error()) };
        let result = self.inner.put_blob(&attempt, blob).await;
        attempts.record(&attempt, result).ok_or_else(|| attempts.into_error())
    }

    /// Pushes a manifest. `name` is a tag or a digest.
    pub(in crate::registry) async fn put_manifest(
        &self,
        to: &Reference,
        name: &str,
        media_type: &'static str,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let route = self.push_route(to).await?;
        // The first endpoint with the capability is pushed to, as in containerd.
        let mut attempts = route.attempts(Capability::Push);
        let Some(attempt) = attempts.next() else { return Err(attempts.into_error()) };
        let result = self.inner.put_manifest(&attempt, name, media_type, bytes).await;
        attempts.record(&attempt, result).ok_or_else(|| attempts.into_error())
    }

    /// Lists referrers with the referrers API of the endpoint that accepts pushes. Returns `None` if it has no such API.
    pub(in crate::registry) async fn referrers_of_api(
        &self,
        to: &Reference,
        subject: &Digest,
    ) -> Result<Option<Vec<IndexEntry>>, RegistryError> {
        let route = self.push_route(to).await?;
        // The first endpoint with the capability is pushed to, as in containerd.
        let mut attempts = route.attempts(Capability::Push);
        let Some(attempt) = attempts.next() else { return Err(attempts.into_error()) };
        let result = self.inner.referrers_of_api(&attempt, subject).await;
        attempts.record(&attempt, result).ok_or_else(|| attempts.into_error())
    }

    /// Lists referrers from the referrers tag of the endpoint that accepts pushes.
    pub(in crate::registry) async fn referrers_of_tag(
        &self,
        to: &Reference,
        subject: &Digest,
    ) -> Result<Vec<IndexEntry>, RegistryError> {
        let route = self.push_route(to).await?;
        // The first endpoint with the capability is pushed to, as in containerd.
        let mut attempts = route.attempts(Capability::Push);
        let Some(attempt) = attempts.next() else { return Err(attempts.into_error()) };
        let result = self.inner.referrers_of_tag(&attempt, subject).await;
        attempts.record(&attempt, result).ok_or_else(|| attempts.into_error())
    }

    async fn push_route(&self, to: &Reference) -> Result<Route, RegistryError> {
        self.inner.route(to.registry(), to.repository(), &self.credential).await
    }
}

impl Inner {
    async fn put_blob(&self, attempt: &Attempt<'_>, blob: &Blob) -> Result<(), RegistryError> {
        let path = format!("blobs/{}", blob.digest);
        match self.get(attempt, &Method::HEAD, &path, &HeaderMap::new()).await {
            Ok(_) => return Ok(()),
            Err(error) if is_possibly_missing(&error) => {}
            Err(error) => return Err(error),
        }
        if self.push_blob_with_oci_client(attempt, blob).await? {
            return Ok(());
        }
        let content = blob.content.read().await;
        let content = content
            .map_err(|error| attempt.route.label().invalid(format!("cannot read the blob: {error}")))?;
        self.upload(attempt, &blob.digest, content).await
    }

    async fn upload(
        &self,
        attempt: &Attempt<'_>,
        digest: &Digest,
        content: Bytes,
    ) -> Result<(), RegistryError> {
        let start = Operation {
            method: Method::POST,
            target: Target::Repository("blobs/uploads/".to_owned()),
            headers: HeaderMap::new(),
            content: Some(Bytes::new()),
        };
        let Answer { response, label, permit, .. } = self.request(attempt, &start).await?;
        let location = response.headers().get(header::LOCATION).and_then(utf8_text);
        let location = location.ok_or_else(|| label.untruthful("the upload has no Location header"))?;
        let url = attempt.same_origin_url(&attempt.repository_url("blobs/uploads/"), location);
        let mut url: Url = url.ok_or_else(|| {
            label.not_allowed("the upload leads to another host or from https to http, which is not followed: the registry must name its own address")
        })?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        drop((response, permit));
        let put = Operation {
            method: Method::PUT,
            target: Target::Url(url),
            headers: content_type_header("application/octet-stream"),
            content: Some(content),
        };
        self.request(attempt, &put).await.map(|_| ())
    }

    async fn put_manifest(
        &self,
        attempt: &Attempt<'_>,
        name: &str,
        media_type: &'static str,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        if self.push_manifest_with_oci_client(attempt, name, media_type, bytes).await? {
            return Ok(());
        }
        let put = Operation {
            method: Method::PUT,
            target: Target::Repository(format!("manifests/{name}")),
            headers: content_type_header(media_type),
            content: Some(bytes.clone()),
        };
        self.request(attempt, &put).await.map(|_| ())
    }
}

/// Reports whether the blob may be missing: it is not found, or the credential has no permission to read.
fn is_possibly_missing(error: &RegistryError) -> bool {
    error.kind() == RegistryErrorKind::NotFound || matches!(error.refusal(), Some(401 | 403 | 405))
}

fn content_type_header(media_type: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(media_type))])
}
