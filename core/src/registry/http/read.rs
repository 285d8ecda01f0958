//! Implements [`Registry`]: resolves tags, fetches manifests and streams blobs.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use url::Url;

use super::client::{HttpRegistry, Inner};
use super::response::{
    MANIFEST_TYPES, bytes_to_skip, check_range, content_type, descriptor_from_headers, expect_ok,
    is_get_worth_trying, is_one_get_worth_trying, more_informative, reported_digest,
};
use super::route::{Attempt, Capability, Operation, Route, foreign_note};
use crate::credentials::Credential;
use crate::digest::Digest;
use crate::manifest::{Descriptor, IndexEntry, ManifestError, VerifiedManifest};
use crate::reference::{PinnedReference, Reference};
use crate::registry::api::{BlobStream, Registry};
use crate::registry::body;
use crate::registry::error::{RegistryError, RegistryErrorKind};
use crate::registry::request_label::RequestLabel;
use crate::registry::transport::Answer;

/// Manifests of at most this size are hashed and parsed at once, which takes less than a millisecond.
const MAX_PARSED_INLINE: usize = 64 << 10;

/// The body of a response that should be a manifest.
pub(super) struct UnverifiedManifest {
    label: RequestLabel,
    pub(super) media_type: Option<String>,
    /// See [`body::encoding_note`].
    encoding_note: String,
    /// The digest that was requested, or else the one that the registry reported.
    digest: Option<Digest>,
    pub(super) bytes: Bytes,
}

#[async_trait]
impl Registry for HttpRegistry {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        let route = self.inner.route(reference.registry(), reference.repository(), &self.credential).await?;
        let (name, capability) = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => (digest.to_string(), Capability::Pull),
            (None, tag) => (tag.unwrap_or("latest").to_owned(), Capability::Resolve),
        };
        let path = format!("manifests/{name}");
        let mut attempts = route.attempts(capability);
        while let Some(attempt) = attempts.next() {
            let result = self.inner.resolve(&attempt, &path, reference.digest()).await;
            if let Some(found) = attempts.record(&attempt, result) {
                return Ok(found);
            }
        }
        Err(attempts.into_error())
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        let route = self.inner.route(reference.registry(), reference.repository(), &self.credential).await?;
        let path = format!("manifests/{}", reference.digest());
        let mut attempts = route.attempts(Capability::Pull);
        while let Some(attempt) = attempts.next() {
            let result = self.inner.get_manifest(&attempt, &path, Some(reference.digest())).await;
            if let Some(found) = attempts.record(&attempt, result) {
                return Ok(found);
            }
        }
        Err(attempts.into_error())
    }

    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        let route = self.inner.route(reference.registry(), reference.repository(), &self.credential).await?;
        match blob.size().checked_sub(offset) {
            Some(0) => return Ok(Box::pin(stream::empty())),
            Some(_) => {}
            None => {
                let message = format!("there is no byte {offset} in a blob of {} bytes", blob.size());
                return Err(route.label().invalid(message));
            }
        }
        let mut attempts = route.attempts(Capability::Pull);
        while let Some(attempt) = attempts.next() {
            let result = self.inner.get_blob(&attempt, blob, offset).await;
            if let Some(stream) = attempts.record(&attempt, result) {
                return Ok(self.inner.with_reports(stream, &route));
            }
        }
        let last = attempts.last();
        let error = attempts.into_error();
        let (RegistryErrorKind::NotFound, Some(attempt)) = (error.kind(), last) else { return Err(error) };
        let mut note = foreign_note(blob);
        for url in attempt.foreign_urls(blob) {
            match self.inner.get_foreign_blob(&attempt, url, blob, offset).await {
                Ok(stream) => return Ok(self.inner.with_reports(stream, &route)),
                Err(error) => {
                    let error = route.redactor().redact(error);
                    tracing::warn!(%error, "cannot fetch a foreign layer");
                    note = Some(format!("it is a foreign layer, and its URL failed as well: {error}"));
                }
            }
        }
        Err(match note {
            Some(note) => error.with_note(&note),
            None => error,
        })
    }

    async fn referrers(&self, subject: &PinnedReference) -> Result<Vec<IndexEntry>, RegistryError> {
        let route = self.inner.route(subject.registry(), subject.repository(), &self.credential).await?;
        let mut attempts = route.attempts(Capability::Resolve);
        while let Some(attempt) = attempts.next() {
            let result = self.inner.referrers(&attempt, subject.digest()).await;
            if let Some(found) = attempts.record(&attempt, result) {
                return Ok(found);
            }
        }
        Err(attempts.into_error())
    }

    async fn part(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        let route = self.inner.route(reference.registry(), reference.repository(), &self.credential).await?;
        if range.is_empty() {
            return Ok(Some(Box::pin(stream::empty())));
        }
        if range.end > blob.size() {
            let message = format!("there is no byte {} in a blob of {} bytes", range.end - 1, blob.size());
            return Err(route.label().invalid(message));
        }
        let mut attempts = route.attempts(Capability::Pull);
        while let Some(attempt) = attempts.next() {
            let result = self.inner.get_part(&attempt, blob, &range).await;
            if let Some(stream) = attempts.record(&attempt, result) {
                return Ok(stream.map(|stream| self.inner.with_reports(stream, &route)));
            }
        }
        Err(attempts.into_error())
    }

    fn with_credential(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry> {
        Arc::new(Self { inner: Arc::clone(&self.inner), credential })
    }
}

