//! Resolves references with the registry's answers, behind a cache.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use moka::Expiry;
use moka::future::Cache;
use oras_csi_core::credentials::{Credential, Fingerprint};
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Printable;
use oras_csi_core::manifest::LayerSelection;
use oras_csi_core::manifest::{Index, IndexEntry};
use oras_csi_core::platform::Platform;
use oras_csi_core::policy::ArtifactContents;
use oras_csi_core::reference::{PinnedReference, Reference, RegistryHost};
use oras_csi_core::registry::access::{combine_refusals, may_depend_on_credential, with_sources};
use oras_csi_core::registry::{
    Credentials as _, Keyring, Registry, RegistryError, RegistryErrorKind, Source,
};
use tokio::time::Instant as Deadline;
use tracing::Instrument as _;

use super::backpressure::Backpressure;
use super::failure::{Failure, MAX_CANDIDATES};
use super::settings::ResolverSettings;
use crate::contents::{Contents, Image, NothingToMount};
use crate::metrics::{CacheOutcome, Metrics};

/// Manifests of at most this size are read at once, on the thread of the lookup.
const MAX_READ_INLINE: usize = 64 << 10;
/// How many bytes of recipe artifacts are cached.
const MAX_RECIPE_BYTES: u64 = 4 << 20;

/// A registry's answer for a tag.
#[derive(Clone, Debug)]
enum TagAnswer {
    Digest(Digest),
    Missing(Arc<RegistryError>),
}

struct TagExpiry {
    found: Duration,
    missing: Duration,
}

/// Answers are cached for each credential, because they say what that credential may read.
type TagKey = (Reference, Fingerprint);
type ManifestKey = (PinnedReference, Fingerprint);

impl Expiry<TagKey, TagAnswer> for TagExpiry {
    fn expire_after_create(&self, _: &TagKey, found: &TagAnswer, _: Instant) -> Option<Duration> {
        Some(match found {
            TagAnswer::Digest(_) => self.found,
            TagAnswer::Missing(_) => self.missing,
        })
    }

    fn expire_after_update(
        &self,
        key: &TagKey,
        found: &TagAnswer,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, found, now)
    }
}

/// What one step requires of its artifact.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requirements<'a> {
    /// Whether the registry is contacted even where the cache has the tag.
    pub(crate) bypass_cache: bool,
    /// The requested platform; `None` is the node's, which is not known yet.
    pub(crate) platform: Option<&'a Platform>,
    /// Which layers are requested.
    pub(crate) selection: LayerSelection<'a>,
}

/// The answer for a reference.
#[derive(Clone, Debug)]
pub(crate) struct Resolution {
    pub(crate) digest: Digest,
    /// The source of the credential that was accepted.
    pub(crate) source: Source,
    /// The types of layers that have no file name and are not mounted, beside others that have one.
    pub(crate) unnamed: Vec<String>,
}

/// Resolves references. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resolver {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    registry: Arc<dyn Registry>,
    tags: Cache<TagKey, TagAnswer>,
    manifests: Cache<ManifestKey, Arc<Contents>>,
    /// The YAML of recipe artifacts, for each credential.
    pub(super) recipes: Cache<ManifestKey, Arc<str>>,
    max_lookup: Duration,
    metrics: Arc<Metrics>,
    pub(super) backpressure: Backpressure,
}

impl Resolver {
    pub(crate) fn new(
        registry: Arc<dyn Registry>,
        settings: ResolverSettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let expiry = TagExpiry { found: settings.tag_ttl, missing: settings.missing_ttl };
        let tags = Cache::builder().max_capacity(settings.max_tags).expire_after(expiry).build();
        let manifests = Cache::builder()
            .max_capacity(settings.max_entries)
            .weigher(|_: &ManifestKey, contents: &Arc<Contents>| contents.weight())
            .time_to_live(settings.authorization_ttl)
            .build();
        let recipes = Cache::builder()
            .max_capacity(MAX_RECIPE_BYTES)
            .weigher(|_: &ManifestKey, yaml: &Arc<str>| u32::try_from(yaml.len()).unwrap_or(u32::MAX))
            .time_to_live(settings.authorization_ttl)
            .build();
        let max_lookup = settings.max_lookup;
        let backpressure = Backpressure::new(settings.unresponsive_after);
        let shared = Shared { registry, tags, manifests, recipes, max_lookup, metrics, backpressure };
        Self { shared: Arc::new(shared) }
    }

