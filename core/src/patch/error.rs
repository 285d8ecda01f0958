//! Why a manifest is no patch, or not the one that is wanted.

use super::{Level, Part};
use crate::digest::{Digest, DigestError};
use crate::display::Shown;
use crate::recipe::artifact::ArtifactError;
use crate::reference::ReferenceError;

/// Why there is no patch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// An index.
    #[error(
        "is an image index, which is neither a patch nor a recipe: to mount it, name it with oras.land/artifact"
    )]
    Index,
    /// More than names and digests.
    #[error(
        "is a manifest of {length} bytes: of a patch or a recipe at most {} are read",
        PatchError::LONGEST
    )]
    TooLong {
        /// What it has.
        length: usize,
    },
    /// Another artifact.
    #[error(
        "is an artifact of type \"{kind}\", which is neither a patch nor a recipe: to mount it, name it with \
         oras.land/artifact"
    )]
    Kind {
        /// Its artifact type.
        kind: Shown,
    },
    /// No subject and no annotation.
    #[error(
        "names no base: it has neither a subject nor the annotation org.opencontainers.image.base.digest; make it with \
         `oras-csi patch`"
    )]
    NoBase,
    /// Two bases.
    #[error(
        "names two bases: its subject is {subject}, and its annotation org.opencontainers.image.base.digest says \
         {annotation}"
    )]
    TwoBases {
        /// What it is attached to.
        subject: Digest,
        /// What it says.
        annotation: Digest,
    },
    /// The base of a patch is not the base that somebody wants.
    #[error(
        "is of the digest {found}, and the patch is for {base}: make a patch for what is there now, or name the base that it is for"
    )]
    OtherBase {
        /// What the wanted base is.
        found: Digest,
        /// What is patched.
        base: Shown,
    },
    /// Nothing to lay over the base.
    #[error("has no level: a patch needs at least one of minor, major and critical")]
    NoLevels,
    /// A reference without a digest.
    #[error("its {part} \"{reference}\" has no digest, and a tag may move: resolve it first")]
    NotPinned {
        /// Which one.
        part: Part,
        /// What was given.
        reference: Shown,
    },
    /// The name of an artifact without its digest.
    #[error("names its {part} by the annotation {reference}, and the digest in {missing} is missing")]
    NoDigest {
        /// Which one.
        part: Part,
        /// The annotation that is there.
        reference: Shown,
        /// The one that is not.
        missing: Shown,
    },
    /// A digest that is none.
    #[error("its annotation {key}: {source}")]
    Digest {
        /// Which one.
        key: Shown,
        /// What is wrong with it.
        source: DigestError,
    },
    /// A reference that is none.
    #[error("its annotation {key}: {source}")]
    Reference {
        /// Which one.
        key: Shown,
        /// What is wrong with it.
        source: ReferenceError,
    },
    /// A reference and a digest that name two things.
    #[error("its annotation {key} has the digest {found}, and its {part} is {wanted}")]
    Differs {
        /// Which one.
        key: Shown,
        /// The digest in it.
        found: Digest,
        /// What it is about.
        part: Part,
        /// The digest that is said elsewhere.
        wanted: Digest,
    },
    /// `crit` and `critical`, and not the same.
    #[error("says two things of its level {level}: {first} and {second}")]
    Twice {
        /// Which one.
        level: Level,
        /// One annotation.
        first: Shown,
        /// The other.
        second: Shown,
    },
    /// A part that is the patch itself.
    #[error("goes round in a circle: its {part} is the patch itself")]
    Circle {
        /// Which one.
        part: Part,
    },
    /// A level that is the base.
    #[error("lays its base {digest} over itself: its level {level} is the base")]
    BaseAgain {
        /// Which one.
        level: Level,
        /// The base.
        digest: Digest,
    },
    /// A patch or a recipe in the place of content.
    #[error(
        "is a patch or a recipe itself, and the {part} of a patch is content: name what it names, or patch its base anew"
    )]
    Nested {
        /// Which one.
        part: Part,
    },
    /// An artifact of a recipe that has none.
    #[error(transparent)]
    Recipe(#[from] ArtifactError),
}

impl PatchError {
    /// The most bytes of a manifest that is read as a patch or a recipe: names and digests are short.
    pub const LONGEST: usize = 64 * 1024;
}
