//! Watches the cluster sets and the labels of the node, and keeps and preloads the content of the sets that select it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource as _;
use kube::api::{Api, DynamicObject, GetParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use oras_csi_core::platform::Platform;
use oras_csi_core::registry::Keyring;
use oras_csi_kube_support::time::whole_seconds;
use oras_csi_kube_support::watch::{Change, WatchedObjects, events};
use oras_csi_store::pull::Pulls;
use oras_csi_store::{PreloadEntry, Store, read_preload_index};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::cluster_set::{self, ClusterSet};
use super::desired::{Desired, DesiredContent, Labels, as_before, desired};
use super::object::{SetOnNode, SetState};
use super::report::{CALL_TIMEOUT, Reporter, amount};
use super::task::{Context, PreloadTask, TaskState};
use super::{ClusterSets, with_jitter};
use crate::metrics::Metrics;

/// The maximum length of a message in the status.
const MAX_MESSAGE_CHARS: usize = 1_000;

/// Preloading, before it runs.
pub(crate) struct Preload {
    context: Arc<Context>,
    cluster: ClusterSets,
    node: String,
}

impl Preload {
    pub(crate) fn new(
        cluster: ClusterSets,
        node: &str,
        pulls: Arc<Pulls>,
        keyring: Keyring,
        metrics: Metrics,
    ) -> Self {
        let (secrets, intervals) = (cluster.secrets(), cluster.intervals);
        let (state_changed, damage) = (Notify::new(), Notify::new());
        let context =
            Arc::new(Context { pulls, keyring, secrets, metrics, intervals, state_changed, damage });
        Self { context, cluster, node: node.to_owned() }
    }

    /// Returns a function that reports damage, so that quarantined content of sets is pulled again.
    pub(crate) fn damage_notice(&self) -> impl Fn() + Send + Sync + 'static + use<> {
        let context = self.context.clone();
        move || context.damage.notify_waiters()
    }
}

/// Preloads until `stop` is cancelled.
pub(crate) async fn run(preload: Preload, stop: CancellationToken) {
    let store = preload.context.pulls.fetcher().store().clone();
    let before = read_index(&store).await;
    let (states, changes) = watch::channel(None);
    let (pulls, metrics) = (preload.context.pulls.clone(), preload.context.metrics.clone());
    let reporter = Reporter::new(&preload.cluster, &preload.node, store, pulls, metrics);
    let nodes: Api<Node> = Api::all(preload.cluster.client.clone());
    let controller = Controller {
        context: preload.context,
        node: preload.node,
        nodes,
        sets: WatchedObjects::default(),
        labels: None,
        before,
        is_index_written: true,
        running: BTreeMap::new(),
        reported: states,
    };
    let both = async {
        tokio::join!(controller.run(preload.cluster.client), reporter.run(changes));
    };
    Box::pin(stop.run_until_cancelled(both)).await;
}

