//! Recipes with patches in them, and volumes that name a patch or a recipe artifact: what they request once the patch
//! has been read. Pure.

use oras_csi_core::digest::Digest;
use oras_csi_core::patch::{Level, Part, Patch};
use oras_csi_core::recipe::{Layer, PatchStep, Recipe, RecipeError, Step, WrittenRecipe, WrittenStep};
use oras_csi_core::reference::Reference;

use super::origin::{Named, Origin};
use super::recipe::{AppliedPatch, RecipeOptions, RecipeWithOrigins, UnpinnedRecipe, parse_recipe};
use crate::contents::PatchDocument;
use crate::denial::{Code, Denial};
use crate::registries::Registries;

/// A recipe, with or without patches that still have to be read.
#[derive(Clone, Debug)]
pub(crate) enum RecipeSource {
    /// Every reference is known.
    Plain(UnpinnedRecipe),
    /// Some steps name patches or recipe artifacts.
    WithPatches(RecipeWithPatches),
}

impl RecipeSource {
    /// Returns the label and the cache option.
    pub(super) fn options(&self) -> &RecipeOptions {
        match self {
            Self::Plain(recipe) => &recipe.options,
            Self::WithPatches(recipe) => &recipe.options,
        }
    }

    /// Returns the patches and recipe artifacts that are named, those that were read first.
    pub(crate) fn patches(&self) -> Vec<(Named, Option<Digest>)> {
        match self {
            Self::Plain(recipe) => recipe.patches(),
            Self::WithPatches(recipe) => {
                let applied = recipe.applied_patches.iter().map(AppliedPatch::named);
                let unread = recipe.patches().map(|(origin, step)| {
                    let reference = step.reference();
                    (Named::patch(reference.clone(), origin), reference.digest().cloned())
                });
                applied.chain(unread).collect()
            }
        }
    }

    /// Returns the references whose files are mounted, as far as they are known.
    pub(crate) fn references(&self) -> Vec<Named> {
        match self {
            Self::Plain(recipe) => recipe.references(),
            Self::WithPatches(recipe) => recipe.plain_references(),
        }
    }

    /// Returns all of both.
    pub(crate) fn names(&self) -> Vec<Named> {
        let patches = self.patches().into_iter().map(|(named, _)| named);
        patches.chain(self.references()).collect()
    }

    /// Returns what the patch or recipe artifact that was just read names: policies have not seen any of it.
    pub(crate) fn newly_named(&self) -> Vec<Named> {
        let unread = match self {
            Self::Plain(_) => Vec::new(),
            Self::WithPatches(recipe) => recipe
                .patches()
                .map(|(origin, step)| Named::patch(step.reference().clone(), origin))
                .collect(),
        };
        unread.into_iter().rev().chain(self.references()).collect()
    }
}

/// A patch, or a recipe artifact, that a volume names in place of references.
#[derive(Clone, Debug)]
pub(crate) struct PatchRequest {
    /// The patch or the recipe artifact.
    pub(crate) reference: Reference,
    /// Where it is written.
    pub(crate) origin: Origin,
    /// The highest level to apply, and where it is written.
    pub(crate) level: Option<(Level, Origin)>,
    /// The reference that has to be the base of the patch, and where it is written.
    pub(crate) base: Option<(Reference, Origin)>,
    /// The label and the cache option.
    pub(crate) options: RecipeOptions,
}

/// A patch or a recipe artifact, as it was read.
pub(crate) struct FetchedPatch {
    /// Its digest.
    pub(crate) digest: Digest,
    /// Whether the tag was resolved for this request, and not taken from a pin.
    pub(crate) is_fresh: bool,
    /// Its content.
    pub(crate) document: PatchDocument,
}

impl PatchRequest {
    /// Returns the patch itself, with its digest where that is written.
    pub(super) fn named(&self) -> (Named, Option<Digest>) {
        let named = Named::patch(self.reference.clone(), self.origin.clone());
        (named, self.reference.digest().cloned())
    }

    /// Returns the base that is written beside the patch.
    pub(super) fn named_base(&self) -> Option<Named> {
        let (reference, origin) = self.base.as_ref()?;
        Some(Named::content(reference.clone(), origin.clone()))
    }