impl Inner {
    async fn resolve(
        &self,
        attempt: &Attempt<'_>,
        path: &str,
        digest: Option<&Digest>,
    ) -> Result<Descriptor, RegistryError> {
        let head = Operation::read(Method::HEAD, path, accept_manifests());
        match self.request_until_failed(attempt, &head).await {
            Ok(answer) => {
                if let Some(descriptor) = descriptor_from_headers(&answer, digest, self.settings.limits)? {
                    return Ok(descriptor);
                }
            }
            Err((failure, _)) if is_get_worth_trying(&failure.error) => {}
            // A registry that asks to wait gets no request before that.
            Err((failure, wait))
                if wait.is_none_or(|wait| wait.is_zero())
                    && is_one_get_worth_trying(&failure.error, digest) =>
            {
                let found = self.get_manifest(&attempt.without_retries(), path, digest).await;
                return found
                    .map(|document| document.descriptor().clone())
                    .map_err(|of_get| more_informative(failure.error, of_get));
            }
            Err((failure, _)) => return Err(failure.error),
        }
        self.get_manifest(attempt, path, digest).await.map(|document| document.descriptor().clone())
    }

    /// Fetches a manifest and verifies its digest: the requested `digest`, or the one that the registry reports. If there
    /// is neither, the digest is the SHA-256 of the body.
    pub(super) async fn get_manifest(
        &self,
        attempt: &Attempt<'_>,
        path: &str,
        digest: Option<&Digest>,
    ) -> Result<VerifiedManifest, RegistryError> {
        let unverified = self.get_unverified_manifest(attempt, path, digest).await?;
        let verified = self.verify_manifest(unverified).await;
        verified.inspect_err(|error| self.report_failure(attempt.route, error))
    }

