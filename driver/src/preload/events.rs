//! Reports damage in the store as an event of the Node.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use oras_csi_core::display::Shown;
use oras_csi_store::{Damage, NodeRecord};

use super::{ClusterSets, FIELD_MANAGER};

/// The maximum length of a note (events.k8s.io/v1).
const MAX_NOTE_CHARS: usize = 1_000;

/// Reports each damage once. An earlier run of the driver reported what it found.
pub(super) struct DamageReporter {
    recorder: Recorder,
    node: ObjectReference,
    reported: Option<Damage>,
}

impl DamageReporter {
    pub(super) fn new(cluster: &ClusterSets, node: &str, record: NodeRecord) -> Self {
        let reporter =
            Reporter { controller: FIELD_MANAGER.name().to_owned(), instance: Some(node.to_owned()) };
        // The same reference as in kubelet's own events, so that `kubectl describe node` finds them.
        let node = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        let last = record.damage.into_iter().next_back();
        Self { recorder: Recorder::new(cluster.client.clone(), reporter), node, reported: last }
    }

    /// Writes one event for all damage that was found since the last one.
    pub(super) async fn report(&mut self, record: &NodeRecord) {
        let new = damage_after(&record.damage, self.reported.as_ref());
        let Some(last) = new.last() else { return };
        let event = Event {
            type_: EventType::Warning,
            reason: "ArtifactsDamaged".to_owned(),
            note: Some(note(new)),
            action: "Quarantine".to_owned(),
            secondary: None,
        };
        // A failure is retried at the next check. The log, the metric and `oras-csi store ls` have the damage as well.
        match self.recorder.publish(&event, &self.node).await {
            Ok(()) => self.reported = Some(last.clone()),
            Err(error) => {
                tracing::warn!(%error, "cannot write the event about damage in the store; retrying");
            }
        }
    }
}

/// Returns the damage that was found after `reported`. Returns all if `reported` is no longer in the record.
fn damage_after<'a>(damage: &'a [Damage], reported: Option<&Damage>) -> &'a [Damage] {
    let reported = damage.iter().rposition(|one| Some(one) == reported);
    &damage[reported.map_or(0, |position| position + 1)..]
}

fn note(new: &[Damage]) -> String {
    let first = new.first().map(|one| format!("{}: {}", one.what, one.found)).unwrap_or_default();
    let volumes: usize = new.iter().map(|one| one.volumes.len()).sum();
    let text = format!(
        "the store of oras-csi on this node has {} damaged object(s); they are quarantined and downloaded again. The first \
         one is {}. {volumes} mounted volume(s) have the damaged content until their pods are restarted. Run `oras-csi \
         store ls` on the node for details",
        new.len(),
        Shown::new(&first)
    );
    text.chars().take(MAX_NOTE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(what: &str) -> Damage {
        let what = what.to_owned();
        Damage { at: 7, what, found: "x".to_owned(), trees: Vec::new(), volumes: Vec::new() }
    }

    #[test]
    fn reports_all_damage_of_the_same_second() {
        let all = ["blob a", "blob b", "tree c"].map(damage);
        assert_eq!(damage_after(&all, None), all);
        assert_eq!(damage_after(&all, Some(&all[0])), &all[1..]);
        assert_eq!(damage_after(&all, Some(&all[2])), []);
        assert_eq!(damage_after(&all, Some(&damage("forgotten"))), all);
    }
}
