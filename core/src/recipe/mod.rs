//! Recipes: the ordered steps from which the content of a volume is composed (docs/design.md, "Recipes").
//!
//! Three types stand for three stages. A [`WrittenRecipe`] is what a user wrote: its references can be tags, and
//! its steps can be patches. A [`Recipe`] has no patches any more. A [`PinnedRecipe`] has a digest in every step. It
//! has exactly one form, canonical JSON (docs/design.md, "Canonical volume"): volumes carry it, the volume id is a
//! hash of it, and the driver parses it.
//!
//! Architecture Invariant: [`PinnedRecipe`] is the only type that writes or parses canonical JSON. It parses exactly
//! what it writes, and nothing else.

pub mod artifact;
mod raw;
mod written;

use crate::digest::Digest;
use crate::display::Shown;
use crate::manifest::LayerSelection;
use crate::media_type::{MediaType, MediaTypeError};
use crate::patch_level::LevelError;
use crate::path::{Glob, GlobError, TreePath, TreePathError};
use crate::platform::{Platform, PlatformError};
use crate::reference::{PinnedReference, PinnedReferenceError, Reference, ReferenceError};

pub use written::{PatchStep, PatchStepError, WrittenRecipe, WrittenStep};

/// One step of a recipe; `R` is [`Reference`] or [`PinnedReference`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step<R> {
    /// Adds the files of an artifact at a path. A file that already exists there is an error.
    Add(Layer<R>),
    /// Overlays the files of an artifact over the existing ones, with OCI whiteouts (image-spec, layer.md).
    Overlay(Layer<R>),
    /// Removes files of earlier steps.
    Remove(Glob),
}

impl<R> Step<R> {
    /// Returns the artifact of an `add` or `overlay`.
    pub fn layer(&self) -> Option<&Layer<R>> {
        match self {
            Self::Add(layer) | Self::Overlay(layer) => Some(layer),
            Self::Remove(_) => None,
        }
    }
}

/// The artifact of a step, the filters over its files, and their path in the volume.
///
/// This is not an OCI layer: `mediaTypes` selects the OCI layers of the artifact.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layer<R> {
    reference: R,
    path: TreePath,
    include: Vec<Glob>,
    exclude: Vec<Glob>,
    media_types: Vec<MediaType>,
    name: Option<TreePath>,
    platform: Option<Platform>,
}

impl<R> Layer<R> {
    /// Creates a layer with all files of an artifact at the root of the volume, for the platform of the node.
    pub fn new(reference: R) -> Self {
        Self {
            reference,
            path: TreePath::root(),
            include: Vec::new(),
            exclude: Vec::new(),
            media_types: Vec::new(),
            name: None,
            platform: None,
        }
    }

    /// Sets the directory of the files in the volume.
    #[must_use]
    pub fn at(self, path: TreePath) -> Self {
        Self { path, ..self }
    }

    /// Keeps only files whose path in the artifact matches one of `globs`; without globs, all files.
    #[must_use]
    pub fn including(self, globs: Vec<Glob>) -> Self {
        Self { include: sorted(globs), ..self }
    }

    /// Leaves out files whose path in the artifact matches one of `globs`.
    #[must_use]
    pub fn excluding(self, globs: Vec<Glob>) -> Self {
        Self { exclude: sorted(globs), ..self }
    }

    /// Keeps only OCI layers of these media types; without media types, all layers.
    #[must_use]
    pub fn with_media_types(self, media_types: Vec<MediaType>) -> Self {
        Self { media_types: sorted(media_types), ..self }
    }

    /// Gives a name to the one OCI layer, among those that are kept, that has no title. The root is no name: it is ignored.
    #[must_use]
    pub fn with_name(self, name: TreePath) -> Self {
        Self { name: (!name.is_root()).then_some(name), ..self }
    }

    /// Selects the manifest for `platform` from an image index, instead of the one for the node.
    #[must_use]
    pub fn for_platform(self, platform: Platform) -> Self {
        Self { platform: Some(platform), ..self }
    }

    /// Returns the reference of the artifact.
    pub fn reference(&self) -> &R {
        &self.reference
    }

    /// Returns the directory of the files in the volume.
    pub fn path(&self) -> &TreePath {
        &self.path
    }

    /// Returns the globs of the files to keep, sorted and unique. Empty means all files.
    pub fn include(&self) -> &[Glob] {
        &self.include
    }

    /// Returns the globs of the files to leave out, sorted and unique.
    pub fn exclude(&self) -> &[Glob] {
        &self.exclude
    }

    /// Returns the media types of the OCI layers to keep, sorted and unique. Empty means all layers.
    pub fn media_types(&self) -> &[MediaType] {
        &self.media_types
    }

    /// Returns the name of the one OCI layer, among those that are kept, that has no title.
    pub fn name(&self) -> Option<&TreePath> {
        self.name.as_ref()
    }

