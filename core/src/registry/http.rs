//! [`Registry`] over HTTP (OCI distribution-spec 1.1).
//!
//! On reqwest rather than oci-client, which writes for us ([`super::push`]): for reading from registries
//! that are not trusted, oci-client 0.18 reads manifests, tokens and errors without a bound, follows
//! redirects by reqwest's default (to any address, from https to http), and has neither deadlines nor
//! retries nor more than one mirror.

mod referrers;
mod request;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Response;
use url::Url;

pub(in crate::registry) use self::referrers::referrers_tag;
use self::request::{Capability, Discretion, Turn};
use super::auth::Tokens;
use super::body;
use super::guard::{Names, SystemNames};
use super::hosts::HostsConfig;
use super::proxy::Proxies;
use super::retry;
use super::transport::{Answer, Bounds, Place, Transport};
use super::{
    BlobStream, Descriptor, IndexEntry, Limits, ManifestDocument, ManifestError, Registry, RegistryError,
    RegistryErrorKind, media,
};
use crate::credentials::Credential;
use crate::digest::Digest;
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

    async fn manifest(&self, reference: &PinnedReference) -> Result<ManifestDocument, RegistryError> {
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
    ) -> Result<ManifestDocument, RegistryError> {
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
    ) -> Result<ManifestDocument, RegistryError> {
        let answer = self.ask(turn, &Method::GET, path, &accept()).await?;
        let Answer { response, place, permit: _permit, .. } = answer;
        expect_ok(&response, &place)?;
        let told = told_digest(&response, &place, digest)?;
        let media_type = content_type(&response);
        let (limit, patience) = (self.settings.limits.manifest(), self.patience(turn.deadline));
        let bytes = body::read(response, &place, "a manifest", limit, patience).await?;
        let digest = digest.cloned().or(told).unwrap_or_else(|| Digest::sha256_of(&bytes));
        ManifestDocument::verify(&digest, media_type.as_deref(), bytes).map_err(|error| match error {
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
        let headers = part_of(size, offset)?;
        let path = format!("blobs/{}", blob.digest());
        let answer = self.ask(turn, &Method::GET, &path, &headers).await?;
        let skip = skipped(&answer.response, &answer.place, size, offset)?;
        Ok(body::blob(answer, skip, size - offset, self.settings.idle))
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
        let answer = self.elsewhere(turn, url, &part_of(size, offset)?).await?;
        let skip = skipped(&answer.response, &answer.place, size, offset)?;
        Ok(body::blob(answer, skip, size - offset, self.settings.idle))
    }
}

/// A blob whose errors have none of our secrets: they name where a redirect led.
fn discreet(stream: BlobStream, discretion: Discretion) -> BlobStream {
    Box::pin(stream.map_err(move |error| discretion.keep(error)))
}

/// Headers that ask for a blob from an offset on.
fn part_of(size: u64, offset: u64) -> Result<HeaderMap, RegistryError> {
    let mut headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("*/*"))]);
    if offset > 0 {
        let range = HeaderValue::from_str(&format!("bytes={offset}-{}", size - 1));
        headers.insert(header::RANGE, range.map_err(|_| Place::named("range").invalid("no range"))?);
    }
    Ok(headers)
}

fn expect_ok(response: &Response, place: &Place) -> Result<(), RegistryError> {
    match response.status() {
        StatusCode::OK => Ok(()),
        status => Err(place.untruthful(format!("answered with {status}, which was not asked for"))),
    }
}

/// What a HEAD says, if it says all of it; `None` where a GET must tell.
fn described(
    answer: &Answer,
    asked: Option<&Digest>,
    limits: Limits,
) -> Result<Option<Descriptor>, RegistryError> {
    let Answer { response, place, .. } = answer;
    expect_ok(response, place)?;
    let told = told_digest(response, place, asked)?;
    let size = body::content_length(response.headers());
    if size.is_some_and(|size| size > limits.manifest()) {
        return Err(RegistryError::TooLarge { at: place.at(), what: "a manifest", limit: limits.manifest() });
    }
    let media_type = content_type(response).map(|text| essence(&text)).filter(|essence| is_manifest(essence));
    Ok(match (asked.cloned().or(told), size, media_type) {
        (Some(digest), Some(size), Some(media_type)) if size > 0 => {
            Some(Descriptor::new(media_type, digest, size))
        }
        _ => None,
    })
}