/// Reads which trees earlier runs kept for cluster sets.
async fn read_index(store: &Arc<Store>) -> Vec<PreloadEntry> {
    let store = store.clone();
    let read = tokio::task::spawn_blocking(move || read_preload_index(store.layout())).await;
    match read {
        Ok(Ok(entries)) => entries,
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot read preload.json; the content of earlier preloads may be collected until the cluster sets are read");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

struct Controller {
    context: Arc<Context>,
    node: String,
    nodes: Api<Node>,
    sets: WatchedObjects<ClusterSet>,
    labels: Option<Labels>,
    before: Vec<PreloadEntry>,
    /// Whether `before` is written to `preload.json`.
    is_index_written: bool,
    running: BTreeMap<String, Running>,
    reported: watch::Sender<Option<Vec<SetOnNode>>>,
}

/// A set that selects this node, and the state of its task.
struct Running {
    id: String,
    state: watch::Receiver<TaskState>,
    task: Option<(PreloadTask, AbortOnDrop)>,
}

/// A task that is aborted when this is dropped.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Controller {
    async fn run(mut self, client: kube::Client) {
        let api: Api<DynamicObject> = Api::all_with(client, &cluster_set::resource());
        // The list must be the newest, not one from a cache of the API server: sets that are missing in it are released.
        let failure = "cannot watch ClusterArtifactSet objects; the sets that were read last stay preloaded";
        let mut events = pin!(events(api, failure));
        self.follow(as_before(&self.before)).await;
        let mut check = tokio::time::interval(with_jitter(self.context.intervals.check()));
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let must_decide = tokio::select! {
                Some(event) = events.next() => self.apply(event),
                () = self.context.state_changed.notified() => false,
                () = tokio::time::sleep(self.context.intervals.report()) => false,
                _ = check.tick(), if self.selects_by_label() || !self.is_index_written => true,
            };
            if must_decide {
                self.decide().await;
            }
            self.report();
        }
    }

    /// Applies a watch event. Reports whether the desired content may have changed.
    fn apply(&mut self, event: Event<DynamicObject>) -> bool {
        match self.sets.apply(event, |object, _| cluster_set::read(object)) {
            Change::None => false,
            Change::Listed { previous } => previous.as_ref() != Some(self.sets.objects()),
            Change::Object { name, previous } => previous.as_ref() != self.sets.objects().get(&name),
        }
    }

    fn selects_by_label(&self) -> bool {
        self.sets.objects().values().any(|set| !set.node_selector.is_empty())
    }

    /// Decides again which sets this node preloads.
    async fn decide(&mut self) {
        if !self.sets.is_synced() {
            return;
        }
        if self.selects_by_label() {
            self.read_labels().await;
        }
        let wanted = desired(self.sets.objects(), self.labels.as_ref(), &self.before, &Platform::node());
        self.follow(wanted).await;
    }

    async fn read_labels(&mut self) {
        let from_cache = GetParams::any();
        let call = self.nodes.get_metadata_with(&self.node, &from_cache);
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(node)) => {
                let node: PartialObjectMeta<Node> = node;
                self.labels = Some(node.meta().labels.clone().unwrap_or_default());
            }
            Ok(Err(error)) => {
                tracing::warn!(node = self.node, %error, "cannot read the labels of the node; using the last known labels");
            }
            Err(_) => {
                tracing::warn!(
                    node = self.node,
                    "cannot read the labels of the node: the API server did not answer in time; using the last known labels"
                );
            }
        }
    }

    /// Writes the GC roots of the desired trees, and then starts or stops tasks.
    async fn follow(&mut self, wanted: Vec<Desired>) {
        let kept: Vec<PreloadEntry> = wanted.iter().filter_map(|wanted| wanted.kept.clone()).collect();
        for released in self.before.iter().filter(|before| !kept.contains(before)) {
            tracing::info!(
                set = released.set(),
                id = released.id(),
                "the content of a cluster set is no longer kept from garbage collection"
            );
        }
        let (store, entries) = (self.context.pulls.fetcher().store().clone(), kept.clone());
        let written = tokio::task::spawn_blocking(move || store.write_preload_index(&entries)).await;
        self.is_index_written = matches!(written, Ok(Ok(())));
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot write preload.json; preloaded content may be collected until the next attempt");
            }
            Err(_) => tracing::error!("the task that writes preload.json failed; retrying"),
        }
        self.before = kept;
        let mut running = BTreeMap::new();
        for wanted in wanted {
            let earlier = self.running.remove(&wanted.set);
            running.insert(wanted.set.clone(), self.continue_or_start(wanted, earlier));
        }
        self.running = running;
    }

    /// Returns the task of a set: the running one if it has the same content, otherwise a new one.
    fn continue_or_start(&self, wanted: Desired, earlier: Option<Running>) -> Running {
        let Desired { set, id, generation, content, .. } = wanted;
        let without_task = |id: String, state: TaskState| {
            let since = earlier.as_ref().map(|earlier| earlier.state.borrow().clone());
            let since = since.filter(|earlier| earlier.state == state.state).map(|earlier| earlier.since);
            let state = TaskState { since: since.unwrap_or(state.since), ..state };
            Running { id, state: watch::channel(state).1, task: None }
        };
        let (recipe, key) = match content {
            DesiredContent::Tree(recipe, key) => (recipe, key),
            DesiredContent::Unresolved(message) => {
                return without_task(id, TaskState::new(SetState::Waiting, message));
            }
            DesiredContent::Invalid(message) => {
                return without_task(id, TaskState::new(SetState::Failed, message));
            }
        };
        let task = PreloadTask { set, id, generation, recipe, key };
        if let Some(earlier) = earlier
            && let Some((before, _)) = &earlier.task
            && before.can_continue_as(&task, earlier.state.borrow().state)
        {
            return earlier;
        }
        let (sender, state) =
            watch::channel(TaskState::new(SetState::Waiting, "checking whether the set is in the store"));
        let running = AbortOnDrop(tokio::spawn(task.clone().run(self.context.clone(), sender)));
        Running { id: task.id.clone(), state, task: Some((task, running)) }
    }

    /// Sends the states of all sets to the reporter.
    fn report(&self) {
        let (wanted, ready) = self.running.values().fold((0, 0), |(wanted, ready), running| {
            (wanted + 1, ready + usize::from(running.state.borrow().state == SetState::Ready))
        });
        self.context.metrics.sets(wanted, ready);
        if !self.sets.is_synced() {
            return;
        }
        let sets: Vec<SetOnNode> =
            self.running.iter().map(|(name, running)| on_node(name, running)).collect();
        self.reported.send_if_modified(|reported| {
            let is_changed = reported.as_ref() != Some(&sets);
            *reported = Some(sets);
            is_changed
        });
    }
}

fn on_node(name: &str, running: &Running) -> SetOnNode {
    let state = running.state.borrow();
    SetOnNode {
        name: name.to_owned(),
        id: running.id.clone(),
        state: state.state,
        message: state.message.chars().take(MAX_MESSAGE_CHARS).collect(),
        bytes: amount(state.bytes),
        total_bytes: amount(state.total),
        since: Time(whole_seconds(state.since)),
    }
}
