//! Recipes: ordered steps that say what a volume holds.
//!
//! A [`Recipe`] is what a person wants, in references that may be tags. A [`PinnedRecipe`] is the same with a
//! digest in every step, and has exactly one spelling: canonical JSON, which is what a volume carries, what
//! its id is a hash of, and what the driver reads.
//!
//! Architecture Invariant: [`PinnedRecipe`] is the only way to make or read canonical JSON. What it prints it
//! reads, and it reads nothing else.

pub mod artifact;
mod raw;
mod written;

use crate::digest::Digest;
use crate::display::Shown;
use crate::media_type::{MediaType, MediaTypeError};
use crate::patch::LevelError;
use crate::path::{Glob, GlobError, TreePath, TreePathError};
use crate::platform::{Platform, PlatformError};
use crate::reference::{PinnedReference, PinnedReferenceError, Reference, ReferenceError};

pub use written::{PatchStep, PatchStepError, WrittenRecipe, WrittenStep};

/// One step of a recipe; `R` is [`Reference`] or [`PinnedReference`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step<R> {
    /// An artifact's files at a path; a file that is already there is an error.
    Add(Layer<R>),
    /// An artifact's files over what is there, whiteouts honoured.
    Overlay(Layer<R>),
    /// Takes away what earlier steps laid down.
    Remove(Glob),
}

impl<R> Step<R> {
    /// The artifact of an `add` or `overlay`.
    pub fn layer(&self) -> Option<&Layer<R>> {
        match self {
            Self::Add(layer) | Self::Overlay(layer) => Some(layer),
            Self::Remove(_) => None,
        }
    }
}

/// The artifact of a step, and which of its files go where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layer<R> {
    reference: R,
    path: TreePath,
    include: Vec<Glob>,
    exclude: Vec<Glob>,
    media_types: Vec<MediaType>,
    platform: Option<Platform>,
}

impl<R> Layer<R> {
    /// All files of an artifact at the root of the volume, for the node's own platform.
    pub fn new(reference: R) -> Self {
        Self {
            reference,
            path: TreePath::root(),
            include: Vec::new(),
            exclude: Vec::new(),
            media_types: Vec::new(),
            platform: None,
        }
    }

    /// The files under `path` instead.
    #[must_use]
    pub fn at(self, path: TreePath) -> Self {
        Self { path, ..self }
    }

    /// Only files that match one of `globs` (all where there is none), by their path in the artifact.
    #[must_use]
    pub fn including(self, globs: Vec<Glob>) -> Self {
        Self { include: sorted(globs), ..self }
    }

    /// No file that matches one of `globs`.
    #[must_use]
    pub fn excluding(self, globs: Vec<Glob>) -> Self {
        Self { exclude: sorted(globs), ..self }
    }

    /// Only layers of these media types (all where there is none).
    #[must_use]
    pub fn with_media_types(self, media_types: Vec<MediaType>) -> Self {
        Self { media_types: sorted(media_types), ..self }
    }

    /// The manifest for `platform` of an image index, instead of the node's.
    #[must_use]
    pub fn for_platform(self, platform: Platform) -> Self {
        Self { platform: Some(platform), ..self }
    }

    /// Which artifact.
    pub fn reference(&self) -> &R {
        &self.reference
    }

    /// Where its files go.
    pub fn path(&self) -> &TreePath {
        &self.path
    }

    /// Globs of the files that are wanted, sorted and unique; empty is all.
    pub fn include(&self) -> &[Glob] {
        &self.include
    }

    /// Globs of the files that are not wanted, sorted and unique.
    pub fn exclude(&self) -> &[Glob] {
        &self.exclude
    }

    /// Media types of the layers that are wanted, sorted and unique; empty is all.
    pub fn media_types(&self) -> &[MediaType] {
        &self.media_types
    }

    /// Whose manifest of an image index; `None` is the node's.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    fn with_reference<S>(&self, reference: S) -> Layer<S> {
        Layer {
            reference,
            path: self.path.clone(),
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            media_types: self.media_types.clone(),
            platform: self.platform.clone(),
        }
    }
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list.dedup();
    list
}

/// What a person wants: at least one step, each with a reference that may be a tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recipe(Vec<Step<Reference>>);

/// A recipe with a digest in every step, and its canonical JSON.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinnedRecipe {
    steps: Vec<Step<PinnedReference>>,
    json: String,
}

