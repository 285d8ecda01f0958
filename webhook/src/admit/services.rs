//! What an admission works with.

use std::sync::Arc;

use oras_csi_core::seal::Holder;
use oras_csi_core::volume::CanonicalVolume;

use crate::credentials::CredentialSources;
use crate::metrics::Metrics;
use crate::pins::Pins;
use crate::policy::Policies;
use crate::registries::Registries;
use crate::resolve::Resolver;
use crate::seal::Sealer;
use crate::sets::SetCatalog;

/// The collaborators of an admission.
pub(super) struct Services {
    pub(super) resolver: Resolver,
    pub(super) registries: Arc<dyn Registries>,
    pub(super) policies: Arc<Policies>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) credentials: CredentialSources,
    pub(super) sealer: Sealer,
    /// Without pins, each pod gets the digest that its tag has when it is created.
    pub(super) pins: Option<Arc<dyn Pins>>,
    /// Without sets, a volume that names one is denied.
    pub(super) sets: Option<SetCatalog>,
}

impl Services {
    /// Reports whether a canonical volume that came with a request stays as it is: it has a valid seal for this holder.
    /// A webhook that makes no seals requires one only of a cluster set's volume.
    pub(super) fn is_admitted(&self, canonical: &CanonicalVolume, holder: Holder<'_>) -> bool {
        let needs_no_seal = !self.sealer.is_sealing() && canonical.set().is_none();
        needs_no_seal || self.sealer.has_valid_seal(canonical, holder)
    }
}
