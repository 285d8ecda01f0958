//! [`Registry`] over HTTP (OCI distribution-spec 1.1).
//!
//! On reqwest rather than oci-client, which writes for us ([`super::push`]): for reading from registries
//! that are not trusted, oci-client 0.18 reads manifests, tokens and errors without a bound, follows
//! redirects by reqwest's default (to any address, from https to http), and has neither deadlines nor
//! retries nor more than one mirror.

mod answer;
mod referrers;
mod request;
#[cfg(test)]
mod tests;
mod write;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use url::Url;

use self::answer::{
    MANIFESTS, check_part, content_type, described, expect_ok, head_may_lie, skipped, told_digest,
};
pub(in crate::registry) use self::referrers::referrers_tag;
use self::request::{Capability, Discretion, Turn};
use super::auth::Tokens;
use super::body;
use super::guard::{Names, SystemNames};
use super::hosts::HostsConfig;
use super::proxy::Proxies;
use super::retry;
use super::transport::{Answer, Bounds, Place, Transport};
use super::{BlobStream, Limits, Registry, RegistryError, RegistryErrorKind};
use crate::credentials::Credential;
use crate::digest::Digest;
use crate::manifest::{Descriptor, IndexEntry, ManifestError, VerifiedManifest};
use crate::reference::{PinnedReference, Reference};

/// How patient and how strict a client is.
#[derive(Clone, Debug)]
pub struct Settings {
    connect: Duration,
    answer: Duration,
    idle: Duration,
    metadata: Duration,
    longest_wait: Duration,
    tries: u32,
    limits: Limits,
    proxies: bool,
    names: Arc<dyn Names>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            metadata: Duration::from_mins(1),
            longest_wait: retry::LONGEST,
            tries: 3,
            limits: Limits::default(),
            proxies: true,
            names: Arc::new(SystemNames),
        }
    }
}

impl Settings {
    /// How long a name, a connection and its TLS handshake may take together (default 10 s).
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect = timeout;
        self
    }

    /// How long an answer's headers may take (default 30 s).
    #[must_use]
    pub fn with_answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer = timeout;
        self
    }

    /// How long a body may pause (default 30 s).
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle = timeout;
        self
    }

    /// How long everything up to an answer may take, with tokens, retries and every mirror: the whole of
    /// [`Registry::resolve`] and [`Registry::manifest`], and the start of [`Registry::blob`] (default 60 s).
    #[must_use]
    pub fn with_metadata_deadline(mut self, deadline: Duration) -> Self {
        self.metadata = deadline;
        self
    }

    /// How long a registry may have us wait before one answer, by all the `Retry-After` it gives until then: one
    /// that wants more is told of at once, with what it wants (default 60 s).
    #[must_use]
    pub fn with_longest_wait(mut self, wait: Duration) -> Self {
        self.longest_wait = wait;
        self
    }

    /// How often the last of a registry's endpoints is asked before it counts as failed (default 3).
    #[must_use]
    pub fn with_tries(mut self, tries: u32) -> Self {
        self.tries = tries.max(1);
        self
    }

    /// How much a registry may send.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Whether `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` are followed, as Go's programs do (default yes). What a
    /// proxy dials is its own affair: names are then not checked by address, literal addresses are.
    #[must_use]
    pub fn with_proxies(mut self, follow: bool) -> Self {
        self.proxies = follow;
        self
    }

    /// Who knows the addresses of hosts (default: the system's resolver). What they give is checked all the same.
    #[must_use]
    pub fn with_names(mut self, names: Arc<dyn Names>) -> Self {
        self.names = names;
        self
    }
}

/// Reads from registries over HTTP, in the name of one credential. Cheap to clone; clones share connections and
/// tokens, the latter by credential.
#[derive(Clone)]
pub struct HttpRegistry {
    inner: Arc<Inner>,
    credential: Credential,
}

struct Inner {
    hosts: HostsConfig,
    settings: Settings,
    tokens: Tokens,
    transport: Transport,
}

