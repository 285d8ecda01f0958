//! Writes `NodeArtifacts`: changes at most once per interval, and the whole status periodically.
//!
//! Each node writes one object, whatever happens on it ([`Intervals`] has the times):
//!
//! | what changed | written |
//! |---|---|
//! | the state of a set, damage in the store | within 5 to 10 seconds |
//! | the pulls that pods wait for | at most every 10 seconds, only while a pull runs for more than 5 seconds |
//! | the progress of sets, the number of volumes | at most every 30 seconds |
//! | nothing | every 10 minutes |

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, GetParams, ObjectMeta, Patch};
use oras_csi_core::jitter;
use oras_csi_kube_support::call::call;
use oras_csi_kube_support::errors::{is_not_found, message};
use oras_csi_kube_support::repeated_failure::RepeatedFailure;
use oras_csi_kube_support::writes::create_if_absent;
use oras_csi_kube_support::{metadata, time as api_time};
use oras_csi_store::pull::{PullInProgress, Pulls};
use oras_csi_store::{Inventory, NodeRecord, Store};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::events::DamageReporter;
use super::object::{
    MAX_PULLS, NodeArtifacts, NodeArtifactsSpec, NodeArtifactsStatus, PullOnNode, SetOnNode, SetState,
    StoreOnNode,
};
use super::{ClusterSets, FIELD_MANAGER, Intervals, with_jitter};
use crate::metrics::Metrics;

/// How long the driver waits for an answer of the API server.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes the `NodeArtifacts` object of the node.
pub(super) struct Reporter {
    objects: Api<NodeArtifacts>,
    nodes: Api<Node>,
    node: String,
    store: Arc<Store>,
    pulls: Arc<Pulls>,
    metrics: Metrics,
    damage: DamageReporter,
    intervals: Intervals,
    /// When a node without anything to report writes its object for the first time. All nodes of a cluster can start at once.
    first: Instant,
    /// The size of the store, and when it was measured. That takes long for a store with many entries.
    size: Option<(i64, Instant)>,
    written: Option<(NodeArtifactsStatus, Instant)>,
}

impl Reporter {
    pub(super) fn new(
        cluster: &ClusterSets,
        node: &str,
        store: Arc<Store>,
        pulls: Arc<Pulls>,
        metrics: Metrics,
    ) -> Self {
        Self {
            objects: Api::all(cluster.client.clone()),
            nodes: Api::all(cluster.client.clone()),
            node: node.to_owned(),
            damage: DamageReporter::new(cluster, node, store.node_record()),
            store,
            pulls,
            metrics,
            first: Instant::now() + jitter::up_to(cluster.intervals.progress()),
            intervals: cluster.intervals,
            size: None,
            written: None,
        }
    }

    /// Writes the states that it receives, until it is dropped.
    pub(super) async fn run(mut self, mut sets_changed: watch::Receiver<Option<Vec<SetOnNode>>>) {
        let (mut failures, mut last) = (0, RepeatedFailure::default());
        loop {
            let sets = sets_changed.borrow_and_update().clone();
            let mut wait = self.intervals.report();
            let record = self.store.node_record();
            let _ = tokio::time::timeout(CALL_TIMEOUT, self.damage.report(&record)).await;
            if let Some(sets) = sets {
                let status = self.status(sets, &record);
                if self.is_due(&status) {
                    let status = self.measured(status).await;
                    match call(CALL_TIMEOUT, self.write(&status)).await {
                        Ok(()) => {
                            (failures, self.written) = (0, Some((status, Instant::now())));
                            last.clear();
                        }
                        Err(error) => {
                            let error = error.to_string();
                            if last.is_new(&error) {
                                tracing::warn!(
                                    node = self.node,
                                    error,
                                    "cannot write NodeArtifacts; retrying"
                                );
                            }
                            failures += 1;
                            wait = self.intervals.retry(failures);
                        }
                    }
                }
            }
            tokio::time::sleep(wait).await;
            // Nothing notifies this task about damage, pulls and volumes, so these are read at intervals.
            let _ = tokio::time::timeout(with_jitter(self.intervals.report()), sets_changed.changed()).await;
        }
    }

