//! Reads what is known about a pod. Thin: what it means is decided in [`super::judge`].

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::CSINode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, ListParams};
use kube::{Client, Resource as _};
use oras_csi_core::keys::{DRIVER, annotation};
use oras_csi_core::reference::Reference;
use oras_csi_node_artifacts::NodeArtifacts;
use oras_csi_webhook::pins::object::ArtifactPin;
use oras_csi_webhook::policy::object::ArtifactPolicy;
use serde_json::Value;

use super::facts::{Facts, NodeFacts, PolicyView, Workload};
use super::policies;
use super::target::{Kind, Target, WORKLOADS};
use crate::cluster::events::EventView;
use crate::cluster::list::{Hidden, Seen, get, list};
use crate::cluster::pod::{PodView, claimed_volume};
use crate::exit_status::Failure;

/// The webhook for pods in the webhook configuration of the chart.
const WEBHOOK: &str = "pods.csi.oras.land";
/// The annotation with which the Deployment controller numbers its ReplicaSets.
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Reads what is known about the target in a namespace.
pub(super) async fn collect(client: &Client, namespace: &str, target: Target) -> Result<Facts, Failure> {
    Collector { client, namespace }.collect(target).await
}

struct Collector<'a> {
    client: &'a Client,
    namespace: &'a str,
}

/// A workload with what selects its pods.
#[derive(Default)]
struct Found {
    workload: Workload,
    /// The uids of the controllers of its pods.
    owners: BTreeSet<String>,
    /// The names of the objects whose events say that a pod could not be created.
    controllers: BTreeSet<String>,
}

