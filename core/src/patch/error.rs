//! Errors about patches.

use super::{Level, Part};
use crate::digest::{Digest, DigestError};
use crate::display::Shown;
use crate::recipe::artifact::ArtifactError;
use crate::reference::ReferenceError;

/// The error for an artifact that is not a valid patch, or is not for the requested base.
///
/// The message continues a sentence whose subject is the artifact, for example `r.io/app:1@sha256:… names no base`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The artifact is an image index.
    #[error(
        "is an image index, which is neither a patch nor a recipe artifact: to mount it, name it as an artifact \
         (oras.land/artifact, oras.artifact.reference, or an add step)"
    )]
    Index,
    /// The manifest is too large.
    #[error(
        "has a manifest of {length} bytes: the maximum for a patch or a recipe artifact is {}",
        super::Instructions::MAX_BYTES
    )]
    TooLong {
        /// The length of the manifest in bytes.
        length: usize,
    },
    /// The artifact has another artifact type.
    #[error(
        "is an artifact of type \"{kind}\", which is neither a patch nor a recipe artifact: to mount it, name it as an \
         artifact (oras.land/artifact, oras.artifact.reference, or an add step)"
    )]
    Kind {
        /// The artifact type.
        kind: Shown,
    },
    /// The patch has neither a subject nor the annotation of the base.
    #[error(
        "names no base: it has neither a subject nor the annotation org.opencontainers.image.base.digest; create the \
         patch with `oras-csi patch`"
    )]
    NoBase,
    /// The subject and the annotation name different bases.
    #[error(
        "names two bases: its subject is {subject}, but its annotation org.opencontainers.image.base.digest is \
         {annotation}"
    )]
    TwoBases {
        /// The digest of the subject.
        subject: Digest,
        /// The digest in the annotation.
        annotation: Digest,
    },
    /// The patch is for another base than the requested one.
    #[error(
        "has the digest {found}, but the patch is for {base}: create a patch for the current digest, or name the base \
         of the patch"
    )]
    OtherBase {
        /// The digest of the requested base.
        found: Digest,
        /// The base of the patch.
        base: Shown,
    },
    /// The patch has no level.
    #[error("has no level: a patch needs at least one of minor, major and critical")]
    NoLevels,
    /// A reference has no digest.
    #[error("its {part} \"{reference}\" has no digest, and a tag can move: resolve the tag first")]
    NotPinned {
        /// The part with that reference.
        part: Part,
        /// The reference.
        reference: Shown,
    },
    /// The annotation with the reference of a level is present, but not the one with its digest.
    #[error(
        "names its {part} by the annotation {reference}, but the annotation {missing} with the digest is missing"
    )]
    NoDigest {
        /// The part of the patch.
        part: Part,
        /// The annotation that is present.
        reference: Shown,
        /// The annotation that is missing.
        missing: Shown,
    },
    /// An annotation must have a digest, but its value is not one.
    #[error("its annotation {key}: {source}")]
    Digest {
        /// The annotation.
        key: Shown,
        /// The error of its value.
        source: DigestError,
    },
    /// An annotation must have a reference, but its value is not one.
    #[error("its annotation {key}: {source}")]
    Reference {
        /// The annotation.
        key: Shown,
        /// The error of its value.
        source: ReferenceError,
    },
    /// The reference and the digest of a part contradict each other.
    #[error("its annotation {key} has the digest {found}, but its {part} is {expected}")]
    Differs {
        /// The annotation with the reference.
        key: Shown,
        /// The digest in that reference.
        found: Digest,
        /// The part of the patch.
        part: Part,
        /// The digest that the manifest states for the part.
        expected: Digest,
    },
    /// `crit` and `critical` have different values.
    #[error("has two different values for its level {level}: {first} and {second}")]
    Twice {
        /// The level.
        level: Level,
        /// One annotation.
        first: Shown,
        /// The other annotation.
        second: Shown,
    },
    /// A part of the patch is the patch itself.
    #[error("refers to itself: its {part} is the patch itself")]
    Circle {
        /// The part of the patch.
        part: Part,
    },
    /// A level is the base.
    #[error("overlays its base {digest} over itself: its level {level} is the base")]
    BaseAgain {
        /// The level.
        level: Level,
        /// The digest of the base.
        digest: Digest,
    },
    /// A part of the patch is a patch or a recipe artifact, but it must be content.
    #[error(
        "is a patch or a recipe artifact itself, but the {part} of a patch must be content: name the artifacts that it \
         names, or create a new patch of its base"
    )]
    Nested {
        /// The part of the patch.
        part: Part,
    },
    /// The recipe artifact is invalid.
    #[error(transparent)]
    Recipe(#[from] ArtifactError),
}