    /// Resolves a reference, and checks that the artifact has something to mount.
    ///
    /// A digest in the reference takes precedence over a tag beside it, which is then not looked up.
    pub(crate) async fn resolve(
        &self,
        reference: &Reference,
        keyring: &Keyring,
        requirements: Requirements<'_>,
        deadline: Deadline,
    ) -> Result<Resolution, Failure> {
        let found = self.try_each_credential(reference, keyring, deadline, |view| async move {
            let digest = match reference.digest() {
                Some(digest) => digest.clone(),
                None => view.digest_of_tag(reference, requirements.bypass_cache, deadline).await?,
            };
            let unnamed = view.check_contents(&reference.pin(digest.clone()), requirements, deadline).await?;
            Ok((digest, unnamed))
        });
        let ((digest, unnamed), source) = found.await?;
        Ok(Resolution { digest, source, unnamed })
    }

    /// Sends a request with each credential until the registry accepts one.
    pub(super) async fn try_each_credential<T, F>(
        &self,
        reference: &Reference,
        keyring: &Keyring,
        deadline: Deadline,
        ask: impl Fn(CredentialView) -> F,
    ) -> Result<(T, Source), Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let candidates = keyring.candidates(reference.registry(), reference.repository());
        let candidates =
            tokio::time::timeout_at(deadline, candidates).await.map_err(|_| Failure::Deadline)?;
        let mut tried = Vec::new();
        for candidate in candidates {
            let shared = Arc::clone(&self.shared);
            let view = CredentialView { shared, credential: candidate.credential().clone() };
            match ask(view).await {
                Ok(found) => return Ok((found, candidate.source().clone())),
                Err(Failure::Registry(error)) if may_depend_on_credential(&error) => {
                    tried.push((candidate.source().clone(), (*error).clone()));
                }
                Err(Failure::Registry(error)) => {
                    let error = with_sources((*error).clone(), &tried, candidate.source());
                    return Err(Failure::Registry(Arc::new(error)));
                }
                Err(other) => return Err(other),
            }
        }
        match combine_refusals(tried) {
            Some(error) => Err(Failure::Registry(Arc::new(error))),
            None => Err(Failure::Crashed),
        }
    }
}

/// The registries, accessed with one credential.
pub(super) struct CredentialView {
    pub(super) shared: Arc<Shared>,
    credential: Credential,
}

impl CredentialView {
    fn tag_key(&self, reference: &Reference) -> TagKey {
        (reference.clone(), self.credential.fingerprint())
    }

    pub(super) fn manifest_key(&self, pinned: &PinnedReference) -> ManifestKey {
        (pinned.clone(), self.credential.fingerprint())
    }

    pub(super) fn registry(&self) -> Arc<dyn Registry> {
        Arc::clone(&self.shared.registry).with_credential(self.credential.clone())
    }

    pub(super) async fn digest_of_tag(
        &self,
        reference: &Reference,
        bypass_cache: bool,
        deadline: Deadline,
    ) -> Result<Digest, Failure> {
        let started = Instant::now();
        let cached = if bypass_cache { None } else { self.shared.tags.get(&self.tag_key(reference)).await };
        let outcome = match &cached {
            Some(TagAnswer::Digest(_)) => CacheOutcome::Hit,
            Some(TagAnswer::Missing(_)) => CacheOutcome::Negative,
            None if bypass_cache => CacheOutcome::Bypass,
            None => CacheOutcome::Miss,
        };
        let found = match cached {
            Some(found) => Ok(found),
            None => self.request_tag(reference.clone(), bypass_cache, deadline).await,
        };
        self.shared.metrics.resolved(outcome, started.elapsed());
        match found? {
            TagAnswer::Digest(digest) => Ok(digest),
            TagAnswer::Missing(error) => Err(Failure::Registry(error)),
        }
    }

    async fn request_tag(
        &self,
        reference: Reference,
        bypass_cache: bool,
        deadline: Deadline,
    ) -> Result<TagAnswer, Failure> {
        let (shared, registry, key) = (Arc::clone(&self.shared), self.registry(), self.tag_key(&reference));
        let _waiter = self.shared.backpressure.enter(reference.registry())?;
        detached(deadline, async move {
            let ask = shared.request_tag(registry.as_ref(), &reference);
            if bypass_cache {
                let found = ask.await.map_err(Arc::new)?;
                shared.tags.insert(key, found.clone()).await;
                return Ok(found);
            }
            shared.tags.try_get_with(key, ask).await
        })
        .await
    }

    pub(super) async fn contents(
        &self,
        pinned: &PinnedReference,
        deadline: Deadline,
    ) -> Result<Arc<Contents>, Failure> {
        let key = self.manifest_key(pinned);
        if let Some(contents) = self.shared.manifests.get(&key).await {
            return Ok(contents);
        }
        let (shared, registry, pinned) = (Arc::clone(&self.shared), self.registry(), pinned.clone());
        let _waiter = self.shared.backpressure.enter(pinned.registry())?;
        detached(deadline, async move {
            let ask = shared.request_manifest(registry.as_ref(), &pinned);
            shared.manifests.try_get_with(key, ask).await
        })
        .await
    }

