//! `ArtifactSet` and `ClusterArtifactSet`: the objects as people write them, and what the webhook says in their status.
//!
//! The custom resource definitions are made from these types (`deploy/chart/files/crds/`, which a test keeps in step).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use kube::core::Rule;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::recipe::SetStep;
use crate::policy::selector;

/// A recipe under a name, for the pods of one namespace. It gives no right to anything: pods need credentials of their
/// own.
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
    doc = "A recipe of OCI artifacts under a name, for the pods of its namespace: they ask for it with the annotation \
           oras.land/artifact-set, or with a csi.oras.land volume whose only attribute is oras-csi.name. The webhook of \
           oras-csi keeps in its status what the tags of the recipe stand for."
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
    /// What the set holds, as steps in their order.
    #[schemars(length(min = 1, max = 64))]
    pub recipe: Vec<SetStep>,
    /// How often the tags of the recipe are looked up again, as 30s, 5m or 1h30m; 5m where nothing is written. 0s:
    /// only when the spec changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "interval_schema")]
    pub refresh_interval: Option<String>,
    /// The Secret of the namespace with whose credentials the webhook looks tags up. Pods need their own all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret: Option<SecretName>,
}

/// A recipe under a name, for the pods of the namespaces that it selects, whatever their own credentials.
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
    doc = "A recipe of OCI artifacts under a name, for the pods of the namespaces that it selects. Whoever may use the \
           set may have its bytes, whatever their own credentials. Nodes can fetch it ahead of use."
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
#[schemars(extend("x-kubernetes-validations" = preloading()))]
pub struct ClusterArtifactSetSpec {
    /// What the set holds, as steps in their order.
    #[schemars(length(min = 1, max = 64))]
    pub recipe: Vec<SetStep>,
    /// How often the tags of the recipe are looked up again, as 30s, 5m or 1h30m; 5m where nothing is written. 0s:
    /// only when the spec changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "interval_schema")]
    pub refresh_interval: Option<String>,
    /// The Secret of the release's namespace with whose credentials webhook and driver read the registry. The chart's
    /// value clusterSets.pullSecrets gives them the right to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret: Option<SecretName>,
    /// Selects, by their labels, the namespaces whose pods may use the set; every namespace has the label
    /// kubernetes.io/metadata.name. Empty, as {}, it selects all of them: that has to be written.
    #[schemars(schema_with = "selector::schema")]
    pub namespace_selector: LabelSelector,
    /// Whether nodes fetch the set before a pod asks for it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub preload: bool,
    /// Labels of the nodes that do; left out, all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "node_selector_schema")]
    pub node_selector: BTreeMap<String, String>,
}

/// A Secret of type kubernetes.io/dockerconfigjson.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretName {
    /// Its name.
    #[schemars(length(min = 1, max = 253), extend("pattern" = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,
}

/// What the webhook made of a set.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetStatus {
    /// The generation that was looked at last.
    #[serde(default)]
    pub observed_generation: i64,
    /// The id of the volume that pods get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The recipe with a digest in every step, as canonical JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// The generation of the spec that the recipe was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe_generation: Option<i64>,
    /// The references of the recipe with their digests, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// When the recipe became what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub since: Option<String>,
    /// When the tags were looked up last with success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub refreshed: Option<String>,
    /// Earlier recipes, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub history: Vec<EarlierRecipe>,
    /// How many nodes fetch the set ahead of use, and how far they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<SetNodes>,
    /// Ready: whether pods can have it. Refreshed: whether its tags could be looked up the last time. Preloaded:
    /// whether all nodes have it that fetch it ahead of use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// A recipe that a set had before.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierRecipe {
    /// The recipe, as canonical JSON.
    pub recipe: String,
    /// Its references with their digests, as they were written then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// When it became the set's.
    #[schemars(schema_with = "time_schema")]
    pub since: String,
}

/// How far nodes are that fetch a set ahead of use.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetNodes {
    /// How many fetch it.
    #[schemars(with = "i32", range(min = 0))]
    pub desired: u32,
    /// How many have it.
    #[schemars(with = "i32", range(min = 0))]
    pub ready: u32,
    /// How many failed to get it.
    #[schemars(with = "i32", range(min = 0))]
    pub failed: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn preloading() -> [Rule; 1] {
    [Rule::new("!has(self.nodeSelector) || (has(self.preload) && self.preload)")
        .message("nodeSelector says which nodes fetch the set ahead of use: write preload: true beside it")]
}

fn interval_schema(_: &mut SchemaGenerator) -> Schema {
    let rule = Rule::new("duration(self) == duration('0s') || duration(self) >= duration('10s')")
        .message("a refreshInterval is at least 10s, or 0s for never");
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