    /// Returns the recipe that the patch, or the recipe artifact, stands for.
    pub(crate) fn expand(
        &self,
        fetched: FetchedPatch,
        registries: &dyn Registries,
    ) -> Result<RecipeSource, Denial> {
        let FetchedPatch { digest, is_fresh, document } = fetched;
        match document {
            PatchDocument::Patch(patch) => {
                self.expand_patch(digest, is_fresh, &patch).map(RecipeSource::Plain)
            }
            PatchDocument::Recipe(yaml) => self.expand_recipe(digest, is_fresh, &yaml, registries),
        }
    }

    /// Returns the base and the levels of a patch as steps.
    ///
    /// Where a base is written beside the patch, the step has that reference: the patch may name the same bytes in a
    /// repository that this cluster cannot reach. Whether both have the same digest is checked after resolution.
    fn expand_patch(&self, digest: Digest, is_fresh: bool, patch: &Patch) -> Result<UnpinnedRecipe, Denial> {
        let (mut steps, mut origins) = (Vec::new(), Vec::new());
        for (part, step) in patch.steps(self.level.as_ref().map(|(level, _)| *level)) {
            let (step, origin) = match &self.base {
                Some((reference, origin)) if part == Part::Base => {
                    (Step::Add(Layer::new(reference.clone())), origin.clone())
                }
                _ => (step, self.origin.part(part)),
            };
            steps.push(step);
            origins.push(origin);
        }
        let is_base_only = steps.len() == 1;
        let unchecked_base = self.base.is_some().then(|| Box::new(patch.clone()));
        let recipe = Recipe::new(steps).map_err(|error| self.unreadable(error))?;
        let recipe = UnpinnedRecipe {
            recipe: RecipeWithOrigins::new(recipe, &origins, &self.origin),
            options: self.options.clone(),
            applied_patches: vec![AppliedPatch {
                unchecked_base,
                is_base_only,
                ..self.applied(digest, is_fresh)
            }],
            is_from_canonical: false,
        };
        recipe.check_length(self.origin.at())?;
        Ok(recipe)
    }

    fn expand_recipe(
        &self,
        digest: Digest,
        is_fresh: bool,
        yaml: &str,
        registries: &dyn Registries,
    ) -> Result<RecipeSource, Denial> {
        if let Some((level, origin)) = &self.level {
            let rule = "is a patch level, but the reference names a recipe artifact, which has no levels";
            return Err(Denial::bad_request(origin.at(), Some(level.as_str()), rule, "remove it"));
        }
        if let Some((reference, origin)) = &self.base {
            let rule = "would be the base of a patch, but the other reference names a recipe artifact";
            let text = reference.to_string();
            return Err(Denial::bad_request(
                origin.at(),
                Some(&text),
                rule,
                "remove it: the recipe defines the whole content",
            ));
        }
        let deny_in_artifact = |denial: Denial| {
            denial.with_detail(&format!("this is in the recipe artifact {}", self.reference))
        };
        let recipe = parse_recipe(yaml, &self.origin, registries).map_err(deny_in_artifact)?;
        let recipe = RecipeWithPatches {
            recipe,
            origin: self.origin.clone(),
            options: self.options.clone(),
            applied_patches: vec![self.applied(digest, is_fresh)],
        };
        recipe.into_source().map_err(deny_in_artifact)
    }

    fn applied(&self, digest: Digest, is_fresh: bool) -> AppliedPatch {
        let (reference, origin) = (self.reference.clone(), self.origin.clone());
        AppliedPatch { reference, digest, origin, is_fresh, unchecked_base: None, is_base_only: false }
    }

    fn unreadable(&self, problem: impl std::fmt::Display) -> Denial {
        let text = self.reference.to_string();
        Denial::new(Code::Unprocessable, self.origin.at(), Some(&text), problem, "")
    }
}

/// A recipe with steps that name patches or recipe artifacts. They have not been read.
#[derive(Clone, Debug)]
pub(crate) struct RecipeWithPatches {
    /// The recipe as it is written.
    pub(crate) recipe: WrittenRecipe,
    /// Where it is written, or the artifact that it was read from.
    pub(crate) origin: Origin,
    /// The label and the cache option.
    pub(crate) options: RecipeOptions,
    /// The artifact that the recipe was read from, if any.
    pub(crate) applied_patches: Vec<AppliedPatch>,
}

