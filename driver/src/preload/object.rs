//! `NodeArtifacts`: the state of the preloaded sets on one node. Only the driver of the node writes it.
//!
//! The custom resource definition is generated from these types (`deploy/chart/files/crds/`; a test compares them).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The spec is empty: the object only reports a state.
#[expect(clippy::duplicated_attributes, reason = "each column has a type, which two may share")]
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "oras.land",
    version = "v1alpha1",
    kind = "NodeArtifacts",
    plural = "nodeartifacts",
    singular = "nodeartifacts",
    shortname = "na",
    category = "oras",
    status = "NodeArtifactsStatus",
    derive = "PartialEq",
    doc = "Reports which ClusterArtifactSets the driver of oras-csi has preloaded on the node of this name, which are in \
           progress, and which failed. The driver writes it, and Kubernetes deletes it with the node."
)]
#[kube(printcolumn(
    name = "Ready",
    type_ = "string",
    json_path = ".status.ready",
    description = "How many of the sets that select this node are on the node."
))]
#[kube(printcolumn(name = "Damaged", type_ = "integer", json_path = ".status.store.damaged"))]
#[kube(printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.store.bytes", priority = 1))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
pub struct NodeArtifactsSpec {}

/// The state of the preloaded sets and of the store on the node.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeArtifactsStatus {
    /// Every ClusterArtifactSet with preload: true that selects this node, sorted by name.
    #[serde(default)]
    #[schemars(schema_with = "sets_schema")]
    pub sets: Vec<SetOnNode>,
    /// The number of sets that are Ready, and the number of all sets, such as 2/3.
    #[serde(default)]
    #[schemars(length(max = 23))]
    pub ready: String,
    /// The state of the store on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreOnNode>,
}

/// The state of one set on the node.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetOnNode {
    /// The name of the ClusterArtifactSet.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The id in the status of the set to which this state belongs. The set is ready on this node if the id is the present id
    /// of the set and the state is Ready.
    #[schemars(length(max = 63))]
    pub id: String,
    /// Ready: the whole set is on the node. Fetching: the download is in progress. Waiting: the set has nothing to download
    /// yet. Failed: the message has the reason; the driver retries.
    pub state: SetState,
    /// Details of the state.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1_024))]
    pub message: String,
    /// The number of bytes on the node: of the unpacked files if the set is Ready, otherwise of the downloaded blobs.
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// The total number of bytes; 0 if it is not known yet.
    #[schemars(range(min = 0))]
    pub total_bytes: i64,
    /// Since when the set has been in this state.
    pub since: Time,
}

/// The state of a set on a node.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetState {
    /// The whole set is on the node.
    Ready,
    /// The download is in progress.
    Fetching,
    /// There is nothing to download yet.
    Waiting,
    /// The download failed, and the driver retries.
    Failed,
}

/// The state of the store on a node.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreOnNode {
    /// The size of the store in bytes when this object was written.
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// The number of damaged objects that were found on the disk. At most the last hundred are counted.
    #[schemars(range(min = 0))]
    pub damaged: i64,
    /// When damage was last found. Run `oras-csi store ls` on the node for details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_damage: Option<Time>,
    /// When the last scrub ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scrub: Option<Time>,
}

impl NodeArtifactsStatus {
    /// Makes the status from the states of the sets and of the store.
    pub(super) fn new(sets: Vec<SetOnNode>, store: StoreOnNode) -> Self {
        let ready = sets.iter().filter(|set| set.state == SetState::Ready).count();
        Self { ready: format!("{ready}/{}", sets.len()), sets, store: Some(store) }
    }
}

fn sets_schema(generator: &mut SchemaGenerator) -> Schema {
    let set = generator.subschema_for::<SetOnNode>();
    json_schema!({
        "type": "array", "items": set, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
    })
}
