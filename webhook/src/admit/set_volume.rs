//! A volume that gets its content from a set. Pure.

use oras_csi_core::digest::Digest;
use oras_csi_core::policy::Source;
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::{CanonicalVolume, VolumeError};

use crate::intent::{Named, Origin};
use crate::sets::{FoundSet, NamedLayer};

/// A volume of a set that was looked up.
#[derive(Clone, Debug)]
pub(super) struct SetVolume {
    /// The set, with the recipe that the volume gets: also if that is an earlier one, which the object already has.
    pub(super) found: FoundSet,
    /// Where the set's name is written.
    pub(super) origin: Origin,
    /// Which recipe of the set the pods of the revision have.
    pub(super) pin: SetPin,
    /// The canonical volume that the object already has and keeps, with its seal.
    pub(super) kept: Option<CanonicalVolume>,
}

/// Which recipe of a set the pods of a revision have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetPin {
    /// No pod of the revision has one yet.
    Missing,
    /// The first pod of the revision recorded one. The volume has it, or keeps what the object already had.
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

    /// Gives the volume the recipe that the first pod of the revision got, unless the object has one that it keeps.
    pub(super) fn apply_pin(&mut self, digest: &Digest) {
        if self.kept.is_some() {
            self.pin = SetPin::Found;
            return;
        }
        match self.found.as_of(digest) {
            Some(found) => (self.found, self.pin) = (found, SetPin::Found),
            None => self.pin = SetPin::Forgotten,
        }
    }

    /// Returns the references whose files are mounted.
    pub(super) fn references(&self) -> Vec<Named> {
        let named = |layer: NamedLayer<'_>| Named {
            origin: self.origin.step(layer.step),
            reference: layer.reference.clone(),
            is_patch: false,
            source: self.source(),
        };
        self.found.recipe.layers().map(named).collect()
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

    /// Returns the canonical volume. It has a seal only if the object already had it.
    pub(super) fn canonical(&self) -> Result<CanonicalVolume, VolumeError> {
        if let Some(kept) = &self.kept {
            return Ok(kept.clone());
        }
        let volume = CanonicalVolume::new(Some(&self.found.name), self.found.recipe.pinned().clone())?;
        if self.found.is_cluster_set() { volume.with_set(&self.found.name) } else { Ok(volume) }
    }
}
