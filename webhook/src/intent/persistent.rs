//! Reads a `PersistentVolume`: it requests the same as an inline volume, for the namespace of its claim.

use oras_csi_core::keys::{ANNOTATION_PREFIX, annotation, attribute};

use super::inline;
use super::volume::RequestedVolume;
use crate::denial::{At, Denial};
use crate::registries::Registries;
use crate::view::{PersistentVolume, Volume};

/// Returns the volume that it requests, and the namespace of its claim.
pub(crate) fn read<'a>(
    volume: &PersistentVolume<'a>,
    registries: &dyn Registries,
    warnings: &mut Vec<String>,
) -> Result<(RequestedVolume, &'a str), Denial> {
    let Some(namespace) = volume.claim_namespace else {
        return Err(Denial::bad_request(
            At::Field("spec.claimRef.namespace"),
            None,
            "is missing: it decides which namespace's policies and credentials apply",
            "write claimRef with the namespace and name of the claim that the volume is for",
        ));
    };
    if volume.mode == Some("Block") {
        let rule = "is not supported by csi.oras.land, which mounts files";
        return Err(Denial::bad_request(At::Field("spec.volumeMode"), volume.mode, rule, "write Filesystem"));
    }
    if volume.handle.is_empty() {
        let rule = "is missing";
        let instead = "write a name that no other volume of csi.oras.land has";
        return Err(Denial::bad_request(At::Field("spec.csi.volumeHandle"), None, rule, instead));
    }
    if let Some(other) = volume.secret_namespace.filter(|other| *other != namespace) {
        return Err(Denial::bad_request(
            At::Field("spec.csi.nodePublishSecretRef.namespace"),
            Some(other),
            format_args!(
                "is not the claim's namespace {namespace}: its pods can use only Secrets of their own namespace"
            ),
            "name a Secret of the claim's namespace",
        ));
    }
    let is_request = |key: &&&str| {
        let without_request =
            [annotation::PINNED, annotation::PINNED_PATCH, annotation::WRITTEN, annotation::INJECT];
        key.starts_with(ANNOTATION_PREFIX) && !without_request.contains(*key)
    };
    if let Some(key) = volume.annotations.iter().find(is_request) {
        let rule = "has no effect on a PersistentVolume";
        let instead = format!("write {} in spec.csi.volumeAttributes", attribute::REFERENCE);
        return Err(Denial::bad_request(At::Annotation(key), None, rule, instead));
    }
    let place = Volume { index: 0, name: volume.name, csi: None, read_only: true, is_generated: false };
    Ok((inline::read(&place, &volume.csi, registries, warnings)?, namespace))
}
