//! `ArtifactPin`: the object as it is stored, how one is made, and when one is believed.
//!
//! The custom resource definition is made from these types (`deploy/chart/files/crds/`, which a test keeps in
//! step).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::CustomResource;
use kube::api::ObjectMeta;
use kube::core::Rule;
use oras_csi_core::digest::{Digest, DigestError};
use oras_csi_core::display::Shown;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::key::PinKey;
use crate::view::Owner;

/// A tag, or a set.
const REFERENCE: &str = "^([^@]+/[^@]+:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|(Cluster)?ArtifactSet [a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)$";
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "oras-csi");

/// Which digest a tag stands for, and for whose pods. It never changes: whoever wants another digest deletes the pin,
/// and the next pod gets what the tag stands for by then.
#[expect(clippy::duplicated_attributes, reason = "each column has a type, which two may share")]
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "oras.land",
    version = "v1alpha1",
    kind = "ArtifactPin",
    plural = "artifactpins",
    namespaced,
    category = "oras",
    derive = "PartialEq",
    doc = "Keeps the digest that a tag stands for in all pods of one revision of a ReplicaSet, Job, StatefulSet or \
           DaemonSet, also when the tag moves meanwhile. The webhook of oras-csi makes it with the first of these \
           pods, and it goes with their controller."
)]
#[kube(printcolumn(name = "Reference", type_ = "string", json_path = ".spec.reference"))]
#[kube(printcolumn(name = "Digest", type_ = "string", json_path = ".spec.digest"))]
#[kube(printcolumn(name = "Kind", type_ = "string", json_path = ".spec.owner.kind"))]
#[kube(printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner.name"))]
#[kube(printcolumn(name = "Revision", type_ = "string", json_path = ".spec.revision", priority = 1))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = fixed()))]
pub struct ArtifactPinSpec {
    /// The reference as the pods have it, in its canonical form: HOST[:PORT]/REPOSITORY:TAG. For a set its kind and its
    /// name: ArtifactSet NAME.
    #[schemars(length(min = 1, max = 1_024), extend("pattern" = REFERENCE))]
    pub reference: String,
    /// The digest of the manifest that the tag stands for in these pods; of a set, of the recipe in its status.
    #[schemars(length(max = 135), extend("pattern" = "^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$"))]
    pub digest: String,
    /// The controller of the pods.
    pub owner: PinOwner,
    /// The pods' label controller-revision-hash or pod-template-hash: the revision of their controller, where it has
    /// more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub revision: Option<String>,
}

/// The controller of pods.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PinOwner {
    /// Its API group and version, as apps/v1.
    #[schemars(length(min = 1, max = 317))]
    pub api_version: String,
    /// Its kind, as ReplicaSet.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its uid, which no other object ever has: one of the same name that comes later has pins of its own.
    #[schemars(length(min = 1, max = 128))]
    pub uid: String,
}

fn fixed() -> [Rule; 1] {
    [Rule::new("self == oldSelf").message(
        "a pin never changes: delete it, and the next pod of its owner gets what the tag stands for by then",
    )]
}

impl From<Owner<'_>> for PinOwner {
    fn from(owner: Owner<'_>) -> Self {
        let Owner { api_version, kind, name, uid } = owner;
        Self { api_version: api_version.into(), kind: kind.into(), name: name.into(), uid: uid.into() }
    }
}

/// Why a pin is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinMismatch {
    /// It is another one's.
    #[error("its {field} is \"{found}\", not \"{wanted}\"")]
    Other {
        /// Where.
        field: &'static str,
        /// What stands there.
        found: Shown,
        /// What belongs there.
        wanted: Shown,
    },
    /// It has no digest.
    #[error("its spec.digest: {0}")]
    Digest(DigestError),
    /// It has not the shape of a pin.
    #[error("it cannot be read ({0})")]
    Unreadable(Shown),
}

impl ArtifactPin {
    /// The pin of a key. It goes with its owner, and never holds up the owner's deletion: that would take a right
    /// over owners of all kinds.
    pub(super) fn of(key: &PinKey, digest: &Digest) -> Self {
        let owner = key.owner().clone();
        let (label, value) = MANAGED_BY;
        let metadata = ObjectMeta {
            name: Some(key.object_name()),
            labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
            owner_references: Some(vec![OwnerReference {
                api_version: owner.api_version.clone(),
                kind: owner.kind.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
                controller: None,
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        };
        let spec = ArtifactPinSpec {
            reference: key.subject().to_string(),
            digest: digest.to_string(),
            owner,
            revision: key.revision().map(str::to_owned),
        };
        Self { metadata, spec }
    }

    /// The digest that it keeps for a key. Its name is no proof that it is the key's: anybody with the right to make
    /// pins may have chosen it.
    pub(super) fn digest_for(&self, key: &PinKey) -> Result<Digest, PinMismatch> {
        let spec = &self.spec;
        let reference = key.subject().to_string();
        let parts = [
            ("spec.reference", spec.reference.as_str(), reference.as_str()),
            ("spec.owner.uid", spec.owner.uid.as_str(), key.owner().uid.as_str()),
            (
                "spec.revision",
                spec.revision.as_deref().unwrap_or_default(),
                key.revision().unwrap_or_default(),
            ),
        ];
        if let Some((field, found, wanted)) = parts.into_iter().find(|(_, found, wanted)| found != wanted) {
            return Err(PinMismatch::Other { field, found: found.into(), wanted: wanted.into() });
        }
        spec.digest.parse().map_err(PinMismatch::Digest)
    }
}