/// What is wrong with a recipe. Steps are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// More text than a recipe can have.
    #[error("the recipe has {length} bytes: at most {} are taken", RecipeError::LONGEST)]
    TooLong {
        /// What was given.
        length: usize,
    },
    /// Not YAML or JSON of the shape of a recipe; the parser's words have line and column.
    #[error("the recipe cannot be read: {0}")]
    Syntax(Shown),
    /// No step.
    #[error("the recipe is empty: it needs at least one step, as [{{\"add\": \"ghcr.io/acme/model:v1\"}}]")]
    Empty,
    /// More steps than a recipe can have.
    #[error("the recipe has {count} steps: at most {} are taken", RecipeError::MOST_STEPS)]
    TooManySteps {
        /// What was given.
        count: usize,
    },
    /// A `remove` with nothing before it.
    #[error("the recipe begins with remove, which takes away what earlier steps laid down: begin with add")]
    RemoveFirst,
    /// None or several of `add`, `overlay`, `patch` and `remove` in one step.
    #[error("step {step} of the recipe needs exactly one of add, overlay, patch and remove")]
    Verb {
        /// Which step.
        step: usize,
    },
    /// A `level` without `patch`.
    #[error("step {step} of the recipe: level stands beside patch alone")]
    LevelAlone {
        /// Which step.
        step: usize,
    },
    /// A `patch` where all has been read already, as in a canonical recipe.
    #[error(
        "step {step} of the recipe is a patch, and what it comes to has to stand here: `oras-csi recipe pin` writes that"
    )]
    Patch {
        /// Which step.
        step: usize,
    },
    /// A key beside `remove`, which takes none.
    #[error("step {step} of the recipe: remove stands alone, without \"{key}\"")]
    BesideRemove {
        /// Which step.
        step: usize,
        /// The key that has no meaning there.
        key: &'static str,
    },
    /// The same `add` twice, with nothing in between that could take its files away: they can only collide.
    #[error(
        "steps {first} and {second} of the recipe add the same files at the same path: leave one of them out, or give it \
         a path of its own"
    )]
    Twice {
        /// Which step.
        first: usize,
        /// Which step says the same.
        second: usize,
    },
    /// A value that does not parse.
    #[error("step {step} of the recipe: {source}")]
    Value {
        /// Which step.
        step: usize,
        /// What is wrong with the value.
        source: StepError,
    },
    /// JSON that says the right thing in another spelling.
    #[error(
        "the recipe is not in canonical form (key order, sorted lists, defaults left out, no spaces): let the webhook \
         or `oras-csi render` write it"
    )]
    NotCanonical,
}

impl RecipeError {
    /// The most bytes of a recipe's text.
    pub const LONGEST: usize = 64 * 1024;
    const MOST_STEPS: usize = 256;
}

