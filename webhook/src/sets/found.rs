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
    /// The recipe that pods get.
    pub(crate) recipe: NamedRecipe,
    /// The earlier recipes, newest first.
    history: Vec<NamedRecipe>,
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
        let mut recipes = [&self.recipe].into_iter().chain(&self.history);
        let recipe = recipes.find(|recipe| recipe.pinned.digest() == *digest)?.clone();
        Some(Self { recipe, ..self.clone() })
    }

    /// Returns the set with another pinned recipe. Its references are those of the spec, if it is the recipe of the spec.
    pub(crate) fn with_recipe(&self, pinned: PinnedRecipe) -> Self {
        Self { recipe: name_layers(&self.written, pinned, &[]), ..self.clone() }
    }

    /// Returns the patches in the recipe, with the numbers of their steps.
    pub(crate) fn patches(&self) -> impl Iterator<Item = (usize, &Reference)> {
        self.written.patches().map(|(number, step)| (number, step.reference()))
    }
}

/// A pinned recipe with the reference of each layer for policies and messages: as it is written, or from the status if a
/// patch defines the steps.
///
/// Architecture Invariant: there is one reference for each layer. Policies check the references, so a list that is too
/// short, or that belongs to another recipe, must not hide what is mounted.
#[derive(Clone, Debug)]
pub(crate) struct NamedRecipe {
    pinned: PinnedRecipe,
    references: Vec<Reference>,
}

/// A layer of a [`NamedRecipe`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct NamedLayer<'a> {
    /// The number of its step, counted from 1.
    pub(crate) step: usize,
    /// The reference for policies and messages.
    pub(crate) reference: &'a Reference,
    /// The reference that is mounted.
    pub(crate) pinned: &'a PinnedReference,
}

impl NamedRecipe {
    /// Names each layer of a recipe. `reference_of` gets the position of the layer among the layers, and what is mounted.
    fn new(
        pinned: PinnedRecipe,
        reference_of: impl Fn(usize, &PinnedReference) -> Option<Reference>,
    ) -> Self {
        let reference = |(index, pinned): (usize, &PinnedReference)| {
            reference_of(index, pinned).unwrap_or_else(|| pinned.clone().into())
        };
        let references = pinned.references().enumerate().map(reference).collect();
        Self { pinned, references }
    }

    /// Returns the recipe that is mounted.
    pub(crate) fn pinned(&self) -> &PinnedRecipe {
        &self.pinned
    }

    /// Returns the layers, in the order of their steps.
    pub(crate) fn layers(&self) -> impl Iterator<Item = NamedLayer<'_>> {
        let layers = (1..).zip(self.pinned.steps()).filter_map(|(step, one)| Some((step, one.layer()?)));
        layers.zip(&self.references).map(|((step, layer), reference)| NamedLayer {
            step,
            reference,
            pinned: layer.reference(),
        })
    }
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
        let recipe = name_layers(&written, pinned, &status.references);
        // An entry that cannot be read is ignored.
        let history = status.history.iter().filter_map(|earlier| {
            let pinned = PinnedRecipe::from_json(&earlier.recipe).ok()?;
            // Earlier versions of the webhook did not record the references.
            Some(match earlier.references.as_slice() {
                [] => name_layers(&written, pinned, &[]),
                recorded => with_recorded_tags(pinned, recorded),
            })
        });
        Ok(FoundSet {
            place,
            name: name.to_owned(),
            history: history.collect(),
            written,
            recipe,
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

/// Names the layers of a pinned recipe: as they are written, if the pinned recipe is the written recipe with digests.
/// Otherwise it can be the result of a patch, or of an earlier spec, or forged; then the digests count, with the tags that
/// the status records for the same digests.
fn name_layers(written: &WrittenRecipe, pinned: PinnedRecipe, recorded: &[String]) -> NamedRecipe {
    let Some(plain) = written.plain().filter(|plain| is_of(plain, &pinned)) else {
        return with_recorded_tags(pinned, recorded);
    };
    let references: Vec<&Reference> = plain.references().collect();
    NamedRecipe::new(pinned, |index, _| references.get(index).copied().cloned())
}

/// Names the layers of a pinned recipe by their digests, with the tags that are recorded for the same digests.
fn with_recorded_tags(pinned: PinnedRecipe, recorded: &[String]) -> NamedRecipe {
    NamedRecipe::new(pinned, |index, pinned| {
        let recorded: Reference = recorded.get(index)?.parse().ok()?;
        let is_same = recorded.digest() == Some(pinned.digest())
            && recorded.name() == Reference::from(pinned.clone()).name();
        is_same.then_some(recorded)
    })
}
