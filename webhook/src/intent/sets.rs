//! A volume that names a set, and what it comes to once that was looked up. Pure.

use oras_csi_core::policy::Source;
use oras_csi_core::recipe::WrittenRecipe;
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::{CanonicalVolume, VolumeError};

use super::{Named, Origin};
use crate::denial::{At, Denial};
use crate::sets::FoundSet;

/// The name of a set, and where it is written.
#[derive(Clone, Debug)]
pub(crate) struct SetName {
    pub(crate) name: String,
    pub(crate) origin: Origin,
}

impl SetName {
    /// Takes the name of an object.
    pub(super) fn new(name: &str, origin: Origin) -> Result<Self, Denial> {
        if super::is_subdomain(name) {
            return Ok(Self { name: name.to_owned(), origin });
        }
        let instead = "write the name of an ArtifactSet of the namespace, or of a ClusterArtifactSet";
        Err(Denial::rewrite(origin.at(), Some(name), "is not the name of a set", instead))
    }
}

/// A set that comes to be with the volume that names it.
#[derive(Clone, Debug)]
pub(crate) struct NewSet {
    pub(crate) name: String,
    pub(crate) recipe: WrittenRecipe,
    pub(crate) origin: Origin,
}

impl NewSet {
    pub(crate) fn at(&self) -> At<'_> {
        self.origin.at()
    }
}

/// What a set has for a volume.
#[derive(Clone, Debug)]
pub(crate) struct OfSet {
    pub(crate) found: FoundSet,
    pub(crate) origin: Origin,
    /// Whether the pods of the revision have a recipe of it by now.
    pub(crate) kept: Kept,
}

/// What the revision of a pod has of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing yet.
    #[default]
    Nothing,
    /// This very recipe.
    This,
    /// Nothing that matters: this very recipe is written, with its digests.
    Written,
    /// One that the set no longer knows.
    Forgotten,
}

impl OfSet {
    fn source(&self) -> Source {
        if self.found.is_cluster_set() { Source::ClusterSet } else { Source::Direct }
    }

    /// What is mounted, one reference a step that has one.
    pub(super) fn references(&self) -> Vec<Named> {
        let steps = self.found.pinned.steps().iter().zip(1..);
        let numbers = steps.filter(|(step, _)| step.layer().is_some()).map(|(_, number)| number);
        let named = |(reference, number): (&Reference, usize)| Named {
            origin: self.origin.step(number),
            reference: reference.clone(),
            is_patch: false,
            source: self.source(),
        };
        self.found.references.iter().zip(numbers).map(named).collect()
    }

    /// The patches that say some of it.
    pub(super) fn patches(&self) -> Vec<Named> {
        let named = |(number, reference): (usize, &Reference)| Named {
            origin: self.origin.step(number),
            reference: reference.clone(),
            is_patch: true,
            source: self.source(),
        };
        self.found.patches().map(named).collect()
    }

    /// The volume, without a seal.
    pub(crate) fn canonical(&self) -> Result<CanonicalVolume, VolumeError> {
        let volume = CanonicalVolume::new(Some(&self.found.name), self.found.pinned.clone())?;
        if self.found.is_cluster_set() { volume.with_set(&self.found.name) } else { Ok(volume) }
    }
}