    /// Returns which OCI layers of the artifact are kept, and the name of one without a title.
    pub fn selection(&self) -> LayerSelection<'_> {
        LayerSelection { media_types: &self.media_types, name: self.name.as_ref() }
    }

    /// Returns the platform to select from an image index. `None` means the platform of the node.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// Returns the same filters and path for another reference.
    pub(crate) fn with_reference<S>(&self, reference: S) -> Layer<S> {
        Layer {
            reference,
            path: self.path.clone(),
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            media_types: self.media_types.clone(),
            name: self.name.clone(),
            platform: self.platform.clone(),
        }
    }
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list.dedup();
    list
}

/// The recipe of a volume: at least one step, whose references can be tags.
///
/// ```
/// use oras_csi_core::digest::Digest;
/// use oras_csi_core::recipe::Recipe;
///
/// let yaml = "
/// - add: ghcr.io/acme/model:v1
///   path: model
///   include: ['*.safetensors']
/// - remove: model/optimizer.pt
/// ";
/// let recipe = Recipe::from_yaml(yaml, &|_| false)?;
/// assert_eq!(recipe.steps().len(), 2);
///
/// // The registry resolves each tag to a digest; here it is the digest of no bytes.
/// let pinned = recipe.pin(|_| Ok::<_, std::convert::Infallible>(Digest::sha256_of(b""))).unwrap();
/// assert!(pinned.to_json().starts_with(r#"[{"add":"ghcr.io/acme/model@sha256:e3b0c44298fc"#));
/// # Ok::<(), oras_csi_core::recipe::RecipeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recipe(Vec<Step<Reference>>);

/// A recipe with a digest in every step, and its canonical JSON (docs/design.md, "Canonical volume").
///
/// ```
/// use oras_csi_core::recipe::{PinnedRecipe, RecipeError};
///
/// let digest = format!("sha256:{}", "0".repeat(64));
/// let json = format!(r#"[{{"add":"ghcr.io/acme/model@{digest}","path":"model"}}]"#);
/// assert_eq!(PinnedRecipe::from_json(&json)?.to_json(), json);
///
/// // Canonical JSON has one form: the same recipe with a space is an error.
/// let spaced = json.replace("\",\"", "\", \"");
/// assert_eq!(PinnedRecipe::from_json(&spaced), Err(RecipeError::NotCanonical));
/// # Ok::<(), RecipeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinnedRecipe {
    steps: Vec<Step<PinnedReference>>,
    json: String,
}

/// The error for an invalid recipe. Steps are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// The text is too long.
    #[error("the recipe has {length} bytes: the maximum is {}", Recipe::MAX_BYTES)]
    TooLong {
        /// The length of the text in bytes.
        length: usize,
    },
    /// The text is not YAML or JSON, or has not the structure of a recipe. The parser's message has line and column.
    #[error("cannot parse the recipe: {0}: write a list of steps, for example - add: ghcr.io/acme/model:v1")]
    Syntax(Shown),
    /// The recipe has no step.
    #[error(
        "the recipe is empty: write at least one step, for example [{{\"add\": \"ghcr.io/acme/model:v1\"}}]"
    )]
    Empty,
    /// The recipe has too many steps.
    #[error("the recipe has {count} steps: the maximum is {}", Recipe::MAX_STEPS)]
    TooManySteps {
        /// The number of steps.
        count: usize,
    },
    /// The first step is `remove`.
    #[error("the recipe begins with remove, which removes files of earlier steps: begin with add")]
    RemoveFirst,
    /// A step has none or several of `add`, `overlay`, `patch` and `remove`.
    #[error("step {step} of the recipe must have exactly one of add, overlay, patch and remove")]
    Verb {
        /// The number of the step.
        step: usize,
    },
    /// A step has `level` without `patch`.
    #[error("step {step} of the recipe: level is allowed only in a step with patch: remove it")]
    LevelAlone {
        /// The number of the step.
        step: usize,
    },
    /// A step has `as` beside `patch`, whose layers are not selected one by one.
    #[error("step {step} of the recipe: as is allowed only in a step with add or overlay")]
    NameOfPatch {
        /// The number of the step.
        step: usize,
    },
    /// A step is a `patch`, in a place where patches must be expanded already, for example in a canonical recipe.
    #[error(
        "step {step} of the recipe is a patch, which is not allowed here: replace it by the steps that it expands to; \
         `oras-csi recipe pin` writes them"
    )]
    Patch {
        /// The number of the step.
        step: usize,
    },
    /// A step with `remove` has another key.
    #[error("step {step} of the recipe: a step with remove cannot have \"{key}\": remove this key")]
    BesideRemove {
        /// The number of the step.
        step: usize,
        /// The key that is not allowed.
        key: &'static str,
    },
    /// Two steps `add` the same files at the same path, and no step between them can remove these files.
    #[error(
        "steps {first} and {second} of the recipe add the same files at the same path: remove one of the steps, or set \
         another path"
    )]
    Twice {
        /// The number of the step.
        first: usize,
        /// The number of the step that repeats it.
        second: usize,
    },
    /// A value of a step is invalid.
    #[error("step {step} of the recipe: {source}")]
    Value {
        /// The number of the step.
        step: usize,
        /// The error of the value.
        source: StepError,
    },
    /// The JSON is a valid pinned recipe, but not in the canonical form.
    #[error(
        "the recipe is not in canonical form (key order, sorted lists, no default values, no spaces): let the webhook \
         or `oras-csi render` write it"
    )]
    NotCanonical,
}

