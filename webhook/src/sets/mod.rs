//! Sets: recipes under a name, which pods ask for instead of references.
//!
//! A [`SetStore`] has the objects, of a cluster ([`ClusterSets`]) or of a stream of manifests ([`MemorySets`]);
//! [`SetBook`] says which of them a name means to a namespace. [`controller`] keeps in their status what their tags
//! stand for, so that asking by name asks no registry.
//!
//! Architecture Invariant: nobody shadows a cluster set. Where a namespace may use one, its name means that one, and no
//! set of that name is made there.
//!
//! Architecture Invariant: a recipe counts for the generation of the spec that it was made from, and for no other.

mod cluster;
mod controller;
mod error;
mod memory;
mod nodes;
pub mod object;
pub(crate) mod recipe;
mod status;

use std::sync::Arc;

use async_trait::async_trait;
use kube::core::SelectorExt as _;
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;
use oras_csi_core::recipe::{PinnedRecipe, Recipe, WrittenRecipe};
use oras_csi_core::reference::Reference;
use tokio::time::Instant;

use self::object::{ArtifactSet, ClusterArtifactSet, SetStatus};
use self::recipe::SetStep;
use crate::credentials::{NoSecrets, Secrets};
use crate::denial::Denial;
use crate::policy::{Labels, selector};
use crate::registries::Registries;

pub use cluster::ClusterSets;
pub use controller::keep;
pub use error::{SetError, SetPlace};
pub use memory::{MemorySets, TakeError, is_set};
pub use status::Resolved;

/// Has the objects, and the labels of namespaces.
#[async_trait]
pub trait SetStore: Send + Sync + 'static {
    /// The cluster set of that name.
    async fn cluster_set(&self, name: &str) -> Result<Option<ClusterArtifactSet>, SetError>;
    /// The set of that name in a namespace.
    async fn own_set(&self, namespace: &str, name: &str) -> Result<Option<ArtifactSet>, SetError>;
    /// The labels of a namespace.
    async fn labels(&self, namespace: &str) -> Result<Labels, SetError>;
    /// Names of sets that somebody in that namespace may have meant; an empty list where that is hard to tell.
    async fn names(&self, namespace: &str) -> Vec<String>;
    /// Makes a set; gives the one that is there, where there is one of that name.
    async fn make(&self, namespace: &str, set: &ArtifactSet) -> Result<Option<ArtifactSet>, SetError>;
}

/// A set whose recipe has to be resolved.
#[derive(Clone, Copy, Debug)]
pub struct SetToResolve<'a> {
    /// The set's namespace; `None` for a cluster set.
    pub namespace: Option<&'a str>,
    /// The set's name.
    pub name: &'a str,
    /// The steps of its spec.
    pub steps: &'a [SetStep],
    /// The pull secret that its spec names.
    pub secret: Option<&'a str>,
}

/// Resolves the recipes of sets.
#[async_trait]
pub trait SetResolver: Send + Sync + 'static {
    /// Resolves the tags of a set, past every cache.
    async fn resolve_set(&self, set: SetToResolve<'_>, deadline: Instant) -> Result<Resolved, Denial>;
}

/// Which set a name means.
#[derive(Clone)]
pub struct SetBook {
    store: Arc<dyn SetStore>,
    secrets: Arc<dyn Secrets>,
    /// Where the Secrets are that cluster sets name.
    namespace: String,
}

/// A set that a namespace may use.
#[derive(Clone, Debug)]
pub(crate) struct FoundSet {
    pub(crate) place: SetPlace,
    pub(crate) name: String,
    pub(crate) written: WrittenRecipe,
    /// What the steps of the recipe are to be told as, in their order: as they are written, or as status has them
    /// where a patch says what they are.
    pub(crate) references: Vec<Reference>,
    pub(crate) pinned: PinnedRecipe,
    /// What it was before, the newest first, and how that was written then.
    history: Vec<(PinnedRecipe, Vec<Reference>)>,
    /// The pull secret that a cluster set names.
    pub(crate) secret: Option<String>,
}

impl FoundSet {
    pub(crate) fn is_cluster_set(&self) -> bool {
        matches!(self.place, SetPlace::Cluster(_))
    }

    /// The kind of its object.
    pub(crate) fn kind(&self) -> &'static str {
        if self.is_cluster_set() { "ClusterArtifactSet" } else { "ArtifactSet" }
    }

    /// The set as it was when its recipe had that digest; `None` where it no longer knows.
    pub(crate) fn as_of(&self, digest: &Digest) -> Option<Self> {
        if self.pinned.digest() == *digest {
            return Some(self.clone());
        }
        let (pinned, references) =
            self.history.iter().find(|(recipe, _)| recipe.digest() == *digest)?.clone();
        Some(Self { references, pinned, ..self.clone() })
    }

    /// The patches that are written.
    pub(crate) fn patches(&self) -> impl Iterator<Item = (usize, &Reference)> {
        self.written.patches().map(|(number, step)| (number, step.reference()))
    }
}