    /// Checks that there is something to mount. Returns the types of the layers that are not mounted, because they have no
    /// file name.
    async fn check_contents(
        &self,
        pinned: &PinnedReference,
        requirements: Requirements<'_>,
        deadline: Deadline,
    ) -> Result<Vec<String>, Failure> {
        let search = Search { requirements, deadline, left: AtomicUsize::new(MAX_CANDIDATES) };
        self.check_below(pinned, &search, 0).await
    }

    /// Checks a manifest that `depth` indexes lead to.
    async fn check_below(
        &self,
        pinned: &PinnedReference,
        search: &Search<'_>,
        depth: usize,
    ) -> Result<Vec<String>, Failure> {
        let contents = self.contents(pinned, search.deadline).await?;
        match contents.as_ref() {
            Contents::Image(image) => check(image, search.requirements),
            Contents::Index(_) if depth >= Index::MAX_DEPTH => {
                Err(Failure::NothingToMount(NothingToMount::NestedIndex))
            }
            Contents::Index(index) => match search.requirements.platform {
                Some(_) if index.entries().is_empty() => {
                    Err(Failure::NothingToMount(NothingToMount::EmptyIndex))
                }
                Some(platform) => {
                    let entry = index.select(platform).map_err(Failure::Platform)?;
                    let chosen = pinned.with_digest(entry.descriptor().digest().clone());
                    Box::pin(self.check_below(&chosen, search, depth + 1)).await
                }
                None => self.check_any(pinned, index, search, depth).await,
            },
        }
    }

    /// Checks that some manifest of an index has something to mount. The node, and so its platform, is not known yet; the
    /// driver reports an error if the manifest of the node's platform has nothing to mount.
    async fn check_any(
        &self,
        pinned: &PinnedReference,
        index: &Index,
        search: &Search<'_>,
        depth: usize,
    ) -> Result<Vec<String>, Failure> {
        // The order does not depend on the machine, so that a lock file of `oras-csi render` is complete on any other.
        let likeliest = index.select(&Platform::normalized(NODES_OS, "amd64", None));
        let mut failure = match &likeliest {
            _ if index.entries().is_empty() => Failure::NothingToMount(NothingToMount::EmptyIndex),
            Err(error) if index.candidates(NODES_OS).next().is_none() => {
                return Err(Failure::Platform(error.clone()));
            }
            _ => Failure::NothingToMount(NothingToMount::NoName { found: String::new() }),
        };
        let candidates = index.candidates(NODES_OS).take(MAX_PLATFORMS);
        for entry in likeliest.ok().into_iter().chain(candidates) {
            let candidate = pinned.with_digest(entry.descriptor().digest().clone());
            // The outermost index has a limit of its own. All others share one, so that the work does not multiply with each
            // level.
            if depth > 0 && !search.may_look_at_one_more() {
                break;
            }
            match Box::pin(self.check_below(&candidate, search, depth + 1)).await {
                Ok(unnamed) => return Ok(unnamed),
                // A mirror may lack the manifests of some platforms.
                Err(Failure::Registry(error)) if error.kind() == RegistryErrorKind::NotFound => {
                    failure = Failure::Registry(error);
                }
                Err(inner @ (Failure::NothingToMount(_) | Failure::Platform(_))) => failure = inner,
                Err(other) => return Err(other),
            }
        }
        Err(failure)
    }
}

/// A search for something to mount below an index.
struct Search<'a> {
    requirements: Requirements<'a>,
    deadline: Deadline,
    /// How many manifests below nested indexes may still be looked at.
    left: AtomicUsize,
}

