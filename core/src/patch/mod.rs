//! Patches: artifacts that name a base and what is laid over it. Pure.
//!
//! A patch has no files. It names a base and up to three levels, each by digest; whoever mounts it gets the base, then
//! `minor`, `major` and `critical` over it, as far as is wanted ([`Patch::recipe`]). It is attached to its base
//! (`subject`), so that it is found again through the referrers of that. A whole recipe can be an artifact too, and be
//! named in the same places: [`Instructions`] is what such a place names.
//!
//! Architecture Invariant: base and levels are content. What a patch names is never read as a patch or as a recipe
//! again, so nothing leads back to where it came from, and following a patch is one step.

mod error;
mod manifest;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::display::Shown;
use crate::manifest::Descriptor;
use crate::manifest::Document;
use crate::recipe::{Layer, Recipe, RecipeError, Step, artifact};
use crate::reference::{PinnedReference, Reference};

pub use error::PatchError;

/// The artifact type of a patch.
pub const ARTIFACT_TYPE: &str = "application/vnd.oci.image.patch.v1+json";

/// How much a level of a patch changes, from less to more: the order in which levels are laid over the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// `minor`
    Minor,
    /// `major`
    Major,
    /// `critical`, also written `crit`
    Critical,
}

/// A text that is no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a level of a patch: write minor, major or critical")]
pub struct LevelError(Shown);

impl Level {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Minor, Self::Major, Self::Critical];

    /// As it stands in a patch.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minor => "minor",
            Self::Major => "major",
            Self::Critical => "critical",
        }
    }

    /// Every spelling that is read.
    fn spellings(self) -> &'static [&'static str] {
        match self {
            Self::Minor => &["minor"],
            Self::Major => &["major"],
            Self::Critical => &["critical", "crit"],
        }
    }
}

impl FromStr for Level {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        let found = Self::ALL.into_iter().find(|level| level.spellings().contains(&text));
        found.ok_or_else(|| LevelError(text.into()))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which part of a patch names an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// What is patched.
    Base,
    /// What is laid over it.
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

/// A reference that has a digest, and perhaps the tag that it was found by: for people, and for rules on tags.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Noted {
    reference: Reference,
    digest: Digest,
}

/// A patch: a base and at least one level, each with its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    base: Noted,
    levels: BTreeMap<Level, Noted>,
}

impl Patch {
    /// A patch of `base`, where every reference has a digest.
    pub fn new(
        base: Reference,
        levels: impl IntoIterator<Item = (Level, Reference)>,
    ) -> Result<Self, PatchError> {
        let noted = |part, reference: Reference| match reference.digest().cloned() {
            Some(digest) => Ok(Noted { reference, digest }),
            None => Err(PatchError::NotPinned { part, reference: Shown::new(&reference.to_string()) }),
        };
        let base = noted(Part::Base, base)?;
        let levels = levels
            .into_iter()
            .map(|(level, reference)| Ok((level, noted(Part::Level(level), reference)?)))
            .collect::<Result<BTreeMap<_, _>, PatchError>>()?;
        Self { base, levels }.checked()
    }

    fn checked(self) -> Result<Self, PatchError> {
        if self.levels.is_empty() {
            return Err(PatchError::NoLevels);
        }
        match self.levels.iter().find(|(_, noted)| noted.digest == self.base.digest) {
            Some((level, _)) => {
                Err(PatchError::BaseAgain { level: *level, digest: self.base.digest.clone() })
            }
            None => Ok(self),
        }
    }

    /// What is patched: a reference with a digest.
    pub fn base(&self) -> &Reference {
        &self.base.reference
    }

    /// The digest of what is patched.
    pub fn base_digest(&self) -> &Digest {
        &self.base.digest
    }

    /// The levels in their order, each a reference with a digest.
    pub fn levels(&self) -> impl Iterator<Item = (Level, &Reference)> {
        self.levels.iter().map(|(level, noted)| (*level, &noted.reference))
    }

    /// The steps of a volume that has this patch: the base, and over it each level that is there, up to and with
    /// `up_to` (all of them where it is `None`), with the part that each step is.
    ///
    /// A level that the patch does not have is no error: what is below it is laid over all the same. Where that is
    /// nothing, the base stays as it is.
    pub fn steps(&self, up_to: Option<Level>) -> Vec<(Part, Step<Reference>)> {
        let base = (Part::Base, Step::Add(Layer::new(self.base.reference.clone())));
        let levels = self.levels().filter(|(level, _)| up_to.is_none_or(|last| *level <= last));
        let levels = levels.map(|(level, one)| (Part::Level(level), Step::Overlay(Layer::new(one.clone()))));
        std::iter::once(base).chain(levels).collect()
    }

    /// The same as a recipe, in which every reference has its digest.
    pub fn recipe(&self, up_to: Option<Level>) -> Result<Recipe, RecipeError> {
        Recipe::new(self.steps(up_to).into_iter().map(|(_, step)| step).collect())
    }

    /// Fails unless it patches what has that digest.
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

/// What an artifact says that can be named where a patch can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// A base and what is laid over it.
    Patch(Patch),
    /// A recipe: the blob that has its YAML.
    Recipe(Descriptor),
}

impl Instructions {
    /// Reads the manifest that `own` names.
    pub fn read(own: &PinnedReference, document: &Document) -> Result<Self, PatchError> {
        let Document::Image(image) = document else { return Err(PatchError::Index) };
        match image.kind() {
            ARTIFACT_TYPE => manifest::read(own, image).map(Self::Patch),
            artifact::ARTIFACT_TYPE => Ok(Self::Recipe(artifact::layer(image)?)),
            other => Err(PatchError::Kind { kind: other.into() }),
        }
    }

    /// Whether an artifact of that type is read as instructions.
    pub fn is_kind(kind: &str) -> bool {
        matches!(kind, ARTIFACT_TYPE | artifact::ARTIFACT_TYPE)
    }
}
