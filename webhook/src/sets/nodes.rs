//! Counts on how many nodes a cluster set is, from what each says in its `NodeArtifacts`.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt as _, reflector};
use kube::{Client, ResourceExt as _};
use serde::Deserialize;
use tokio::time::{Instant, sleep, sleep_until};

use super::controller::write_status;
use super::object::{ClusterArtifactSet, SetNodes};
use super::status;

/// A change waits for others that come with it: every node writes when a set moves.
const TOGETHER: Duration = Duration::from_secs(2);
/// Sets may change as well.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// What is read of a `NodeArtifacts` object, which drivers write.
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

/// Counts as long as it is polled.
pub(super) async fn count(client: Client) {
    let kind = GroupVersionKind::gvk("oras.land", "v1alpha1", "NodeArtifacts");
    let resource = ApiResource::from_gvk_with_plural(&kind, "nodeartifacts");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let sets: Api<ClusterArtifactSet> = Api::all(client);
    let (known, writer) = store_of(&resource);
    let changes = reflector(writer, watcher(api, watcher::Config::default()).default_backoff());
    let mut changes = pin!(changes);
    let mut at = Instant::now() + TOGETHER;
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(_)) => at = at.min(Instant::now() + TOGETHER),
                Some(Err(error)) => tracing::debug!(%error, "NodeArtifacts cannot be watched"),
                None => sleep(LONGEST_WAIT).await,
            },
            () = sleep_until(at) => {
                let nodes: Vec<NodeStatus> = known.state().iter().map(|node| read(node)).collect();
                if let Err(error) = write(&sets, &nodes).await {
                    tracing::debug!(%error, "nodes of sets cannot be counted");
                }
                at = Instant::now() + LONGEST_WAIT;
            }
        }
    }
}

fn store_of(
    resource: &ApiResource,
) -> (reflector::Store<DynamicObject>, reflector::store::Writer<DynamicObject>) {
    let writer = reflector::store::Writer::new(resource.clone());
    (writer.as_reader(), writer)
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
        let next = status::with_nodes(before, counted, generation, status::now());
        // Of two replicas that count the same the second finds it written.
        if next != *before {
            write_status(api, &set, &next).await?;
        }
    }
    Ok(())
}

/// How far nodes are with a set that has this id by now.
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
    fn a_node_counts_for_the_id_that_it_has() {
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
        assert_eq!(tally("nobody's", Some("new"), &nodes), SetNodes::default());
    }

    #[test]
    fn what_is_not_understood_counts_as_nothing() {
        let mut node = DynamicObject::new("n", &ApiResource::erase::<ClusterArtifactSet>(&()));
        assert!(read(&node).sets.is_empty());
        node.data =
            serde_json::json!({"status": {"sets": [{"name": "m", "from": "the future"}], "store": {}}});
        assert_eq!(read(&node).sets.len(), 1);
    }
}