impl HttpRegistry {
    /// A client that asks in nobody's name; [`Registry::seen_by`] gives others.
    pub fn new(hosts: HostsConfig, settings: Settings) -> Self {
        let bounds = Bounds {
            connect: settings.connect,
            answer: settings.answer,
            redirects: settings.limits.redirects(),
        };
        let proxies = if settings.proxies { Proxies::of_environment() } else { Proxies::default() };
        let transport = Transport::new(bounds, proxies, Arc::clone(&settings.names));
        let inner = Arc::new(Inner { hosts, settings, tokens: Tokens::default(), transport });
        Self { inner, credential: Credential::Anonymous }
    }

    /// The same registries in the name of another credential.
    #[must_use]
    pub fn in_the_name_of(&self, credential: Credential) -> Self {
        Self { inner: Arc::clone(&self.inner), credential }
    }
}

impl std::fmt::Debug for HttpRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpRegistry").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
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
        let mut errors = Vec::new();
        for turn in route.turns(capability) {
            match self.inner.resolve(&turn, &path, reference.digest()).await {
                Ok(descriptor) => return Ok(descriptor),
                Err(error) => errors.push(error),
            }
        }
        Err(route.outcome(errors, capability))
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        let route = self.inner.route(reference.registry(), reference.repository(), &self.credential).await?;
        let path = format!("manifests/{}", reference.digest());
        let mut errors = Vec::new();
        for turn in route.turns(Capability::Pull) {
            match self.inner.manifest(&turn, &path, Some(reference.digest())).await {
                Ok(document) => return Ok(document),
                Err(error) => errors.push(error),
            }
        }
        Err(route.outcome(errors, Capability::Pull))
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
                let words = format!("no byte {offset} in a blob of {} bytes", blob.size());
                return Err(route.place().invalid(words));
            }
        }
        let mut errors = Vec::new();
        for turn in route.turns(Capability::Pull) {
            match self.inner.blob(&turn, blob, offset).await {
                Ok(stream) => return Ok(discreet(stream, route.discretion())),
                Err(error) => errors.push(error),
            }
        }
        let outcome = route.outcome(errors, Capability::Pull);
        if outcome.kind() == RegistryErrorKind::NotFound
            && let Some(turn) = route.turns(Capability::Pull).last()
        {
            for url in turn.foreign_sources(blob) {
                match self.inner.foreign(&turn, url, blob, offset).await {
                    Ok(stream) => return Ok(discreet(stream, route.discretion())),
                    Err(error) => {
                        let error = route.discretion().keep(error);
                        tracing::warn!(%error, "a foreign layer is not there");
                    }
                }
            }
        }
        Err(outcome)
    }

    async fn referrers(&self, subject: &PinnedReference) -> Result<Vec<IndexEntry>, RegistryError> {
        let route = self.inner.route(subject.registry(), subject.repository(), &self.credential).await?;
        let mut errors = Vec::new();
        for turn in route.turns(Capability::Resolve) {
            match self.inner.referrers(&turn, subject.digest()).await {
                Ok(entries) => return Ok(entries),
                Err(error) => errors.push(error),
            }
        }
        Err(route.outcome(errors, Capability::Resolve))
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
            let words = format!("no byte {} in a blob of {} bytes", range.end - 1, blob.size());
            return Err(route.place().invalid(words));
        }
        let mut errors = Vec::new();
        for turn in route.turns(Capability::Pull) {
            match self.inner.part(&turn, blob, &range).await {
                Ok(stream) => return Ok(stream.map(|stream| discreet(stream, route.discretion()))),
                Err(error) => errors.push(error),
            }
        }
        Err(route.outcome(errors, Capability::Pull))
    }

    fn seen_by(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry> {
        Arc::new(Self { inner: Arc::clone(&self.inner), credential })
    }
}

impl Inner {
    async fn resolve(
        &self,
        turn: &Turn<'_>,
        path: &str,
        digest: Option<&Digest>,
    ) -> Result<Descriptor, RegistryError> {
        match self.ask(turn, &Method::HEAD, path, &accept()).await {
            Ok(answer) => {
                if let Some(descriptor) = described(&answer, digest, self.settings.limits)? {
                    return Ok(descriptor);
                }
            }
            Err(error) if !head_may_lie(&error) => return Err(error),
            Err(_) => {}
        }
        self.manifest(turn, path, digest).await.map(|document| document.descriptor().clone())
    }

