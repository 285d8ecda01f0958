//! From what a person wrote to a digest: by the registry, past a cache.
//!
//! A tag's digest is remembered for a short while, that there is no such tag for a shorter one, and what
//! a manifest holds for as long as it is believed that whoever asked may read it: rights change. Lookups of
//! one thing at one time are one request, in a task of their own: a caller that gives up, because its
//! deadline has come, takes nothing from the others that wait for the same. A registry that stalls has so
//! many who wait for it, and no more ([`waiting`]).

mod failure;
mod instructions;
mod waiting;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use moka::Expiry;
use moka::future::Cache;
use oras_csi_core::credentials::{Credential, Fingerprint};
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Printable;
use oras_csi_core::manifest::{Index, IndexEntry};
use oras_csi_core::media_type::MediaType;
use oras_csi_core::platform::Platform;
use oras_csi_core::policy::ArtifactContents;
use oras_csi_core::reference::{PinnedReference, Reference, RegistryHost};
use oras_csi_core::registry::access::{combine_refusals, may_depend_on_credential};
use oras_csi_core::registry::{
    Credentials as _, Keyring, Registry, RegistryError, RegistryErrorKind, Source,
};
use tokio::time::Instant as Deadline;

use crate::contents::{Contents, Nothing};
use crate::metrics::{CacheOutcome, Metrics};

pub(crate) use failure::Failure;
pub(crate) use instructions::Said;
use waiting::Waiting;

/// How long things are remembered, and how many.
#[derive(Clone, Copy, Debug)]
pub struct ResolverSettings {
    /// How long a tag's digest is taken from memory.
    pub tag_ttl: Duration,
    /// How long it is remembered that a tag does not exist.
    pub missing_ttl: Duration,
    /// How long it is remembered that a credential, or anybody, may read what a digest names.
    pub right_ttl: Duration,
    /// How many tags are remembered.
    pub most_tags: u64,
    /// How many layers and index entries of manifests are remembered.
    pub most_entries: u64,
    /// How long one lookup may take, whoever waits for it.
    pub longest_lookup: Duration,
}

impl Default for ResolverSettings {
    fn default() -> Self {
        Self {
            tag_ttl: Duration::from_secs(30),
            missing_ttl: Duration::from_secs(5),
            right_ttl: Duration::from_mins(10),
            most_tags: 10_000,
            most_entries: 100_000,
            longest_lookup: Duration::from_secs(20),
        }
    }
}

/// What a tag was found to be.
#[derive(Clone, Debug)]
enum Tagged {
    Digest(Digest),
    Missing(Arc<RegistryError>),
}

struct TagExpiry {
    found: Duration,
    missing: Duration,
}

/// One credential's answer: nobody else's right, and nobody else's lack of one.
type Tag = (Reference, Fingerprint);
type Manifest = (PinnedReference, Fingerprint);

impl Expiry<Tag, Tagged> for TagExpiry {
    fn expire_after_create(&self, _: &Tag, found: &Tagged, _: Instant) -> Option<Duration> {
        Some(match found {
            Tagged::Digest(_) => self.found,
            Tagged::Missing(_) => self.missing,
        })
    }

    fn expire_after_update(
        &self,
        key: &Tag,
        found: &Tagged,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, found, now)
    }
}

/// What one step needs of its artifact.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs<'a> {
    /// Ask the registry even where the cache knows.
    pub(crate) past_cache: bool,
    /// The platform that was asked for; `None` is the node's, which is not known yet.
    pub(crate) platform: Option<&'a Platform>,
    /// The media types of the layers that are wanted; empty is all.
    pub(crate) media_types: &'a [MediaType],
}

/// Resolves references. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Arc<dyn Registry>,
    tags: Cache<Tag, Tagged>,
    manifests: Cache<Manifest, Arc<Contents>>,
    /// The YAML of recipe artifacts, by who may read it.
    recipes: Cache<Manifest, Arc<str>>,
    longest_lookup: Duration,
    metrics: Arc<Metrics>,
    waiting: Waiting,
}