/// The name that is asked for, when something shall be made under it.
pub(crate) enum Taken {
    /// Nothing has it.
    Free,
    /// The namespace's set of that very recipe; its pinned recipe, where it is known.
    Same(Option<Box<FoundSet>>),
}

/// The status of a set that was resolved for the first time, at this moment.
pub(crate) fn resolved_now(generation: i64, resolved: Resolved) -> SetStatus {
    status::resolved(None, generation, resolved, status::now())
}

/// Whether a status has the recipe of that generation.
pub(crate) fn is_current(status: Option<&SetStatus>, generation: i64) -> bool {
    status.is_some_and(|status| status.recipe.is_some() && status.recipe_generation == Some(generation))
}

/// The status once a set was looked up, at this moment.
pub(crate) fn status_now(
    before: Option<&SetStatus>,
    generation: i64,
    found: Result<Resolved, Denial>,
) -> SetStatus {
    match found {
        Ok(resolved) => status::resolved(before, generation, resolved, status::now()),
        Err(denial) => {
            let reason = status::reason_of(denial.code());
            status::failed(before, generation, reason, denial.message(), status::now())
        }
    }
}

impl SetBook {
    /// Over these objects; cluster sets name no Secret that could be read.
    pub fn new(store: Arc<dyn SetStore>) -> Self {
        Self { store, secrets: Arc::new(NoSecrets), namespace: String::new() }
    }

    /// With the Secrets of that namespace for cluster sets.
    #[must_use]
    pub fn with_secrets(self, secrets: Arc<dyn Secrets>, namespace: impl Into<String>) -> Self {
        Self { secrets, namespace: namespace.into(), ..self }
    }

    pub(crate) fn secrets(&self) -> (&dyn Secrets, &str) {
        (self.secrets.as_ref(), &self.namespace)
    }

    /// The set that `name` means to a namespace.
    pub(crate) async fn find(
        &self,
        namespace: &str,
        name: &str,
        registries: &dyn Registries,
    ) -> Result<FoundSet, SetError> {
        let cluster = self.store.cluster_set(name).await?;
        if let Some(set) = &cluster
            && self.is_for(set, namespace).await?
        {
            let place = SetPlace::Cluster(name.into());
            let (spec, generation) = (&set.spec, set.metadata.generation.unwrap_or_default());
            let secret = spec.pull_secret.as_ref().map(|secret| secret.name.clone());
            return read(place, name, &spec.recipe, generation, set.status.as_ref(), secret, registries);
        }
        if let Some(set) = self.store.own_set(namespace, name).await? {
            let place = SetPlace::Own { namespace: namespace.into(), name: name.into() };
            let generation = set.metadata.generation.unwrap_or_default();
            return read(place, name, &set.spec.recipe, generation, set.status.as_ref(), None, registries);
        }
        if cluster.is_some() {
            return Err(SetError::NotForNamespace { name: name.into(), namespace: namespace.into() });
        }
        let nearest = nearest(name, self.store.names(namespace).await);
        Err(SetError::Missing { name: name.into(), namespace: namespace.into(), nearest })
    }

    /// Whether a set of that recipe may be made, or is there.
    pub(crate) async fn taken(
        &self,
        namespace: &str,
        name: &str,
        recipe: &WrittenRecipe,
        registries: &dyn Registries,
    ) -> Result<Taken, SetError> {
        if let Some(set) = self.store.cluster_set(name).await?
            && self.is_for(&set, namespace).await?
        {
            return Err(SetError::Shadows { name: name.into() });
        }
        match self.store.own_set(namespace, name).await? {
            None => Ok(Taken::Free),
            Some(set) => {
                compare(namespace, name, &set, recipe, registries)?;
                let place = SetPlace::Own { namespace: namespace.into(), name: name.into() };
                let generation = set.metadata.generation.unwrap_or_default();
                let found =
                    read(place, name, &set.spec.recipe, generation, set.status.as_ref(), None, registries);
                Ok(Taken::Same(found.ok().map(Box::new)))
            }
        }
    }

    /// Makes a set, unless somebody else has made the same meanwhile.
    pub(crate) async fn make(
        &self,
        namespace: &str,
        set: &ArtifactSet,
        recipe: &WrittenRecipe,
        registries: &dyn Registries,
    ) -> Result<(), SetError> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        match self.store.make(namespace, set).await? {
            None => Ok(()),
            Some(other) => compare(namespace, name, &other, recipe, registries),
        }
    }

    async fn is_for(&self, set: &ClusterArtifactSet, namespace: &str) -> Result<bool, SetError> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let selector = selector::read(set.spec.namespace_selector.clone());
        let selector = selector.map_err(|error| SetError::Broken {
            place: SetPlace::Cluster(name.into()),
            words: Shown::new(&error.to_string()),
        })?;
        if selector.selects_all() {
            return Ok(true);
        }
        Ok(match self.store.labels(namespace).await? {
            Labels::Known(labels) => selector.matches(&labels),
            // Who renders has the manifests that there are.
            Labels::Unknown => true,
        })
    }
}

