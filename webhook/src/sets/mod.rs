//! Sets: named recipes, which pods request by name instead of writing references.
//!
//! A [`SetStore`] holds the objects, of a cluster ([`ClusterSets`]) or of a stream of manifests ([`MemorySets`]).
//! [`SetCatalog`] finds the set of a name for a namespace. [`controller`] resolves the tags of sets and writes the result
//! into their status, so that a request by name needs no registry.
//!
//! Architecture Invariant: a namespace cannot shadow a cluster set. If a namespace can use a cluster set, the name always
//! means that set, and the webhook creates no set of that name in the namespace.
//!
//! Architecture Invariant: a recipe in the status is used only for the generation of the spec from which it was resolved.

mod cluster;
mod controller;
mod error;
mod found;
mod memory;
mod nodes;
pub mod object;
mod places;
pub(crate) mod recipe;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use kube::core::SelectorExt as _;
use oras_csi_core::display::Shown;
use oras_csi_core::recipe::{PinnedRecipe, WrittenRecipe};
use oras_csi_kube_support::time;
use tokio::time::Instant;

use self::found::SetObject;
use self::object::{ArtifactSet, ClusterArtifactSet, SetStatus};
use self::recipe::SetStep;
use crate::credentials::{NoSecrets, Secrets};
use crate::denial::Denial;
use crate::policy::{Labels, selector};
use crate::registries::Registries;

pub use cluster::ClusterSets;
pub use controller::run_controller;
pub use error::{GrantEnd, SetError, SetPlace};
pub(crate) use found::{FoundSet, NamedLayer};
pub use memory::{MemorySets, TakeError, is_set};
pub use status::Resolved;

/// A set whose recipe must be resolved.
#[derive(Clone, Copy, Debug)]
pub struct SetToResolve<'a> {
    /// The namespace of the set; `None` for a cluster set.
    pub namespace: Option<&'a str>,
    /// The name of the set.
    pub name: &'a str,
    /// The steps of its spec.
    pub steps: &'a [SetStep],
    /// The pull secret that its spec names.
    pub secret: Option<&'a str>,
}

/// Resolves the recipes of sets.
#[async_trait]
pub trait SetResolver: Send + Sync + 'static {
    /// Resolves the tags of a set without using a cache.
    async fn resolve_set(&self, set: SetToResolve<'_>, deadline: Instant) -> Result<Resolved, Denial>;
}

/// Reads and creates sets, and reads the labels of namespaces.
#[async_trait]
pub trait SetStore: Send + Sync + 'static {
    /// Returns the cluster set of a name.
    async fn cluster_set(&self, name: &str) -> Result<Option<ClusterArtifactSet>, SetError>;
    /// Returns the set of a name in a namespace.
    async fn namespaced_set(&self, namespace: &str, name: &str) -> Result<Option<ArtifactSet>, SetError>;
    /// Returns the labels of a namespace.
    async fn labels(&self, namespace: &str) -> Result<Labels, SetError>;
    /// Returns the names of sets for suggestions after a typo. The list can be incomplete or empty.
    async fn names(&self, namespace: &str) -> Vec<String>;
    /// Creates a set. If a set of that name exists, returns that one and creates nothing.
    async fn create(&self, namespace: &str, set: &ArtifactSet) -> Result<Option<ArtifactSet>, SetError>;
}

/// Finds the set of a name for a namespace.
#[derive(Clone)]
pub struct SetCatalog {
    store: Arc<dyn SetStore>,
    secrets: Arc<dyn Secrets>,
    /// The namespace of the Secrets that cluster sets name.
    namespace: String,
    usable: UsableSecrets,
}

/// The Secrets that cluster sets can name. RBAC alone does not limit them: the webhook may also be allowed to read the pull
/// secrets of pods, in every namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsableSecrets {
    /// All: for manifests, whose Secrets their author has.
    All,
    /// Those that the administrator lists.
    Listed(BTreeSet<String>),
}

/// Whether a set can be created under a name.
pub(crate) enum Taken {
    /// No set has the name.
    Free,
    /// A set of the namespace has the name and the same recipe. It is `None` if the set is not resolved yet.
    Same(Option<Box<FoundSet>>),
}

/// Returns the status of a set that was resolved for the first time, now.
pub(crate) fn resolved_now(generation: i64, resolved: Resolved) -> SetStatus {
    status::resolved(None, generation, resolved, time::now())
}

/// Reports whether a status has the recipe of that generation.
pub(crate) fn is_current(status: Option<&SetStatus>, generation: i64) -> bool {
    status.is_some_and(|status| status.recipe.is_some() && status.recipe_generation == Some(generation))
}

/// Returns the status after a set was resolved, or after that failed, now.
pub(crate) fn status_now(
    before: Option<&SetStatus>,
    generation: i64,
    found: Result<Resolved, Denial>,
) -> SetStatus {
    match found {
        Ok(resolved) => status::resolved(before, generation, resolved, time::now()),
        Err(denial) => {
            let reason = status::reason_of(denial.code());
            status::failed(before, generation, reason, denial.message(), time::now())
        }
    }
}

impl SetCatalog {
    /// Makes a catalog of these sets. It cannot read the Secrets of cluster sets.
    pub fn new(store: Arc<dyn SetStore>) -> Self {
        let usable = UsableSecrets::Listed(BTreeSet::new());
        Self { store, secrets: Arc::new(NoSecrets), namespace: String::new(), usable }
    }

