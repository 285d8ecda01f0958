//! The request that an admission is for.

use oras_csi_core::reference::Reference;
use oras_csi_core::seal::Holder;
use tokio::time::Instant as Deadline;

use super::pinned_annotation::PinnedAnnotation;
use super::revision::{Revision, Writes};
use crate::denial::Denial;
use crate::view::Pod;

/// The namespace, the holder of the seal, and the time that is left.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The namespace whose policies, sets and Secrets apply.
    pub(super) namespace: &'a str,
    /// The holder that seals are made for.
    pub(super) holder: Holder<'a>,
    /// When the answer has to be ready.
    pub(super) deadline: Deadline,
}

/// The request that volumes are admitted for.
pub(super) struct Context<'a> {
    pub(super) scope: Scope<'a>,
    /// The pod that has the volumes, unless they are a `PersistentVolume`.
    pub(super) pod: Option<&'a Pod<'a>>,
    /// The revision that the pod belongs to, where a controller made it.
    pub(super) revision: Option<Revision<'a>>,
    /// The digests that the pod's annotations have for its volumes.
    pub(super) pinned_annotation: PinnedAnnotation,
    /// Whether the request may create pins and sets.
    pub(super) writes: Writes,
}

impl Context<'_> {
    /// Adds to a denial which pin to delete, where a pin decided the digest of `reference`.
    pub(super) fn explain_pin(&self, denial: Denial, reference: &Reference) -> Denial {
        match self.revision.as_ref().and_then(|revision| revision.pin_place(reference)) {
            Some(place) => denial.with_detail(&format!(
                "all pods of this revision are pinned to the digest that {reference} had for the first one: delete {place} to use \
                 its current digest"
            )),
            None => denial,
        }
    }
}