impl Search<'_> {
    fn may_look_at_one_more(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

fn check(image: &Image, requirements: Requirements<'_>) -> Result<Vec<String>, Failure> {
    image.check(requirements.selection).map_err(Failure::NothingToMount)?;
    Ok(image.unnamed(requirements.selection))
}

impl Resolver {
    /// Returns what policies check: the artifact, or each manifest of an index that a node may mount.
    pub(crate) async fn contents_for_policy(
        &self,
        pinned: &PinnedReference,
        keyring: &Keyring,
        requirements: Requirements<'_>,
        deadline: Deadline,
    ) -> Result<Vec<ArtifactContents>, Failure> {
        let reference = Reference::from(pinned.clone());
        let ask = |view: CredentialView| async move {
            view.contents_for_policy(pinned, requirements, deadline).await
        };
        self.try_each_credential(&reference, keyring, deadline, ask).await.map(|(found, _)| found)
    }
}

impl CredentialView {
    async fn contents_for_policy(
        &self,
        pinned: &PinnedReference,
        requirements: Requirements<'_>,
        deadline: Deadline,
    ) -> Result<Vec<ArtifactContents>, Failure> {
        let mut found = Vec::new();
        let mut level = vec![pinned.clone()];
        let (mut seen, mut candidates) = (HashSet::new(), 0);
        // The last level has only manifests: the driver follows no index below it.
        for _ in 0..=Index::MAX_DEPTH {
            let look = |candidate: PinnedReference| async move { self.contents(&candidate, deadline).await };
            let lookups: Vec<_> = level.drain(..).map(look).collect();
            let mut lookups = stream::iter(lookups).buffered(CANDIDATES_AT_ONCE);
            while let Some(contents) = lookups.next().await {
                let contents = contents?;
                let index = match contents.as_ref() {
                    Contents::Image(image) => {
                        found.push(image.found(requirements.selection));
                        continue;
                    }
                    Contents::Index(index) => index,
                };
                let entries: Vec<&IndexEntry> = match requirements.platform {
                    Some(platform) => vec![index.select(platform).map_err(Failure::Platform)?],
                    None => index.candidates(NODES_OS).collect(),
                };
                candidates += entries.len();
                if candidates > MAX_CANDIDATES {
                    return Err(Failure::TooManyCandidates(candidates));
                }
                let digests = entries.into_iter().map(|entry| entry.descriptor().digest());
                let new = digests.filter(|digest| seen.insert((*digest).clone()));
                level.extend(new.map(|digest| pinned.with_digest(digest.clone())));
            }
        }
        if found.is_empty() { Err(Failure::NothingToMount(NothingToMount::NestedIndex)) } else { Ok(found) }
    }
}

/// The operating system of the nodes that the driver runs on.
const NODES_OS: &str = "linux";
/// How many manifests of an index are fetched at once.
const CANDIDATES_AT_ONCE: usize = 8;
/// How many manifests of an index are searched for one with something to mount.
const MAX_PLATFORMS: usize = 16;

impl Shared {
    async fn request_tag(
        &self,
        registry: &dyn Registry,
        reference: &Reference,
    ) -> Result<TagAnswer, RegistryError> {
        let lookup = registry.resolve(reference);
        let answer = self.bounded(reference.registry(), &reference.name(), lookup).await;
        match answer {
            Ok(descriptor) => Ok(TagAnswer::Digest(descriptor.digest().clone())),
            Err(error) if may_depend_on_credential(&error) => Ok(TagAnswer::Missing(Arc::new(error))),
            Err(error) => Err(error),
        }
    }

    async fn request_manifest(
        &self,
        registry: &dyn Registry,
        pinned: &PinnedReference,
    ) -> Result<Arc<Contents>, RegistryError> {
        let lookup = registry.manifest(pinned);
        let document = self.bounded(pinned.registry(), &pinned.name(), lookup).await?;
        let length = document.bytes().len();
        if length <= MAX_READ_INLINE {
            return Ok(Arc::new(Contents::of(document.manifest(), length)));
        }
        // Thousands of layers take milliseconds, which other reviews must not wait for.
        let read = tokio::task::spawn_blocking(move || Contents::of(document.manifest(), length));
        let contents = read.await.map_err(|error| RegistryError::Unreachable {
            at: Printable::new(&pinned.to_string()),
            words: Printable::new(&format!("reading the manifest stopped: {error}")),
        })?;
        Ok(Arc::new(contents))
    }

    /// Limits the time of a lookup, also when no request waits for it any more.
    pub(super) async fn bounded<T>(
        &self,
        host: &RegistryHost,
        at: &str,
        lookup: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        match tokio::time::timeout(self.max_lookup, lookup).await {
            Ok(answer) => {
                let is_silent = |error: &RegistryError| error.kind() == RegistryErrorKind::Stalled;
                if !answer.as_ref().is_err_and(is_silent) {
                    self.backpressure.record_answer(host);
                }
                answer
            }
            Err(_) => Err(RegistryError::Stalled {
                at: Printable::new(at),
                what: "answer".into(),
                after: self.max_lookup,
            }),
        }
    }
}

/// Runs a lookup in a task of its own, and waits for it until the deadline.
pub(super) async fn detached<T: Send + 'static>(
    deadline: Deadline,
    lookup: impl Future<Output = Result<T, Arc<RegistryError>>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::time::timeout_at(deadline, tokio::spawn(lookup.in_current_span())).await {
        Ok(Ok(found)) => found.map_err(Failure::Registry),
        Ok(Err(error)) => {
            tracing::error!(%error, "a registry lookup panicked");
            Err(Failure::Crashed)
        }
        Err(_) => Err(Failure::Deadline),
    }
}
