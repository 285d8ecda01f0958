//! A recipe whose references are known and whose tags have no digests yet. Pure.

use std::sync::LazyLock;

use oras_csi_core::digest::Digest;
use oras_csi_core::keys::canonical;
use oras_csi_core::patch::Patch;
use oras_csi_core::recipe::{Layer, Recipe, Step, WrittenRecipe};
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;

use super::origin::{Named, Origin};
use crate::denial::{At, Denial};
use crate::registries::Registries;

/// The options of a volume besides its recipe.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecipeOptions {
    /// The readable part of the volume's id, where the user gave one.
    pub(crate) label: Option<String>,
    /// Whether tags are resolved by the registry even where the cache has them (`pullalways`).
    pub(crate) bypass_cache: bool,
}

/// A recipe with the place where each of its references is written.
///
/// Architecture Invariant: there is one place for each reference. Policies check the references that this type returns
/// together with their places, so a list of places that is too short must not hide references.
#[derive(Clone, Debug)]
pub(crate) struct RecipeWithOrigins {
    recipe: Recipe,
    origins: Vec<Origin>,
}

impl RecipeWithOrigins {
    /// Makes a recipe whose references are written at `origins`, in the order of the steps, and any others at `otherwise`.
    pub(crate) fn new(recipe: Recipe, origins: &[Origin], otherwise: &Origin) -> Self {
        let origin = |(index, _)| origins.get(index).unwrap_or(otherwise).clone();
        let origins = recipe.references().enumerate().map(origin).collect();
        Self { recipe, origins }
    }

    /// Returns the recipe.
    pub(crate) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Returns each layer with the place where its reference is written.
    pub(crate) fn layers(&self) -> impl Iterator<Item = (&Layer<Reference>, &Origin)> {
        self.recipe.steps().iter().filter_map(Step::layer).zip(&self.origins)
    }
}

/// A recipe with the place of each reference, ready to be pinned.
#[derive(Clone, Debug)]
pub(crate) struct UnpinnedRecipe {
    /// The recipe.
    pub(crate) recipe: RecipeWithOrigins,
    /// The label and the cache option.
    pub(crate) options: RecipeOptions,
    /// The patches and recipe artifacts that were expanded into it, in that order.
    pub(crate) applied_patches: Vec<AppliedPatch>,
    /// Whether it repeats the digests of a canonical volume. Only `oras.land/pinned` then still has the tags.
    pub(crate) is_from_canonical: bool,
}

/// A patch or a recipe artifact that was read and expanded into a recipe.
#[derive(Clone, Debug)]
pub(crate) struct AppliedPatch {
    /// The reference as it is written.
    pub(crate) reference: Reference,
    /// The digest that was read.
    pub(crate) digest: Digest,
    /// Where the reference is written.
    pub(crate) origin: Origin,
    /// Whether the tag was resolved for this request, and not taken from a pin.
    pub(crate) is_fresh: bool,
    /// The patch, where its base is written beside it and still has to be compared with the patch's own.
    pub(crate) unchecked_base: Option<Box<Patch>>,
    /// Whether the requested level leaves the base as it is.
    pub(crate) is_base_only: bool,
}

impl UnpinnedRecipe {
    /// Repeats a canonical volume by its digests, as if the user had written them.
    pub(crate) fn of_canonical(volume: &CanonicalVolume, name: &str) -> Self {
        Self {
            recipe: RecipeWithOrigins::new(volume.recipe().unpinned(), &[], &origin_of_canonical(name)),
            options: RecipeOptions { label: Some(volume.id().slug().to_owned()), bypass_cache: false },
            applied_patches: Vec::new(),
            is_from_canonical: true,
        }
    }

    /// Returns each reference with the place where it is written.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (&Reference, &Origin)> {
        self.recipe.layers().map(|(layer, origin)| (layer.reference(), origin))
    }

    /// Returns the references whose files are mounted.
    pub(crate) fn references(&self) -> Vec<Named> {
        self.steps().map(|(reference, origin)| Named::content(reference.clone(), origin.clone())).collect()
    }

    /// Returns the patches and recipe artifacts that were read, with their digests.
    pub(crate) fn patches(&self) -> Vec<(Named, Option<Digest>)> {
        self.applied_patches.iter().map(AppliedPatch::named).collect()
    }

    /// Returns all of both.
    pub(crate) fn names(&self) -> Vec<Named> {
        let patches = self.patches().into_iter().map(|(named, _)| named);
        patches.chain(self.references()).collect()
    }

    /// Returns the same references with the digests of a canonical volume of that name that has the same steps.
    pub(crate) fn with_digests_of(&self, volume: &CanonicalVolume, name: &str) -> Self {
        let (pinned, origins) = (volume.recipe().unpinned(), &self.recipe.origins);
        Self {
            recipe: RecipeWithOrigins::new(pinned, origins, &origin_of_canonical(name)),
            options: RecipeOptions::default(),
            applied_patches: self.applied_patches.clone(),
            is_from_canonical: true,
        }
    }

    /// Returns the canonical volume, where every step has its digest already.
    pub(crate) fn pinned(&self) -> Option<CanonicalVolume> {
        let recipe = self.recipe.recipe.pin(|reference| reference.digest().cloned().ok_or(())).ok()?;
        CanonicalVolume::new(self.options.label.as_deref(), recipe).ok()
    }

    /// Refuses, before any network access, a recipe that would be too long once it is pinned.
    pub(super) fn check_length(&self, at: At<'_>) -> Result<(), Denial> {
        static STAND_IN: LazyLock<Digest> = LazyLock::new(|| Digest::sha256_of(b""));
        let digest_of = |reference: &Reference| {
            Ok::<_, std::convert::Infallible>(reference.digest().unwrap_or(&STAND_IN).clone())
        };
        let pinned = match self.recipe.recipe.pin(digest_of) {
            Ok(pinned) => pinned,
            Err(never) => match never {},
        };
        CanonicalVolume::check_fits(self.options.label.as_deref(), &pinned)
            .map_err(|error| Denial::bad_request(at, None, error, ""))
    }
}

fn origin_of_canonical(volume: &str) -> Origin {
    Origin::Attribute { volume: volume.to_owned(), key: canonical::RECIPE, step: None }
}

impl AppliedPatch {
    pub(super) fn named(&self) -> (Named, Option<Digest>) {
        (Named::patch(self.reference.clone(), self.origin.clone()), Some(self.digest.clone()))
    }
}

/// Parses a recipe in YAML.
pub(super) fn parse_recipe(
    yaml: &str,
    origin: &Origin,
    registries: &dyn Registries,
) -> Result<WrittenRecipe, Denial> {
    let recipe = WrittenRecipe::from_yaml(yaml, &|host| registries.names(host));
    recipe.map_err(|error| Denial::bad_request(origin.at(), None, error, ""))
}
