//! The pins of one pod's revision: what its tags stood for when the first pod of that revision came.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use oras_csi_core::digest::Digest;
use oras_csi_core::reference::Reference;
use tokio::time::{Instant as Deadline, timeout_at};

use crate::denial::Denial;
use crate::intent::{OfSet, Origin};
use crate::pins::{PinError, PinKey, PinPlace, Pins};
use crate::view::Pod;

/// How many pins may be looked for at once.
const LOOKUPS_AT_ONCE: usize = 8;

/// Whether anything may come of a request but its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    /// It is meant.
    Yes,
    /// A dry run, or somebody who only wants to know.
    No,
}

/// A tag that was looked up for a pod, and where it is written.
#[derive(Clone, Debug)]
pub(super) struct Fresh {
    pub(super) reference: Reference,
    pub(super) digest: Digest,
    pub(super) origin: Origin,
}

/// The revision that a pod belongs to.
pub(super) struct Revision<'a> {
    pins: &'a dyn Pins,
    pod: &'a Pod<'a>,
    namespace: &'a str,
    writes: Writes,
    deadline: Deadline,
}

/// What pins say, by the reference as it is written.
pub(super) type Fixed = BTreeMap<Reference, Digest>;

impl<'a> Revision<'a> {
    /// The one of a pod that a controller makes; `None` for any other, which is alone.
    pub(super) fn of(
        pins: &'a dyn Pins,
        pod: &'a Pod<'a>,
        namespace: &'a str,
        writes: Writes,
        deadline: Deadline,
    ) -> Option<Self> {
        pod.controller().map(|_| Self { pins, pod, namespace, writes, deadline })
    }

    fn key(&self, reference: &Reference) -> Option<PinKey> {
        PinKey::new(self.pod.controller()?, self.pod.revision(), reference)
    }

    /// What is kept for these references.
    pub(super) async fn find(&self, references: &[(Reference, Origin)]) -> Result<Fixed, Denial> {
        let keyed = references.iter().filter_map(|(reference, origin)| {
            let key = self.key(reference)?;
            Some((key, reference, origin))
        });
        let lookups: Vec<_> = keyed
            .map(|(key, reference, origin)| async move {
                let found = timeout_at(self.deadline, self.pins.find(self.namespace, &key)).await;
                let found = found.unwrap_or(Err(PinError::TooLate));
                match found {
                    Ok(digest) => Ok(digest.map(|digest| (reference.clone(), digest))),
                    Err(error) => Err(error.denial(origin.at(), reference)),
                }
            })
            .collect();
        let mut lookups = stream::iter(lookups).buffered(LOOKUPS_AT_ONCE);
        let mut fixed = Fixed::new();
        while let Some(found) = lookups.next().await {
            fixed.extend(found?);
        }
        Ok(fixed)
    }

    /// The digest that is kept of a set's recipe.
    pub(super) async fn find_set(&self, of: &OfSet) -> Result<Option<Digest>, Denial> {
        let Some(key) = self.key_of_set(of) else { return Ok(None) };
        let found = timeout_at(self.deadline, self.pins.find(self.namespace, &key)).await;
        let found = found.unwrap_or(Err(PinError::TooLate));
        found.map_err(|error| error.denial(of.origin.at(), key.subject()))
    }

    /// Keeps one, unless one is kept already; gives the one that is kept then.
    pub(super) async fn keep_set(&self, of: &OfSet, digest: &Digest) -> Result<Digest, Denial> {
        let Some(key) = self.key_of_set(of).filter(|_| self.writes == Writes::Yes) else {
            return Ok(digest.clone());
        };
        let kept = timeout_at(self.deadline, self.pins.get_or_create(self.namespace, &key, digest)).await;
        let kept = kept.unwrap_or(Err(PinError::TooLate));
        kept.map_err(|error| error.denial(of.origin.at(), key.subject()))
    }

    fn key_of_set(&self, of: &OfSet) -> Option<PinKey> {
        let owner = self.pod.controller()?;
        Some(PinKey::of_set(owner, self.pod.revision(), of.found.kind(), &of.found.name))
    }

    /// Keeps what was looked up; gives what others have kept before, where that is something else.
    pub(super) async fn keep(&self, fresh: &[Fresh]) -> Result<Fixed, Denial> {
        let mut others = Fixed::new();
        if self.writes == Writes::No {
            return Ok(others);
        }
        for Fresh { reference, digest, origin } in fresh {
            let Some(key) = self.key(reference) else { continue };
            let kept = timeout_at(self.deadline, self.pins.get_or_create(self.namespace, &key, digest)).await;
            let kept = kept.unwrap_or(Err(PinError::TooLate));
            let kept = kept.map_err(|error| error.denial(origin.at(), reference))?;
            if kept != *digest {
                others.insert(reference.clone(), kept);
            }
        }
        Ok(others)
    }

    /// Where the pin of a reference is, for whoever has to delete it.
    pub(super) fn place(&self, reference: &Reference) -> Option<PinPlace> {
        Some(PinPlace::new(self.namespace, &self.key(reference)?.object_name()))
    }
}