impl Resolver {
    pub(crate) fn new(
        registry: Arc<dyn Registry>,
        settings: ResolverSettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let expiry = TagExpiry { found: settings.tag_ttl, missing: settings.missing_ttl };
        let tags = Cache::builder().max_capacity(settings.most_tags).expire_after(expiry).build();
        let manifests = Cache::builder()
            .max_capacity(settings.most_entries)
            .weigher(|_: &Manifest, contents: &Arc<Contents>| contents.weight())
            .time_to_live(settings.right_ttl)
            .build();
        let recipes = Cache::builder()
            .max_capacity(instructions::MOST_RECIPES)
            .weigher(|_: &Manifest, yaml: &Arc<str>| u32::try_from(yaml.len()).unwrap_or(u32::MAX))
            .time_to_live(settings.right_ttl)
            .build();
        let longest_lookup = settings.longest_lookup;
        let waiting = Waiting::default();
        let shared = Shared { registry, tags, manifests, recipes, longest_lookup, metrics, waiting };
        Self { shared: Arc::new(shared) }
    }

    /// The digest of what `reference` names, once it is clear that there is something in it to mount, and whose
    /// credential was let in.
    ///
    /// A digest that is written wins over a tag beside it, which then is not looked up at all.
    pub(crate) async fn pin(
        &self,
        reference: &Reference,
        keyring: &Keyring,
        needs: Needs<'_>,
        deadline: Deadline,
    ) -> Result<(Digest, Source), Failure> {
        self.with_each(reference, keyring, deadline, |view| async move {
            let digest = match reference.digest() {
                Some(digest) => digest.clone(),
                None => view.digest_of_tag(reference, needs.past_cache, deadline).await?,
            };
            view.check_contents(&reference.pin(digest.clone()), needs, deadline).await?;
            Ok(digest)
        })
        .await
    }