/// What is wrong with one value of a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// `add` or `overlay`.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// `add` or `overlay` of a pinned recipe.
    #[error(transparent)]
    PinnedReference(#[from] PinnedReferenceError),
    /// `path`.
    #[error("path: {0}")]
    Path(#[from] TreePathError),
    /// `include`, `exclude` or `remove`.
    #[error("{0}")]
    Glob(#[from] GlobError),
    /// `mediaTypes`.
    #[error("mediaTypes: {0}")]
    MediaType(#[from] MediaTypeError),
    /// `platform`.
    #[error("platform: {0}")]
    Platform(#[from] PlatformError),
    /// `level`.
    #[error("level: {0}")]
    Level(#[from] LevelError),
    /// A key with nothing behind it, which may mean everything or nothing.
    #[error("{key} is empty: write {key}: {value}, or leave it out")]
    Empty {
        /// The key.
        key: &'static str,
        /// What belongs behind it.
        value: &'static str,
    },
    /// Something else in the place of a list.
    #[error("{key} is no list: write {key}: {value}")]
    NoList {
        /// The key.
        key: &'static str,
        /// What belongs behind it.
        value: &'static str,
    },
}

impl Recipe {
    /// A recipe of these steps, in this order.
    pub fn new(steps: Vec<Step<Reference>>) -> Result<Self, RecipeError> {
        check_steps(&steps)?;
        check_repeated(&steps)?;
        Ok(Self(steps))
    }

    /// Reads YAML (of which JSON is a part) as people write it, where there is no patch in it; `is_registry` as in
    /// [`Reference::parse_knowing`].
    pub fn from_yaml(text: &str, is_registry: &dyn Fn(&str) -> bool) -> Result<Self, RecipeError> {
        let written = WrittenRecipe::from_yaml(text, is_registry)?;
        let patch = written.patches().next().map(|(step, _)| RecipeError::Patch { step });
        written.plain().ok_or(patch.unwrap_or(RecipeError::Empty))
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step<Reference>] {
        &self.0
    }

    /// The references, in the order of their steps.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.0.iter().filter_map(|step| step.layer().map(Layer::reference))
    }

    /// The same recipe with what `digest_of` says of each reference.
    pub fn pin<E>(
        &self,
        mut digest_of: impl FnMut(&Reference) -> Result<Digest, E>,
    ) -> Result<PinnedRecipe, E> {
        let mut pin = |layer: &Layer<Reference>| {
            digest_of(&layer.reference).map(|digest| layer.with_reference(layer.reference.pin(digest)))
        };
        let steps = self
            .0
            .iter()
            .map(|step| {
                Ok(match step {
                    Step::Add(layer) => Step::Add(pin(layer)?),
                    Step::Overlay(layer) => Step::Overlay(pin(layer)?),
                    Step::Remove(glob) => Step::Remove(glob.clone()),
                })
            })
            .collect::<Result<Vec<_>, E>>()?;
        Ok(PinnedRecipe::from_checked(steps))
    }
}

impl PinnedRecipe {
    /// A pinned recipe of these steps, in this order.
    pub fn new(steps: Vec<Step<PinnedReference>>) -> Result<Self, RecipeError> {
        check_steps(&steps)?;
        Ok(Self::from_checked(steps))
    }

    fn from_checked(steps: Vec<Step<PinnedReference>>) -> Self {
        let json = raw::write_json(&steps);
        Self { steps, json }
    }

    /// Reads canonical JSON; any other spelling of the same recipe is an error.
    pub fn from_json(text: &str) -> Result<Self, RecipeError> {
        let recipe = Self::new(raw::read_json(text, &|text| Ok(text.parse::<PinnedReference>()?))?)?;
        if recipe.json == text { Ok(recipe) } else { Err(RecipeError::NotCanonical) }
    }

    /// The same recipe as somebody would write it who knows the digests.
    pub fn unpinned(&self) -> Recipe {
        let layer = |layer: &Layer<PinnedReference>| layer.with_reference(layer.reference.clone().into());
        let step = |step: &Step<PinnedReference>| match step {
            Step::Add(one) => Step::Add(layer(one)),
            Step::Overlay(one) => Step::Overlay(layer(one)),
            Step::Remove(glob) => Step::Remove(glob.clone()),
        };
        Recipe(self.steps.iter().map(step).collect())
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step<PinnedReference>] {
        &self.steps
    }

    /// The references, in the order of their steps.
    pub fn references(&self) -> impl Iterator<Item = &PinnedReference> {
        self.steps.iter().filter_map(|step| step.layer().map(Layer::reference))
    }

    /// The canonical JSON.
    pub fn to_json(&self) -> &str {
        &self.json
    }

    /// The SHA-256 digest of the canonical JSON.
    pub fn digest(&self) -> Digest {
        Digest::sha256_of(self.json.as_bytes())
    }
}

fn check_steps<R>(steps: &[Step<R>]) -> Result<(), RecipeError> {
    match steps {
        [] => Err(RecipeError::Empty),
        [Step::Remove(_), ..] => Err(RecipeError::RemoveFirst),
        _ if steps.len() > RecipeError::MOST_STEPS => Err(RecipeError::TooManySteps { count: steps.len() }),
        _ => Ok(()),
    }
}

/// Fails on an `add` that repeats another, unless some step between them may take away what the first laid down.
fn check_repeated<R: PartialEq>(steps: &[Step<R>]) -> Result<(), RecipeError> {
    let mut seen: Vec<(&Layer<R>, usize)> = Vec::new();
    for (step, second) in steps.iter().zip(1..) {
        match step {
            Step::Add(layer) => {
                if let Some((_, first)) = seen.iter().find(|(other, _)| *other == layer) {
                    return Err(RecipeError::Twice { first: *first, second });
                }
                seen.push((layer, second));
            }
            Step::Overlay(_) | Step::Remove(_) => seen.clear(),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
