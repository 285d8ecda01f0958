//! A volume that gets its content from a set. Pure.

use oras_csi_core::policy::Source;
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::{CanonicalVolume, VolumeError};

use crate::intent::{Named, Origin};
use crate::sets::FoundSet;

/// A volume of a set that was looked up.
#[derive(Clone, Debug)]
pub(super) struct SetVolume {
    /// The set, with the recipe that the volume gets.
    pub(super) found: FoundSet,
    /// Where the set's name is written.
    pub(super) origin: Origin,
    /// Which recipe of the set the pods of the revision have.
    pub(super) pin: SetPin,
    /// The canonical volume that the object already has for its annotations. It is untrusted input.
    pub(super) earlier: Option<CanonicalVolume>,
}

/// Which recipe of a set the pods of a revision have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetPin {
    /// No pod of the revision has one yet.
    Missing,
    /// The recipe that was found.
    Found,
    /// It does not matter: the object has the recipe with its digests.
    Unneeded,
    /// A recipe that the set no longer remembers.
    Forgotten,
}

impl SetVolume {
    fn source(&self) -> Source {
        if self.found.is_cluster_set() { Source::ClusterSet } else { Source::Direct }
    }

    /// Returns the references whose files are mounted.
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

    /// Returns the patches that the set's spec names.
    pub(super) fn patches(&self) -> Vec<Named> {
        let named = |(number, reference): (usize, &Reference)| Named {
            origin: self.origin.step(number),
            reference: reference.clone(),
            is_patch: true,
            source: self.source(),
        };
        self.found.patches().map(named).collect()
    }

    /// Returns the canonical volume, without a seal.
    pub(super) fn canonical(&self) -> Result<CanonicalVolume, VolumeError> {
        let volume = CanonicalVolume::new(Some(&self.found.name), self.found.pinned.clone())?;
        if self.found.is_cluster_set() { volume.with_set(&self.found.name) } else { Ok(volume) }
    }
}