impl Collector<'_> {
    async fn collect(&self, target: Target) -> Result<Facts, Failure> {
        let (mut pod, mut found) = (None, None);
        if target.kind == Kind::Pod {
            pod = self.pod(&target.name).await?;
            if pod.is_none() {
                found = self.workload_of_missing_pod(&target).await?;
            }
        } else {
            found = self.workload(target.kind, &target.name).await?;
        }
        if let (None, Some(found)) = (&pod, &found) {
            pod = self.neediest_pod(&found.owners).await?;
        }
        let mut controllers = found.as_ref().map(|found| found.controllers.clone()).unwrap_or_default();
        controllers.extend(pod.iter().filter_map(|pod| pod.owner.as_ref().map(|(_, name)| name.clone())));
        if let Some(pod) = &mut pod {
            self.add_claims(pod).await?;
        }
        let events = match &pod {
            Some(pod) => self.events_of(&pod.uid).await?,
            None => Seen::Known(Vec::new()),
        };
        let refusals = self.refusals(&controllers, &target).await?;
        let requesting = pod.as_ref().or(found.as_ref().map(|found| &found.workload.template));
        let policies = match requesting {
            Some(requesting) => self.policies(requesting).await?,
            None => Seen::Known(Vec::new()),
        };
        let pins = match pod.as_ref().and_then(|pod| pod.owner_uid.as_deref()) {
            Some(uid) => self.pins(uid).await?,
            None => Seen::Known(Vec::new()),
        };
        let is_unprocessed = pod.as_ref().is_some_and(|pod| {
            pod.volumes.iter().any(|volume| volume.id.is_none()) || pod.volumes.is_empty()
        });
        let has_webhook = if is_unprocessed { Some(self.has_webhook().await?) } else { None };
        let node = match pod.as_ref().and_then(|pod| pod.node.clone()) {
            Some(name) => Some(self.node(name).await?),
            None => None,
        };
        Ok(Facts {
            target,
            namespace: self.namespace.to_owned(),
            workload: found.map(|found| found.workload),
            pod,
            events,
            refusals,
            policies,
            pins,
            has_webhook,
            node,
            now: Timestamp::now(),
        })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    /// Names a resource of the namespace in a message.
    fn what(&self, resource: &str) -> String {
        format!("{resource} in the namespace {}", self.namespace)
    }

    /// Reads an object that the command cannot go on without.
    async fn required<K>(&self, name: &str, resource: &str) -> Result<Option<K>, Failure>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        match get(&self.api::<K>(), name, &self.what(resource)).await? {
            Seen::Known(object) => Ok(object),
            Seen::Hidden(hidden) => {
                Err(Failure::failed(format!("cannot explain {resource} {name}: {}", hidden.line())))
            }
        }
    }

    async fn pod(&self, name: &str) -> Result<Option<PodView>, Failure> {
        Ok(self.required::<Pod>(name, "pods").await?.map(PodView::of))
    }

    /// Finds the workload that should have created a pod: the one of the same name, or the one whose event names the pod.
    async fn workload_of_missing_pod(&self, target: &Target) -> Result<Option<Found>, Failure> {
        if !target.is_explicit {
            for kind in WORKLOADS {
                if let Some(found) = self.workload(kind, &target.name).await? {
                    return Ok(Some(found));
                }
            }
        }
        let refusals = self.all_refusals().await?;
        let created = refusals.known().into_iter().flatten().find(|event| is_about(event, &target.name));
        let Some((kind, name)) =
            created.and_then(|event| Some((Kind::of_controller(&event.kind)?, &event.name)))
        else {
            return Ok(None);
        };
        self.workload(kind, name).await
    }

    /// Reads a workload. `None` means that it does not exist, or that the user is not allowed to read it.
    async fn workload(&self, kind: Kind, name: &str) -> Result<Option<Found>, Failure> {
        match kind {
            Kind::Pod => Ok(None),
            Kind::Deployment => {
                let Some(found) = self.required::<Deployment>(name, "deployments.apps").await? else {
                    return Ok(None);
                };
                let spec = found.spec.unwrap_or_default();
                let mut one = workload(kind, &found.metadata, spec.template, spec.replicas);
                let sets = self.replica_sets(found.metadata.uid.as_deref().unwrap_or_default()).await?;
                one.owners = sets.iter().filter_map(|set| set.uid.clone()).collect();
                one.controllers.extend(sets.into_iter().filter_map(|set| set.name));
                Ok(Some(one))
            }
            Kind::ReplicaSet => {
                let found = self.required::<ReplicaSet>(name, "replicasets.apps").await?;
                Ok(found.map(|found| {
                    let spec = found.spec.unwrap_or_default();
                    workload(kind, &found.metadata, spec.template.unwrap_or_default(), spec.replicas)
                }))
            }
            Kind::StatefulSet => {
                let found = self.required::<StatefulSet>(name, "statefulsets.apps").await?;
                Ok(found.map(|found| {
                    let spec = found.spec.unwrap_or_default();
                    workload(kind, &found.metadata, spec.template, spec.replicas)
                }))
            }
            Kind::DaemonSet => {
                let found = self.required::<DaemonSet>(name, "daemonsets.apps").await?;
                Ok(found.map(|found| {
                    workload(kind, &found.metadata, found.spec.unwrap_or_default().template, None)
                }))
            }
            Kind::Job => {
                let found = self.required::<Job>(name, "jobs.batch").await?;
                Ok(found.map(|found| {
                    workload(kind, &found.metadata, found.spec.unwrap_or_default().template, None)
                }))
            }
        }
    }

    /// Returns the newest ReplicaSet of a Deployment.
    async fn replica_sets(&self, deployment: &str) -> Result<Vec<ObjectMeta>, Failure> {
        let (api, what) = (self.api::<ReplicaSet>(), self.what("replicasets.apps"));
        let found = list(&api, ListParams::default(), &what, |set| {
            let mut owners = set.metadata.owner_references.iter().flatten();
            owners.any(|owner| owner.uid == deployment).then_some(set.metadata)
        });
        let sets = found.await?.known().cloned().unwrap_or_default();
        let revision = |set: &ObjectMeta| {
            let number = set.annotations.as_ref().and_then(|annotations| annotations.get(REVISION));
            number.and_then(|number| number.parse::<u64>().ok()).unwrap_or_default()
        };
        Ok(sets.into_iter().max_by_key(revision).into_iter().collect())
    }

    /// Returns the pod of these controllers that needs help most: one that has not started, and of these the oldest.
    async fn neediest_pod(&self, owners: &BTreeSet<String>) -> Result<Option<PodView>, Failure> {
        let (api, what) = (self.api::<Pod>(), self.what("pods"));
        let found = list(&api, ListParams::default(), &what, |pod| {
            let mut uids = pod.metadata.owner_references.iter().flatten().map(|owner| &owner.uid);
            let is_owned = uids.any(|uid| owners.contains(uid));
            is_owned.then(|| PodView::of(pod))
        });
        let pods = match found.await? {
            Seen::Known(pods) => pods,
            Seen::Hidden(hidden) => {
                return Err(Failure::failed(format!("cannot explain the workload: {}", hidden.line())));
            }
        };
        let need =
            |pod: &PodView| (pod.is_deleted, pod.has_ended(), pod.has_started, pod.created, pod.name.clone());
        Ok(pods.into_iter().min_by_key(need))
    }

    /// Adds the volumes of the pod's claims.
    async fn add_claims(&self, pod: &mut PodView) -> Result<(), Failure> {
        let mut volumes = BTreeMap::new();
        for (_, claim) in &pod.claims {
            let claims = self.api::<PersistentVolumeClaim>();
            let found = get(&claims, claim, &self.what("persistentvolumeclaims")).await?;
            let volume = found.known().cloned().flatten().and_then(|claim| claim.spec?.volume_name);
            let Some(volume) = volume else { continue };
            let all: Api<PersistentVolume> = Api::all(self.client.clone());
            let found = get(&all, &volume, "persistentvolumes in the cluster").await?;
            volumes.extend(found.known().cloned().flatten().and_then(claimed_volume));
        }
        pod.add_claimed(&volumes);
        Ok(())
    }

    async fn events_of(&self, uid: &str) -> Result<Seen<Vec<EventView>>, Failure> {
        let params = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
        list(&self.api::<Event>(), params, &self.what("events"), |event| {
            let event = EventView::of(event);
            (event.uid == uid).then_some(event)
        })
        .await
    }

    async fn all_refusals(&self) -> Result<Seen<Vec<EventView>>, Failure> {
        let params = ListParams::default().fields("reason=FailedCreate");
        list(&self.api::<Event>(), params, &self.what("events"), |event| {
            let event = EventView::of(event);
            (event.reason == "FailedCreate").then_some(event)
        })
        .await
    }

    /// Returns the events about pods that these controllers could not create.
    async fn refusals(
        &self,
        controllers: &BTreeSet<String>,
        target: &Target,
    ) -> Result<Seen<Vec<EventView>>, Failure> {
        let is_missing_pod = controllers.is_empty() && target.kind == Kind::Pod;
        if controllers.is_empty() && !is_missing_pod {
            return Ok(Seen::Known(Vec::new()));
        }
        let all = self.all_refusals().await?;
        Ok(all.map(|mut events| {
            events.retain(|event| {
                controllers.contains(&event.name) || (is_missing_pod && is_about(event, &target.name))
            });
            events
        }))
    }

    /// Evaluates the policies for the references of a pod.
    async fn policies(&self, pod: &PodView) -> Result<Seen<Vec<PolicyView>>, Failure> {
        let resource = kube::api::ApiResource::erase::<ArtifactPolicy>(&());
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let what = "artifactpolicies.oras.land in the cluster";
        let found = list(&api, ListParams::default(), what, |object| {
            let mut object = serde_json::to_value(object).ok()?;
            // The items of a list do not name their kind.
            object["apiVersion"] = Value::from(ArtifactPolicy::api_version(&()));
            object["kind"] = Value::from(ArtifactPolicy::kind(&()));
            Some(object)
        });
        let objects = match found.await? {
            Seen::Known(objects) => objects,
            // Without the custom resource definition there are no policies.
            Seen::Hidden(Hidden::Unknown(_)) => Vec::new(),
            Seen::Hidden(hidden) => return Ok(Seen::Hidden(hidden)),
        };
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = get(&namespaces, self.namespace, "namespaces in the cluster").await?;
        let labels = namespace.known().map(|namespace| {
            namespace.as_ref().and_then(|namespace| namespace.metadata.labels.clone()).unwrap_or_default()
        });
        Ok(Seen::Known(policies::evaluate(&objects, self.namespace, labels, &references(pod)).await))
    }

    async fn pins(&self, owner: &str) -> Result<Seen<Vec<(String, String)>>, Failure> {
        list(&self.api::<ArtifactPin>(), ListParams::default(), &self.what("artifactpins.oras.land"), |pin| {
            (pin.spec.owner.uid == owner).then(|| (pin.spec.reference.clone(), pin.spec.digest.clone()))
        })
        .await
    }

    async fn has_webhook(&self) -> Result<Seen<bool>, Failure> {
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let what = "mutatingwebhookconfigurations.admissionregistration.k8s.io in the cluster";
        let found = list(&api, ListParams::default(), what, |configuration| {
            let mut webhooks = configuration.webhooks.into_iter().flatten();
            webhooks.any(|webhook| webhook.name == WEBHOOK).then_some(())
        });
        Ok(found.await?.map(|found| !found.is_empty()))
    }

    async fn node(&self, name: String) -> Result<NodeFacts, Failure> {
        let nodes: Api<CSINode> = Api::all(self.client.clone());
        let registered = get(&nodes, &name, "csinodes.storage.k8s.io in the cluster").await?;
        let registered = registered.map(|node| {
            node.is_some_and(|node| node.spec.drivers.iter().any(|driver| driver.name == DRIVER))
        });
        let reports: Api<NodeArtifacts> = Api::all(self.client.clone());
        let report = get(&reports, &name, "nodeartifacts.oras.land in the cluster").await?;
        let report = report.map(|node| node.map(|node| node.status.unwrap_or_default()));
        Ok(NodeFacts { name, registered, report })
    }
}

