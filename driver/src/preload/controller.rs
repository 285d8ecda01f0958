//! Follows the sets of the cluster and the labels of the node, and sees to it that what they want is kept and fetched.

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
use super::desired::{Desired, Labels, What, as_before, desired};
use super::object::{SetOnNode, SetState};
use super::report::{LONGEST_CALL, Reporter, amount};
use super::task::{Context, PreloadTask, Standing};
use super::{ClusterSets, spread};
use crate::metrics::Metrics;

/// How long a message may be.
const LONGEST_MESSAGE: usize = 1_000;

/// What fetches ahead, not running yet.
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
        let (secrets, rhythm) = (cluster.secrets(), cluster.rhythm);
        let (news, damage) = (Notify::new(), Notify::new());
        let context = Arc::new(Context { pulls, keyring, secrets, metrics, rhythm, news, damage });
        Self { context, cluster, node: node.to_owned() }
    }

    /// Tells that something was set aside as damaged: what sets want of it is fetched again.
    pub(crate) fn damage_notice(&self) -> impl Fn() + Send + Sync + 'static + use<> {
        let context = self.context.clone();
        move || context.damage.notify_waiters()
    }
}

/// Fetches ahead until `stop`.
pub(crate) async fn run(preload: Preload, stop: CancellationToken) {
    let store = preload.context.pulls.fetcher().store().clone();
    let before = read(&store).await;
    let (told, heard) = watch::channel(None);
    let reporter = Reporter::new(&preload.cluster, &preload.node, store);
    let nodes: Api<Node> = Api::all(preload.cluster.client.clone());
    let controller = Controller {
        context: preload.context,
        node: preload.node,
        nodes,
        sets: WatchedObjects::default(),
        labels: None,
        before,
        is_noted: true,
        running: BTreeMap::new(),
        told,
    };
    let both = async {
        tokio::join!(controller.run(preload.cluster.client), reporter.run(heard));
    };
    Box::pin(stop.run_until_cancelled(both)).await;
}

