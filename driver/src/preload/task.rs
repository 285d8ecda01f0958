//! One set's tree: brought into the store, again after failures, and looked at every so often from then on.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::registry::Keyring;
use oras_csi_store::gc::double_free_space;
use oras_csi_store::pull::{PullError, Pulls};
use oras_csi_store::{Item, Lease, PullErrorKind, Tree, TreeKey};
use tokio::sync::{Notify, watch};

use super::object::SetState;
use super::{Rhythm, SetSecretError, SetSecrets};
use crate::metrics::Metrics;

/// How often more room is made for a set than is known to be needed.
const MOST_ROOM: u32 = 2;

/// How a set stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) state: SetState,
    pub(super) message: String,
    pub(super) bytes: u64,
    pub(super) total: u64,
    pub(super) since: Timestamp,
}

impl Standing {
    pub(super) fn new(state: SetState, message: impl Into<String>) -> Self {
        Self { state, message: message.into(), bytes: 0, total: 0, since: Timestamp::now() }
    }
}

/// What all tasks use.
pub(super) struct Context {
    pub(super) pulls: Arc<Pulls>,
    pub(super) keyring: Keyring,
    pub(super) secrets: SetSecrets,
    pub(super) metrics: Metrics,
    pub(super) rhythm: Rhythm,
    /// Somebody's standing is another.
    pub(super) news: Notify,
    /// Something was set aside as damaged.
    pub(super) damage: Notify,
}

/// What is to be brought.
#[derive(Clone, Debug)]
pub(super) struct PreloadTask {
    pub(super) set: String,
    pub(super) id: String,
    /// Of the set's spec, where that is known.
    pub(super) generation: Option<i64>,
    pub(super) recipe: PinnedRecipe,
    pub(super) key: TreeKey,
}

impl PreloadTask {
    /// Whether it does for `other` as well. One that fails is begun anew where the set's spec was mended.
    pub(super) fn goes_on_as(&self, other: &Self, state: SetState) -> bool {
        let is_same = (&self.set, &self.id, &self.recipe) == (&other.set, &other.id, &other.recipe);
        is_same && (state != SetState::Failed || self.generation == other.generation)
    }

    /// Goes on until it is dropped.
    pub(super) async fn run(self, context: Arc<Context>, standing: watch::Sender<Standing>) {
        let told = Told { context: &context, standing: &standing };
        let mut failures = 0;
        loop {
            match self.look(&context).await {
                Ok((Some(tree), _)) => {
                    failures = 0;
                    told.ready(&tree);
                    tokio::select! {
                        () = tokio::time::sleep(super::spread(context.rhythm.look())) => {}
                        () = context.damage.notified() => {}
                    }
                    continue;
                }
                Ok((None, _leased)) => match self.pull(&context, &told).await {
                    Ok(()) => continue,
                    // Another set with the same recipe was let go of.
                    Err((error, _)) if error.kind() == PullErrorKind::Stopped => {}
                    Err((error, secret)) => {
                        let words = secret.map_or_else(|| error.to_string(), |why| format!("{error}; {why}"));
                        tracing::warn!(set = self.set, id = self.id, tree = %self.key, error = words, "a set cannot be fetched ahead; it is tried again");
                        told.failed(words);
                        // What will never fit shall not cost others all that they have.
                        if error.kind() == PullErrorKind::DiskFull && failures < MOST_ROOM {
                            let store = context.pulls.fetcher().store().clone();
                            let _ = tokio::task::spawn_blocking(move || double_free_space(&store)).await;
                        }
                    }
                },
                Err(error) => {
                    tracing::warn!(set = self.set, id = self.id, tree = %self.key, %error, "it cannot be looked whether a set is there");
                    told.failed(error.to_string());
                }
            }
            failures += 1;
            tokio::time::sleep(context.rhythm.retry(failures)).await;
        }
    }

    /// Whether the tree is there; nobody takes it away as long as the lease lives.
    async fn look(&self, context: &Context) -> Result<(Option<Tree>, Lease), PullError> {
        let (store, key) = (context.pulls.fetcher().store().clone(), self.key.clone());
        let mut lease = store.lease();
        lease.add([Item::Tree(key.clone())]).await;
        let looked = tokio::task::spawn_blocking(move || store.tree(&key)).await;
        Ok((looked.map_err(|_| PullError::Stopped)??, lease))
    }

    async fn pull(
        &self,
        context: &Context,
        told: &Told<'_>,
    ) -> Result<(), (Arc<PullError>, Option<SetSecretError>)> {
        let (keyring, without) = context.secrets.add_to(&context.keyring, &self.set).await;
        let fetcher = Arc::new(context.pulls.fetcher().with_credentials(Arc::new(keyring)));
        tracing::info!(set = self.set, id = self.id, tree = %self.key, "fetching ahead");
        let pull = context.pulls.start_in_background(&self.recipe, &fetcher);
        let ended = pull.wait();
        tokio::pin!(ended);
        let ended = loop {
            let reading = pull.progress();
            told.fetching(reading.done().min(reading.total()), reading.total());
            tokio::select! {
                ended = &mut ended => break ended,
                () = tokio::time::sleep(context.rhythm.report() / 5) => {}
            }
        };
        context.metrics.preloaded(ended.as_ref().err().map(|error| error.kind()));
        match ended {
            Ok(tree) => {
                let bytes = tree.totals().bytes;
                tracing::info!(set = self.set, id = self.id, tree = %self.key, bytes, "fetched ahead");
                Ok(())
            }
            Err(error) => Err((error, without)),
        }
    }
}

/// Tells how a task stands.
struct Told<'a> {
    context: &'a Context,
    standing: &'a watch::Sender<Standing>,
}

impl Told<'_> {
    fn ready(&self, tree: &Tree) {
        let bytes = tree.totals().bytes;
        self.tell(SetState::Ready, String::new(), bytes, bytes);
    }

    /// What failed before has failed until bytes come.
    fn fetching(&self, bytes: u64, total: u64) {
        if total == 0 && self.standing.borrow().state == SetState::Failed {
            return;
        }
        self.tell(SetState::Fetching, String::new(), bytes, total);
    }

    fn failed(&self, message: String) {
        let (bytes, total) = {
            let before = self.standing.borrow();
            if before.state == SetState::Ready { (0, 0) } else { (before.bytes, before.total) }
        };
        self.tell(SetState::Failed, message, bytes, total);
    }

    fn tell(&self, state: SetState, message: String, bytes: u64, total: u64) {
        let is_news = self.standing.send_if_modified(|standing| {
            let since = if standing.state == state { standing.since } else { Timestamp::now() };
            let is_news = (standing.state, &standing.message) != (state, &message);
            *standing = Standing { state, message, bytes, total, since };
            is_news
        });
        if is_news {
            self.context.news.notify_one();
        }
    }
}
