//! Pulls that outlive the call that began them: one a tree, whoever asks.
//!
//! A publish waits for a pull for a while and then answers how far it is; the pull goes on, and the next
//! publish finds the tree or waits again. A failure that nobody was waiting for is told to the next one
//! who asks, once: otherwise a pull that always fails after the wait would look like one in progress.
//!
//! One that fetches ahead ([`Pulls::start_in_background`]) is the same pull, for nobody who waits: whoever publishes the recipe joins
//! it, and from then on it is as urgent as any. Where nobody did, it ends with the one who began it.
//!
//! A pull is that of a recipe with all its references, not that of the tree that it gives: whoever has the same bytes
//! from another registry depends on its own, and hears nothing of others' repositories.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use oras_csi_core::recipe::PinnedRecipe;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::PullError;
use super::fetch::Fetcher;
use super::priority::{Priority, PriorityBoost};
use super::progress::{Meter, Progress, Reading};
use crate::error_class::PullErrorKind;
use crate::state::observer::StoreObserver;
use crate::store::trees::Tree;

/// How long a failure is kept for the next one who asks.
const FAILURE_KEPT: Duration = Duration::from_mins(10);

/// What became of a pull.
pub type Outcome = Result<Tree, Arc<PullError>>;

struct SharedPull {
    meter: Arc<Meter>,
    outcome: watch::Receiver<Option<(Outcome, Instant)>>,
    /// Called once a publish waits for it.
    boost: PriorityBoost,
    stop: CancellationToken,
}

/// How a wait for a pull ended.
#[derive(Debug)]
pub enum Waited {
    /// The tree is there.
    Ready(Tree),
    /// It is not, and will not be by this pull.
    Failed(Arc<PullError>),
    /// The pull goes on.
    Pulling(Reading),
}

/// A pull that fetches ahead. Dropped, it ends, unless a publish has joined it.
pub struct BackgroundPull<'a> {
    pulls: &'a Pulls,
    recipe: PinnedRecipe,
    shared: Arc<SharedPull>,
}

/// All pulls of a node.
pub struct Pulls {
    fetcher: Arc<Fetcher>,
    shared: Mutex<HashMap<PinnedRecipe, Arc<SharedPull>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Pulls {
    /// Pulls with this fetcher until `stop`.
    pub fn new(fetcher: Arc<Fetcher>, stop: CancellationToken) -> Self {
        Self { fetcher, shared: Mutex::default(), tasks: TaskTracker::new(), stop }
    }

    /// What fetches.
    pub fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// Waits until the tree of `recipe` is there, its pull failed, or `wait` is over. A pull that is begun is
    /// `fetcher`'s, in whose name it asks; whether its holder may have the bytes is asked before
    /// ([`Fetcher::check_pull_permission`]).
    pub async fn wait_for(&self, recipe: &PinnedRecipe, fetcher: &Arc<Fetcher>, wait: Duration) -> Waited {
        let until = Instant::now() + wait;
        let (shared, is_own) = self.join(recipe, fetcher, true);
        let ended = self.wait_until(recipe, &shared, until).await;
        match &ended {
            // Somebody else was not let in any more. Whoever asks was, a moment ago.
            Waited::Failed(error) if !is_own && is_about_permission(error.kind()) => {
                let (shared, _) = self.join(recipe, fetcher, true);
                self.wait_until(recipe, &shared, until).await
            }
            _ => ended,
        }
    }

    /// Begins to pull for nobody who waits, or goes along with a pull that is under way.
    pub fn start_in_background(&self, recipe: &PinnedRecipe, fetcher: &Arc<Fetcher>) -> BackgroundPull<'_> {
        let (shared, _) = self.join(recipe, fetcher, false);
        BackgroundPull { pulls: self, recipe: recipe.clone(), shared }
    }

    async fn wait_until(&self, recipe: &PinnedRecipe, shared: &Arc<SharedPull>, until: Instant) -> Waited {
        let mut outcome = shared.outcome.clone();
        let ended = tokio::select! {
            ended = outcome.wait_for(Option::is_some) => ended.ok().and_then(|ended| ended.clone()),
            () = tokio::time::sleep_until(until.into()) => return Waited::Pulling(shared.meter.read()),
            () = self.stop.cancelled() => Some((Err(Arc::new(PullError::Stopped)), Instant::now())),
        };
        self.leave(recipe, shared);
        match ended {
            Some((Ok(tree), _)) => Waited::Ready(tree),
            Some((Err(error), _)) => Waited::Failed(error),
            // The task is gone without a word: it was stopped, or it panicked.
            None => Waited::Failed(Arc::new(PullError::Stopped)),
        }
    }

