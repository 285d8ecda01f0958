//! The request that an admission is for.

use oras_csi_core::dns_name::is_label;
use oras_csi_core::reference::Reference;
use oras_csi_core::seal::Holder;
use tokio::time::Instant as Deadline;

use super::pinned_annotation::PinnedAnnotation;
use super::revision::{Revision, Writes};
use crate::denial::{At, Denial};
use crate::view::Pod;

/// Where the namespace of a pod is written.
pub(super) const POD_NAMESPACE: At<'static> = At::Field("metadata.namespace");
/// Where the namespace of a `PersistentVolume` is written.
pub(super) const CLAIM_NAMESPACE: At<'static> = At::Field("spec.claimRef.namespace");

/// The namespace, the holder of the seal, and the time that is left. Requests to the API server contain the
/// namespace, so only [`Scope::new`] makes one, from a valid name.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The namespace whose policies, sets and Secrets apply.
    namespace: &'a str,
    /// The holder that seals are made for.
    pub(super) holder: Holder<'a>,
    /// When the answer has to be ready.
    pub(super) deadline: Deadline,
}

impl<'a> Scope<'a> {
    /// Checks the namespace, which is written `at`.
    pub(super) fn new(
        at: At<'_>,
        namespace: &'a str,
        holder: Holder<'a>,
        deadline: Deadline,
    ) -> Result<Self, Denial> {
        if is_label(namespace) {
            return Ok(Self { namespace, holder, deadline });
        }
        let (rule, instead) = ("is not the name of a namespace", "write the name of an existing namespace");
        Err(Denial::bad_request(at, Some(namespace), rule, instead))
    }

    /// Returns the namespace whose policies, sets and Secrets apply: a DNS label.
    pub(super) fn namespace(&self) -> &'a str {
        self.namespace
    }
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