    /// Asks with each credential until one is let in.
    async fn with_each<T, F>(
        &self,
        reference: &Reference,
        keyring: &Keyring,
        deadline: Deadline,
        ask: impl Fn(View) -> F,
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
            let view = View { shared, credential: candidate.credential().clone() };
            match ask(view).await {
                Ok(found) => return Ok((found, candidate.source().clone())),
                Err(Failure::Registry(error)) if may_depend_on_credential(&error) => {
                    tried.push((candidate.source().clone(), (*error).clone()));
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

/// Registries as one credential sees them.
struct View {
    shared: Arc<Shared>,
    credential: Credential,
}

impl View {
    fn tag(&self, reference: &Reference) -> Tag {
        (reference.clone(), self.credential.fingerprint())
    }

    fn manifest(&self, pinned: &PinnedReference) -> Manifest {
        (pinned.clone(), self.credential.fingerprint())
    }

    fn registry(&self) -> Arc<dyn Registry> {
        Arc::clone(&self.shared.registry).with_credential(self.credential.clone())
    }

    async fn digest_of_tag(
        &self,
        reference: &Reference,
        past_cache: bool,
        deadline: Deadline,
    ) -> Result<Digest, Failure> {
        let started = Instant::now();
        let remembered = if past_cache { None } else { self.shared.tags.get(&self.tag(reference)).await };
        let outcome = match &remembered {
            Some(Tagged::Digest(_)) => CacheOutcome::Hit,
            Some(Tagged::Missing(_)) => CacheOutcome::Negative,
            None if past_cache => CacheOutcome::Bypass,
            None => CacheOutcome::Miss,
        };
        let found = match remembered {
            Some(found) => Ok(found),
            None => self.ask(reference.clone(), past_cache, deadline).await,
        };
        self.shared.metrics.resolved(outcome, started.elapsed());
        match found? {
            Tagged::Digest(digest) => Ok(digest),
            Tagged::Missing(error) => Err(Failure::Registry(error)),
        }
    }

    async fn ask(
        &self,
        reference: Reference,
        past_cache: bool,
        deadline: Deadline,
    ) -> Result<Tagged, Failure> {
        let (shared, registry, key) = (Arc::clone(&self.shared), self.registry(), self.tag(&reference));
        let _ticket = self.shared.waiting.enter(reference.registry())?;
        detached(deadline, async move {
            let ask = shared.ask_for_tag(registry.as_ref(), &reference);
            if past_cache {
                let found = ask.await.map_err(Arc::new)?;
                shared.tags.insert(key, found.clone()).await;
                return Ok(found);
            }
            shared.tags.try_get_with(key, ask).await
        })
        .await
    }

    async fn contents(&self, pinned: &PinnedReference, deadline: Deadline) -> Result<Arc<Contents>, Failure> {
        let key = self.manifest(pinned);
        if let Some(contents) = self.shared.manifests.get(&key).await {
            return Ok(contents);
        }
        let (shared, registry, pinned) = (Arc::clone(&self.shared), self.registry(), pinned.clone());
        let _ticket = self.shared.waiting.enter(pinned.registry())?;
        detached(deadline, async move {
            let ask = shared.ask_for_manifest(registry.as_ref(), &pinned);
            shared.manifests.try_get_with(key, ask).await
        })
        .await
    }

    async fn check_contents(
        &self,
        pinned: &PinnedReference,
        needs: Needs<'_>,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        let contents = self.contents(pinned, deadline).await?;
        match contents.as_ref() {
            Contents::Image(image) => image.check(needs.media_types).map_err(Failure::Nothing),
            Contents::Index(index) => match needs.platform {
                Some(platform) => {
                    let entry = index.select(platform).map_err(Failure::Platform)?;
                    let chosen = pinned.with_digest(entry.descriptor().digest().clone());
                    self.check_image(&chosen, needs, deadline).await
                }
                None => self.check_any(pinned, index, needs, deadline).await,
            },
        }
    }

    /// The node is not known yet: some manifest of the index must have something to mount. The driver
    /// says it if that of the node has not.
    async fn check_any(
        &self,
        pinned: &PinnedReference,
        index: &Index,
        needs: Needs<'_>,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        // Whichever machine asks, the same is asked for, so that a lock file is complete on every other.
        let likeliest = index.select(&Platform::normalized(NODES_OS, "amd64", None)).ok().into_iter();
        let mut failure = Failure::Nothing(Nothing::EmptyIndex);
        for entry in likeliest.chain(index.entries().iter().take(MOST_PLATFORMS)) {
            let candidate = pinned.with_digest(entry.descriptor().digest().clone());
            match self.check_image(&candidate, needs, deadline).await {
                Ok(()) => return Ok(()),
                // A mirror may have left out the manifests of some platforms.
                Err(Failure::Registry(error)) if error.kind() == RegistryErrorKind::NotFound => {
                    failure = Failure::Registry(error);
                }
                Err(Failure::Nothing(nothing)) => failure = Failure::Nothing(nothing),
                Err(other) => return Err(other),
            }
        }
        Err(failure)
    }

    async fn check_image(
        &self,
        pinned: &PinnedReference,
        needs: Needs<'_>,
        deadline: Deadline,
    ) -> Result<(), Failure> {
        match self.contents(pinned, deadline).await?.as_ref() {
            Contents::Image(image) => image.check(needs.media_types).map_err(Failure::Nothing),
            Contents::Index(_) => Err(Failure::Nothing(Nothing::NestedIndex)),
        }
    }
}

impl Resolver {
    /// What policies ask about: the artifact, or each of an index that some node may mount.
    pub(crate) async fn found(
        &self,
        pinned: &PinnedReference,
        keyring: &Keyring,
        needs: Needs<'_>,
        deadline: Deadline,
    ) -> Result<Vec<ArtifactContents>, Failure> {
        let reference = Reference::from(pinned.clone());
        let ask = |view: View| async move { view.found(pinned, needs, deadline).await };
        self.with_each(&reference, keyring, deadline, ask).await.map(|(found, _)| found)
    }
}

impl View {
    async fn found(
        &self,
        pinned: &PinnedReference,
        needs: Needs<'_>,
        deadline: Deadline,
    ) -> Result<Vec<ArtifactContents>, Failure> {
        let contents = self.contents(pinned, deadline).await?;
        let index = match contents.as_ref() {
            Contents::Image(image) => return Ok(vec![image.found(needs.media_types)]),
            Contents::Index(index) => index,
        };
        let entries: Vec<&IndexEntry> = match needs.platform {
            Some(platform) => vec![index.select(platform).map_err(Failure::Platform)?],
            None => index.candidates(NODES_OS).collect(),
        };
        if entries.len() > MOST_CANDIDATES {
            return Err(Failure::TooManyCandidates(entries.len()));
        }
        let look = |entry: &IndexEntry| {
            let candidate = pinned.with_digest(entry.descriptor().digest().clone());
            async move { self.contents(&candidate, deadline).await }
        };
        let lookups: Vec<_> = entries.into_iter().map(look).collect();
        let mut lookups = stream::iter(lookups).buffered(CANDIDATES_AT_ONCE);
        let mut found = Vec::new();
        while let Some(contents) = lookups.next().await {
            match contents?.as_ref() {
                Contents::Image(image) => found.push(image.found(needs.media_types)),
                // The driver mounts no index of an index: whoever gets it gets nothing.
                Contents::Index(_) => {}
            }
        }
        if found.is_empty() { Err(Failure::Nothing(Nothing::NestedIndex)) } else { Ok(found) }
    }
}

/// The system of all nodes that mount anything.
const NODES_OS: &str = "linux";
/// How many manifests of an index policies are asked about, and how many are fetched at once.
const MOST_CANDIDATES: usize = 64;
const CANDIDATES_AT_ONCE: usize = 8;
/// How many manifests of an index are looked at for one with something to mount.
const MOST_PLATFORMS: usize = 16;

impl Shared {
    async fn ask_for_tag(
        &self,
        registry: &dyn Registry,
        reference: &Reference,
    ) -> Result<Tagged, RegistryError> {
        let lookup = registry.resolve(reference);
        let asked = self.bounded(reference.registry(), &reference.name(), lookup).await;
        match asked {
            Ok(descriptor) => Ok(Tagged::Digest(descriptor.digest().clone())),
            Err(error) if may_depend_on_credential(&error) => Ok(Tagged::Missing(Arc::new(error))),
            Err(error) => Err(error),
        }
    }

    async fn ask_for_manifest(
        &self,
        registry: &dyn Registry,
        pinned: &PinnedReference,
    ) -> Result<Arc<Contents>, RegistryError> {
        let lookup = registry.manifest(pinned);
        let document = self.bounded(pinned.registry(), &pinned.name(), lookup).await?;
        Ok(Arc::new(Contents::of(document.manifest(), document.bytes().len())))
    }

    /// No lookup lasts for ever, also when nobody waits for it any more.
    async fn bounded<T>(
        &self,
        host: &RegistryHost,
        at: &str,
        lookup: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        match tokio::time::timeout(self.longest_lookup, lookup).await {
            Ok(answer) => {
                let is_silent = |error: &RegistryError| error.kind() == RegistryErrorKind::Stalled;
                if !answer.as_ref().is_err_and(is_silent) {
                    self.waiting.answered(host);
                }
                answer
            }
            Err(_) => Err(RegistryError::Stalled {
                at: Printable::new(at),
                what: "answer".into(),
                after: self.longest_lookup,
            }),
        }
    }
}

/// Runs a lookup in a task of its own and waits for it until the deadline.
async fn detached<T: Send + 'static>(
    deadline: Deadline,
    lookup: impl Future<Output = Result<T, Arc<RegistryError>>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::time::timeout_at(deadline, tokio::spawn(lookup)).await {
        Ok(Ok(found)) => found.map_err(Failure::Registry),
        Ok(Err(error)) => {
            tracing::error!(%error, "a lookup ended in a panic");
            Err(Failure::Crashed)
        }
        Err(_) => Err(Failure::Deadline),
    }
}
