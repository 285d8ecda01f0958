//! Policies and namespaces of a cluster, watched.
//!
//! Objects come as they are stored and are read one by one, so that one that is broken stops nobody. What was
//! made of each is written into its status: once for each generation by each process, so that two versions of the
//! webhook that disagree do not write against each other for ever.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt as _, reflector};
use kube::{Client, ResourceExt as _};
use oras_csi_core::display::Shown;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::book::{Labels, Namespaces, NamespacesError, Policies};
use super::entry::Entry;
use super::object::{ArtifactPolicy, ArtifactPolicyStatus, InForce, SpecError};
use crate::FIELD_MANAGER;

/// The condition of a policy.
const ACCEPTED: &str = "Accepted";
/// How many policies may wait for their status to be written.
const MOST_WAITING: usize = 4_096;
/// How long one write of a status may take.
const LONGEST_WRITE: Duration = Duration::from_secs(10);
/// How often a write is tried that somebody else's comes before.
const MOST_CONFLICTS: usize = 5;

/// Watches the `ArtifactPolicy` objects of a cluster and keeps `policies` in step, until `shutdown`. Nobody is
/// admitted before they have been read once.
pub fn watch(client: &Client, policies: Arc<Policies>, shutdown: &CancellationToken, tasks: &TaskTracker) {
    policies.await_objects();
    let (sender, reports) = mpsc::channel(MOST_WAITING);
    let resource = ApiResource::erase::<ArtifactPolicy>(&());
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let keeper = Keeper { policies, held: BTreeMap::new(), arriving: None, reports: sender };
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(keeper.run(api.clone())));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(write_reports(api, reports)));
}

/// What is known of one object.
struct Held {
    uid: String,
    entry: Arc<Entry>,
    in_force: Option<InForce>,
    /// The generation whose status this process has dealt with.
    reported: Option<i64>,
}

struct Keeper {
    policies: Arc<Policies>,
    held: BTreeMap<String, Held>,
    /// The objects of a list that is not complete yet.
    arriving: Option<BTreeMap<String, Held>>,
    reports: mpsc::Sender<Report>,
}

impl Keeper {
    async fn run(mut self, api: Api<DynamicObject>) {
        let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut trouble = String::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    trouble.clear();
                    self.take(event);
                }
                Err(error) => {
                    let words = error.to_string();
                    if words != trouble {
                        tracing::warn!(error = words, "ArtifactPolicy objects cannot be watched");
                        trouble = words;
                    }
                }
            }
        }
    }

    fn take(&mut self, event: Event<DynamicObject>) {
        match event {
            Event::Init => self.arriving = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                let (name, held) = self.read(&object);
                self.arriving.get_or_insert_default().insert(name, held);
            }
            Event::InitDone => {
                self.held = self.arriving.take().unwrap_or_default();
                self.publish();
            }
            Event::Apply(object) => {
                let (name, held) = self.read(&object);
                self.held.insert(name, held);
                self.publish();
            }
            Event::Delete(object) => {
                self.held.remove(&object.name_any());
                self.publish();
            }
        }
    }

    fn publish(&self) {
        self.policies.set_objects(self.held.values().map(|held| Arc::clone(&held.entry)).collect());
    }

    /// What an object is from now on: itself, or its last good generation.
    fn read(&self, object: &DynamicObject) -> (String, Held) {
        let name = object.name_any();
        let uid = object.uid().unwrap_or_default();
        let generation = object.metadata.generation.unwrap_or_default();
        let spec = object.data.get("spec").cloned().unwrap_or(Value::Null);
        let status = object.data.get("status").cloned().unwrap_or(Value::Null);
        let status: Option<ArtifactPolicyStatus> = serde_json::from_value(status).ok();
        let before = self.held.get(&name).filter(|held| held.uid == uid);
        let (entry, in_force, problem) = match Entry::from_spec(&name, &spec) {
            Ok(entry) => (entry, Some(InForce { generation, spec }), None),
            Err(problem) => {
                let known = before.and_then(|held| held.in_force.clone());
                let known = known.or_else(|| status.as_ref()?.in_force.clone());
                let last_good = known
                    .and_then(|known| Entry::from_spec(&name, &known.spec).ok().map(|entry| (entry, known)));
                match last_good {
                    Some((entry, known)) => (entry.stale(), Some(known), Some(problem)),
                    None => (Entry::broken(&name, &spec, &problem), None, Some(problem)),
                }
            }
        };
        // One that somebody emptied is written again.
        let mut reported = before.and_then(|held| held.reported).filter(|_| status.is_some());
        if reported != Some(generation) {
            reported = Some(generation);
            if let Some(problem) = &problem {
                tracing::error!(policy = name, generation, %problem, "an ArtifactPolicy cannot be read");
            }
            let report = Report {
                name: name.clone(),
                uid: uid.clone(),
                resource_version: object.metadata.resource_version.clone(),
                status: status_of(generation, in_force.as_ref(), problem.as_ref(), status.as_ref()),
            };
            if status.as_ref() != Some(&report.status) && self.reports.try_send(report).is_err() {
                tracing::warn!(policy = name, "its status is not written: too many wait");
            }
        }
        (name, Held { uid, entry: Arc::new(entry), in_force, reported })
    }
}

