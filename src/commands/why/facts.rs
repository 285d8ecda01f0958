//! What is known about a pod: the input of [`super::judge`].

use k8s_openapi::jiff::Timestamp;
use oras_csi_node_artifacts::NodeArtifactsStatus;

use super::target::Target;
use crate::cluster::events::EventView;
use crate::cluster::list::Seen;
use crate::cluster::pod::PodView;

/// What is known about a pod, or about a workload whose pods are explained.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// What the user named.
    pub(crate) target: Target,
    pub(crate) namespace: String,
    /// The pod: the one that was named, or the one of the workload that needs help most.
    pub(crate) pod: Option<PodView>,
    /// The workload, if one was named or found.
    pub(crate) workload: Option<Workload>,
    /// The events of the pod.
    pub(crate) events: Seen<Vec<EventView>>,
    /// Pods that a controller of the workload could not create.
    pub(crate) refusals: Seen<Vec<EventView>>,
    pub(crate) policies: Seen<Vec<PolicyView>>,
    /// The pins of the controller of the pod, as REFERENCE and DIGEST.
    pub(crate) pins: Seen<Vec<(String, String)>>,
    /// Whether the API server has a webhook of oras-csi for pods. Read only if the pod was not processed.
    pub(crate) has_webhook: Option<Seen<bool>>,
    pub(crate) node: Option<NodeFacts>,
    pub(crate) now: Timestamp,
}

/// A workload.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workload {
    /// Its kind and name, as `deploy/web`.
    pub(crate) target: String,
    /// Its template, read as a pod.
    pub(crate) template: PodView,
    pub(crate) replicas: Option<i32>,
}

/// The node of a pod.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub(crate) name: String,
    /// Whether kubelet has registered the driver there.
    pub(crate) registered: Seen<bool>,
    /// What the driver reports.
    pub(crate) report: Seen<Option<NodeArtifactsStatus>>,
}

/// A policy that selects the namespace, and its decision about the artifacts of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyView {
    pub(crate) name: String,
    pub(crate) mode: String,
    pub(crate) decision: Decision,
}

/// The decision of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Its rules on names pass. Rules on content need a registry request.
    Passes,
    /// A reference breaks a rule.
    Broken { reference: String, rule: String },
    /// The policy cannot be read.
    Unreadable(String),
}

impl Facts {
    /// Returns what requests artifacts: the pod, or the template of the workload.
    pub(crate) fn requesting(&self) -> Option<&PodView> {
        self.pod.as_ref().or_else(|| self.workload.as_ref().map(|workload| &workload.template))
    }

    /// Returns the latest refusal of the API server to create a pod, if it is newer than the pod.
    pub(crate) fn latest_refusal(&self) -> Option<&EventView> {
        let latest = self.refusals.known()?.iter().max_by_key(|event| event.at)?;
        let created = self.pod.as_ref().and_then(|pod| pod.created);
        let is_newer = created.is_none() || latest.at > created;
        is_newer.then_some(latest)
    }
}
