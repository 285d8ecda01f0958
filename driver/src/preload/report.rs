//! Writes `NodeArtifacts`: changes at most once per interval, and the whole status periodically.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::{Api, GetParams, ObjectMeta, Patch};
use oras_csi_kube_support::call::call;
use oras_csi_kube_support::errors::is_not_found;
use oras_csi_kube_support::repeated_failure::RepeatedFailure;
use oras_csi_kube_support::writes::create_if_absent;
use oras_csi_kube_support::{metadata, time as api_time};
use oras_csi_store::{Inventory, NodeRecord, Store};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::events::DamageReporter;
use super::object::{
    NodeArtifacts, NodeArtifactsSpec, NodeArtifactsStatus, SetOnNode, SetState, StoreOnNode,
};
use super::{ClusterSets, FIELD_MANAGER, Intervals, with_jitter};

/// How long the driver waits for an answer of the API server.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes the `NodeArtifacts` object of the node.
pub(super) struct Reporter {
    objects: Api<NodeArtifacts>,
    nodes: Api<Node>,
    node: String,
    store: Arc<Store>,
    damage: DamageReporter,
    intervals: Intervals,
    written: Option<(NodeArtifactsStatus, Instant)>,
}

impl Reporter {
    pub(super) fn new(cluster: &ClusterSets, node: &str, store: Arc<Store>) -> Self {
        Self {
            objects: Api::all(cluster.client.clone()),
            nodes: Api::all(cluster.client.clone()),
            node: node.to_owned(),
            damage: DamageReporter::new(cluster, node, store.node_record()),
            store,
            intervals: cluster.intervals,
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
                let status = NodeArtifactsStatus::new(sets, store_state(&record));
                if self.is_due(&status) {
                    let status = self.with_bytes(status).await;
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
            // The store does not notify this task about damage, so the record is read at intervals.
            let _ = tokio::time::timeout(with_jitter(self.intervals.check()), sets_changed.changed()).await;
        }
    }

    fn is_due(&self, status: &NodeArtifactsStatus) -> bool {
        let Some((written, when)) = &self.written else { return true };
        let age = when.elapsed();
        age >= self.intervals.renew()
            || has_changed(written, status)
            || (age >= self.intervals.progress() && written.sets != status.sets)
    }

    async fn with_bytes(&self, mut status: NodeArtifactsStatus) -> NodeArtifactsStatus {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || Inventory::read(store.layout())).await;
        if let (Some(store), Ok(Ok(inventory))) = (&mut status.store, read) {
            store.bytes = amount(inventory.usage().bytes);
        }
        status
    }

    /// Writes the whole status by server-side apply. Creates the object if it is missing and there is something to report.
    async fn write(&self, status: &NodeArtifactsStatus) -> Result<(), kube::Error> {
        match self.apply(status).await {
            Err(error) if is_not_found(&error) => {
                let has_damage = status.store.as_ref().is_some_and(|store| store.damaged > 0);
                if status.sets.is_empty() && !has_damage {
                    return Ok(());
                }
                self.create().await?;
                self.apply(status).await
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

/// Reports whether more has changed than the progress of downloads and the size of the store.
fn has_changed(written: &NodeArtifactsStatus, status: &NodeArtifactsStatus) -> bool {
    let without_progress = |status: &NodeArtifactsStatus| {
        let mut status = status.clone();
        for set in status.sets.iter_mut().filter(|set| set.state != SetState::Ready) {
            (set.bytes, set.total_bytes) = (0, 0);
        }
        if let Some(store) = &mut status.store {
            store.bytes = 0;
        }
        status
    };
    without_progress(written) != without_progress(status)
}

fn store_state(record: &NodeRecord) -> StoreOnNode {
    StoreOnNode {
        bytes: 0,
        damaged: amount(record.damage.len()),
        last_damage: record.damage.last().and_then(|last| time(last.at)),
        last_scrub: record.scrub.as_ref().and_then(|scrub| time(scrub.ended)),
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
        let mut other = before.clone();
        other.sets[0].id = "models-2".to_owned();
        assert!(has_changed(&before, &other));
    }
}