/// The status that says what became of a generation.
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
            "generation {generation} cannot be read, and until it is mended no artifact is allowed in the \
             namespaces that it selects: {problem}"
        ),
    };
    let (status, reason) = if problem.is_none() { ("True", "Read") } else { ("False", "CannotBeRead") };
    let old =
        before.and_then(|before| before.conditions.iter().find(|condition| condition.type_ == ACCEPTED));
    let since = old.filter(|old| old.status == status).map(|old| old.last_transition_time.clone());
    let condition = Condition {
        type_: ACCEPTED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.clone(),
        observed_generation: Some(generation),
        last_transition_time: since.unwrap_or_else(now),
    };
    ArtifactPolicyStatus {
        observed_generation: generation,
        message,
        conditions: vec![condition],
        in_force: in_force.cloned(),
    }
}

/// The time in whole seconds, which is what comes back from the API server.
fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// A status to be written.
struct Report {
    name: String,
    uid: String,
    resource_version: Option<String>,
    status: ArtifactPolicyStatus,
}

/// Writes statuses one after the other.
async fn write_reports(api: Api<DynamicObject>, mut reports: mpsc::Receiver<Report>) {
    while let Some(report) = reports.recv().await {
        let (name, message) = (report.name.clone(), report.status.message.clone());
        match tokio::time::timeout(LONGEST_WRITE, write(&api, report)).await {
            Ok(Ok(())) => tracing::info!(policy = name, message, "status of an ArtifactPolicy"),
            Ok(Err(error)) => tracing::warn!(policy = name, %error, "its status cannot be written"),
            Err(_) => tracing::warn!(policy = name, "its status could not be written in time"),
        }
    }
}

/// Writes one status, unless the object has another generation by now, which is reported anyway. As a whole: a
/// merge would leave rules of earlier generations in what is said to be in force.
async fn write(api: &Api<DynamicObject>, report: Report) -> Result<(), kube::Error> {
    let Report { name, uid, mut resource_version, status } = report;
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    for _ in 0..MOST_CONFLICTS {
        let patch = json!([
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "test", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]);
        let patch: json_patch::Patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
        match api.patch_status(&name, &params, &Patch::<()>::Json(patch)).await {
            // Another version than the one that was read: 422 by the test, 409 where it changed in between.
            Err(kube::Error::Api(answer)) if matches!(answer.code, 409 | 422) => {}
            Err(kube::Error::Api(answer)) if answer.code == 404 => return Ok(()),
            answer => return answer.map(|_| ()),
        }
        let found = api.get_metadata(&name).await?;
        let is_another = found.metadata.uid.as_ref() != Some(&uid);
        if is_another || found.metadata.generation != Some(status.observed_generation) {
            return Ok(());
        }
        resource_version = found.metadata.resource_version;
    }
    Ok(())
}

/// The namespaces of a cluster, watched; one that is not known yet is asked for.
pub struct ClusterNamespaces {
    known: Store<PartialObjectMeta<Namespace>>,
    api: Api<Namespace>,
}