/// A set as its object and its status have it.
fn read(
    place: SetPlace,
    name: &str,
    steps: &[SetStep],
    generation: i64,
    status: Option<&SetStatus>,
    secret: Option<String>,
    registries: &dyn Registries,
) -> Result<FoundSet, SetError> {
    let written = match recipe::read(steps, registries) {
        Ok(written) => written,
        Err(error) => {
            return Err(SetError::Broken { place, words: Shown::new(&error.to_string()) });
        }
    };
    let Some(status) = status else { return Err(SetError::NotReady { place }) };
    let recipe = status.recipe.as_deref().filter(|_| status.recipe_generation == Some(generation));
    let Some(recipe) = recipe else {
        return Err(match status::refusal(status, generation) {
            Some((reason, message)) => {
                SetError::Refused { place, reason: Shown::new(reason), words: Shown::new(message) }
            }
            None => SetError::NotReady { place },
        });
    };
    let pinned = match PinnedRecipe::from_json(recipe) {
        Ok(pinned) => pinned,
        Err(error) => return Err(SetError::Broken { place, words: Shown::new(&error.to_string()) }),
    };
    let references = told(&written, &pinned, &status.references);
    // One that cannot be read counts as forgotten.
    let earlier = status.history.iter().filter_map(|earlier| {
        let pinned = PinnedRecipe::from_json(&earlier.recipe).ok()?;
        // An earlier webhook did not note how it was written.
        let references = match earlier.references.as_slice() {
            [] => told(&written, &pinned, &[]),
            noted => noted_with(&pinned, noted),
        };
        Some((pinned, references))
    });
    let history = earlier.collect();
    Ok(FoundSet { place, name: name.to_owned(), written, references, pinned, history, secret })
}

/// Whether `pinned` is `written` with digests.
fn is_of(written: &Recipe, pinned: &PinnedRecipe) -> bool {
    let mut references = pinned.references();
    let again = written.pin(|written| match (references.next(), written.digest()) {
        (Some(pinned), Some(digest)) if pinned.digest() != digest => Err(()),
        (Some(pinned), _) => Ok(pinned.digest().clone()),
        (None, _) => Err(()),
    });
    again.as_ref() == Ok(pinned)
}

/// The references of a pinned recipe: as they are written, where it is what is written with digests. Else it may be
/// what a patch said, or an earlier spec, or forged, and its digests are what is mounted: with the tags that are noted
/// beside the very same digests.
fn told(written: &WrittenRecipe, pinned: &PinnedRecipe, noted: &[String]) -> Vec<Reference> {
    if let Some(plain) = written.plain().filter(|plain| is_of(plain, pinned)) {
        return plain.references().cloned().collect();
    }
    noted_with(pinned, noted)
}

/// The references of a pinned recipe, with the tags that are noted beside the very same digests.
fn noted_with(pinned: &PinnedRecipe, noted: &[String]) -> Vec<Reference> {
    let noted: Vec<Option<Reference>> = noted.iter().map(|text| text.parse().ok()).collect();
    let tell = |(step, pinned): (usize, &oras_csi_core::reference::PinnedReference)| {
        let noted = noted.get(step).and_then(Option::as_ref);
        let is_it = |noted: &&Reference| {
            noted.digest() == Some(pinned.digest()) && noted.name() == Reference::from(pinned.clone()).name()
        };
        noted.filter(is_it).cloned().unwrap_or_else(|| pinned.clone().into())
    };
    pinned.references().enumerate().map(tell).collect()
}

/// Fails where a set has another recipe.
fn compare(
    namespace: &str,
    name: &str,
    set: &ArtifactSet,
    recipe: &WrittenRecipe,
    registries: &dyn Registries,
) -> Result<(), SetError> {
    let there = recipe::read(&set.spec.recipe, registries).ok();
    if there.as_ref() == Some(recipe) {
        return Ok(());
    }
    let shown = |steps: &[SetStep]| Shown::new(&serde_json::to_string(steps).unwrap_or_default());
    Err(SetError::Taken {
        place: SetPlace::Own { namespace: namespace.into(), name: name.into() },
        there: shown(&set.spec.recipe),
        asked: shown(&recipe::steps_of(recipe)),
    })
}

/// Those of `names` that are most like `name`.
fn nearest(name: &str, names: Vec<String>) -> Vec<String> {
    const MOST: usize = 3;
    let mut names: Vec<(usize, String)> = names
        .into_iter()
        .map(|other| (strsim::damerau_levenshtein(name, &other), other))
        .filter(|(distance, other)| *distance <= name.len().max(other.len()).div_ceil(2))
        .collect();
    names.sort();
    names.dedup();
    names.into_iter().take(MOST).map(|(_, name)| name).collect()
}
