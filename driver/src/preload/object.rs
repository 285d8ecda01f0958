//! `NodeArtifacts`: what one node tells of the sets that it fetches ahead. The driver is the only one who writes it.
//!
//! The custom resource definition is made from these types (`deploy/chart/files/crds/`, which a test keeps in step).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Nothing is asked of a node here.
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
    doc = "Tells what the driver of oras-csi on the node of this name has fetched ahead for ClusterArtifactSets, what \
           is under way, and what failed. The driver writes it, and it goes with the node."
)]
#[kube(printcolumn(
    name = "Ready",
    type_ = "string",
    json_path = ".status.ready",
    description = "How many of the sets that select this node are on it."
))]
#[kube(printcolumn(name = "Damaged", type_ = "integer", json_path = ".status.store.damaged"))]
#[kube(printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.store.bytes", priority = 1))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
pub struct NodeArtifactsSpec {}

/// What the node has.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeArtifactsStatus {
    /// Every ClusterArtifactSet with preload that selects this node, sorted by name.
    #[serde(default)]
    #[schemars(schema_with = "sets_schema")]
    pub sets: Vec<SetOnNode>,
    /// How many of them are Ready, of how many, as 2/3.
    #[serde(default)]
    #[schemars(length(max = 23))]
    pub ready: String,
    /// What the store of the node says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreOnNode>,
}

/// One set on the node.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetOnNode {
    /// The name of the ClusterArtifactSet.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The id in the set's status that this is about. The set is ready here if it is the one that the set has now, and
    /// the state is Ready.
    #[schemars(length(max = 63))]
    pub id: String,
    /// Ready: all of it is on the node. Fetching: it is under way. Waiting: the set has nothing to fetch yet. Failed:
    /// see the message; it is tried again by itself.
    pub state: SetState,
    /// What there is to know about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1_024))]
    pub message: String,
    /// How many bytes are there: of the unpacked files where it is ready, else of what has to be fetched.
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// How many bytes there will be; 0 while that is not known.
    #[schemars(range(min = 0))]
    pub total_bytes: i64,
    /// Since when it has been in this state.
    pub since: Time,
}

/// How a set stands on a node.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetState {
    /// All of it is there.
    Ready,
    /// It is under way.
    Fetching,
    /// There is nothing to fetch yet.
    Waiting,
    /// It failed, and is tried again.
    Failed,
}

/// What a store says of itself.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreOnNode {
    /// How many bytes it has, when this was written.
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// How many things were found damaged on the disk; the last hundred are counted.
    #[schemars(range(min = 0))]
    pub damaged: i64,
    /// When something was found damaged last; `oras-csi store ls` on the node says what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_damage: Option<Time>,
    /// When the last scrub ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scrub: Option<Time>,
}

impl NodeArtifactsStatus {
    /// What a node with these sets and this store has to tell.
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