/// `Docker-Content-Digest` (distribution-spec, "Pulling manifests"): a digest, and the one that was asked
/// for if one was, unless it is of another algorithm.
fn told_digest(
    response: &Response,
    place: &Place,
    asked: Option<&Digest>,
) -> Result<Option<Digest>, RegistryError> {
    let mut values = response.headers().get_all("docker-content-digest").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.any(|other| other != value) {
        return Err(place.untruthful("it has two Docker-Content-Digest that differ"));
    }
    let text = String::from_utf8_lossy(value.as_bytes());
    let told = text.parse::<Digest>();
    let told = told.map_err(|error| place.untruthful(format!("in Docker-Content-Digest, {error}")))?;
    match asked {
        Some(asked) if asked.algorithm() == told.algorithm() && *asked != told => {
            Err(place.untruthful(format!("it says that it is {told}")))
        }
        _ => Ok(Some(told)),
    }
}

/// How much of the body comes before the offset, after checking that it is the part that was asked for.
///
/// A server that does not know ranges sends everything (RFC 9110, 14.2). The part we have is then read
/// again and dropped: it costs what starting over would, and the caller keeps what it has hashed.
fn skipped(response: &Response, place: &Place, size: u64, offset: u64) -> Result<u64, RegistryError> {
    body::plain(response.headers(), place)?;
    let length = body::content_length(response.headers());
    let differs = |what: &str, told: u64, wanted: u64| {
        Err(place.untruthful(format!("{what} {told} bytes, the manifest says {wanted}")))
    };
    match response.status() {
        StatusCode::OK => match length {
            Some(told) if told != size => differs("the blob is announced with", told, size),
            _ => Ok(offset),
        },
        StatusCode::PARTIAL_CONTENT if offset > 0 => {
            let Some((first, last, total)) = body::content_range(response.headers()) else {
                return Err(place.untruthful("a part without a Content-Range that can be read"));
            };
            if first != offset || last < first || last >= size {
                let words = format!("bytes {first}-{last}, asked was {offset}-{}", size - 1);
                return Err(place.untruthful(words));
            }
            if let Some(told) = total.filter(|told| *told != size) {
                return differs("the blob is announced with", told, size);
            }
            // A shorter part than asked for is allowed; the stream's end tells.
            match length {
                Some(told) if told != last - first + 1 => differs("a part of", told, last - first + 1),
                _ => Ok(0),
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            Err(place.untruthful(format!("it has no byte {offset}, the manifest says {size} bytes")))
        }
        _ => expect_ok(response, place).map(|()| offset),
    }
}

/// Whether a GET may succeed, or tell more, where a HEAD failed: some registries and proxies do not know
/// HEAD, and its refusals have no body.
fn head_may_lie(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Refused { status: 400 | 401 | 403 | 405 | 406, .. })
        || matches!(error, RegistryError::Unavailable { status: 501, .. })
}

fn content_type(response: &Response) -> Option<String> {
    response.headers().get(header::CONTENT_TYPE)?.to_str().ok().map(str::to_owned)
}

fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Types of manifests, those that are meant first.
const MANIFESTS: [&str; 5] =
    [media::OCI_MANIFEST, media::OCI_INDEX, media::DOCKER_MANIFEST, media::DOCKER_LIST, media::OCI_ARTIFACT];

fn is_manifest(essence: &str) -> bool {
    MANIFESTS.contains(&essence)
}

/// Everything that a reference may name, so that no registry converts anything.
fn accept() -> HeaderMap {
    MANIFESTS.into_iter().map(|media_type| (header::ACCEPT, HeaderValue::from_static(media_type))).collect()
}
