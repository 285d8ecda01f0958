//! Patches: artifacts that name a base and up to three levels of changes over it (docs/design.md, "Patches"). This
//! module does no I/O.
//!
//! A patch has no files. It names a base and its levels by digest. A volume of a patch has the files of the base, and
//! over them those of `minor`, `major` and `critical`, up to a requested level ([`Patch::recipe`]). The patch is
//! attached to its base (`subject`), so a client finds it among the referrers of the base. A user can name a recipe
//! artifact in the same places as a patch: [`Instructions`] is either of them.
//!
//! Architecture Invariant: base and levels are content. An artifact that a patch names is never read as a patch or as
//! a recipe, so patches cannot form a cycle, and expanding a patch takes one step.

mod error;
mod manifest;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use crate::digest::Digest;
use crate::display::Shown;
use crate::manifest::{Descriptor, Manifest, media};
use crate::recipe::{Layer, PatchStep, Recipe, RecipeError, Step, artifact};
use crate::reference::{PinnedReference, Reference};

pub use self::error::PatchError;
pub use crate::patch_level::{Level, LevelError};

/// The artifact type of a patch.
pub const ARTIFACT_TYPE: &str = media::PATCH_ARTIFACT;

/// A part of a patch: its base or one of its levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The artifact that is patched.
    Base,
    /// An artifact that is overlaid over the base.
    Level(Level),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base"),
            Self::Level(level) => write!(f, "level {level}"),
        }
    }
}

/// A reference with a digest. The tag from which the digest was resolved is kept for messages and for policy rules on
/// tags.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    reference: Reference,
    digest: Digest,
}

/// A patch: a base and at least one level, each a reference with a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    base: Target,
    levels: BTreeMap<Level, Target>,
}

impl Patch {
    /// Creates a patch of `base`.
    ///
    /// Fails when a reference has no digest, when there is no level, and when a level is the base itself.
    pub fn new(
        base: Reference,
        levels: impl IntoIterator<Item = (Level, Reference)>,
    ) -> Result<Self, PatchError> {
        let target = |part, reference: Reference| match reference.digest().cloned() {
            Some(digest) => Ok(Target { reference, digest }),
            None => Err(PatchError::NotPinned { part, reference: Shown::new(&reference.to_string()) }),
        };
        let base = target(Part::Base, base)?;
        let levels = levels
            .into_iter()
            .map(|(level, reference)| Ok((level, target(Part::Level(level), reference)?)))
            .collect::<Result<BTreeMap<_, _>, PatchError>>()?;
        Self { base, levels }.checked()
    }

    fn checked(self) -> Result<Self, PatchError> {
        if self.levels.is_empty() {
            return Err(PatchError::NoLevels);
        }
        match self.levels.iter().find(|(_, target)| target.digest == self.base.digest) {
            Some((level, _)) => {
                Err(PatchError::BaseAgain { level: *level, digest: self.base.digest.clone() })
            }
            None => Ok(self),
        }
    }

    /// Returns the base: a reference with a digest.
    pub fn base(&self) -> &Reference {
        &self.base.reference
    }

    /// Returns the digest of the base.
    pub fn base_digest(&self) -> &Digest {
        &self.base.digest
    }

    /// Returns the levels in the order in which they are applied, each a reference with a digest.
    pub fn levels(&self) -> impl Iterator<Item = (Level, &Reference)> {
        self.levels.iter().map(|(level, target)| (*level, &target.reference))
    }

    /// Returns the steps of a volume of this patch: the base, and over it each level up to and including `up_to` (`None`
    /// means all levels). Each step comes with the part of the patch that it stands for.
    ///
    /// It is not an error when the patch does not have the level `up_to`: the lower levels are applied, and without any,
    /// the volume has the files of the base only.
    pub fn steps(&self, up_to: Option<Level>) -> Vec<(Part, Step<Reference>)> {
        let base = (Part::Base, Step::Add(Layer::new(self.base.reference.clone())));
        let levels = self.levels().filter(|(level, _)| up_to.is_none_or(|last| *level <= last));
        let levels = levels
            .map(|(level, reference)| (Part::Level(level), Step::Overlay(Layer::new(reference.clone()))));
        std::iter::once(base).chain(levels).collect()
    }

    /// Expands the step of a recipe that names this patch: the base and the levels, each with the path and the filters
    /// of `step`, up to the level of `step`.
    pub fn steps_for(&self, step: &PatchStep) -> Vec<Step<Reference>> {
        let with_filters = |layer: &Layer<Reference>| step.layer().with_reference(layer.reference().clone());
        let steps = self.steps(step.level()).into_iter().map(|(_, expanded)| match expanded {
            Step::Add(layer) => Step::Add(with_filters(&layer)),
            Step::Overlay(layer) => Step::Overlay(with_filters(&layer)),
            Step::Remove(glob) => Step::Remove(glob),
        });
        steps.collect()
    }

    /// Returns the recipe of a volume of this patch, in which every reference has a digest.
    pub fn recipe(&self, up_to: Option<Level>) -> Result<Recipe, RecipeError> {
        Recipe::new(self.steps(up_to).into_iter().map(|(_, step)| step).collect())
    }

    /// Fails when the patch is not for the base with that digest.
    pub fn check_base(&self, digest: &Digest) -> Result<(), PatchError> {
        if *digest == self.base.digest {
            return Ok(());
        }
        Err(PatchError::OtherBase {
            found: digest.clone(),
            base: Shown::new(&self.base.reference.to_string()),
        })
    }
}

/// The content of an artifact that a user can name in the place of a patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// A patch.
    Patch(Patch),
    /// A recipe artifact: the descriptor of the layer with the YAML.
    Recipe(Descriptor),
}

impl Instructions {
    /// The maximum size of the manifest of a patch or a recipe artifact, in bytes: it has only names and digests.
    pub const MAX_BYTES: usize = 64 * 1024;

    /// Reads a patch or a recipe artifact from the manifest that `own` names.
    pub fn read(own: &PinnedReference, manifest: &Manifest) -> Result<Self, PatchError> {
        let Manifest::Image(image) = manifest else { return Err(PatchError::Index) };
        match image.kind() {
            ARTIFACT_TYPE => self::manifest::read(own, image).map(Self::Patch),
            artifact::ARTIFACT_TYPE => Ok(Self::Recipe(artifact::layer(image)?)),
            other => Err(PatchError::Kind { kind: other.into() }),
        }
    }

    /// Reports whether an artifact type is that of a patch or of a recipe artifact.
    pub fn is_kind(kind: &str) -> bool {
        matches!(kind, ARTIFACT_TYPE | artifact::ARTIFACT_TYPE)
    }
}
