//! `NodeArtifacts`: the state of the driver on one node, with its store, its pulls and its preloaded sets. Only the driver of
//! the node writes it. The command reads it, on systems without the driver as well.
//!
//! The custom resource definition is generated from these types (`deploy/chart/files/crds/`; a test compares them).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How many pulls the status lists.
pub const MAX_PULLS: usize = 50;

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
    doc = "Reports the state of the driver of oras-csi on the node of this name: its version, its store, the pulls that pods \
           wait for, and the ClusterArtifactSets that it preloads. The driver writes it, and Kubernetes deletes it with the \
           node."
)]
#[kube(printcolumn(
    name = "Ready",
    type_ = "string",
    json_path = ".status.ready",
    description = "How many of the sets that select this node are on the node."
))]
#[kube(printcolumn(name = "Volumes", type_ = "integer", json_path = ".status.volumes"))]
#[kube(printcolumn(name = "Damaged", type_ = "integer", json_path = ".status.store.damaged"))]
#[kube(printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.store.bytes", priority = 1))]
#[kube(printcolumn(name = "Version", type_ = "string", json_path = ".status.version", priority = 1))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
pub struct NodeArtifactsSpec {}

/// The state of the driver, of its store, of its pulls and of the preloaded sets on the node.
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
    /// The version of the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,
    /// The number of volumes that the driver has published on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub volumes: Option<i64>,
    /// The pulls that pods wait for and that have run for some seconds, the longest first. At most 50 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "pulls_schema")]
    pub pulls: Vec<PullOnNode>,
    /// When the driver wrote this status. It writes at least every 10 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<Time>,
}

/// A pull that pods wait for.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullOnNode {
    /// The id of the volume: the attribute csi.oras.land/id of the volumes of these pods.
    #[schemars(length(min = 1, max = 63))]
    pub id: String,
    /// The number of bytes on the node.
    #[schemars(range(min = 0))]
    pub bytes: i64,
    /// The total number of bytes; 0 if it is not known yet.
    #[schemars(range(min = 0))]
    pub total_bytes: i64,
    /// The part of bytes that this pull has downloaded. The rest was on the node before.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub downloaded_bytes: i64,
    /// When the pull started.
    pub since: Time,
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
    /// The size in bytes of the file system that the store is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub capacity_bytes: Option<i64>,
    /// The number of bytes that are free on the file system that the store is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub free_bytes: Option<i64>,
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
    /// Returns the status with only the fields of the first version of the custom resource definition. An API server that has
    /// that version refuses the others.
    #[must_use]
    pub fn as_first_version(&self) -> Self {
        let store = self.store.clone();
        let store = store.map(|store| StoreOnNode { capacity_bytes: None, free_bytes: None, ..store });
        Self { sets: self.sets.clone(), ready: self.ready.clone(), store, ..Self::default() }
    }

    /// Makes the status from the states of the sets and of the store.
    pub fn new(sets: Vec<SetOnNode>, store: StoreOnNode) -> Self {
        let ready = sets.iter().filter(|set| set.state == SetState::Ready).count();
        let ready = format!("{ready}/{}", sets.len());
        Self { ready, sets, store: Some(store), ..Self::default() }
    }
}

fn pulls_schema(generator: &mut SchemaGenerator) -> Schema {
    let pull = generator.subschema_for::<PullOnNode>();
    json_schema!({
        "type": "array", "maxItems": MAX_PULLS, "items": pull, "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["id"],
    })
}

fn sets_schema(generator: &mut SchemaGenerator) -> Schema {
    let set = generator.subschema_for::<SetOnNode>();
    json_schema!({
        "type": "array", "items": set, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
    })
}
