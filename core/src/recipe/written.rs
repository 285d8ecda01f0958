//! A recipe as people write it. Its patches have yet to be read: what one comes to is not in it.

use super::{Layer, Recipe, RecipeError, Step, check_repeated, raw};
use crate::patch::{Level, Patch};
use crate::path::{Glob, TreePath};
use crate::reference::Reference;

/// At least one step, each with a reference that may be a tag.
///
/// Architecture Invariant: nothing pins or mounts this. What does takes a [`Recipe`], which has no patches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenRecipe(Vec<WrittenStep>);

/// One step of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrittenStep {
    /// What stays as it is written.
    Plain(Step<Reference>),
    /// What is read first.
    Patch(PatchStep),
}

/// A patch, or the artifact of a recipe, in a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchStep {
    layer: Layer<Reference>,
    level: Option<Level>,
}

/// Why what a step names cannot stand there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchStepError {
    /// A key of the step says nothing of a recipe.
    #[error(
        "names the artifact of a recipe, which says itself what is wanted: remove {key}, and leave only path beside it"
    )]
    Key {
        /// The key.
        key: &'static str,
    },
    /// Patches of recipes of recipes are not followed.
    #[error(
        "names the artifact of a recipe in which there is a patch again: name that patch, or the recipe with oras.land/patch"
    )]
    Nested,
    /// Together they are no recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
}

impl WrittenRecipe {
    /// Reads YAML (of which JSON is a part); `is_registry` as in [`Reference::parse_knowing`].
    pub fn from_yaml(text: &str, is_registry: &dyn Fn(&str) -> bool) -> Result<Self, RecipeError> {
        let steps = raw::read_yaml(text, &|text| Ok(Reference::parse_knowing(text, is_registry)?))?;
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
            check_repeated(&plain)?;
        }
        Ok(written)
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[WrittenStep] {
        &self.0
    }

    /// All that is named, patches too, in the order of the steps, with the number of the step, counted from 1.
    pub fn references(&self) -> impl Iterator<Item = (usize, &Reference)> {
        (1..).zip(&self.0).filter_map(|(number, step)| {
            let reference = match step {
                WrittenStep::Plain(step) => step.layer()?.reference(),
                WrittenStep::Patch(patch) => patch.reference(),
            };
            Some((number, reference))
        })
    }

    /// The patches, with the number of their step, counted from 1.
    pub fn patches(&self) -> impl Iterator<Item = (usize, &PatchStep)> {
        (1..).zip(&self.0).filter_map(|(number, step)| match step {
            WrittenStep::Patch(patch) => Some((number, patch)),
            WrittenStep::Plain(_) => None,
        })
    }

    /// The recipe that it is, where there is no patch in it.
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

    /// The recipe that it comes to, where `read` says what each patch does; and for each step of that which has a
    /// reference, the number of the step here that it comes from.
    pub fn expand<E: From<RecipeError>>(
        &self,
        mut read: impl FnMut(usize, &PatchStep) -> Result<Vec<Step<Reference>>, E>,
    ) -> Result<(Recipe, Vec<usize>), E> {
        let (mut steps, mut numbers) = (Vec::new(), Vec::new());
        for (number, step) in (1..).zip(&self.0) {
            let come = match step {
                WrittenStep::Plain(step) => vec![step.clone()],
                WrittenStep::Patch(patch) => read(number, patch)?,
            };
            numbers.extend(come.iter().filter(|step| step.layer().is_some()).map(|_| number));
            steps.extend(come);
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
    /// The patch.
    pub fn reference(&self) -> &Reference {
        self.layer.reference()
    }

    /// Which files of it go where.
    pub fn layer(&self) -> &Layer<Reference> {
        &self.layer
    }

    /// Up to which level; all of them where it is `None`.
    pub fn level(&self) -> Option<Level> {
        self.level
    }

    /// What a patch comes to here: each of its artifacts with the path and the filters of this step.
    pub fn steps(&self, patch: &Patch) -> Vec<Step<Reference>> {
        let here = |layer: &Layer<Reference>| self.layer.with_reference(layer.reference().clone());
        let steps = patch.steps(self.level).into_iter().map(|(_, step)| match step {
            Step::Add(layer) => Step::Add(here(&layer)),
            Step::Overlay(layer) => Step::Overlay(here(&layer)),
            Step::Remove(glob) => Step::Remove(glob),
        });
        steps.collect()
    }

    /// What the artifact of a recipe comes to here: its steps, below the path of this one.
    pub fn steps_of(&self, recipe: &WrittenRecipe) -> Result<Vec<Step<Reference>>, PatchStepError> {
        let keys = [
            ("level", self.level.is_some()),
            ("include", !self.layer.include().is_empty()),
            ("exclude", !self.layer.exclude().is_empty()),
            ("mediaTypes", !self.layer.media_types().is_empty()),
            ("platform", self.layer.platform().is_some()),
        ];
        if let Some((key, _)) = keys.into_iter().find(|(_, there)| *there) {
            return Err(PatchStepError::Key { key });
        }
        let steps = recipe.plain_steps().ok_or(PatchStepError::Nested)?;
        steps.into_iter().map(|step| self.below(step)).collect()
    }

    fn below(&self, step: Step<Reference>) -> Result<Step<Reference>, PatchStepError> {
        let path = self.layer.path();
        if path.is_root() {
            return Ok(step);
        }
        let value = |error: super::StepError| RecipeError::Value { step: 1, source: error };
        let place = |layer: Layer<Reference>| -> Result<_, PatchStepError> {
            let place = if layer.path().is_root() {
                path.clone()
            } else {
                let joined = format!("{path}/{}", layer.path()).parse::<TreePath>();
                joined.map_err(|error| value(error.into()))?
            };
            Ok(layer.at(place))
        };
        Ok(match step {
            Step::Add(layer) => Step::Add(place(layer)?),
            Step::Overlay(layer) => Step::Overlay(place(layer)?),
            Step::Remove(glob) => {
                let joined = format!("{path}/{glob}").parse::<Glob>();
                Step::Remove(joined.map_err(|error| value(error.into()))?)
            }
        })
    }
}
