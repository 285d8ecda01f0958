//! Preloads the tree of one set: pulls it into the store, retries after failures, and then checks at intervals that it is
//! still there.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::registry::Keyring;
use oras_csi_store::gc::double_free_space;
use oras_csi_store::pull::{PullError, Pulls};
use oras_csi_store::{Item, Lease, PullErrorKind, Tree, TreeKey};
use tokio::sync::{Notify, watch};

use super::object::SetState;
use super::{Intervals, SetSecretError, SetSecrets};
use crate::metrics::Metrics;

/// How many times in a row the driver frees more disk space for a set.
const MAX_SPACE_ATTEMPTS: u32 = 2;

/// The state of a preload task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TaskState {
    pub(super) state: SetState,
    pub(super) message: String,
    pub(super) bytes: u64,
    pub(super) total: u64,
    pub(super) since: Timestamp,
}

impl TaskState {
    pub(super) fn new(state: SetState, message: impl Into<String>) -> Self {
        Self { state, message: message.into(), bytes: 0, total: 0, since: Timestamp::now() }
    }
}

/// The services that all tasks share.
pub(super) struct Context {
    pub(super) pulls: Arc<Pulls>,
    pub(super) keyring: Keyring,
    pub(super) secrets: SetSecrets,
    pub(super) metrics: Metrics,
    pub(super) intervals: Intervals,
    /// Notified when the state of a task changes.
    pub(super) state_changed: Notify,
    /// Notified when damaged content was quarantined.
    pub(super) damage: Notify,
}

/// The content that one task preloads.
#[derive(Clone, Debug)]
pub(super) struct PreloadTask {
    pub(super) set: String,
    pub(super) id: String,
    /// The generation of the set's spec, if it is known.
    pub(super) generation: Option<i64>,
    pub(super) recipe: PinnedRecipe,
    pub(super) key: TreeKey,
}

impl PreloadTask {
    /// Reports whether this running task can continue as `other`. A failed task starts again if the spec of the set
    /// changed.
    pub(super) fn can_continue_as(&self, other: &Self, state: SetState) -> bool {
        let is_same = (&self.set, &self.id, &self.recipe) == (&other.set, &other.id, &other.recipe);
        is_same && (state != SetState::Failed || self.generation == other.generation)
    }

    /// Runs until it is dropped.
    pub(super) async fn run(self, context: Arc<Context>, state: watch::Sender<TaskState>) {
        let reporter = StateReporter { context: &context, state: &state };
        let (mut failures, mut was_pulled) = (0, false);
        loop {
            match self.find_tree(&context).await {
                Ok((Some(tree), _)) => {
                    (failures, was_pulled) = (0, false);
                    reporter.ready(&tree);
                    tokio::select! {
                        () = tokio::time::sleep(super::with_jitter(context.intervals.check())) => {}
                        () = context.damage.notified() => {}
                    }
                    continue;
                }
                Ok((None, _leased)) => match self.pull(&context, &reporter).await {
                    Ok(()) if !was_pulled => {
                        was_pulled = true;
                        continue;
                    }
                    // The tree, or the fact that it was served, was lost twice: on a full disk, for example.
                    Ok(()) => {}
                    // The task of another set with the same recipe was dropped, and stopped the pull.
                    Err((error, _)) if error.kind() == PullErrorKind::Stopped => {}
                    Err((error, secret)) => {
                        let message = secret.map_or_else(
                            || error.to_string(),
                            |why| format!("{error}. The pull secret of the cluster set was not used: {why}"),
                        );
                        tracing::warn!(set = self.set, id = self.id, tree = %self.key, error = message, "cannot preload a cluster set; retrying");
                        reporter.failed(message);
                        // A set that never fits must not evict all other content.
                        if error.kind() == PullErrorKind::DiskFull && failures < MAX_SPACE_ATTEMPTS {
                            let store = context.pulls.fetcher().store().clone();
                            let _ = tokio::task::spawn_blocking(move || double_free_space(&store)).await;
                        }
                    }
                },
                Err(error) => {
                    tracing::warn!(set = self.set, id = self.id, tree = %self.key, %error, "cannot check whether a cluster set is in the store; retrying");
                    reporter.failed(error.to_string());
                }
            }
            failures += 1;
            tokio::time::sleep(context.intervals.retry(failures)).await;
        }
    }

    /// Looks for the tree in the store: a tree that the registries of the set served to this node. The lease keeps it
    /// from garbage collection.
    async fn find_tree(&self, context: &Context) -> Result<(Option<Tree>, Lease), PullError> {
        let (store, key) = (context.pulls.fetcher().store().clone(), self.key.clone());
        let recipe = self.recipe.clone();
        let mut lease = store.lease();
        lease.add([Item::Tree(key.clone())]).await;
        let look = move || {
            if store.provenance().has_tree(&key, &recipe) { store.tree(&key) } else { Ok(None) }
        };
        let tree = tokio::task::spawn_blocking(look).await;
        Ok((tree.map_err(|_| PullError::Stopped)??, lease))
    }

    async fn pull(
        &self,
        context: &Context,
        reporter: &StateReporter<'_>,
    ) -> Result<(), (Arc<PullError>, Option<SetSecretError>)> {
        let (keyring, secret_error) = context.secrets.add_to(&context.keyring, &self.set).await;
        let fetcher = Arc::new(context.pulls.fetcher().with_credentials(Arc::new(keyring)));
        tracing::info!(set = self.set, id = self.id, tree = %self.key, "preloading a cluster set");
        let pull = context.pulls.start_in_background(&self.recipe, &fetcher);
        let ended = pull.wait();
        tokio::pin!(ended);
        let ended = loop {
            let reading = pull.progress();
            reporter.fetching(reading.done().min(reading.total()), reading.total());
            tokio::select! {
                ended = &mut ended => break ended,
                () = tokio::time::sleep(context.intervals.report() / 5) => {}
            }
        };
        context.metrics.preloaded(ended.as_ref().err().map(|error| error.kind()));
        match ended {
            Ok(tree) => {
                let bytes = tree.totals().bytes;
                tracing::info!(set = self.set, id = self.id, tree = %self.key, bytes, "preloaded a cluster set");
                Ok(())
            }
            Err(error) => Err((error, secret_error)),
        }
    }
}

/// Publishes the state of a task.
struct StateReporter<'a> {
    context: &'a Context,
    state: &'a watch::Sender<TaskState>,
}

impl StateReporter<'_> {
    fn ready(&self, tree: &Tree) {
        let bytes = tree.totals().bytes;
        self.set(SetState::Ready, String::new(), bytes, bytes);
    }

    /// Reports progress. A failed task stays Failed until bytes arrive.
    fn fetching(&self, bytes: u64, total: u64) {
        if total == 0 && self.state.borrow().state == SetState::Failed {
            return;
        }
        self.set(SetState::Fetching, String::new(), bytes, total);
    }

    fn failed(&self, message: String) {
        let (bytes, total) = {
            let before = self.state.borrow();
            if before.state == SetState::Ready { (0, 0) } else { (before.bytes, before.total) }
        };
        self.set(SetState::Failed, message, bytes, total);
    }

    fn set(&self, state: SetState, message: String, bytes: u64, total: u64) {
        let is_changed = self.state.send_if_modified(|current| {
            let since = if current.state == state { current.since } else { Timestamp::now() };
            let is_changed = (current.state, &current.message) != (state, &message);
            *current = TaskState { state, message, bytes, total, since };
            is_changed
        });
        if is_changed {
            self.context.state_changed.notify_one();
        }
    }
}