impl RecipeWithPatches {
    /// Returns a plain recipe where no step names a patch, else the recipe as it is.
    pub(super) fn into_source(self) -> Result<RecipeSource, Denial> {
        let Some(recipe) = self.recipe.plain() else { return Ok(RecipeSource::WithPatches(self)) };
        let origins: Vec<_> = self.recipe.references().map(|(number, _)| self.origin.step(number)).collect();
        self.unpinned(recipe, &origins, self.applied_patches.clone()).map(RecipeSource::Plain)
    }

    /// Returns the steps that name patches, with where each is written.
    pub(crate) fn patches(&self) -> impl Iterator<Item = (Origin, &PatchStep)> {
        self.recipe.patches().map(|(number, step)| (self.origin.step(number), step))
    }

    fn plain_references(&self) -> Vec<Named> {
        let named =
            |number, reference: &Reference| Named::content(reference.clone(), self.origin.step(number));
        let plain = (1..).zip(self.recipe.steps()).filter_map(|(number, step)| match step {
            WrittenStep::Plain(step) => step.layer().map(|layer| named(number, layer.reference())),
            WrittenStep::Patch(_) => None,
        });
        plain.collect()
    }

    /// Returns the recipe with each patch replaced by its steps. `fetched` has the patches in the order of the steps.
    pub(crate) fn expand(
        &self,
        fetched: Vec<FetchedPatch>,
        registries: &dyn Registries,
    ) -> Result<UnpinnedRecipe, Denial> {
        let (mut fetched, mut applied_patches) = (fetched.into_iter(), self.applied_patches.clone());
        let expanded = self.recipe.expand(|number, step| {
            let (origin, reference) = (self.origin.step(number), step.reference());
            let refuse = |problem: &dyn std::fmt::Display| {
                Denial::new(Code::Unprocessable, origin.at(), Some(&reference.to_string()), problem, "")
            };
            let Some(FetchedPatch { digest, is_fresh, document }) = fetched.next() else {
                return Err(ExpandError::Denied(refuse(&"was not read")));
            };
            let (steps, is_base_only) = match &document {
                PatchDocument::Patch(patch) => {
                    let steps = patch.steps_for(step);
                    let is_base_only = steps.len() == 1;
                    (steps, is_base_only)
                }
                PatchDocument::Recipe(yaml) => {
                    let recipe = parse_recipe(yaml, &origin, registries).map_err(|denial| {
                        denial.with_detail(&format!("this is in the recipe artifact {reference}"))
                    })?;
                    (step.steps_from(&recipe).map_err(|error| refuse(&error))?, false)
                }
            };
            applied_patches.push(AppliedPatch {
                reference: reference.clone(),
                digest,
                origin,
                is_fresh,
                unchecked_base: None,
                is_base_only,
            });
            Ok::<_, ExpandError>(steps)
        });
        let (recipe, numbers) = expanded.map_err(|error| match error {
            ExpandError::Denied(denial) => denial,
            ExpandError::Recipe(error) => Denial::bad_request(self.origin.at(), None, error, "")
                .with_detail("this is the recipe with its patches expanded"),
        })?;
        let origins: Vec<_> = numbers.into_iter().map(|number| self.origin.step(number)).collect();
        self.unpinned(recipe, &origins, applied_patches)
    }

    fn unpinned(
        &self,
        recipe: Recipe,
        origins: &[Origin],
        applied_patches: Vec<AppliedPatch>,
    ) -> Result<UnpinnedRecipe, Denial> {
        let recipe = UnpinnedRecipe {
            recipe: RecipeWithOrigins::new(recipe, origins, &self.origin),
            options: self.options.clone(),
            applied_patches,
            is_from_canonical: false,
        };
        recipe.check_length(self.origin.at())?;
        Ok(recipe)
    }
}

/// Why a recipe cannot be expanded with the patches that were read.
enum ExpandError {
    Denied(Denial),
    Recipe(RecipeError),
}

impl From<Denial> for ExpandError {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<RecipeError> for ExpandError {
    fn from(error: RecipeError) -> Self {
        Self::Recipe(error)
    }
}