    fn status(&self, sets: Vec<SetOnNode>, record: &NodeRecord) -> NodeArtifactsStatus {
        let pulls =
            reported_pulls(self.pulls.in_progress(), self.intervals.reported_pull(), Timestamp::now());
        NodeArtifactsStatus {
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            volumes: Some(self.metrics.volumes().get()),
            pulls,
            ..NodeArtifactsStatus::new(sets, store_state(record))
        }
    }

    fn is_due(&self, status: &NodeArtifactsStatus) -> bool {
        let Some((written, when)) = &self.written else {
            let is_empty = status.sets.is_empty() && status.pulls.is_empty();
            let has_damage = status.store.as_ref().is_some_and(|store| store.damaged > 0);
            return !is_empty || has_damage || Instant::now() >= self.first;
        };
        let age = when.elapsed();
        let has_progressed = written.sets != status.sets || written.volumes != status.volumes;
        age >= self.intervals.renew()
            || has_changed(written, status)
            || (age >= self.intervals.pulls() && written.pulls != status.pulls)
            || (age >= self.intervals.progress() && has_progressed)
    }

    /// Adds what is measured only when the status is written.
    async fn measured(&mut self, mut status: NodeArtifactsStatus) -> NodeArtifactsStatus {
        let known = self.size.filter(|(_, when)| when.elapsed() < self.intervals.progress());
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || {
            let size = || Inventory::read(store.layout()).map(|inventory| amount(inventory.usage().bytes));
            (known.map_or_else(size, |(size, _)| Ok(size)), store.capacity_and_free_space())
        });
        if let (Some(store), Ok((size, space))) = (&mut status.store, read.await) {
            store.bytes = size.unwrap_or_default();
            self.size = known.or(Some((store.bytes, Instant::now())));
            (store.capacity_bytes, store.free_bytes) =
                space.map_or((None, None), |(capacity, free)| (Some(amount(capacity)), Some(amount(free))));
        }
        NodeArtifactsStatus { reported: Some(Time(api_time::now())), ..status }
    }

    /// Writes the whole status by server-side apply. Creates the object if it is missing.
    async fn write(&self, status: &NodeArtifactsStatus) -> Result<(), kube::Error> {
        match self.apply_known_fields(status).await {
            Err(error) if is_not_found(&error) => {
                self.create().await?;
                self.apply_known_fields(status).await
            }
            applied => applied,
        }
    }

    /// Applies the fields that the API server knows. A cluster can have the custom resource definition of an earlier version:
    /// the chart does not upgrade it with crds.install=false.
    async fn apply_known_fields(&self, status: &NodeArtifactsStatus) -> Result<(), kube::Error> {
        match self.apply(status).await {
            Err(error) if message(&error).contains("field not declared in schema") => {
                self.apply(&status.as_first_version()).await
            }
            applied => applied,
        }
    }

    async fn apply(&self, status: &NodeArtifactsStatus) -> Result<(), kube::Error> {
        let object = json!({
            "apiVersion": "oras.land/v1alpha1", "kind": "NodeArtifacts",
            "metadata": {"name": self.node}, "status": status,
        });
        self.objects
            .patch_status(&self.node, &FIELD_MANAGER.force_apply(), &Patch::Apply(object))
            .await
            .map(|_| ())
    }

    /// Creates the object, owned by the Node. The Node is read each time, because another one of the same name may have
    /// replaced it.
    async fn create(&self) -> Result<(), kube::Error> {
        let node = self.nodes.get_metadata_with(&self.node, &GetParams::default()).await?;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.clone(),
            uid: node.metadata.uid.unwrap_or_default(),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta { name: Some(self.node.clone()), ..ObjectMeta::default() };
        let metadata = metadata::owned_by(metadata, owner);
        let object = NodeArtifacts { metadata, spec: NodeArtifactsSpec {}, status: None };
        create_if_absent(&self.objects, &object, FIELD_MANAGER).await.map(|_| ())
    }
}