/// The error for an invalid value of a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The reference of `add`, `overlay` or `patch`.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The reference of `add` or `overlay` in a pinned recipe.
    #[error(transparent)]
    PinnedReference(#[from] PinnedReferenceError),
    /// `path`.
    #[error("path: {0}")]
    Path(TreePathError),
    /// `as`.
    #[error("as: {0}")]
    Name(TreePathError),
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
    /// A key has an empty value, which could mean everything or nothing.
    #[error("{key} is empty: write {key}: {value}, or remove the key")]
    Empty {
        /// The key.
        key: &'static str,
        /// An example of a valid value.
        value: &'static str,
    },
    /// A value is not a list.
    #[error("{key} is not a list: write {key}: {value}")]
    NotAList {
        /// The key.
        key: &'static str,
        /// An example of a valid value.
        value: &'static str,
    },
}

impl Recipe {
    /// The maximum length of a recipe's text, in bytes.
    pub const MAX_BYTES: usize = 64 * 1024;
    const MAX_STEPS: usize = 256;

    /// Creates a recipe with these steps, in this order.
    ///
    /// Fails when there is no step, when there are more than 256, when the first step is `remove`, or when two steps
    /// add the same files at the same path.
    pub fn new(steps: Vec<Step<Reference>>) -> Result<Self, RecipeError> {
        check_steps(&steps)?;
        check_duplicates(&steps)?;
        Ok(Self(steps))
    }

    /// Parses the YAML (or JSON) of a recipe without patches. `is_registry` is explained at
    /// [`Reference::parse_with_known_hosts`].
    pub fn from_yaml(text: &str, is_registry: &dyn Fn(&str) -> bool) -> Result<Self, RecipeError> {
        let written = WrittenRecipe::from_yaml(text, is_registry)?;
        let patch = written.patches().next().map(|(step, _)| RecipeError::Patch { step });
        written.plain().ok_or(patch.unwrap_or(RecipeError::Empty))
    }

    /// Returns the steps, in order.
    pub fn steps(&self) -> &[Step<Reference>] {
        &self.0
    }

    /// Returns the references, in the order of their steps.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.0.iter().filter_map(|step| step.layer().map(Layer::reference))
    }

    /// Pins the recipe: `digest_of` returns the digest of each reference.
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
    /// Creates a pinned recipe with these steps, in this order.
    ///
    /// Fails when there is no step, when there are more than 256, or when the first step is `remove`.
    pub fn new(steps: Vec<Step<PinnedReference>>) -> Result<Self, RecipeError> {
        check_steps(&steps)?;
        Ok(Self::from_checked(steps))
    }

    fn from_checked(steps: Vec<Step<PinnedReference>>) -> Self {
        let json = raw::write_json(&steps);
        Self { steps, json }
    }

    /// Parses canonical JSON. Any other form of the same recipe is an error.
    pub fn from_json(text: &str) -> Result<Self, RecipeError> {
        let recipe = Self::new(raw::read_json(text, &|text| Ok(text.parse::<PinnedReference>()?))?)?;
        if recipe.json == text { Ok(recipe) } else { Err(RecipeError::NotCanonical) }
    }

    /// Returns the same steps as a [`Recipe`] whose references have digests.
    pub fn unpinned(&self) -> Recipe {
        let layer = |layer: &Layer<PinnedReference>| layer.with_reference(layer.reference.clone().into());
        let step = |step: &Step<PinnedReference>| match step {
            Step::Add(one) => Step::Add(layer(one)),
            Step::Overlay(one) => Step::Overlay(layer(one)),
            Step::Remove(glob) => Step::Remove(glob.clone()),
        };
        Recipe(self.steps.iter().map(step).collect())
    }

    /// Returns the steps, in order.
    pub fn steps(&self) -> &[Step<PinnedReference>] {
        &self.steps
    }

    /// Returns the references, in the order of their steps.
    pub fn references(&self) -> impl Iterator<Item = &PinnedReference> {
        self.steps.iter().filter_map(|step| step.layer().map(Layer::reference))
    }

    /// Returns the canonical JSON.
    pub fn to_json(&self) -> &str {
        &self.json
    }

    /// Computes the SHA-256 digest of the canonical JSON.
    pub fn digest(&self) -> Digest {
        Digest::sha256_of(self.json.as_bytes())
    }
}

fn check_steps<R>(steps: &[Step<R>]) -> Result<(), RecipeError> {
    match steps {
        [] => Err(RecipeError::Empty),
        [Step::Remove(_), ..] => Err(RecipeError::RemoveFirst),
        _ if steps.len() > Recipe::MAX_STEPS => Err(RecipeError::TooManySteps { count: steps.len() }),
        _ => Ok(()),
    }
}

/// Fails on an `add` that repeats another one, unless a step between them can remove the files of the first.
fn check_duplicates<R: PartialEq>(steps: &[Step<R>]) -> Result<(), RecipeError> {
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
