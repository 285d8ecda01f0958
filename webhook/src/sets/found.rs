//! A set as a request uses it: the recipe in its spec, and the pinned recipes in its status. No I/O.

use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;
use oras_csi_core::recipe::{PinnedRecipe, Recipe, WrittenRecipe};
use oras_csi_core::reference::{PinnedReference, Reference};

use super::object::{ArtifactSet, ClusterArtifactSet, SetStatus};
use super::recipe::{self, SetStep};
use super::{SetError, SetPlace, status};
use crate::pins::SetKind;
use crate::registries::Registries;

/// A set that a namespace can use.
#[derive(Clone, Debug)]
pub(crate) struct FoundSet {
    pub(crate) place: SetPlace,
    pub(crate) name: String,
    pub(crate) written: WrittenRecipe,
    /// The references of the steps for messages, in their order: as they are written, or from the status if a patch
    /// defines the steps.
    pub(crate) references: Vec<Reference>,
    pub(crate) pinned: PinnedRecipe,
    /// The earlier recipes, newest first.
    history: Vec<ResolvedRecipe>,
    /// The name of the pull secret of a cluster set.
    pub(crate) secret: Option<String>,
}

impl FoundSet {
    pub(crate) fn is_cluster_set(&self) -> bool {
        matches!(self.place, SetPlace::Cluster(_))
    }

    /// Returns the kind of the object.
    pub(crate) fn kind(&self) -> SetKind {
        if self.is_cluster_set() { SetKind::ClusterArtifactSet } else { SetKind::ArtifactSet }
    }

    /// Returns the set with the earlier recipe of that digest, or `None` if its history does not have it.
    pub(crate) fn as_of(&self, digest: &Digest) -> Option<Self> {
        if self.pinned.digest() == *digest {
            return Some(self.clone());
        }
        let earlier = self.history.iter().find(|earlier| earlier.pinned.digest() == *digest)?.clone();
        Some(Self { references: earlier.references, pinned: earlier.pinned, ..self.clone() })
    }

    /// Reports whether the set has that recipe now, or had it.
    pub(crate) fn has_or_had(&self, digest: &Digest) -> bool {
        let history = self.history.iter().map(|earlier| &earlier.pinned);
        [&self.pinned].into_iter().chain(history).any(|pinned| pinned.digest() == *digest)
    }

    /// Returns the patches in the recipe, with the numbers of their steps.
    pub(crate) fn patches(&self) -> impl Iterator<Item = (usize, &Reference)> {
        self.written.patches().map(|(number, step)| (number, step.reference()))
    }
}

/// A pinned recipe with its references for messages.
#[derive(Clone, Debug)]
struct ResolvedRecipe {
    pinned: PinnedRecipe,
    references: Vec<Reference>,
}

/// The parts of the object of a set that are read for a request.
pub(super) struct SetObject<'a> {
    place: SetPlace,
    name: &'a str,
    steps: &'a [SetStep],
    generation: i64,
    status: Option<&'a SetStatus>,
    secret: Option<&'a str>,
}

impl<'a> SetObject<'a> {
    pub(super) fn of_cluster(name: &'a str, set: &'a ClusterArtifactSet) -> Self {
        Self {
            place: SetPlace::Cluster(name.into()),
            name,
            steps: &set.spec.recipe,
            generation: set.metadata.generation.unwrap_or_default(),
            status: set.status.as_ref(),
            secret: set.spec.pull_secret.as_ref().map(|secret| secret.name.as_str()),
        }
    }

    pub(super) fn of_namespace(namespace: &str, name: &'a str, set: &'a ArtifactSet) -> Self {
        Self {
            place: SetPlace::Namespaced { namespace: namespace.into(), name: name.into() },
            name,
            steps: &set.spec.recipe,
            generation: set.metadata.generation.unwrap_or_default(),
            status: set.status.as_ref(),
            secret: None,
        }
    }

    /// Reads the recipe in the spec and the pinned recipe in the status.
    pub(super) fn read(self, registries: &dyn Registries) -> Result<FoundSet, SetError> {
        let Self { place, name, steps, generation, status, secret } = self;
        let written = match recipe::read(steps, registries) {
            Ok(written) => written,
            Err(error) => return Err(SetError::Broken { place, message: Shown::new(&error.to_string()) }),
        };
        let Some(status) = status else { return Err(SetError::NotReady { place }) };
        let recipe = status.recipe.as_deref().filter(|_| status.recipe_generation == Some(generation));
        let Some(recipe) = recipe else {
            return Err(match status::refusal(status, generation) {
                Some((reason, message)) => {
                    SetError::Refused { place, reason: Shown::new(reason), message: Shown::new(message) }
                }
                None => SetError::NotReady { place },
            });
        };
        let pinned = match PinnedRecipe::from_json(recipe) {
            Ok(pinned) => pinned,
            Err(error) => return Err(SetError::Broken { place, message: Shown::new(&error.to_string()) }),
        };
        let references = display_references(&written, &pinned, &status.references);
        // An entry that cannot be read is ignored.
        let history = status.history.iter().filter_map(|earlier| {
            let pinned = PinnedRecipe::from_json(&earlier.recipe).ok()?;
            // Earlier versions of the webhook did not record the references.
            let references = match earlier.references.as_slice() {
                [] => display_references(&written, &pinned, &[]),
                recorded => with_recorded_tags(&pinned, recorded),
            };
            Some(ResolvedRecipe { pinned, references })
        });
        Ok(FoundSet {
            place,
            name: name.to_owned(),
            history: history.collect(),
            written,
            references,
            pinned,
            secret: secret.map(str::to_owned),
        })
    }
}

/// Reports whether `pinned` is `written` with digests.
fn is_of(written: &Recipe, pinned: &PinnedRecipe) -> bool {
    let mut references = pinned.references();
    let again = written.pin(|written| match (references.next(), written.digest()) {
        (Some(pinned), Some(digest)) if pinned.digest() != digest => Err(()),
        (Some(pinned), _) => Ok(pinned.digest().clone()),
        (None, _) => Err(()),
    });
    again.as_ref() == Ok(pinned)
}

/// Returns the references of a pinned recipe for messages: as they are written, if the pinned recipe is the written recipe
/// with digests. Otherwise it can be the result of a patch, or of an earlier spec, or forged; then the digests count, with
/// the tags that the status records for the same digests.
fn display_references(written: &WrittenRecipe, pinned: &PinnedRecipe, recorded: &[String]) -> Vec<Reference> {
    if let Some(plain) = written.plain().filter(|plain| is_of(plain, pinned)) {
        return plain.references().cloned().collect();
    }
    with_recorded_tags(pinned, recorded)
}

/// Returns the references of a pinned recipe, with the tags that are recorded for the same digests.
fn with_recorded_tags(pinned: &PinnedRecipe, recorded: &[String]) -> Vec<Reference> {
    let recorded: Vec<Option<Reference>> = recorded.iter().map(|text| text.parse().ok()).collect();
    let with_tag = |(step, pinned): (usize, &PinnedReference)| {
        let recorded = recorded.get(step).and_then(Option::as_ref);
        let is_same = |recorded: &&Reference| {
            recorded.digest() == Some(pinned.digest())
                && recorded.name() == Reference::from(pinned.clone()).name()
        };
        recorded.filter(is_same).cloned().unwrap_or_else(|| pinned.clone().into())
    };
    pinned.references().enumerate().map(with_tag).collect()
}
