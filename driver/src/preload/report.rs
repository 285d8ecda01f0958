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

use super::events::Teller;
use super::object::{
    NodeArtifacts, NodeArtifactsSpec, NodeArtifactsStatus, SetOnNode, SetState, StoreOnNode,
};
use super::{ClusterSets, FIELD_MANAGER, Rhythm, spread};

/// How long the API server may take for one answer.
pub(super) const LONGEST_CALL: Duration = Duration::from_secs(10);

/// Writes the node's object.
pub(super) struct Reporter {
    objects: Api<NodeArtifacts>,
    nodes: Api<Node>,
    node: String,
    store: Arc<Store>,
    teller: Teller,
    rhythm: Rhythm,
    written: Option<(NodeArtifactsStatus, Instant)>,
}

impl Reporter {
    pub(super) fn new(cluster: &ClusterSets, node: &str, store: Arc<Store>) -> Self {
        Self {
            objects: Api::all(cluster.client.clone()),
            nodes: Api::all(cluster.client.clone()),
            node: node.to_owned(),
            teller: Teller::new(cluster, node, store.node_record()),
            store,
            rhythm: cluster.rhythm,
            written: None,
        }
    }

    /// Writes what is heard, for as long as it is wanted.
    pub(super) async fn run(mut self, mut heard: watch::Receiver<Option<Vec<SetOnNode>>>) {
        let (mut failures, mut last) = (0, RepeatedFailure::default());
        loop {
            let sets = heard.borrow_and_update().clone();
            let mut wait = self.rhythm.report();
            let record = self.store.node_record();
            let _ = tokio::time::timeout(LONGEST_CALL, self.teller.tell(&record)).await;
            if let Some(sets) = sets {
                let status = NodeArtifactsStatus::new(sets, damage(&record));
                if self.is_due(&status) {
                    let status = self.with_bytes(status).await;
                    match call(LONGEST_CALL, self.write(&status)).await {
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
                            wait = self.rhythm.retry(failures);
                        }
                    }
                }
            }
            tokio::time::sleep(wait).await;
            // The store says nothing by itself when it finds damage.
            let _ = tokio::time::timeout(spread(self.rhythm.look()), heard.changed()).await;
        }
    }

    fn is_due(&self, status: &NodeArtifactsStatus) -> bool {
        let Some((written, when)) = &self.written else { return true };
        let age = when.elapsed();
        age >= self.rhythm.renew()
            || is_news(written, status)
            || (age >= self.rhythm.progress() && written.sets != status.sets)
    }

    async fn with_bytes(&self, mut status: NodeArtifactsStatus) -> NodeArtifactsStatus {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || Inventory::read(store.layout())).await;
        if let (Some(told), Ok(Ok(inventory))) = (&mut status.store, read) {
            told.bytes = amount(inventory.bytes());
        }
        status
    }

    /// As a whole, by server-side apply; makes the object where there is none and something to tell.
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

    /// Owned by the Node, which is asked for each time: one of the same name may have come in its place.
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

/// Whether there is more to tell than how far it is and how full the store is.
fn is_news(written: &NodeArtifactsStatus, status: &NodeArtifactsStatus) -> bool {
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

fn damage(record: &NodeRecord) -> StoreOnNode {
    StoreOnNode {
        bytes: 0,
        damaged: amount(record.damage.len()),
        last_damage: record.damage.last().and_then(|last| time(last.at)),
        last_scrub: record.scrub.as_ref().and_then(|scrub| time(scrub.ended)),
    }
}

/// A number as the API has it.
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
    fn more_bytes_are_no_news_and_all_else_is() {
        let before = status(SetState::Fetching, 1, 0);
        assert!(!is_news(&before, &status(SetState::Fetching, 2, 0)));
        assert!(is_news(&before, &status(SetState::Ready, 1, 0)));
        assert!(is_news(&before, &status(SetState::Fetching, 1, 1)));
        assert!(is_news(&before, &NodeArtifactsStatus::default()));
        let mut other = before.clone();
        other.sets[0].id = "models-2".to_owned();
        assert!(is_news(&before, &other));
    }
}
