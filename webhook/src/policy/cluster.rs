//! Policies and namespaces of a cluster, watched.
//!
//! Each object is read on its own, so that a broken one does not affect the others. The result is written into the
//! status of the object: once per generation by each process, so that two versions of the webhook that disagree do
//! not overwrite each other's status without end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt as _};
use oras_csi_core::display::Shown;
use oras_csi_kube_support::call::call;
use oras_csi_kube_support::conditions::{NewCondition, set_condition};
use oras_csi_kube_support::status::{ObjectVersion, StatusWrite, replace_status};
use oras_csi_kube_support::time;
use oras_csi_kube_support::watch::{Change, WatchedObjects, events, reflect};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::SpecError;
use super::entry::Entry;
use super::object::{ArtifactPolicy, ArtifactPolicyStatus, InForce};
use super::policies::{Labels, Namespaces, NamespacesError, Policies};
use crate::FIELD_MANAGER;

/// The condition of a policy.
const ACCEPTED: &str = "Accepted";
/// How many statuses can wait to be written.
const MAX_QUEUED: usize = 4_096;
/// How long the write of one status can take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a write is tried while other writers keep changing the object.
const MAX_CONFLICTS: usize = 5;

/// Watches the `ArtifactPolicy` objects of a cluster and updates `policies`, until `shutdown`. The webhook admits no
/// pod before it has read all of them once.
pub fn watch(client: &Client, policies: Arc<Policies>, shutdown: &CancellationToken, tasks: &TaskTracker) {
    policies.await_objects();
    let (sender, queue) = mpsc::channel(MAX_QUEUED);
    let resource = ApiResource::erase::<ArtifactPolicy>(&());
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let watch = PolicyWatch { policies, objects: WatchedObjects::default(), statuses: sender };
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(watch.run(api.clone())));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(write_statuses(api, queue)));
}

/// The state of one watched object.
#[derive(Debug)]
struct WatchedPolicy {
    uid: Option<String>,
    entry: Arc<Entry>,
    in_force: Option<InForce>,
    /// The generation for which this process has written the status.
    reported: Option<i64>,
}

struct PolicyWatch {
    policies: Arc<Policies>,
    objects: WatchedObjects<WatchedPolicy>,
    statuses: mpsc::Sender<NewStatus>,
}

impl PolicyWatch {
    async fn run(mut self, api: Api<DynamicObject>) {
        let failure = "cannot watch ArtifactPolicy objects; the policies that were read last stay in force";
        let mut events = pin!(events(api, failure));
        while let Some(event) = events.next().await {
            self.apply(event);
        }
    }

    fn apply(&mut self, event: Event<DynamicObject>) {
        let statuses = &self.statuses;
        match self.objects.apply(event, |object, before| Some(read(object, before, statuses))) {
            Change::None => {}
            Change::Listed { .. } | Change::Object { .. } => {
                let entries = self.objects.objects().values().map(|policy| Arc::clone(&policy.entry));
                self.policies.set_objects(entries.collect());
            }
        }
    }
}