    /// Waits until no pull is left, after `stop`.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The pull of this recipe: the one under way, or a new one; whether it is new.
    fn join(
        &self,
        recipe: &PinnedRecipe,
        fetcher: &Arc<Fetcher>,
        is_urgent: bool,
    ) -> (Arc<SharedPull>, bool) {
        let mut running = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, shared| {
            shared
                .outcome
                .borrow()
                .as_ref()
                .is_none_or(|(outcome, ended)| outcome.is_err() && ended.elapsed() < FAILURE_KEPT)
        });
        if let Some(shared) = running.get(recipe) {
            if is_urgent {
                shared.boost.raise();
            }
            return (shared.clone(), false);
        }
        let (sender, outcome) = watch::channel(None);
        let meter = Arc::new(Meter::default());
        let (boost, stop) = (PriorityBoost::default(), self.stop.child_token());
        if is_urgent {
            boost.raise();
        }
        let fetcher = Arc::new(fetcher.with_priority(Priority::until(&boost)));
        let shared = Arc::new(SharedPull { meter: meter.clone(), outcome, boost, stop: stop.clone() });
        running.insert(recipe.clone(), shared.clone());
        let observer = self.fetcher.store().observer().clone();
        let progress: Arc<dyn Progress> = Arc::new(Counted { meter, observer: observer.clone() });
        let key = fetcher.key(recipe);
        let recipe = recipe.clone();
        self.tasks.spawn(async move {
            let begun = Instant::now();
            let outcome = tokio::select! {
                outcome = fetcher.tree(&recipe, &progress) => outcome,
                () = stop.cancelled() => Err(PullError::Stopped),
            };
            let seconds = begun.elapsed().as_secs_f64();
            match &outcome {
                Ok(tree) => {
                    let bytes = tree.totals().bytes;
                    tracing::info!(tree = %key, bytes, seconds, "pulled");
                    observer.pull_took(bytes, seconds);
                }
                Err(error) => tracing::warn!(tree = %key, %error, seconds, "a pull failed"),
            }
            observer.pulled(outcome.as_ref().err().map(PullError::kind));
            sender.send_replace(Some((outcome.map_err(Arc::new), Instant::now())));
        });
        (shared, true)
    }

    /// Forgets a pull whose end was heard.
    fn leave(&self, recipe: &PinnedRecipe, shared: &Arc<SharedPull>) {
        let mut running = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if running.get(recipe).is_some_and(|found| Arc::ptr_eq(found, shared)) {
            running.remove(recipe);
        }
    }
}

impl BackgroundPull<'_> {
    /// How far it is.
    pub fn reading(&self) -> Reading {
        self.shared.meter.read()
    }

    /// Waits until it has ended.
    pub async fn ended(&self) -> Outcome {
        let mut outcome = self.shared.outcome.clone();
        let ended = outcome.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        self.pulls.leave(&self.recipe, &self.shared);
        ended.map_or_else(|| Err(Arc::new(PullError::Stopped)), |(outcome, _)| outcome)
    }
}

impl Drop for BackgroundPull<'_> {
    fn drop(&mut self) {
        // Whoever joins does so under the same lock.
        let mut running = self.pulls.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.shared.boost.is_raised()
            && running.get(&self.recipe).is_some_and(|found| Arc::ptr_eq(found, &self.shared))
        {
            running.remove(&self.recipe);
            self.shared.stop.cancel();
        }
    }
}

fn is_about_permission(kind: PullErrorKind) -> bool {
    matches!(kind, PullErrorKind::Denied | PullErrorKind::NotFound)
}

struct Counted {
    meter: Arc<Meter>,
    observer: Arc<dyn StoreObserver>,
}

impl Progress for Counted {
    fn planned(&self, blobs: &[super::progress::Planned]) {
        self.meter.planned(blobs);
    }

    fn received(&self, blob: &oras_csi_core::digest::Digest, bytes: u64) {
        self.meter.received(blob, bytes);
        self.observer.received(bytes);
    }

    fn found(&self, blob: &oras_csi_core::digest::Digest, bytes: u64) {
        self.meter.found(blob, bytes);
    }

    fn finished(&self, blob: &oras_csi_core::digest::Digest) {
        self.meter.finished(blob);
    }
}
