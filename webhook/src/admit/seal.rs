//! Last stage: seals the volumes for their holder.

use std::collections::BTreeMap;

use oras_csi_core::keys::canonical;
use oras_csi_core::trace::TraceParent;
use oras_csi_core::volume::CanonicalVolume;
use serde_json::Value;

use super::context::Scope;
use super::expand::{Expanded, ExpandedVolume};
use super::pin::{NeededSecret, Pinned, PinnedVolume};
use super::pinned_annotation::line;
use super::services::Services;
use crate::denial::{At, Denial};
use crate::patch::PlannedVolume;
use crate::policy::evaluate::Findings;

/// The volumes of a request as they leave the webhook.
#[derive(Default)]
pub(super) struct SealedVolumes {
    pub(super) volumes: Vec<SealedVolume>,
    /// The warnings and audit notes of policies.
    pub(super) findings: Findings,
}

/// A volume with its seal, if this webhook makes seals.
pub(super) struct SealedVolume {
    pub(super) expanded: ExpandedVolume,
    pub(super) canonical: CanonicalVolume,
    pub(super) secret: NeededSecret,
    /// The references as `oras.land/pinned` shows them.
    pub(super) lines: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Seals volumes for the holder of a scope.
pub(super) fn seal_volumes(
    services: &Services,
    volumes: Vec<PinnedVolume>,
    scope: Scope<'_>,
) -> Result<Vec<SealedVolume>, Denial> {
    let seal = |PinnedVolume { expanded, pinned }| {
        let Pinned { canonical, secret, lines, warnings, new_pins: _ } = pinned;
        let at = At::Volume(&expanded.target.name);
        let sealed = services.sealer.seal(at, canonical, scope.holder);
        let canonical = sealed.inspect_err(|_| services.metrics.seal_failed())?;
        Ok(SealedVolume { expanded, canonical, secret, lines, warnings })
    };
    volumes.into_iter().map(seal).collect()
}

impl SealedVolumes {
    /// Returns the value of `oras.land/pinned`; `None` where no volume is of this driver.
    pub(super) fn pinned(&self) -> Option<String> {
        let lines = self.volumes.iter();
        let lines = lines.map(|volume| (volume.expanded.target.name.clone(), volume.lines.clone()));
        let lines: BTreeMap<String, Vec<String>> = lines.collect();
        if lines.is_empty() { None } else { Some(Value::from_iter(lines).to_string()) }
    }

    /// Returns the value of `oras.land/pinned-patch`: it has only the patches that the annotations name.
    pub(super) fn pinned_patch(&self) -> Option<String> {
        let mut volumes = self.volumes.iter().map(|volume| &volume.expanded);
        let of_annotations = volumes.find(|volume| volume.target.is_from_annotations)?;
        match &of_annotations.content {
            Expanded::Recipe(expanded) if !expanded.recipe.applied_patches.is_empty() => {
                let patches = expanded.recipe.applied_patches.iter();
                let lines = patches.map(|patch| line(&patch.reference, &patch.digest));
                Some(lines.collect::<Vec<_>>().join(" "))
            }
            _ => None,
        }
    }

    /// Returns the volumes as the patch has to write them, as parts of a trace.
    pub(super) fn planned(&self, trace: Option<TraceParent>) -> Vec<PlannedVolume<'_>> {
        self.volumes.iter().map(|volume| volume.planned(trace)).collect()
    }
}

impl SealedVolume {
    fn planned(&self, trace: Option<TraceParent>) -> PlannedVolume<'_> {
        let target = &self.expanded.target;
        let mut attributes = self.canonical.to_attributes();
        attributes.extend(trace.map(|trace| (canonical::TRACE_PARENT, trace.to_string())));
        PlannedVolume {
            name: &target.name,
            index: target.index,
            secret: self.secret.planned(),
            attributes,
            mounts: &target.mounts,
        }
    }
}
