//! `ArtifactSet` and `ClusterArtifactSet`: the objects that users write, and the status that the webhook writes.
//!
//! The custom resource definitions are generated from these types (`deploy/chart/files/crds/`; a test compares them).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use kube::core::Rule;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::recipe::SetStep;
use crate::policy::selector;

/// A named recipe for the pods of one namespace. It grants no permission: pods need credentials of their own.
#[expect(clippy::duplicated_attributes, reason = "each column has a type, which two may share")]
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "oras.land",
    version = "v1alpha1",
    kind = "ArtifactSet",
    plural = "artifactsets",
    shortname = "aset",
    namespaced,
    category = "oras",
    status = "SetStatus",
    derive = "PartialEq",
    doc = "A named recipe of OCI artifacts for the pods of its namespace. A pod requests it with the annotation \
           oras.land/artifact-set, or with a csi.oras.land volume that has only the attribute oras-csi.name. The \
           webhook of oras-csi resolves the tags of the recipe and writes the digests into the status."
)]
#[kube(printcolumn(
    name = "Ready",
    type_ = "string",
    json_path = ".status.conditions[?(@.type==\"Ready\")].status"
))]
#[kube(printcolumn(name = "Id", type_ = "string", json_path = ".status.id"))]
#[kube(printcolumn(name = "Refreshed", type_ = "date", json_path = ".status.refreshed"))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[serde(rename_all = "camelCase")]
pub struct ArtifactSetSpec {
    /// The steps of the recipe, in their order.
    #[schemars(length(min = 1, max = 64))]
    pub recipe: Vec<SetStep>,
    /// How often the tags of the recipe are resolved again, such as 30s, 5m or 1h30m. The default is 5m. With 0s they are
    /// resolved only when the spec changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "interval_schema")]
    pub refresh_interval: Option<String>,
    /// The Secret of the namespace with the credentials that the webhook uses to resolve tags. Pods need credentials of
    /// their own nevertheless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret: Option<SecretName>,
}

/// A named recipe for the pods of the selected namespaces, independent of their own credentials.
#[expect(clippy::duplicated_attributes, reason = "each column has a type, which two may share")]
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "oras.land",
    version = "v1alpha1",
    kind = "ClusterArtifactSet",
    plural = "clusterartifactsets",
    shortname = "caset",
    category = "oras",
    status = "SetStatus",
    derive = "PartialEq",
    doc = "A named recipe of OCI artifacts for the pods of the selected namespaces. These pods can read the artifacts \
           without credentials of their own. Nodes can preload the set."
)]
#[kube(printcolumn(
    name = "Ready",
    type_ = "string",
    json_path = ".status.conditions[?(@.type==\"Ready\")].status"
))]
#[kube(printcolumn(name = "Id", type_ = "string", json_path = ".status.id"))]
#[kube(printcolumn(name = "Refreshed", type_ = "date", json_path = ".status.refreshed"))]
#[kube(printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.desired"))]
#[kube(printcolumn(name = "Nodes-Ready", type_ = "integer", json_path = ".status.nodes.ready"))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = preload_rules()))]
pub struct ClusterArtifactSetSpec {
    /// The steps of the recipe, in their order.
    #[schemars(length(min = 1, max = 64))]
    pub recipe: Vec<SetStep>,
    /// How often the tags of the recipe are resolved again, such as 30s, 5m or 1h30m. The default is 5m. With 0s they are
    /// resolved only when the spec changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "interval_schema")]
    pub refresh_interval: Option<String>,
    /// The Secret in the namespace of the release with the credentials that the webhook and the driver use. The chart
    /// value clusterSets.pullSecrets grants them the permission to read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret: Option<SecretName>,
    /// Selects the namespaces that can use the set, by their labels. Every namespace has the label
    /// kubernetes.io/metadata.name. To select all namespaces, write {}.
    #[schemars(schema_with = "selector::schema")]
    pub namespace_selector: LabelSelector,
    /// Whether nodes download the set before a pod requests it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub preload: bool,
    /// The labels of the nodes that preload the set. If left out, all nodes preload it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "node_selector_schema")]
    pub node_selector: BTreeMap<String, String>,
}

/// A Secret of type kubernetes.io/dockerconfigjson.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretName {
    /// The name of the Secret.
    #[schemars(length(min = 1, max = 253), extend("pattern" = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,
}

/// The state of a set, written by the webhook.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetStatus {
    /// The last generation that the webhook has processed.
    #[serde(default)]
    pub observed_generation: i64,
    /// The id of the volume that pods get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The recipe with a digest in every step, as canonical JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// The generation of the spec from which the recipe was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe_generation: Option<i64>,
    /// The references of the recipe with their digests, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// When the recipe last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub since: Option<String>,
    /// When the tags were last resolved successfully.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub refreshed: Option<String>,
    /// Earlier recipes, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub history: Vec<EarlierRecipe>,
    /// How many nodes preload the set, and how many of them have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<SetNodes>,
    /// Ready: whether pods can use the set. Refreshed: whether the last attempt to resolve its tags succeeded. Preloaded:
    /// whether all nodes that preload the set have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// An earlier recipe of a set.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierRecipe {
    /// The recipe, as canonical JSON.
    pub recipe: String,
    /// The references of that recipe with their digests, as they were written then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// Since when the set had this recipe.
    #[schemars(schema_with = "time_schema")]
    pub since: String,
}

/// The nodes that preload a set.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetNodes {
    /// How many nodes preload it.
    #[schemars(with = "i32", range(min = 0))]
    pub desired: u32,
    /// How many nodes have it.
    #[schemars(with = "i32", range(min = 0))]
    pub ready: u32,
    /// How many nodes failed to download it.
    #[schemars(with = "i32", range(min = 0))]
    pub failed: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn preload_rules() -> [Rule; 1] {
    [Rule::new("!has(self.nodeSelector) || (has(self.preload) && self.preload)")
        .message("nodeSelector selects the nodes that preload the set: write preload: true as well")]
}

fn interval_schema(_: &mut SchemaGenerator) -> Schema {
    let rule = Rule::new("duration(self) == duration('0s') || duration(self) >= duration('10s')")
        .message("refreshInterval must be at least 10s, or 0s for never");
    json_schema!({
        "type": "string", "maxLength": 16, "pattern": "^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$", "minLength": 2,
        "x-kubernetes-validations": [rule],
    })
}

fn node_selector_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 32, "additionalProperties": {"type": "string", "maxLength": 63},
    })
}

fn time_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

fn conditions_schema(generator: &mut SchemaGenerator) -> Schema {
    let condition = generator.subschema_for::<Condition>();
    json_schema!({
        "type": "array", "items": condition, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    })
}
