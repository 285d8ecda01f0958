//! Counts the nodes that have a cluster set, from the `NodeArtifacts` object of each node.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use oras_csi_kube_support::status::{ObjectVersion, replace_status};
use oras_csi_kube_support::time;
use oras_csi_kube_support::watch::reflect;
use serde::Deserialize;
use tokio::time::{Instant, sleep, sleep_until};

use super::object::{ClusterArtifactSet, SetNodes};
use super::status;
use crate::FIELD_MANAGER;

/// How long to collect changes before counting: every node writes when a set changes.
const BATCH_DELAY: Duration = Duration::from_secs(2);
/// How often to count without a change of a node: a set may have changed.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(15);

/// The part of the status of a `NodeArtifacts` object that is counted. The driver writes these objects.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    #[serde(default)]
    sets: Vec<NodeSet>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSet {
    #[serde(default)]
    name: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    state: String,
}

/// Counts the nodes of all sets, for as long as it is polled.
pub(super) async fn count_nodes(client: Client) {
    let kind = GroupVersionKind::gvk("oras.land", "v1alpha1", "NodeArtifacts");
    let resource = ApiResource::from_gvk_with_plural(&kind, "nodeartifacts");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let sets: Api<ClusterArtifactSet> = Api::all(client);
    let (known, changes) = reflect(api, resource, "cannot watch NodeArtifacts objects");
    let mut changes = pin!(changes);
    let mut at = Instant::now() + BATCH_DELAY;
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(()) => at = at.min(Instant::now() + BATCH_DELAY),
                None => sleep(RECOUNT_INTERVAL).await,
            },
            () = sleep_until(at) => {
                let nodes: Vec<NodeStatus> = known.state().iter().map(|node| read(node)).collect();
                if let Err(error) = write(&sets, &nodes).await {
                    tracing::debug!(%error, "cannot write the number of nodes of sets");
                }
                at = Instant::now() + RECOUNT_INTERVAL;
            }
        }
    }
}

fn read(node: &DynamicObject) -> NodeStatus {
    let status = node.data.get("status").cloned().unwrap_or_default();
    serde_json::from_value(status).unwrap_or_default()
}

async fn write(api: &Api<ClusterArtifactSet>, nodes: &[NodeStatus]) -> Result<(), kube::Error> {
    for set in api.list(&ListParams::default()).await? {
        let Some(before) = &set.status else { continue };
        let counted = set.spec.preload.then(|| tally(&set.name_any(), before.id.as_deref(), nodes));
        if counted.is_none() && before.nodes.is_none() {
            continue;
        }
        let generation = set.metadata.generation.unwrap_or_default();
        let next = status::with_nodes(before, counted, generation, time::now());
        // The second of two replicas finds that the status is written already.
        if next != *before {
            replace_status(api, &ObjectVersion::of(&set.metadata), &next, FIELD_MANAGER).await?;
        }
    }
    Ok(())
}

/// Counts the nodes of a set whose present id is `id`.
fn tally(name: &str, id: Option<&str>, nodes: &[NodeStatus]) -> SetNodes {
    let mut counted = SetNodes::default();
    for entry in nodes.iter().flat_map(|node| &node.sets).filter(|entry| entry.name == name) {
        counted.desired += 1;
        match entry.state.as_str() {
            "Ready" if Some(entry.id.as_str()) == id => counted.ready += 1,
            "Failed" => counted.failed += 1,
            _ => {}
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_an_older_id_is_not_ready() {
        let node = |state: &str, id: &str| NodeStatus {
            sets: vec![
                NodeSet { name: "m".into(), id: id.into(), state: state.into() },
                NodeSet { name: "other".into(), id: id.into(), state: "Ready".into() },
            ],
        };
        let nodes =
            [node("Ready", "new"), node("Ready", "old"), node("Failed", "new"), node("Fetching", "new")];
        let counted = SetNodes { desired: 4, ready: 1, failed: 1 };
        assert_eq!(tally("m", Some("new"), &nodes), counted);
        assert_eq!(tally("m", None, &nodes), SetNodes { ready: 0, ..counted });
        assert_eq!(tally("unknown", Some("new"), &nodes), SetNodes::default());
    }

    #[test]
    fn unknown_fields_and_values_are_ignored() {
        let mut node = DynamicObject::new("n", &ApiResource::erase::<ClusterArtifactSet>(&()));
        assert!(read(&node).sets.is_empty());
        node.data =
            serde_json::json!({"status": {"sets": [{"name": "m", "from": "the future"}], "store": {}}});
        assert_eq!(read(&node).sets.len(), 1);
    }
}
