//! What `status` shows, made from the objects of a cluster. No I/O. `-o json` writes these types.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use oras_csi_core::keys::annotation;
use oras_csi_node_artifacts::NodeArtifactsStatus;
use oras_csi_webhook::pins::object::ArtifactPin;
use oras_csi_webhook::sets::object::SetStatus;
use serde::Serialize;

use super::collect::Collected;
use crate::cluster::artifact::Artifact;
use crate::cluster::events::latest_failure;
use crate::cluster::format::{bytes, shown, time};
use crate::cluster::list::Hidden;
use crate::cluster::pod::{PodView, PodVolume};
use crate::cluster::volume_state::{Kind, VolumeState, volume_state};

/// The state of oras-csi in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    /// When it was read.
    pub(super) at: Timestamp,
    /// The namespace of the volumes and pins; left out for all namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    pub(super) nodes: Vec<NodeRow>,
    pub(super) sets: Vec<SetRow>,
    pub(super) volumes: Vec<VolumeRow>,
    pub(super) pins: Vec<PinRow>,
    /// What the user is not allowed to read, one line each.
    pub(super) hidden: Vec<String>,
}

/// A node with the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeRow {
    pub(super) name: String,
    /// Whether kubelet has registered the driver; left out if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) registered: Option<bool>,
    /// What the driver reports; left out if it has not reported.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) report: Option<Report>,
}

/// The report of a driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volumes: Option<u64>,
    pub(super) store_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) capacity_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) free_bytes: Option<u64>,
    pub(super) damaged: u64,
    pub(super) preloads_ready: usize,
    pub(super) preloads_wanted: usize,
    pub(super) pulls: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reported: Option<Timestamp>,
}

/// A set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SetRow {
    pub(super) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) ready: bool,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    pub(super) artifacts: Vec<Artifact>,
    /// Since when it has this recipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refreshed: Option<Timestamp>,
    /// The nodes that preload it; left out if none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nodes: Option<Nodes>,
}

/// The nodes that preload a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Nodes {
    pub(super) desired: u32,
    pub(super) ready: u32,
    pub(super) failed: u32,
}

/// A volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeRow {
    pub(super) namespace: String,
    pub(super) pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    /// The name of the volume; left out if the pod has an annotation and no volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volume: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) claim: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) set: Option<String>,
    pub(super) artifacts: Vec<Artifact>,
    /// Whether the set has other content now; left out if the volume is not of a set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) set_changed: Option<bool>,
    #[serde(flatten)]
    pub(super) state: VolumeState,
}

/// A pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PinRow {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) reference: String,
    pub(super) digest: String,
    /// The controller of the pods, as KIND/NAME.
    pub(super) owner: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) created: Option<Timestamp>,
}

impl Status {
    /// Makes the status of what was read at `now`.
    pub(super) fn new(collected: &Collected, now: Timestamp) -> Self {
        let volumes = collected.pods.iter().flat_map(|pod| volume_rows(pod, collected, now));
        let mut volumes: Vec<VolumeRow> = volumes.collect();
        volumes.sort_by(|one, other| {
            (&one.namespace, &one.pod, &one.volume).cmp(&(&other.namespace, &other.pod, &other.volume))
        });
        let mut pins: Vec<PinRow> = collected.pins.iter().map(pin_row).collect();
        pins.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        Self {
            at: now,
            namespace: collected.namespace.clone(),
            nodes: node_rows(&collected.reports, &collected.registered),
            sets: set_rows(collected),
            volumes,
            pins,
            hidden: collected.hidden.iter().map(Hidden::line).collect(),
        }
    }
}

/// Returns the nodes that have the driver, or have reported once.
fn node_rows(
    reports: &BTreeMap<String, NodeArtifactsStatus>,
    registered: &BTreeMap<String, bool>,
) -> Vec<NodeRow> {
    let with_driver = registered.iter().filter(|(_, is_registered)| **is_registered).map(|(name, _)| name);
    let names: BTreeSet<&String> = reports.keys().chain(with_driver).collect();
    let row = |name: &String| NodeRow {
        name: shown(name),
        registered: registered.get(name).copied(),
        report: reports.get(name).map(report),
    };
    names.into_iter().map(row).collect()
}

fn report(status: &NodeArtifactsStatus) -> Report {
    use oras_csi_node_artifacts::SetState;
    let store = status.store.clone().unwrap_or_default();
    Report {
        version: status.version.as_deref().map(shown),
        volumes: status.volumes.map(bytes),
        store_bytes: bytes(store.bytes),
        capacity_bytes: store.capacity_bytes.map(bytes),
        free_bytes: store.free_bytes.map(bytes),
        damaged: bytes(store.damaged),
        preloads_ready: status.sets.iter().filter(|set| set.state == SetState::Ready).count(),
        preloads_wanted: status.sets.len(),
        pulls: status.pulls.len(),
        reported: status.reported.as_ref().map(|time| time.0),
    }
}

