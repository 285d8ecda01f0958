//! Damage, told where people look: as an event of the Node.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use oras_csi_core::display::Shown;
use oras_csi_store::{Damage, NodeRecord};

use super::{ClusterSets, FIELD_MANAGER};

/// The most of a note (events.k8s.io/v1).
const LONGEST: usize = 1_000;

/// Tells each damage once; what an earlier run found was told by that.
pub(super) struct Teller {
    recorder: Recorder,
    node: ObjectReference,
    told: Option<Damage>,
}

impl Teller {
    pub(super) fn new(cluster: &ClusterSets, node: &str, record: NodeRecord) -> Self {
        let reporter =
            Reporter { controller: FIELD_MANAGER.name().to_owned(), instance: Some(node.to_owned()) };
        // As kubelet names its node in events: so `kubectl describe node` finds them.
        let node = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        let told = record.damage.into_iter().next_back();
        Self { recorder: Recorder::new(cluster.client.clone(), reporter), node, told }
    }

    /// Tells what was found since.
    pub(super) async fn tell(&mut self, record: &NodeRecord) {
        let new = since(&record.damage, self.told.as_ref());
        let Some(last) = new.last() else { return };
        let event = Event {
            type_: EventType::Warning,
            reason: "ArtifactsDamaged".to_owned(),
            note: Some(note(new)),
            action: "SetAside".to_owned(),
            secondary: None,
        };
        // Where it cannot be told it is tried again with the next look; the log, the metric and `store ls` have it.
        match self.recorder.publish(&event, &self.node).await {
            Ok(()) => self.told = Some(last.clone()),
            Err(error) => tracing::warn!(%error, "the event about damage cannot be written"),
        }
    }
}

/// What was found after `told`: all of it, where that is no longer among what is remembered.
fn since<'a>(damage: &'a [Damage], told: Option<&Damage>) -> &'a [Damage] {
    let told = damage.iter().rposition(|one| Some(one) == told);
    &damage[told.map_or(0, |told| told + 1)..]
}

fn note(new: &[Damage]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(what: &str) -> Damage {
        let what = what.to_owned();
        Damage { at: 7, what, found: "x".to_owned(), trees: Vec::new(), volumes: Vec::new() }
    }

    #[test]
    fn what_was_found_in_the_same_second_is_told_as_well() {
        let all = ["blob a", "blob b", "tree c"].map(damage);
        assert_eq!(since(&all, None), all);
        assert_eq!(since(&all, Some(&all[0])), &all[1..]);
        assert_eq!(since(&all, Some(&all[2])), []);
        assert_eq!(since(&all, Some(&damage("forgotten"))), all);
    }
}