impl ClusterNamespaces {
    /// Watches until `shutdown`.
    pub fn watch(client: &Client, shutdown: &CancellationToken, tasks: &TaskTracker) -> Self {
        let api: Api<Namespace> = Api::all(client.clone());
        let (known, writer) = store();
        let metadata: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
        let changes = watcher(metadata, watcher::Config::default()).default_backoff();
        let changes = reflector(writer, changes.modify(|namespace| namespace.metadata.managed_fields = None));
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(async move {
            let mut changes = pin!(changes);
            while let Some(change) = changes.next().await {
                if let Err(error) = change {
                    tracing::warn!(%error, "namespaces cannot be watched");
                }
            }
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
    use super::super::judge::{Opinion, opinions};
    use super::super::object::ArtifactPolicySpec;
    use super::super::{NoPolicy, StatedNamespaces};
    use super::*;

    const NAME: &str = "team";

    fn object(generation: i64, spec: &Value, status: Option<&ArtifactPolicyStatus>) -> DynamicObject {
        let object = json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPolicy",
            "metadata": {"name": NAME, "uid": "u", "generation": generation, "resourceVersion": "1"},
            "spec": spec, "status": status});
        serde_json::from_value(object).unwrap()
    }

    struct Scene {
        keeper: Keeper,
        reports: mpsc::Receiver<Report>,
    }

    impl Scene {
        fn open() -> Self {
            let policies = Arc::new(Policies::new(Vec::new(), NoPolicy::Allow, StatedNamespaces::default()));
            policies.await_objects();
            let (sender, reports) = mpsc::channel(16);
            Self {
                keeper: Keeper { policies, held: BTreeMap::new(), arriving: None, reports: sender },
                reports,
            }
        }

        async fn refusal(&self, reference: &str) -> Option<String> {
            let soon = tokio::time::Instant::now() + Duration::from_secs(5);
            let book = match self.keeper.policies.rulebook("n", soon).await {
                Ok(book) => book,
                Err(denial) => return Some(denial.message().to_owned()),
            };
            let reference = oras_csi_core::reference::Reference::parse(reference).unwrap();
            let broken = opinions(&book, &reference, oras_csi_core::policy::Source::Direct)
                .into_iter()
                .find(Opinion::is_broken);
            broken.map(|opinion| opinion.rule().unwrap().to_string())
        }

        fn report(&mut self) -> Option<ArtifactPolicyStatus> {
            self.reports.try_recv().ok().map(|report| report.status)
        }
    }

    fn denying(pattern: &str) -> Value {
        json!({"registries": {"deny": [pattern]}})
    }

    #[tokio::test]
    async fn nobody_is_admitted_before_the_list_is_complete() {
        let mut scene = Scene::open();
        assert!(scene.refusal("r.io/a").await.unwrap().contains("not read yet"));
        scene.keeper.take(Event::Init);
        scene.keeper.take(Event::InitApply(object(1, &denying("evil.example"), None)));
        assert!(scene.refusal("r.io/a").await.unwrap().contains("not read yet"));
        scene.keeper.take(Event::InitDone);
        assert_eq!(scene.refusal("r.io/a").await, None);
        assert_eq!(scene.refusal("evil.example/a").await.as_deref(), Some("registries.deny"));
        scene.keeper.take(Event::Delete(object(1, &denying("evil.example"), None)));
        assert_eq!(scene.refusal("evil.example/a").await, None);
    }

    #[tokio::test]
    async fn a_broken_generation_leaves_the_last_good_one_in_force() {
        let mut scene = Scene::open();
        scene.keeper.take(Event::Init);
        scene.keeper.take(Event::InitDone);
        scene.keeper.take(Event::Apply(object(1, &denying("evil.example"), None)));
        let good = scene.report().unwrap();
        assert_eq!((good.observed_generation, good.message.as_str()), (1, "in force"));
        assert_eq!(good.conditions[0].status, "True");

        scene.keeper.take(Event::Apply(object(2, &denying("999.1.1.1"), Some(&good))));
        assert_eq!(scene.refusal("evil.example/a").await.as_deref(), Some("registries.deny"));
        let broken = scene.report().unwrap();
        assert!(
            broken.message.contains("generation 2 cannot be read, generation 1 stays in force"),
            "{}",
            broken.message
        );
        assert!(broken.message.contains("spec.registries.deny[0]"), "{}", broken.message);
        assert_eq!(broken.conditions[0].status, "False");
        assert_eq!(broken.in_force, good.in_force);

        // A process that has never seen the good one finds it in the status.
        let mut anew = Scene::open();
        anew.keeper.take(Event::Init);
        anew.keeper.take(Event::InitApply(object(2, &denying("999.1.1.1"), Some(&broken))));
        anew.keeper.take(Event::InitDone);
        assert_eq!(anew.refusal("evil.example/a").await.as_deref(), Some("registries.deny"));
        assert_eq!(anew.report(), None, "the status says it already");
    }

    #[tokio::test]
    async fn what_could_never_be_read_opens_no_gate() {
        let mut scene = Scene::open();
        scene.keeper.take(Event::Init);
        scene.keeper.take(Event::InitDone);
        for spec in
            [json!({"fromTheFuture": true}), denying("999.1.1.1"), json!([1]), json!({"mode": "Maybe"})]
        {
            scene.keeper.take(Event::Apply(object(1, &spec, None)));
            let words = scene.refusal("r.io/a").await.unwrap();
            assert!(words.contains("ArtifactPolicy team, which cannot be read"), "{words}");
            scene.keeper.take(Event::Delete(object(1, &spec, None)));
        }
        assert_eq!(scene.refusal("r.io/a").await, None);
    }

    #[tokio::test]
    async fn a_status_is_written_once_a_generation() {
        let mut scene = Scene::open();
        scene.keeper.take(Event::Init);
        scene.keeper.take(Event::InitDone);
        scene.keeper.take(Event::Apply(object(1, &denying("evil.example"), None)));
        let mine = scene.report().unwrap();
        // Somebody else has another opinion.
        let theirs = ArtifactPolicyStatus { message: "no".into(), ..mine };
        scene.keeper.take(Event::Apply(object(1, &denying("evil.example"), Some(&theirs))));
        assert_eq!(scene.report(), None);
        scene.keeper.take(Event::Apply(object(2, &denying("evil.example"), Some(&theirs))));
        assert_eq!(scene.report().unwrap().observed_generation, 2);
        scene.keeper.take(Event::Apply(object(2, &denying("evil.example"), None)));
        assert_eq!(scene.report().unwrap().observed_generation, 2, "somebody emptied it");
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
