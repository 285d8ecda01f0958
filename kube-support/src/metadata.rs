//! Metadata of the objects that oras-csi creates.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The recommended label for the tool that manages an object (Kubernetes, "Recommended Labels").
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "oras-csi");

/// Returns metadata with that name and the label `app.kubernetes.io/managed-by: oras-csi`.
pub fn managed(name: &str) -> ObjectMeta {
    let (label, value) = MANAGED_BY;
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
        ..ObjectMeta::default()
    }
}

/// Adds the owner with which Kubernetes deletes the object.
///
/// The reference neither names a controller nor blocks the deletion of the owner (`blockOwnerDeletion`): that would need
/// permission to update the finalizers of owners of every kind.
#[must_use]
pub fn owned_by(metadata: ObjectMeta, owner: OwnerReference) -> ObjectMeta {
    let owner = OwnerReference { controller: None, block_owner_deletion: None, ..owner };
    ObjectMeta { owner_references: Some(vec![owner]), ..metadata }
}
