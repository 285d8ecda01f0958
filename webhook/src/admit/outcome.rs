//! The result of an admission.

use std::collections::BTreeMap;

use json_patch::Patch;
use oras_csi_core::volume::CanonicalVolume;

use super::expand::ExpandedVolume;
use super::seal::{SealedVolume, SealedVolumes};

/// The result of the admission of a pod or a `PersistentVolume`.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub(super) patch: Patch,
    pub(super) warnings: Vec<String>,
    pub(super) pinned: Option<String>,
    pub(super) volumes: Vec<(String, CanonicalVolume)>,
    /// The volumes with the references that their patches and recipe artifacts name.
    pub(super) expanded: Vec<ExpandedVolume>,
    pub(super) audit: BTreeMap<String, String>,
}

impl Outcome {
    /// The result for an object that requests nothing.
    pub(super) fn untouched() -> Self {
        Self {
            patch: Patch(Vec::new()),
            warnings: Vec::new(),
            pinned: None,
            volumes: Vec::new(),
            expanded: Vec::new(),
            audit: BTreeMap::new(),
        }
    }

    /// The result of an update: what the object has is put back.
    pub(super) fn restored(patch: Patch) -> Self {
        Self { patch, ..Self::untouched() }
    }

    /// The result with a patch that writes `sealed`.
    pub(super) fn new(
        patch: Patch,
        warnings: Vec<String>,
        pinned: Option<String>,
        sealed: SealedVolumes,
    ) -> Self {
        let SealedVolumes { volumes, mut findings } = sealed;
        let mut outcome = Self { patch, warnings, pinned, ..Self::untouched() };
        for SealedVolume { expanded, canonical, warnings, .. } in volumes {
            outcome.warnings.extend(warnings);
            outcome.volumes.push((expanded.target.name.clone(), canonical));
            outcome.expanded.push(expanded);
        }
        outcome.warnings.extend(findings.take_warnings());
        outcome.audit = findings.into_audit_annotations();
        outcome
    }

    /// Returns the changes; empty where nothing has to change.
    pub fn patch(&self) -> &Patch {
        &self.patch
    }

    /// Returns the warnings for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the value of `oras.land/pinned`; `None` where no volume is of this driver.
    pub fn pinned(&self) -> Option<&str> {
        self.pinned.as_deref()
    }

    /// Returns the entries for the API server's audit log, by key.
    pub fn audit(&self) -> &BTreeMap<String, String> {
        &self.audit
    }

    /// Returns the canonical volumes by their names in the pod, in the order of [`super::Preview::pod`].
    pub fn volumes(&self) -> &[(String, CanonicalVolume)] {
        &self.volumes
    }
}