    /// GET of a manifest: it must have `digest`, or where none is asked for, the one that the registry
    /// says; where it says none, it has its sha256.
    async fn manifest(
        &self,
        turn: &Turn<'_>,
        path: &str,
        digest: Option<&Digest>,
    ) -> Result<VerifiedManifest, RegistryError> {
        let mut done = 0;
        loop {
            done += 1;
            let error = match self.manifest_once(turn, path, digest).await {
                Err(error) if body::broke_off(&error) => error,
                other => return other,
            };
            // What broke before the body is there was asked for as often as it may be.
            if done >= self.tries(turn) || !self.wait(turn, done, None, &error).await {
                return Err(error);
            }
        }
    }

    async fn manifest_once(
        &self,
        turn: &Turn<'_>,
        path: &str,
        digest: Option<&Digest>,
    ) -> Result<VerifiedManifest, RegistryError> {
        let answer = self.ask(turn, &Method::GET, path, &accept()).await?;
        let Answer { response, place, permit: _permit, .. } = answer;
        expect_ok(&response, &place)?;
        let told = told_digest(&response, &place, digest)?;
        let media_type = content_type(&response);
        let (limit, patience) = (self.settings.limits.manifest(), self.patience(turn.deadline));
        let bytes = body::read(response, &place, "a manifest", limit, patience).await?;
        let digest = digest.cloned().or(told).unwrap_or_else(|| Digest::sha256_of(&bytes));
        VerifiedManifest::verify(&digest, media_type.as_deref(), bytes).map_err(|error| match error {
            ManifestError::Digest { .. } => place.untruthful(error.to_string()),
            _ => place.invalid(error.to_string()),
        })
    }

    /// GET of a blob. The range is asked for to its end, so that a server cannot send more in good faith.
    async fn blob(
        &self,
        turn: &Turn<'_>,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        let size = blob.size();
        let headers = part_of(&(offset..size))?;
        let path = format!("blobs/{}", blob.digest());
        let answer = self.ask(turn, &Method::GET, &path, &headers).await?;
        let skip = skipped(&answer.response, &answer.place, size, offset)?;
        Ok(body::blob(answer, skip, size - offset, self.settings.idle))
    }

    /// GET of a range of a blob; `None` where the whole blob comes instead.
    async fn part(
        &self,
        turn: &Turn<'_>,
        blob: &Descriptor,
        range: &Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        let path = format!("blobs/{}", blob.digest());
        let answer = self.ask(turn, &Method::GET, &path, &bytes_of(range)?).await?;
        body::plain(answer.response.headers(), &answer.place)?;
        if answer.response.status() == StatusCode::OK {
            return Ok(None);
        }
        check_part(&answer.response, &answer.place, blob.size(), range)?;
        Ok(Some(body::blob(answer, 0, range.end - range.start, self.settings.idle)))
    }

    /// A blob from one of the `urls` of its descriptor, in nobody's name.
    async fn foreign(
        &self,
        turn: &Turn<'_>,
        url: Url,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        let size = blob.size();
        let answer = self.elsewhere(turn, url, &part_of(&(offset..size))?).await?;
        let skip = skipped(&answer.response, &answer.place, size, offset)?;
        Ok(body::blob(answer, skip, size - offset, self.settings.idle))
    }
}

/// A blob whose errors have none of our secrets: they name where a redirect led.
fn discreet(stream: BlobStream, discretion: Discretion) -> BlobStream {
    Box::pin(stream.map_err(move |error| discretion.keep(error)))
}

/// Headers that ask for a blob, or for the end of one.
fn part_of(range: &Range<u64>) -> Result<HeaderMap, RegistryError> {
    if range.start > 0 { bytes_of(range) } else { Ok(any_type()) }
}

/// Headers that ask for a range of a blob.
fn bytes_of(range: &Range<u64>) -> Result<HeaderMap, RegistryError> {
    let mut headers = any_type();
    let bytes = HeaderValue::from_str(&format!("bytes={}-{}", range.start, range.end - 1));
    headers.insert(header::RANGE, bytes.map_err(|_| Place::named("range").invalid("no range"))?);
    Ok(headers)
}

fn any_type() -> HeaderMap {
    HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("*/*"))])
}

/// Everything that a reference may name, so that no registry converts anything.
fn accept() -> HeaderMap {
    MANIFESTS.into_iter().map(|media_type| (header::ACCEPT, HeaderValue::from_static(media_type))).collect()
}
