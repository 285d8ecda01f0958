//! What an admission comes to.

use std::collections::BTreeMap;
use std::sync::Arc;

use json_patch::Patch;
use oras_csi_core::volume::CanonicalVolume;

use crate::intent::VolumeIntent;

/// What becomes of a pod or a `PersistentVolume` that is admitted.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub(super) patch: Patch,
    pub(super) warnings: Vec<String>,
    pub(super) pinned: Option<String>,
    pub(super) volumes: Vec<(String, CanonicalVolume)>,
    /// What the volumes were asked with, patches and recipes read.
    pub(super) intents: Vec<Arc<VolumeIntent>>,
    pub(super) audit: BTreeMap<String, String>,
}

impl Outcome {
    pub(super) fn untouched() -> Self {
        Self {
            patch: Patch(Vec::new()),
            warnings: Vec::new(),
            pinned: None,
            volumes: Vec::new(),
            intents: Vec::new(),
            audit: BTreeMap::new(),
        }
    }

    /// What to change; empty where nothing has to be.
    pub fn patch(&self) -> &Patch {
        &self.patch
    }

    /// What to tell the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The value of `oras.land/pinned`; `None` where there is no volume of ours.
    pub fn pinned(&self) -> Option<&str> {
        self.pinned.as_deref()
    }

    /// What is noted in the API server's audit log, by key.
    pub fn audit(&self) -> &BTreeMap<String, String> {
        &self.audit
    }

    /// The canonical volumes by their names in the pod, in the order of [`Admission::asks`].
    pub fn volumes(&self) -> &[(String, CanonicalVolume)] {
        &self.volumes
    }
}