async fn read(store: &Arc<Store>) -> Vec<PreloadEntry> {
    let store = store.clone();
    let read = tokio::task::spawn_blocking(move || read_preload_index(store.layout())).await;
    match read {
        Ok(Ok(wanted)) => wanted,
        Ok(Err(error)) => {
            tracing::warn!(%error, "it is not known what cluster sets wanted");
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
    /// Whether that is written down.
    is_noted: bool,
    running: BTreeMap<String, Running>,
    told: watch::Sender<Option<Vec<SetOnNode>>>,
}

/// A set that this node wants, and how it stands.
struct Running {
    id: String,
    standing: watch::Receiver<Standing>,
    task: Option<(PreloadTask, Task)>,
}

/// Ends when it is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Controller {
    async fn run(mut self, client: kube::Client) {
        let api: Api<DynamicObject> = Api::all_with(client, &cluster_set::resource());
        // The newest list, not one from a memory that lags behind: what is not on it is let go of.
        let failure = "cannot watch ClusterArtifactSet objects; the sets that were read last stay preloaded";
        let mut events = pin!(events(api, failure));
        self.follow(as_before(&self.before)).await;
        let mut look = tokio::time::interval(spread(self.context.rhythm.look()));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_news = tokio::select! {
                Some(event) = events.next() => self.take(event),
                () = self.context.news.notified() => false,
                () = tokio::time::sleep(self.context.rhythm.report()) => false,
                _ = look.tick(), if self.selects_by_label() || !self.is_noted => true,
            };
            if is_news {
                self.decide().await;
            }
            self.tell();
        }
    }

    /// Says whether something else may be wanted now.
    fn take(&mut self, event: Event<DynamicObject>) -> bool {
        match self.sets.apply(event, |object, _| cluster_set::read(object)) {
            Change::None => false,
            Change::Listed { previous } => previous.as_ref() != Some(self.sets.objects()),
            Change::Object { name, previous } => previous.as_ref() != self.sets.objects().get(&name),
        }
    }

    fn selects_by_label(&self) -> bool {
        self.sets.objects().values().any(|set| !set.node_selector.is_empty())
    }

    async fn decide(&mut self) {
        if !self.sets.is_synced() {
            return;
        }
        if self.selects_by_label() {
            self.ask_for_labels().await;
        }
        let wanted = desired(self.sets.objects(), self.labels.as_ref(), &self.before, &Platform::node());
        self.follow(wanted).await;
    }

    async fn ask_for_labels(&mut self) {
        let from_memory = GetParams::any();
        let asked = self.nodes.get_metadata_with(&self.node, &from_memory);
        match tokio::time::timeout(LONGEST_CALL, asked).await {
            Ok(Ok(node)) => {
                let node: PartialObjectMeta<Node> = node;
                self.labels = Some(node.meta().labels.clone().unwrap_or_default());
            }
            Ok(Err(error)) => {
                tracing::warn!(node = self.node, %error, "the labels of the node cannot be asked for; the last ones count");
            }
            Err(_) => {
                tracing::warn!(
                    node = self.node,
                    "the API server does not answer for the labels of the node; the last ones count"
                );
            }
        }
    }

    /// Keeps what is wanted, and only then fetches it.
    async fn follow(&mut self, wanted: Vec<Desired>) {
        let kept: Vec<PreloadEntry> = wanted.iter().filter_map(|wanted| wanted.kept.clone()).collect();
        for gone in self.before.iter().filter(|before| !kept.contains(before)) {
            tracing::info!(set = gone.set(), id = gone.id(), "no longer kept for a set");
        }
        let (store, noted) = (self.context.pulls.fetcher().store().clone(), kept.clone());
        let written = tokio::task::spawn_blocking(move || store.write_preload_index(&noted)).await;
        self.is_noted = matches!(written, Ok(Ok(())));
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "it cannot be written down what cluster sets want; it may be collected");
            }
            Err(_) => tracing::error!("it was not written down what cluster sets want"),
        }
        self.before = kept;
        let mut running = BTreeMap::new();
        for wanted in wanted {
            let earlier = self.running.remove(&wanted.set);
            running.insert(wanted.set.clone(), self.continue_or_start(wanted, earlier));
        }
        self.running = running;
    }

    /// The task of a set: the one under way, if it is for the same.
    fn continue_or_start(&self, wanted: Desired, earlier: Option<Running>) -> Running {
        let Desired { set, id, generation, what, .. } = wanted;
        let rests = |id: String, standing: Standing| {
            let since = earlier.as_ref().map(|earlier| earlier.standing.borrow().clone());
            let since = since.filter(|earlier| earlier.state == standing.state).map(|earlier| earlier.since);
            let standing = Standing { since: since.unwrap_or(standing.since), ..standing };
            Running { id, standing: watch::channel(standing).1, task: None }
        };
        let (recipe, key) = match what {
            What::Tree(recipe, key) => (recipe, key),
            What::Waits(words) => return rests(id, Standing::new(SetState::Waiting, words)),
            What::Broken(words) => return rests(id, Standing::new(SetState::Failed, words)),
        };
        let task = PreloadTask { set, id, generation, recipe, key };
        if let Some(earlier) = earlier
            && let Some((before, _)) = &earlier.task
            && before.goes_on_as(&task, earlier.standing.borrow().state)
        {
            return earlier;
        }
        let (sender, standing) =
            watch::channel(Standing::new(SetState::Waiting, "it is looked for in the store"));
        let running = Task(tokio::spawn(task.clone().run(self.context.clone(), sender)));
        Running { id: task.id.clone(), standing, task: Some((task, running)) }
    }

    fn tell(&self) {
        let (wanted, ready) = self.running.values().fold((0, 0), |(wanted, ready), running| {
            (wanted + 1, ready + usize::from(running.standing.borrow().state == SetState::Ready))
        });
        self.context.metrics.sets(wanted, ready);
        if !self.sets.is_synced() {
            return;
        }
        let sets: Vec<SetOnNode> =
            self.running.iter().map(|(name, running)| on_node(name, running)).collect();
        self.told.send_if_modified(|told| {
            let is_other = told.as_ref() != Some(&sets);
            *told = Some(sets);
            is_other
        });
    }
}

fn on_node(name: &str, running: &Running) -> SetOnNode {
    let standing = running.standing.borrow();
    SetOnNode {
        name: name.to_owned(),
        id: running.id.clone(),
        state: standing.state,
        message: standing.message.chars().take(LONGEST_MESSAGE).collect(),
        bytes: amount(standing.bytes),
        total_bytes: amount(standing.total),
        since: Time(whole_seconds(standing.since)),
    }
}
