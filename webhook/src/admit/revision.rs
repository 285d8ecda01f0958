//! The pins of the revision that a pod belongs to: all pods of a revision get the digests that its first pod got.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use oras_csi_core::digest::Digest;
use oras_csi_core::reference::Reference;
use tokio::time::timeout_at;

use super::context::Scope;
use super::set_volume::SetVolume;
use crate::denial::{At, Denial};
use crate::intent::Origin;
use crate::metrics::{Metrics, PinWrite};
use crate::pins::{PinError, PinKey, PinOwner, PinPlace, Pins};
use crate::view::Pod;

/// How many pins are looked up at once.
const LOOKUPS_AT_ONCE: usize = 8;

/// Whether a request may create objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    /// The object is being created.
    Yes,
    /// It is a dry run, a preview, or `oras-csi render`.
    No,
}

/// A tag that was resolved for this request, and has to be pinned.
#[derive(Clone, Debug)]
pub(super) struct NewPin {
    pub(super) reference: Reference,
    pub(super) digest: Digest,
    pub(super) origin: Origin,
}

/// The digests that pins have, by the reference as it is written.
pub(super) type TagPins = BTreeMap<Reference, Digest>;

/// The revision of a controller that a pod belongs to.
pub(super) struct Revision<'a> {
    pins: &'a dyn Pins,
    metrics: &'a Metrics,
    owner: PinOwner,
    label: Option<&'a str>,
    writes: Writes,
    scope: Scope<'a>,
}

impl<'a> Revision<'a> {
    /// Returns the revision of a pod that a controller creates; `None` for any other pod, which needs no pins.
    pub(super) fn of(
        pins: &'a dyn Pins,
        metrics: &'a Metrics,
        pod: &Pod<'a>,
        writes: Writes,
        scope: Scope<'a>,
    ) -> Result<Option<Self>, Denial> {
        let Some(controller) = pod.controller() else { return Ok(None) };
        let owner = PinOwner::parse(controller).map_err(|error| {
            let instead = "write the apiVersion, kind, name and uid of the object that created the pod, or remove the entry";
            Denial::bad_request(At::Field("metadata.ownerReferences"), None, error, instead)
        })?;
        Ok(Some(Self { pins, metrics, owner, label: pod.revision(), writes, scope }))
    }

    /// Finds the pins of references.
    pub(super) async fn find_pins(&self, references: &[(Reference, Origin)]) -> Result<TagPins, Denial> {
        let keyed = references.iter().filter_map(|(reference, origin)| {
            let key = self.key(reference)?;
            Some((key, reference, origin))
        });
        let lookups: Vec<_> = keyed
            .map(|(key, reference, origin)| async move {
                match self.find(&key).await {
                    Ok(digest) => Ok(digest.map(|digest| (reference.clone(), digest))),
                    Err(error) => Err(error.denial(origin.at(), reference)),
                }
            })
            .collect();
        let mut lookups = stream::iter(lookups).buffered(LOOKUPS_AT_ONCE);
        let mut pins = TagPins::new();
        while let Some(found) = lookups.next().await {
            pins.extend(found?);
        }
        Ok(pins)
    }

    /// Records pins. Returns those that another pod of the revision recorded first, with another digest.
    pub(super) async fn record_pins(&self, new: &[NewPin]) -> Result<TagPins, Denial> {
        let mut others = TagPins::new();
        if self.writes == Writes::No {
            return Ok(others);
        }
        for NewPin { reference, digest, origin } in new {
            let Some(key) = self.key(reference) else { continue };
            let recorded = self.record(&key, digest).await;
            let recorded = recorded.map_err(|error| error.denial(origin.at(), reference))?;
            if recorded != *digest {
                others.insert(reference.clone(), recorded);
            }
        }
        Ok(others)
    }

    /// Finds the digest of the recipe of a set that is pinned.
    pub(super) async fn find_set_pin(&self, set: &SetVolume) -> Result<Option<Digest>, Denial> {
        let key = self.set_key(set);
        self.find(&key).await.map_err(|error| error.denial(set.origin.at(), key.subject()))
    }

    /// Records the digest of the recipe of a set. Returns the digest that is recorded, which may be another pod's.
    pub(super) async fn record_set_pin(&self, set: &SetVolume, digest: &Digest) -> Result<Digest, Denial> {
        if self.writes == Writes::No {
            return Ok(digest.clone());
        }
        let key = self.set_key(set);
        self.record(&key, digest).await.map_err(|error| error.denial(set.origin.at(), key.subject()))
    }

    /// Returns the pin of a reference, for a message that says which one to delete.
    pub(super) fn pin_place(&self, reference: &Reference) -> Option<PinPlace> {
        Some(PinPlace::new(self.scope.namespace(), &self.key(reference)?.object_name()))
    }

    async fn find(&self, key: &PinKey) -> Result<Option<Digest>, PinError> {
        let found = timeout_at(self.scope.deadline, self.pins.find(self.scope.namespace(), key)).await;
        found.unwrap_or(Err(PinError::TooLate))
    }

    async fn record(&self, key: &PinKey, digest: &Digest) -> Result<Digest, PinError> {
        let recorded =
            timeout_at(self.scope.deadline, self.pins.get_or_create(self.scope.namespace(), key, digest))
                .await;
        let recorded = recorded.unwrap_or(Err(PinError::TooLate));
        self.metrics.pin_written(match &recorded {
            Ok(stored) if stored == digest => PinWrite::Stored,
            Ok(_) => PinWrite::Superseded,
            Err(error) => PinWrite::Failed(error),
        });
        recorded
    }

    fn key(&self, reference: &Reference) -> Option<PinKey> {
        PinKey::new(self.owner.clone(), self.label, reference)
    }

    fn set_key(&self, set: &SetVolume) -> PinKey {
        PinKey::of_set(self.owner.clone(), self.label, set.found.kind(), &set.found.name)
    }
}
