//! Where a reference is written, and what policies see of it.

use oras_csi_core::patch::Part;
use oras_csi_core::policy::Source;
use oras_csi_core::reference::{PinnedReference, Reference};

use crate::denial::{At, RecipeAt, StepAt};

/// Where a reference is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In an annotation.
    Annotation {
        /// The annotation's key.
        key: String,
        /// The step of the recipe or the part of the patch, where the annotation holds one.
        step: Option<StepAt>,
    },
    /// In an attribute of a volume.
    Attribute {
        /// The volume's name.
        volume: String,
        /// The attribute's key.
        key: &'static str,
        /// The step of the recipe or the part of the patch, where the attribute holds one.
        step: Option<StepAt>,
    },
    /// In a field of an object that is no pod.
    Field(String),
}

impl Origin {
    /// Returns the place as a denial names it.
    pub(crate) fn at(&self) -> At<'_> {
        match self {
            Self::Field(path) => At::Field(path),
            Self::Annotation { key, step: None } => At::Annotation(key),
            Self::Annotation { key, step: Some(step) } => {
                At::Step { recipe: RecipeAt::Annotation(key), step: *step }
            }
            Self::Attribute { volume, key, step: None } => At::Attribute { volume, key },
            Self::Attribute { volume, key, step: Some(step) } => {
                At::Step { recipe: RecipeAt::Attribute { volume, key }, step: *step }
            }
        }
    }

    /// Returns the place of a step of the recipe that is written here.
    pub(crate) fn step(&self, number: usize) -> Self {
        self.within(StepAt::Number(number))
    }

    /// Returns the place of a part of the patch that is named here.
    pub(super) fn part(&self, part: Part) -> Self {
        self.within(StepAt::Part(part))
    }

    fn within(&self, inner: StepAt) -> Self {
        let mut origin = self.clone();
        match &mut origin {
            Self::Annotation { step, .. } | Self::Attribute { step, .. } => *step = Some(inner),
            Self::Field(_) => {}
        }
        origin
    }
}

/// One reference of a volume, as policies see it.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    /// Where it is written.
    pub(crate) origin: Origin,
    /// The reference as it is written.
    pub(crate) reference: Reference,
    /// Whether it names a patch or a recipe artifact, which is read and not mounted.
    pub(crate) is_patch: bool,
    /// Whether the user names it or a cluster set does.
    pub(crate) source: Source,
}

impl Named {
    /// Reports whether this names a pinned artifact: the same repository, and the same digest if one is written.
    pub(crate) fn is_of(&self, pinned: &PinnedReference) -> bool {
        let Self { reference, .. } = self;
        reference.registry() == pinned.registry()
            && reference.repository() == pinned.repository()
            && reference.digest().is_none_or(|digest| digest == pinned.digest())
    }

    /// A reference whose files the user wants mounted.
    pub(crate) fn content(reference: Reference, origin: Origin) -> Self {
        Self { origin, reference, is_patch: false, source: Source::Direct }
    }

    /// A patch, or a recipe artifact, that the user names.
    pub(crate) fn patch(reference: Reference, origin: Origin) -> Self {
        Self { origin, reference, is_patch: true, source: Source::Direct }
    }
}