/// Reads an object: its spec if that is valid, else its last valid generation. Queues a status if there is something
/// new to report.
fn read(
    object: &DynamicObject,
    before: Option<&WatchedPolicy>,
    statuses: &mpsc::Sender<NewStatus>,
) -> WatchedPolicy {
    let name = object.name_any();
    let uid = object.uid();
    let generation = object.metadata.generation.unwrap_or_default();
    let spec = object.data.get("spec").cloned().unwrap_or(Value::Null);
    let status = object.data.get("status").cloned().unwrap_or(Value::Null);
    let status: Option<ArtifactPolicyStatus> = serde_json::from_value(status).ok();
    let before = before.filter(|before| before.uid == uid);
    let (entry, in_force, problem) = match Entry::from_spec(&name, &spec) {
        Ok(entry) => (entry, Some(InForce { generation, spec }), None),
        Err(problem) => {
            let known = before.and_then(|before| before.in_force.clone());
            let known = known.or_else(|| status.as_ref()?.in_force.clone());
            let last_valid =
                known.and_then(|known| Entry::from_spec(&name, &known.spec).ok().map(|entry| (entry, known)));
            match last_valid {
                Some((entry, known)) => (entry.stale(), Some(known), Some(problem)),
                None => (Entry::broken(&name, &spec, &problem), None, Some(problem)),
            }
        }
    };
    // A status that another client emptied is written again.
    let mut reported = before.and_then(|before| before.reported).filter(|_| status.is_some());
    if reported != Some(generation) {
        reported = Some(generation);
        if let Some(problem) = &problem {
            tracing::error!(policy = name, generation, %problem, "an ArtifactPolicy is invalid");
        }
        let new = NewStatus {
            version: ObjectVersion::of(&object.metadata),
            status: status_of(generation, in_force.as_ref(), problem.as_ref(), status.as_ref()),
        };
        if status.as_ref() != Some(&new.status) && statuses.try_send(new).is_err() {
            tracing::warn!(
                policy = name,
                "the status of an ArtifactPolicy is not written: the queue is full"
            );
        }
    }
    WatchedPolicy { uid, entry: Arc::new(entry), in_force, reported }
}

/// Returns the status that reports what became of a generation.
fn status_of(
    generation: i64,
    in_force: Option<&InForce>,
    problem: Option<&SpecError>,
    before: Option<&ArtifactPolicyStatus>,
) -> ArtifactPolicyStatus {
    let message = match (problem, in_force) {
        (None, _) => "in force".to_owned(),
        (Some(problem), Some(known)) => format!(
            "generation {generation} cannot be read, generation {} stays in force: {problem}",
            known.generation
        ),
        (Some(problem), None) => format!(
            "generation {generation} cannot be read; no artifact is allowed in the namespaces that it selects until it \
             is corrected: {problem}"
        ),
    };
    let new = NewCondition {
        type_: ACCEPTED,
        is_true: problem.is_none(),
        reason: if problem.is_none() { "Read" } else { "CannotBeRead" },
        message: &message,
        generation,
    };
    let before = before.map(|before| before.conditions.as_slice()).unwrap_or_default();
    let mut conditions = before.iter().filter(|old| old.type_ == ACCEPTED).cloned().collect();
    set_condition(&mut conditions, new, time::now());
    ArtifactPolicyStatus { observed_generation: generation, message, conditions, in_force: in_force.cloned() }
}

/// A status to be written.
struct NewStatus {
    version: ObjectVersion,
    status: ArtifactPolicyStatus,
}

/// Writes statuses one after the other.
async fn write_statuses(api: Api<DynamicObject>, mut queue: mpsc::Receiver<NewStatus>) {
    while let Some(new) = queue.recv().await {
        let (name, message) = (new.version.name.clone(), new.status.message.clone());
        match call(WRITE_TIMEOUT, write(&api, new)).await {
            Ok(()) => tracing::info!(policy = name, message, "wrote the status of an ArtifactPolicy"),
            Err(error) => {
                tracing::warn!(policy = name, %error, "cannot write the status of an ArtifactPolicy");
            }
        }
    }
}

/// Writes one status, unless the object has another generation by now, which gets a status of its own.
async fn write(api: &Api<DynamicObject>, new: NewStatus) -> Result<(), kube::Error> {
    let NewStatus { mut version, status } = new;
    for _ in 0..MAX_CONFLICTS {
        match replace_status(api, &version, &status, FIELD_MANAGER).await? {
            StatusWrite::Written | StatusWrite::Deleted => return Ok(()),
            StatusWrite::Changed => {}
        }
        let found = api.get_metadata(&version.name).await?.metadata;
        if found.uid != version.uid || found.generation != Some(status.observed_generation) {
            return Ok(());
        }
        version.resource_version = found.resource_version;
    }
    Ok(())
}

