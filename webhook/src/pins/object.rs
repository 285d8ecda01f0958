//! `ArtifactPin`: the object, how the webhook creates one, and when the webhook accepts one.
//!
//! The custom resource definition is generated from these types (`deploy/chart/files/crds/`; a test compares them).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::CustomResource;
use kube::core::Rule;
use oras_csi_core::digest::{Digest, DigestError};
use oras_csi_core::display::Shown;
use oras_csi_kube_support::metadata;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::key::PinKey;
use super::owner::PinOwner;

/// A reference with a tag, or a set.
const REFERENCE: &str = "^([^@]+/[^@]+:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|(Cluster)?ArtifactSet [a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)$";

/// Records the digest of a tag for all pods of one revision of a controller. A pin never changes: to get another digest,
/// delete the pin, and the next pod resolves the tag again.
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
    doc = "Records the digest of a tag for all pods of one revision of a ReplicaSet, Job, StatefulSet or DaemonSet, so \
           that they get the same digest even if the tag moves. The webhook of oras-csi creates it for the first of \
           these pods, and Kubernetes deletes it with their controller."
)]
#[kube(printcolumn(name = "Reference", type_ = "string", json_path = ".spec.reference"))]
#[kube(printcolumn(name = "Digest", type_ = "string", json_path = ".spec.digest"))]
#[kube(printcolumn(name = "Kind", type_ = "string", json_path = ".spec.owner.kind"))]
#[kube(printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner.name"))]
#[kube(printcolumn(name = "Revision", type_ = "string", json_path = ".spec.revision", priority = 1))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = is_immutable()))]
pub struct ArtifactPinSpec {
    /// The reference of the pods in canonical form: HOST:PORT/REPOSITORY:TAG. For a set, its kind and its name, such as
    /// ArtifactSet NAME.
    #[schemars(length(min = 1, max = 1_024), extend("pattern" = REFERENCE))]
    pub reference: String,
    /// The digest of the manifest that these pods get for the tag. For a set, the digest of the recipe in its status.
    #[schemars(length(max = 135), extend("pattern" = "^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$"))]
    pub digest: String,
    /// The controller of the pods.
    pub owner: PinOwner,
    /// The label controller-revision-hash or pod-template-hash of the pods: the revision of their controller, if it has
    /// revisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub revision: Option<String>,
}

fn is_immutable() -> [Rule; 1] {
    [Rule::new("self == oldSelf")
        .message("a pin never changes: delete it, and the next pod of its owner resolves the tag again")]
}

/// Why the webhook does not accept a pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinMismatch {
    /// The pin has another reference, owner or revision.
    #[error("its {field} is \"{found}\", not \"{wanted}\"")]
    Other {
        /// The field.
        field: &'static str,
        /// The value that was found.
        found: Shown,
        /// The value that was expected.
        wanted: Shown,
    },
    /// The pin has no valid digest.
    #[error("its spec.digest: {0}")]
    Digest(DigestError),
    /// The object is not a pin.
    #[error("it cannot be read ({0})")]
    Unreadable(Shown),
}

impl ArtifactPin {
    /// Makes the pin of a key. Kubernetes deletes it with its owner.
    pub(super) fn new_for(key: &PinKey, digest: &Digest) -> Self {
        let owner = key.owner().clone();
        let reference = OwnerReference {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            ..OwnerReference::default()
        };
        let metadata = metadata::owned_by(metadata::managed(&key.object_name()), reference);
        let spec = ArtifactPinSpec {
            reference: key.subject().to_string(),
            digest: digest.to_string(),
            owner,
            revision: key.revision().map(str::to_owned),
        };
        Self { metadata, spec }
    }

    /// Returns the digest for a key. The name of the pin does not prove that it belongs to the key: any client with
    /// permission to create pins can choose the name.
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
