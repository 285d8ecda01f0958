//! Damage, told where people look: as an event of the Node.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use oras_csi_core::text::Shown;

use super::{ClusterSets, FIELD_MANAGER};
use crate::store::{Damage, Store};

/// The most of a note (events.k8s.io/v1).
const LONGEST: usize = 1_000;

/// Tells each damage once; what an earlier run found was told by that.
pub(super) struct Teller {
    recorder: Recorder,
    node: ObjectReference,
    told: u64,
}

impl Teller {
    pub(super) fn new(cluster: &ClusterSets, node: &str, store: &Store) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(node.to_owned()) };
        // As kubelet names its node in events: so `kubectl describe node` finds them.
        let node = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        let told = store.node_record().damage.last().map_or(0, |last| last.at);
        Self { recorder: Recorder::new(cluster.client.clone(), reporter), node, told }
    }

    /// Tells what was found since.
    pub(super) async fn tell(&mut self, store: &Store) {
        let damage = store.node_record().damage;
        let new: Vec<&Damage> = damage.iter().filter(|one| one.at > self.told).collect();
        let Some(last) = new.last() else { return };
        let event = Event {
            type_: EventType::Warning,
            reason: "ArtifactsDamaged".to_owned(),
            note: Some(note(&new)),
            action: "SetAside".to_owned(),
            secondary: None,
        };
        // Where it cannot be told it is tried again with the next look; the log, the metric and `store ls` have it.
        match self.recorder.publish(&event, &self.node).await {
            Ok(()) => self.told = last.at,
            Err(error) => tracing::warn!(%error, "the event about damage cannot be written"),
        }
    }
}

fn note(new: &[&Damage]) -> String {
    let first = new.first().map(|one| format!("{}: {}", one.what, one.found)).unwrap_or_default();
    let volumes: usize = new.iter().map(|one| one.volumes.len()).sum();
    let text = format!(
        "the store of oras-csi has {} damaged thing(s), set aside and fetched again; the first is {}; {volumes} mounted \
         volume(s) keep them until their pods are restarted: see `oras-csi store ls` on the node",
        new.len(),
        Shown::new(&first)
    );
    text.chars().take(LONGEST).collect()
}