    /// Fetches the bytes of a manifest. Tries again if the body breaks off.
    pub(super) async fn get_unverified_manifest(
        &self,
        attempt: &Attempt<'_>,
        path: &str,
        digest: Option<&Digest>,
    ) -> Result<UnverifiedManifest, RegistryError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.get_manifest_once(attempt, path, digest).await {
                Err(error) if body::is_interrupted(&error) => error,
                other => return other,
            };
            // `get` has already retried what failed before the body began.
            if tries >= self.max_tries(attempt) || !self.wait(attempt, tries, None, &error).await {
                return Err(error);
            }
        }
    }

    async fn get_manifest_once(
        &self,
        attempt: &Attempt<'_>,
        path: &str,
        digest: Option<&Digest>,
    ) -> Result<UnverifiedManifest, RegistryError> {
        let answer = self.get(attempt, &Method::GET, path, &accept_manifests()).await?;
        let Answer { response, label, permit: _permit, .. } = answer;
        expect_ok(&response, &label)?;
        let reported = reported_digest(&response, &label, digest)?;
        let (media_type, encoding_note) = (content_type(&response), body::encoding_note(response.headers()));
        let (limit, timeouts) = (self.settings.limits.manifest(), self.read_timeouts(attempt.deadline));
        let bytes = body::read(response, &label, "a manifest", limit, timeouts).await;
        let bytes = bytes.inspect_err(|error| self.report_failure(attempt.route, error))?;
        Ok(UnverifiedManifest {
            label,
            media_type,
            encoding_note,
            digest: digest.cloned().or(reported),
            bytes,
        })
    }

    pub(super) async fn verify_manifest(
        &self,
        unverified: UnverifiedManifest,
    ) -> Result<VerifiedManifest, RegistryError> {
        let UnverifiedManifest { label, media_type, encoding_note: note, digest, bytes } = unverified;
        let size = bytes.len();
        // A login page of a proxy, or a host that is no registry.
        let is_page = bytes.trim_ascii_start().first() == Some(&b'<');
        let verify = move || {
            let digest = digest.unwrap_or_else(|| Digest::sha256_of(&bytes));
            VerifiedManifest::verify(&digest, media_type.as_deref(), bytes)
        };
        let verified = if size > MAX_PARSED_INLINE { self.parse(verify).await } else { Ok(verify()) };
        verified.map_err(|stopped| label.unreachable(stopped))?.map_err(|error| match error {
            ManifestError::Digest { .. } => label.untruthful(format!("{error}{note}")),
            ManifestError::Json(_) if is_page => label.untruthful("it is an HTML page, and no manifest"),
            // The encoding is the likely reason, and not the artifact.
            _ if !note.is_empty() => label.untruthful(format!("{error}{note}")),
            _ => label.invalid(error.to_string()),
        })
    }

    /// Parses a large manifest on a thread that may block, a few at a time.
    async fn parse<T: Send + 'static>(
        &self,
        parse: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        // The semaphore is never closed.
        let _permit = self.parsing.acquire().await;
        tokio::task::spawn_blocking(parse)
            .await
            .map_err(|error| format!("reading the manifest stopped: {error}"))
    }

    /// Fetches a blob from `offset`. The range has an end, so that a server does not send more than the manifest says.
    async fn get_blob(
        &self,
        attempt: &Attempt<'_>,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        let size = blob.size();
        let headers = range_headers(&(offset..size))?;
        let path = format!("blobs/{}", blob.digest());
        let answer = self.get(attempt, &Method::GET, &path, &headers).await?;
        let skip = bytes_to_skip(&answer.response, &answer.label, size, offset)?;
        Ok(body::blob(answer, skip, size - offset, self.settings.idle_timeout))
    }

    /// Fetches a range of a blob. Returns `None` if the registry sends the whole blob.
    async fn get_part(
        &self,
        attempt: &Attempt<'_>,
        blob: &Descriptor,
        range: &Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        let path = format!("blobs/{}", blob.digest());
        let answer = self.get(attempt, &Method::GET, &path, &bytes_header(range)?).await?;
        if answer.response.status() == StatusCode::OK {
            return Ok(None);
        }
        check_range(&answer.response, &answer.label, blob.size(), range)?;
        Ok(Some(body::blob(answer, 0, range.end - range.start, self.settings.idle_timeout)))
    }

    /// Reports the errors of a stream, and removes the client's secrets from them. They name the address to which a redirect
    /// led.
    fn with_reports(&self, stream: BlobStream, route: &Route) -> BlobStream {
        let (redactor, registry) = (route.redactor(), route.registry.clone());
        let observer = Arc::clone(&self.settings.observer);
        Box::pin(stream.map_err(move |error| {
            observer.failed(&registry, error.kind());
            redactor.redact(error)
        }))
    }

    /// Fetches a blob from one of the `urls` of its descriptor, without credentials.
    async fn get_foreign_blob(
        &self,
        attempt: &Attempt<'_>,
        url: Url,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        let size = blob.size();
        let answer = self.get_foreign(attempt, url, &range_headers(&(offset..size))?).await?;
        let skip = bytes_to_skip(&answer.response, &answer.label, size, offset)?;
        Ok(body::blob(answer, skip, size - offset, self.settings.idle_timeout))
    }
}

/// Returns the headers to request a blob from its beginning, or from an offset on.
fn range_headers(range: &Range<u64>) -> Result<HeaderMap, RegistryError> {
    if range.start > 0 { bytes_header(range) } else { Ok(accept_any()) }
}

/// Returns the headers to request a range of a blob.
fn bytes_header(range: &Range<u64>) -> Result<HeaderMap, RegistryError> {
    let mut headers = accept_any();
    let bytes = HeaderValue::from_str(&format!("bytes={}-{}", range.start, range.end - 1));
    headers.insert(
        header::RANGE,
        bytes.map_err(|_| RequestLabel::from_name("range").invalid("it is not a valid header"))?,
    );
    Ok(headers)
}

fn accept_any() -> HeaderMap {
    HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("*/*"))])
}

/// Returns an `Accept` header with all manifest types, so that no registry converts a manifest.
fn accept_manifests() -> HeaderMap {
    MANIFEST_TYPES
        .into_iter()
        .map(|media_type| (header::ACCEPT, HeaderValue::from_static(media_type)))
        .collect()
}