    /// Reads the usable Secrets of cluster sets in that namespace.
    #[must_use]
    pub fn with_secrets(
        self,
        secrets: Arc<dyn Secrets>,
        namespace: impl Into<String>,
        usable: UsableSecrets,
    ) -> Self {
        Self { secrets, namespace: namespace.into(), usable, ..self }
    }

    pub(crate) fn secrets(&self) -> (&dyn Secrets, &str) {
        (self.secrets.as_ref(), &self.namespace)
    }

    /// Reports whether cluster sets can name that Secret.
    pub(crate) fn can_use_secret(&self, name: &str) -> bool {
        match &self.usable {
            UsableSecrets::All => true,
            UsableSecrets::Listed(names) => names.contains(name),
        }
    }

    /// Finds the set of a name for a namespace.
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
            return SetObject::of_cluster(name, set).read(registries);
        }
        if let Some(set) = self.store.namespaced_set(namespace, name).await? {
            return SetObject::of_namespace(namespace, name, &set).read(registries);
        }
        if cluster.is_some() {
            return Err(SetError::NotForNamespace { name: name.into(), namespace: namespace.into() });
        }
        let nearest = nearest(name, self.store.names(namespace).await);
        Err(SetError::Missing { name: name.into(), namespace: namespace.into(), nearest })
    }

    /// Checks that a cluster set still grants a recipe to a namespace: the set exists, selects the namespace, and has or
    /// had the recipe. A set that is being resolved grants the recipes of its status, because their digests are known.
    pub(crate) async fn check_grant(
        &self,
        namespace: &str,
        name: &str,
        recipe: &PinnedRecipe,
    ) -> Result<(), SetError> {
        let ended = |end| SetError::Ended { namespace: namespace.into(), end };
        let Some(set) = self.store.cluster_set(name).await? else { return Err(ended(GrantEnd::Deleted)) };
        if !self.is_for(&set, namespace).await? {
            return Err(ended(GrantEnd::Unselected));
        }
        let status = set.status.unwrap_or_default();
        let mut recipes = status.recipe.iter().chain(status.history.iter().map(|earlier| &earlier.recipe));
        if recipes.any(|known| known == recipe.to_json()) { Ok(()) } else { Err(ended(GrantEnd::Forgotten)) }
    }

    /// Checks whether a set with that recipe can be created, or exists already.
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
        match self.store.namespaced_set(namespace, name).await? {
            None => Ok(Taken::Free),
            Some(set) => {
                check_same_recipe(namespace, name, &set, recipe, registries)?;
                let found = SetObject::of_namespace(namespace, name, &set).read(registries);
                Ok(Taken::Same(found.ok().map(Box::new)))
            }
        }
    }

    /// Creates a set. Succeeds also if another request has created the same set in the meantime.
    pub(crate) async fn create(
        &self,
        namespace: &str,
        set: &ArtifactSet,
        recipe: &WrittenRecipe,
        registries: &dyn Registries,
    ) -> Result<(), SetError> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        match self.store.create(namespace, set).await? {
            None => Ok(()),
            Some(other) => check_same_recipe(namespace, name, &other, recipe, registries),
        }
    }

    /// Reports whether a namespace can use a cluster set.
    async fn is_for(&self, set: &ClusterArtifactSet, namespace: &str) -> Result<bool, SetError> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let selector = selector::read(set.spec.namespace_selector.clone());
        let selector = selector.map_err(|error| SetError::Broken {
            place: SetPlace::Cluster(name.into()),
            message: Shown::new(&error.to_string()),
        })?;
        if selector.selects_all() {
            return Ok(true);
        }
        Ok(match self.store.labels(namespace).await? {
            Labels::Known(labels) => selector.matches(&labels),
            // `render` knows only the manifests that it was given.
            Labels::Unknown => true,
        })
    }
}

/// Fails if an existing set has another recipe.
fn check_same_recipe(
    namespace: &str,
    name: &str,
    set: &ArtifactSet,
    recipe: &WrittenRecipe,
    registries: &dyn Registries,
) -> Result<(), SetError> {
    let existing = recipe::read(&set.spec.recipe, registries).ok();
    if existing.as_ref() == Some(recipe) {
        return Ok(());
    }
    let shown = |steps: &[SetStep]| Shown::new(&serde_json::to_string(steps).unwrap_or_default());
    Err(SetError::Taken {
        place: SetPlace::Namespaced { namespace: namespace.into(), name: name.into() },
        existing: shown(&set.spec.recipe),
        requested: shown(&recipe::steps_of(recipe)),
    })
}

/// Returns the names that are most similar to `name`.
fn nearest(name: &str, names: Vec<String>) -> Vec<String> {
    const MAX_SUGGESTIONS: usize = 3;
    let mut names: Vec<(usize, String)> = names
        .into_iter()
        .map(|other| (strsim::damerau_levenshtein(name, &other), other))
        .filter(|(distance, other)| *distance <= name.len().max(other.len()).div_ceil(2))
        .collect();
    names.sort();
    names.dedup();
    names.into_iter().take(MAX_SUGGESTIONS).map(|(_, name)| name).collect()
}