/// Reports whether more has changed than progress, measurements and the pulls that pods wait for.
fn has_changed(written: &NodeArtifactsStatus, status: &NodeArtifactsStatus) -> bool {
    let comparable = |status: &NodeArtifactsStatus| {
        let mut status =
            NodeArtifactsStatus { volumes: None, pulls: Vec::new(), reported: None, ..status.clone() };
        for set in status.sets.iter_mut().filter(|set| set.state != SetState::Ready) {
            (set.bytes, set.total_bytes) = (0, 0);
        }
        if let Some(store) = &mut status.store {
            (store.bytes, store.capacity_bytes, store.free_bytes) = (0, None, None);
        }
        status
    };
    comparable(written) != comparable(status)
}

/// Returns the pulls that have run for `least`, as the status lists them.
fn reported_pulls(pulls: Vec<PullInProgress>, least: Duration, now: Timestamp) -> Vec<PullOnNode> {
    let mut reported: Vec<PullOnNode> = Vec::new();
    for pull in pulls.into_iter().filter(|pull| pull.progress.elapsed() >= least) {
        if reported.len() == MAX_PULLS {
            break;
        }
        // The list is a map by id.
        if reported.iter().any(|other| other.id == pull.id) {
            continue;
        }
        let progress = pull.progress;
        let elapsed = SignedDuration::try_from(progress.elapsed()).unwrap_or_default();
        reported.push(PullOnNode {
            id: pull.id,
            bytes: amount(progress.done().min(progress.total())),
            total_bytes: amount(progress.total()),
            downloaded_bytes: amount(progress.downloaded()),
            since: Time(api_time::whole_seconds(now.checked_sub(elapsed).unwrap_or(now))),
        });
    }
    reported
}

fn store_state(record: &NodeRecord) -> StoreOnNode {
    StoreOnNode {
        damaged: amount(record.damage.len()),
        last_damage: record.damage.last().and_then(|last| time(last.at)),
        last_scrub: record.scrub.as_ref().and_then(|scrub| time(scrub.ended)),
        ..StoreOnNode::default()
    }
}

/// Converts a number to the type of the API.
pub(super) fn amount(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

fn time(seconds: u64) -> Option<Time> {
    api_time::from_unix_seconds(seconds).map(Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: SetState, bytes: i64, damaged: i64) -> NodeArtifactsStatus {
        let set = SetOnNode {
            name: "models".to_owned(),
            id: "models-1".to_owned(),
            state,
            message: String::new(),
            bytes,
            total_bytes: 10,
            since: time(1).unwrap(),
        };
        let store = StoreOnNode { bytes, damaged, ..StoreOnNode::default() };
        NodeArtifactsStatus::new(vec![set], store)
    }

    #[test]
    fn progress_alone_is_not_a_change() {
        let before = status(SetState::Fetching, 1, 0);
        assert!(!has_changed(&before, &status(SetState::Fetching, 2, 0)));
        assert!(has_changed(&before, &status(SetState::Ready, 1, 0)));
        assert!(has_changed(&before, &status(SetState::Fetching, 1, 1)));
        assert!(has_changed(&before, &NodeArtifactsStatus::default()));
        // Pulls and volumes have intervals of their own.
        let pulls = vec![PullOnNode {
            id: "models-1".to_owned(),
            bytes: 1,
            total_bytes: 2,
            downloaded_bytes: 1,
            since: time(1).unwrap(),
        }];
        let busy = NodeArtifactsStatus { pulls, volumes: Some(3), reported: time(9), ..before.clone() };
        assert!(!has_changed(&before, &busy));
        let updated = NodeArtifactsStatus { version: Some("0.2.0".to_owned()), ..before.clone() };
        assert!(has_changed(&before, &updated));
        let mut other = before.clone();
        other.sets[0].id = "models-2".to_owned();
        assert!(has_changed(&before, &other));
    }
}