/// The namespaces of a cluster, watched. A namespace that the watch has not seen yet is read from the API server.
pub struct ClusterNamespaces {
    known: Store<PartialObjectMeta<Namespace>>,
    api: Api<Namespace>,
}

impl ClusterNamespaces {
    /// Watches the namespaces until `shutdown`.
    pub fn watch(client: &Client, shutdown: &CancellationToken, tasks: &TaskTracker) -> Self {
        let api: Api<Namespace> = Api::all(client.clone());
        let metadata: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
        let (known, changes) = reflect(metadata, (), "cannot watch namespaces");
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(async move {
            let mut changes = pin!(changes);
            while changes.next().await.is_some() {}
        }));
        Self { known, api }
    }
}

#[async_trait]
impl Namespaces for ClusterNamespaces {
    async fn labels(&self, namespace: &str) -> Result<Labels, NamespacesError> {
        if let Some(known) = self.known.get(&ObjectRef::new(namespace)) {
            return Ok(Labels::Known(known.labels().clone()));
        }
        match self.api.get_metadata(namespace).await {
            Ok(found) => Ok(Labels::Known(found.labels().clone())),
            Err(error) => Err(NamespacesError(Shown::new(&error.to_string()).to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::evaluate::{Evaluation, evaluate_reference};
    use super::super::object::ArtifactPolicySpec;
    use super::super::{ManifestNamespaces, NoPolicy};
    use serde_json::json;

    use super::*;

    const NAME: &str = "team";

    fn object(generation: i64, spec: &Value, status: Option<&ArtifactPolicyStatus>) -> DynamicObject {
        let object = json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPolicy",
            "metadata": {"name": NAME, "uid": "u", "generation": generation, "resourceVersion": "1"},
            "spec": spec, "status": status});
        serde_json::from_value(object).unwrap()
    }

    struct Scene {
        watch: PolicyWatch,
        statuses: mpsc::Receiver<NewStatus>,
    }

    impl Scene {
        fn start() -> Self {
            let policies =
                Arc::new(Policies::new(Vec::new(), NoPolicy::Allow, ManifestNamespaces::default()));
            policies.await_objects();
            let (sender, statuses) = mpsc::channel(16);
            Self {
                watch: PolicyWatch { policies, objects: WatchedObjects::default(), statuses: sender },
                statuses,
            }
        }

        async fn refusal(&self, reference: &str) -> Option<String> {
            let soon = tokio::time::Instant::now() + Duration::from_secs(5);
            let policies = match self.watch.policies.applicable_to("n", soon).await {
                Ok(policies) => policies,
                Err(denial) => return Some(denial.message().to_owned()),
            };
            let reference = oras_csi_core::reference::Reference::parse(reference).unwrap();
            let broken = evaluate_reference(&policies, &reference, oras_csi_core::policy::Source::Direct)
                .into_iter()
                .find(Evaluation::is_broken);
            broken.map(|evaluation| evaluation.rule().unwrap().to_string())
        }

        fn written(&mut self) -> Option<ArtifactPolicyStatus> {
            self.statuses.try_recv().ok().map(|new| new.status)
        }
    }

    fn denying(pattern: &str) -> Value {
        json!({"registries": {"deny": [pattern]}})
    }

    #[tokio::test]
    async fn no_pod_is_admitted_before_the_list_is_complete() {
        let mut scene = Scene::start();
        assert!(scene.refusal("r.io/a").await.unwrap().contains("not read yet"));
        scene.watch.apply(Event::Init);
        scene.watch.apply(Event::InitApply(object(1, &denying("evil.example"), None)));
        assert!(scene.refusal("r.io/a").await.unwrap().contains("not read yet"));
        scene.watch.apply(Event::InitDone);
        assert_eq!(scene.refusal("r.io/a").await, None);
        assert_eq!(scene.refusal("evil.example/a").await.as_deref(), Some("registries.deny"));
        scene.watch.apply(Event::Delete(object(1, &denying("evil.example"), None)));
        assert_eq!(scene.refusal("evil.example/a").await, None);
    }

    #[tokio::test]
    async fn a_broken_generation_leaves_the_last_good_one_in_force() {
        let mut scene = Scene::start();
        scene.watch.apply(Event::Init);
        scene.watch.apply(Event::InitDone);
        scene.watch.apply(Event::Apply(object(1, &denying("evil.example"), None)));
        let good = scene.written().unwrap();
        assert_eq!((good.observed_generation, good.message.as_str()), (1, "in force"));
        assert_eq!(good.conditions[0].status, "True");

        scene.watch.apply(Event::Apply(object(2, &denying("999.1.1.1"), Some(&good))));
        assert_eq!(scene.refusal("evil.example/a").await.as_deref(), Some("registries.deny"));
        let broken = scene.written().unwrap();
        assert!(
            broken.message.contains("generation 2 cannot be read, generation 1 stays in force"),
            "{}",
            broken.message
        );
        assert!(broken.message.contains("spec.registries.deny[0]"), "{}", broken.message);
        assert_eq!(broken.conditions[0].status, "False");
        assert_eq!(broken.in_force, good.in_force);

        // A process that has never seen the valid generation finds it in the status.
        let mut restarted = Scene::start();
        restarted.watch.apply(Event::Init);
        restarted.watch.apply(Event::InitApply(object(2, &denying("999.1.1.1"), Some(&broken))));
        restarted.watch.apply(Event::InitDone);
        assert_eq!(restarted.refusal("evil.example/a").await.as_deref(), Some("registries.deny"));
        assert_eq!(restarted.written(), None, "the status is up to date");
    }

    #[tokio::test]
    async fn a_policy_without_any_valid_generation_allows_nothing() {
        let mut scene = Scene::start();
        scene.watch.apply(Event::Init);
        scene.watch.apply(Event::InitDone);
        for spec in
            [json!({"fromTheFuture": true}), denying("999.1.1.1"), json!([1]), json!({"mode": "Maybe"})]
        {
            scene.watch.apply(Event::Apply(object(1, &spec, None)));
            let words = scene.refusal("r.io/a").await.unwrap();
            assert!(words.contains("ArtifactPolicy team, which cannot be read"), "{words}");
            scene.watch.apply(Event::Delete(object(1, &spec, None)));
        }
        assert_eq!(scene.refusal("r.io/a").await, None);
    }

    #[tokio::test]
    async fn a_status_is_written_once_a_generation() {
        let mut scene = Scene::start();
        scene.watch.apply(Event::Init);
        scene.watch.apply(Event::InitDone);
        scene.watch.apply(Event::Apply(object(1, &denying("evil.example"), None)));
        let ours = scene.written().unwrap();
        // Another version of the webhook writes another status.
        let theirs = ArtifactPolicyStatus { message: "no".into(), ..ours };
        scene.watch.apply(Event::Apply(object(1, &denying("evil.example"), Some(&theirs))));
        assert_eq!(scene.written(), None);
        scene.watch.apply(Event::Apply(object(2, &denying("evil.example"), Some(&theirs))));
        assert_eq!(scene.written().unwrap().observed_generation, 2);
        scene.watch.apply(Event::Apply(object(2, &denying("evil.example"), None)));
        assert_eq!(scene.written().unwrap().observed_generation, 2, "another client emptied the status");
    }

    #[test]
    fn a_status_reads_back_as_it_was() {
        let spec = serde_json::to_value(ArtifactPolicySpec::default()).unwrap();
        let status = status_of(1, Some(&InForce { generation: 1, spec }), None, None);
        let back: ArtifactPolicyStatus =
            serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap();
        assert_eq!(back, status);
    }
}