fn workload(
    kind: Kind,
    metadata: &ObjectMeta,
    template: k8s_openapi::api::core::v1::PodTemplateSpec,
    replicas: Option<i32>,
) -> Found {
    let name = metadata.name.clone().unwrap_or_default();
    let template = Pod { metadata: template.metadata.unwrap_or_default(), spec: template.spec, status: None };
    let target = format!("{}/{name}", kind.short());
    Found {
        workload: Workload { target, template: PodView::of(template), replicas },
        owners: metadata.uid.iter().cloned().collect(),
        controllers: BTreeSet::from([name]),
    }
}

/// Reports whether an event is about a pod that could not be created: it names the pod, or the name of the pod is that of its
/// controller with one more part.
fn is_about(event: &EventView, pod: &str) -> bool {
    let is_named = event.message.split(|character: char| !is_name(character)).any(|word| word == pod);
    let suffix = pod.strip_prefix(event.name.as_str()).and_then(|rest| rest.strip_prefix('-'));
    is_named || suffix.is_some_and(|suffix| !event.name.is_empty() && !suffix.contains('-'))
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '.')
}

/// Returns the references that the pod requests: those of its volumes, or those that its annotations have.
fn references(pod: &PodView) -> Vec<Reference> {
    let of_volumes = pod.volumes.iter().flat_map(|volume| &volume.artifacts);
    let of_volumes: Vec<Reference> = of_volumes
        .filter_map(|artifact| {
            artifact.tagged().or_else(|| artifact_with_digest(&artifact.reference, &artifact.digest))
        })
        .collect();
    if !of_volumes.is_empty() {
        return of_volumes;
    }
    let written = pod.requests().filter(|(key, _)| {
        key.strip_prefix(annotation::ARTIFACT).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    written.filter_map(|(_, value)| value.trim().parse().ok()).collect()
}

fn artifact_with_digest(reference: &str, digest: &str) -> Option<Reference> {
    format!("{reference}@{digest}").parse().ok()
}
