//! Recipes as users write them: their patches are not expanded yet.

use super::{Layer, Recipe, RecipeError, Step, StepError, check_duplicates, raw};
use crate::patch_level::Level;
use crate::path::{Glob, TreePath};
use crate::reference::Reference;

/// A recipe as a user wrote it: at least one step, whose references can be tags and can name patches.
///
/// Architecture Invariant: a written recipe cannot be pinned or mounted. Only a [`Recipe`] can, and it has no patches:
/// [`WrittenRecipe::expand`] makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenRecipe(Vec<WrittenStep>);

/// A step of a [`WrittenRecipe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrittenStep {
    /// A step that needs no expansion.
    Plain(Step<Reference>),
    /// A patch, which must be downloaded and expanded.
    Patch(PatchStep),
}

/// A step of a recipe that names a patch or a recipe artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchStep {
    layer: Layer<Reference>,
    level: Option<Level>,
}

/// The error for a recipe artifact that a step cannot name. The message continues a sentence whose subject is the step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchStepError {
    /// The step has a key that does not apply to a recipe artifact.
    #[error(
        "names a recipe artifact, whose own steps have the filters: remove {key}; only path is allowed here"
    )]
    Key {
        /// The key to remove.
        key: &'static str,
    },
    /// The recipe artifact has a patch step: nested patches are not expanded.
    #[error(
        "names a recipe artifact that has a patch step itself: write that patch here, or name the recipe artifact with \
         oras.land/patch"
    )]
    Nested,
    /// The expanded steps are not a valid recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
}

impl WrittenRecipe {
    /// Parses YAML (or JSON). `is_registry` is explained at [`Reference::parse_with_known_hosts`].
    pub fn from_yaml(text: &str, is_registry: &dyn Fn(&str) -> bool) -> Result<Self, RecipeError> {
        let steps = raw::read_yaml(text, &|text| Ok(Reference::parse_with_known_hosts(text, is_registry)?))?;
        let steps = steps.into_iter().map(|step| match step {
            raw::Parsed::Step(step) => WrittenStep::Plain(step),
            raw::Parsed::Patch(layer, level) => WrittenStep::Patch(PatchStep { layer, level }),
        });
        let steps: Vec<_> = steps.collect();
        match steps.first() {
            None => return Err(RecipeError::Empty),
            Some(WrittenStep::Plain(Step::Remove(_))) => return Err(RecipeError::RemoveFirst),
            Some(_) => {}
        }
        let written = Self(steps);
        if let Some(plain) = written.plain_steps() {
            check_duplicates(&plain)?;
        }
        Ok(written)
    }

    /// Returns the steps, in order.
    pub fn steps(&self) -> &[WrittenStep] {
        &self.0
    }

    /// Returns the references of all steps, including patches, each with the number of its step (counted from 1).
    pub fn references(&self) -> impl Iterator<Item = (usize, &Reference)> {
        (1..).zip(&self.0).filter_map(|(number, step)| {
            let reference = match step {
                WrittenStep::Plain(step) => step.layer()?.reference(),
                WrittenStep::Patch(patch) => patch.reference(),
            };
            Some((number, reference))
        })
    }

    /// Returns the patches, each with the number of its step (counted from 1).
    pub fn patches(&self) -> impl Iterator<Item = (usize, &PatchStep)> {
        (1..).zip(&self.0).filter_map(|(number, step)| match step {
            WrittenStep::Patch(patch) => Some((number, patch)),
            WrittenStep::Plain(_) => None,
        })
    }

    /// Returns the recipe, if it has no patches.
    pub fn plain(&self) -> Option<Recipe> {
        self.plain_steps().map(Recipe)
    }

    fn plain_steps(&self) -> Option<Vec<Step<Reference>>> {
        let plain = self.0.iter().map(|step| match step {
            WrittenStep::Plain(step) => Some(step.clone()),
            WrittenStep::Patch(_) => None,
        });
        plain.collect()
    }

    /// Expands the patches: `steps_for` returns the steps of each one.
    ///
    /// Also returns, for each step of the result that has a reference, the number of the written step that it comes
    /// from (counted from 1).
    pub fn expand<E: From<RecipeError>>(
        &self,
        mut steps_for: impl FnMut(usize, &PatchStep) -> Result<Vec<Step<Reference>>, E>,
    ) -> Result<(Recipe, Vec<usize>), E> {
        let (mut steps, mut numbers) = (Vec::new(), Vec::new());
        for (number, step) in (1..).zip(&self.0) {
            let expanded = match step {
                WrittenStep::Plain(step) => vec![step.clone()],
                WrittenStep::Patch(patch) => steps_for(number, patch)?,
            };
            numbers.extend(expanded.iter().filter(|step| step.layer().is_some()).map(|_| number));
            steps.extend(expanded);
        }
        Ok((Recipe::new(steps)?, numbers))
    }
}

impl From<Recipe> for WrittenRecipe {
    fn from(recipe: Recipe) -> Self {
        Self(recipe.0.into_iter().map(WrittenStep::Plain).collect())
    }
}

impl PatchStep {
    /// Returns the reference of the patch.
    pub fn reference(&self) -> &Reference {
        self.layer.reference()
    }

    /// Returns the path and the filters of the step.
    pub fn layer(&self) -> &Layer<Reference> {
        &self.layer
    }

    /// Returns the highest level to apply. `None` means all levels.
    pub fn level(&self) -> Option<Level> {
        self.level
    }

    /// Expands this step where it names a recipe artifact: the steps of that recipe, below the path of this step.
    ///
    /// Fails when this step has filters or a level, and when the recipe has a patch step.
    pub fn steps_from(&self, recipe: &WrittenRecipe) -> Result<Vec<Step<Reference>>, PatchStepError> {
        let keys = [
            ("level", self.level.is_some()),
            ("include", !self.layer.include().is_empty()),
            ("exclude", !self.layer.exclude().is_empty()),
            ("mediaTypes", !self.layer.media_types().is_empty()),
            ("platform", self.layer.platform().is_some()),
        ];
        if let Some((key, _)) = keys.into_iter().find(|(_, is_set)| *is_set) {
            return Err(PatchStepError::Key { key });
        }
        let steps = recipe.plain_steps().ok_or(PatchStepError::Nested)?;
        steps.into_iter().map(|step| self.below(step)).collect()
    }

    /// Returns `step` with its path, or its glob, below the path of this step.
    fn below(&self, step: Step<Reference>) -> Result<Step<Reference>, PatchStepError> {
        let path = self.layer.path();
        if path.is_root() {
            return Ok(step);
        }
        let value = |error: StepError| RecipeError::Value { step: 1, source: error };
        let move_below = |layer: Layer<Reference>| -> Result<_, PatchStepError> {
            let moved = if layer.path().is_root() {
                path.clone()
            } else {
                let joined = format!("{path}/{}", layer.path()).parse::<TreePath>();
                joined.map_err(|error| value(StepError::Path(error)))?
            };
            Ok(layer.at(moved))
        };
        Ok(match step {
            Step::Add(layer) => Step::Add(move_below(layer)?),
            Step::Overlay(layer) => Step::Overlay(move_below(layer)?),
            Step::Remove(glob) => {
                let joined = format!("{path}/{glob}").parse::<Glob>();
                Step::Remove(joined.map_err(|error| value(error.into()))?)
            }
        })
    }
}
