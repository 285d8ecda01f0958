//! Reads the objects of a cluster. The state of one moment is not needed, so the lists run at the same time.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Event, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::CSINode;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use oras_csi_core::keys::DRIVER;
use oras_csi_node_artifacts::{NodeArtifacts, NodeArtifactsStatus};
use oras_csi_webhook::pins::object::ArtifactPin;
use oras_csi_webhook::sets::object::{ArtifactSet, ClusterArtifactSet};

use crate::cluster::events::{EventView, MountFailure};
use crate::cluster::list::{Hidden, Seen, list};
use crate::cluster::pod::{ClaimName, PodView, PodVolume, claimed_volume};
use crate::exit_status::Failure;

/// Reads the objects of a cluster.
pub(super) struct Collector {
    client: Client,
    /// `None` for all namespaces.
    namespace: Option<String>,
}

/// The objects of a cluster.
#[derive(Default)]
pub(super) struct Collected {
    /// The namespace of the pods; `None` for all namespaces.
    pub(super) namespace: Option<String>,
    /// The reports of the nodes.
    pub(super) reports: BTreeMap<String, NodeArtifactsStatus>,
    /// All nodes, with whether kubelet has registered the driver there.
    pub(super) registered: BTreeMap<String, bool>,
    pub(super) sets: Vec<ArtifactSet>,
    pub(super) cluster_sets: Vec<ClusterArtifactSet>,
    pub(super) pods: Vec<PodView>,
    /// The mounts that failed, by the uid of their pod.
    pub(super) failures: BTreeMap<String, Vec<MountFailure>>,
    pub(super) pins: Vec<ArtifactPin>,
    /// What the user is not allowed to read.
    pub(super) hidden: Vec<Hidden>,
}

impl Collector {
    /// Reads with `client` the pods, sets and pins of a namespace, or of all.
    pub(super) fn new(client: Client, namespace: Option<String>) -> Self {
        Self { client, namespace }
    }

    /// Reads all objects. Fails if the API server fails or cannot be reached.
    pub(super) async fn read(&self) -> Result<Collected, Failure> {
        let (reports, registered, sets, cluster_sets, pods, claimed, failures, pins) = tokio::try_join!(
            self.reports(),
            self.registered(),
            self.list::<ArtifactSet, _>("artifactsets.oras.land", ListParams::default(), Some),
            self.cluster_sets(),
            self.list::<Pod, _>("pods", ListParams::default(), PodView::read),
            self.claimed_volumes(),
            self.failures(),
            self.list::<ArtifactPin, _>("artifactpins.oras.land", ListParams::default(), Some),
        )?;
        let mut hidden = Vec::new();
        let mut pods: Vec<PodView> = pods.or_note(&mut hidden);
        let claimed: BTreeMap<ClaimName, PodVolume> =
            claimed_of(&pods, claimed, &mut hidden).into_iter().collect();
        for pod in &mut pods {
            pod.add_claimed(&claimed);
        }
        // A pod with another claim only.
        pods.retain(|pod| !pod.volumes.is_empty() || pod.requests_by_annotation());
        let uids: BTreeSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
        let mut by_pod: BTreeMap<String, Vec<MountFailure>> = BTreeMap::new();
        for (uid, failure) in failures.or_note(&mut hidden) {
            if uids.contains(uid.as_str()) {
                by_pod.entry(uid).or_default().push(failure);
            }
        }
        Ok(Collected {
            namespace: self.namespace.clone(),
            reports: reports.or_note(&mut hidden).into_iter().collect(),
            registered: registered.or_note(&mut hidden).into_iter().collect(),
            sets: sets.or_note(&mut hidden),
            cluster_sets: cluster_sets.or_note(&mut hidden),
            failures: by_pod,
            pins: pins.or_note(&mut hidden),
            pods,
            hidden,
        })
    }

    async fn reports(&self) -> Result<Seen<Vec<(String, NodeArtifactsStatus)>>, Failure> {
        let api: Api<NodeArtifacts> = Api::all(self.client.clone());
        let what = "nodeartifacts.oras.land in the cluster";
        list(&api, ListParams::default(), what, |node| {
            Some((node.name_any(), node.status.unwrap_or_default()))
        })
        .await
    }

    async fn registered(&self) -> Result<Seen<Vec<(String, bool)>>, Failure> {
        let api: Api<CSINode> = Api::all(self.client.clone());
        let what = "csinodes.storage.k8s.io in the cluster";
        list(&api, ListParams::default(), what, |node| {
            let is_registered = node.spec.drivers.iter().any(|driver| driver.name == DRIVER);
            Some((node.name_any(), is_registered))
        })
        .await
    }

    async fn cluster_sets(&self) -> Result<Seen<Vec<ClusterArtifactSet>>, Failure> {
        let api: Api<ClusterArtifactSet> = Api::all(self.client.clone());
        list(&api, ListParams::default(), "clusterartifactsets.oras.land in the cluster", Some).await
    }

    async fn claimed_volumes(&self) -> Result<Seen<Vec<(ClaimName, PodVolume)>>, Failure> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let wanted = self.namespace.clone();
        let found =
            list(&api, ListParams::default(), "persistentvolumes in the cluster", claimed_volume).await?;
        Ok(found.map(|mut volumes| {
            volumes.retain(|((namespace, _), _)| wanted.as_ref().is_none_or(|wanted| wanted == namespace));
            volumes
        }))
    }

    async fn failures(&self) -> Result<Seen<Vec<(String, MountFailure)>>, Failure> {
        let params = ListParams::default().fields("involvedObject.kind=Pod,reason=FailedMount");
        self.list("events", params, |event: Event| {
            let event = EventView::of(event);
            Some((event.uid.clone(), event.mount_failure()?))
        })
        .await
    }

    /// Lists objects of the namespace, or of all namespaces.
    async fn list<K, T>(
        &self,
        resource: &str,
        params: ListParams,
        keep: impl FnMut(K) -> Option<T>,
    ) -> Result<Seen<Vec<T>>, Failure>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let client = self.client.clone();
        let (api, place): (Api<K>, _) = match self.namespace.as_deref() {
            Some(namespace) => (Api::namespaced(client, namespace), format!("the namespace {namespace}")),
            None => (Api::all(client), "all namespaces".to_owned()),
        };
        list(&api, params, &format!("{resource} in {place}"), keep).await
    }
}

/// Without claims in the pods, it does not matter that PersistentVolumes cannot be read.
fn claimed_of(
    pods: &[PodView],
    claimed: Seen<Vec<(ClaimName, PodVolume)>>,
    hidden: &mut Vec<Hidden>,
) -> Vec<(ClaimName, PodVolume)> {
    let has_claims = pods.iter().any(|pod| !pod.claims.is_empty());
    let mut reasons = Vec::new();
    let claimed = claimed.or_note(&mut reasons);
    if has_claims {
        hidden.append(&mut reasons);
    }
    claimed
}
