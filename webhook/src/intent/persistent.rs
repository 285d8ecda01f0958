//! What a `PersistentVolume` asks for: what an inline volume can, for the namespace of its claim.

use oras_csi_core::keys::{ANNOTATION_PREFIX, annotation, attribute};

use super::inline;
use super::volume::RequestedVolume;
use crate::denial::{At, Denial};
use crate::registries::Registries;
use crate::view::{PersistentVolume, Volume};

/// Reads what it asks for, and whose namespace it is for.
pub(crate) fn read<'a>(
    volume: &PersistentVolume<'a>,
    registries: &dyn Registries,
    warnings: &mut Vec<String>,
) -> Result<(RequestedVolume, &'a str), Denial> {
    let Some(namespace) = volume.claim_namespace else {
        return Err(Denial::rewrite(
            At::Field("spec.claimRef.namespace"),
            None,
            "is missing, and only it says whose policies and whose credentials apply",
            "write claimRef with the namespace and name of the claim that the volume is for",
        ));
    };
    if volume.mode == Some("Block") {
        let rule = "is not possible with csi.oras.land, which gives files";
        return Err(Denial::rewrite(At::Field("spec.volumeMode"), volume.mode, rule, "write Filesystem"));
    }
    if volume.handle.is_empty() {
        let rule = "is missing";
        let instead = "write any name that no other volume of csi.oras.land has";
        return Err(Denial::rewrite(At::Field("spec.csi.volumeHandle"), None, rule, instead));
    }
    if let Some(other) = volume.secret_namespace.filter(|other| *other != namespace) {
        return Err(Denial::rewrite(
            At::Field("spec.csi.nodePublishSecretRef.namespace"),
            Some(other),
            format_args!("is not the claim's namespace {namespace}, whose secrets alone are for its pods"),
            "name a Secret of the claim's namespace",
        ));
    }
    let is_asking = |key: &&&str| {
        let says_nothing = [annotation::PINNED, annotation::PINNED_PATCH, annotation::INJECT];
        key.starts_with(ANNOTATION_PREFIX) && !says_nothing.contains(*key)
    };
    if let Some(key) = volume.annotations.iter().find(is_asking) {
        let rule = "does nothing on a PersistentVolume";
        let instead = format!("write {} in spec.csi.volumeAttributes", attribute::REFERENCE);
        return Err(Denial::rewrite(At::Annotation(key), None, rule, instead));
    }
    let place = Volume { index: 0, name: volume.name, csi: None };
    Ok((inline::read(&place, &volume.csi, registries, warnings)?, namespace))
}
