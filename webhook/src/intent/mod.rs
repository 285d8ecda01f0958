//! What a pod or a `PersistentVolume` requests. Pure: it reads the object and the administrator's registries
//! ([`Registries`]), and nothing else.
//!
//! The annotations request one volume ([`annotations`]), and each inline volume of this driver is one more ([`inline`]);
//! [`mounts`] plans where the first one is mounted. A `PersistentVolume` ([`persistent`]) requests exactly one.
//! [`patched`] turns a patch, or a recipe artifact, into a recipe once it has been read.

mod annotations;
mod inline;
mod mounts;
mod origin;
mod parse;
mod patched;
mod persistent;
mod recipe;
#[cfg(test)]
mod tests;
mod volume;

use oras_csi_core::keys::DRIVER;

use crate::denial::{At, Denial};
use crate::registries::Registries;
use crate::view::Pod;

pub(crate) use origin::{Named, Origin};
pub(crate) use patched::{FetchedPatch, PatchRequest, RecipeSource, RecipeWithPatches};
pub(crate) use persistent::read as read_persistent;
pub(crate) use recipe::{AppliedPatch, RecipeWithOrigins, UnpinnedRecipe};
pub(crate) use volume::{
    ArtifactRequest, ArtifactSource, NewMount, NewSet, Requested, RequestedVolume, SetRequest, VolumeTarget,
    canonical_references, check_count,
};

/// Everything that a pod requests.
#[derive(Debug, Default)]
pub(crate) struct Intent {
    /// The volumes, that of the annotations first.
    pub(crate) volumes: Vec<RequestedVolume>,
    /// Warnings for the user that do not depend on the rest of the admission.
    pub(crate) warnings: Vec<String>,
}

/// Reads what a pod requests. An empty intent is a pod that requests nothing.
pub(crate) fn read(pod: &Pod<'_>, registries: &dyn Registries) -> Result<Intent, Denial> {
    let mut warnings = Vec::new();
    let mut volumes: Vec<_> = annotations::read(pod, registries, &mut warnings)?.into_iter().collect();
    let of_annotations = volumes.first().and_then(|volume| volume.target.index);
    for volume in pod.volumes() {
        let Some(csi) = volume.csi.as_ref().filter(|csi| csi.driver == DRIVER) else { continue };
        if of_annotations != Some(volume.index) {
            volumes.push(inline::read(volume, csi, registries, &mut warnings)?);
        }
    }
    if volumes.is_empty() {
        return Ok(Intent { volumes, warnings });
    }
    if let Some(field) = pod.windows_field() {
        return Err(Denial::bad_request(
            At::Field(field),
            Some("windows"),
            "is not supported: the driver csi.oras.land runs on Linux nodes only",
            "remove the oras.land/ annotations and csi.oras.land volumes, or write oras.land/inject: \"false\"",
        ));
    }
    check_count(volumes.iter().flat_map(RequestedVolume::names))?;
    warnings.extend(mounts::warnings_of_mounts_below(pod, &volumes));
    warnings.extend(mounts::warnings_of_mounts_above(pod, &volumes));
    Ok(Intent { volumes, warnings })
}