fn set_rows(collected: &Collected) -> Vec<SetRow> {
    let cluster = collected.cluster_sets.iter();
    let cluster = cluster.map(|set| set_row("ClusterArtifactSet", &set.metadata, set.status.as_ref()));
    let namespaced = collected.sets.iter();
    let namespaced = namespaced.map(|set| set_row("ArtifactSet", &set.metadata, set.status.as_ref()));
    let mut rows: Vec<SetRow> = cluster.chain(namespaced).collect();
    rows.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    rows
}

fn set_row(kind: &'static str, metadata: &ObjectMeta, status: Option<&SetStatus>) -> SetRow {
    let status = status.cloned().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let is_ready = |condition: &Condition| condition.status == "True";
    let message = match ready {
        Some(condition) if is_ready(condition) => String::new(),
        Some(condition) => shown(&condition.message),
        None => "it has not been resolved: is the webhook running?".to_owned(),
    };
    SetRow {
        kind,
        namespace: metadata.namespace.as_deref().map(shown),
        name: shown(metadata.name.as_deref().unwrap_or_default()),
        ready: ready.is_some_and(is_ready),
        message,
        id: status.id.as_deref().map(shown),
        artifacts: status.references.iter().map(|line| Artifact::parse(line)).collect(),
        since: status.since.as_deref().and_then(time),
        refreshed: status.refreshed.as_deref().and_then(time),
        nodes: status.nodes.map(|nodes| Nodes {
            desired: nodes.desired,
            ready: nodes.ready,
            failed: nodes.failed,
        }),
    }
}

/// Returns the volumes of a pod. A pod with an annotation and without a volume has one row.
fn volume_rows(pod: &PodView, collected: &Collected, now: Timestamp) -> Vec<VolumeRow> {
    let row = |volume: Option<&PodVolume>, state: VolumeState| VolumeRow {
        namespace: shown(&pod.namespace),
        pod: shown(&pod.name),
        node: pod.node.as_deref().map(shown),
        volume: volume.map(|volume| shown(&volume.name)),
        claim: volume.and_then(|volume| volume.claim.as_deref()).map(shown),
        id: volume.and_then(|volume| volume.id.as_deref()).map(shown),
        set: volume.and_then(|volume| set_of(pod, volume)).map(shown),
        artifacts: volume.map(|volume| volume.artifacts.clone()).unwrap_or_default(),
        set_changed: volume.and_then(|volume| has_set_changed(pod, volume, collected)),
        state,
    };
    if pod.volumes.is_empty() {
        let detail = "the pod has an annotation and no volume: the webhook has not processed it".to_owned();
        let state = VolumeState { state: Kind::NotAdmitted, detail, progress: None };
        return vec![row(None, state)];
    }
    let report = pod.node.as_ref().and_then(|node| collected.reports.get(node));
    let failures = collected.failures.get(&pod.uid).map(Vec::as_slice).unwrap_or_default();
    let volumes = pod.volumes.iter().map(|volume| {
        let failure = latest_failure(failures, &volume.kubelet_name);
        row(Some(volume), volume_state(pod, volume, failure, report, now))
    });
    volumes.collect()
}

/// Returns the set of a volume: the cluster set that the seal names, or the set of the annotation for the volume of the
/// annotations.
fn set_of<'a>(pod: &'a PodView, volume: &'a PodVolume) -> Option<&'a str> {
    let of_annotation = || {
        let is_of_annotation = volume.name == oras_csi_core::keys::VOLUME_NAME;
        pod.annotations.get(annotation::ARTIFACT_SET).filter(|_| is_of_annotation)
    };
    volume.set.as_deref().or_else(|| of_annotation().map(String::as_str))
}

/// Reports whether the set of a volume has another recipe now. `None` if the volume is not of a set, or the set is not known.
fn has_set_changed(pod: &PodView, volume: &PodVolume, collected: &Collected) -> Option<bool> {
    let name = set_of(pod, volume)?;
    let is_named = |metadata: &ObjectMeta| metadata.name.as_deref() == Some(name);
    let cluster = collected.cluster_sets.iter().find(|set| is_named(&set.metadata));
    let namespaced = collected.sets.iter().find(|set| {
        is_named(&set.metadata) && set.metadata.namespace.as_deref() == Some(pod.namespace.as_str())
    });
    // The volume of a cluster set names it. A set of the namespace has no mark in the volume.
    let status = if volume.set.is_some() {
        cluster.and_then(|set| set.status.as_ref())
    } else {
        namespaced.and_then(|set| set.status.as_ref())
    };
    let id = status?.id.as_deref()?;
    Some(volume.id.as_deref()? != id)
}

fn pin_row(pin: &ArtifactPin) -> PinRow {
    let owner = &pin.spec.owner;
    PinRow {
        namespace: shown(pin.metadata.namespace.as_deref().unwrap_or_default()),
        name: shown(pin.metadata.name.as_deref().unwrap_or_default()),
        reference: shown(&pin.spec.reference),
        digest: shown(&pin.spec.digest),
        owner: shown(&format!("{}/{}", owner.kind, owner.name)),
        created: pin.metadata.creation_timestamp.as_ref().map(|time| time.0),
    }
}
