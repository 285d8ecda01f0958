//! Pulls that outlive the call that started them. Concurrent calls for the same recipe share one pull.
//!
//! A publish call waits for a limited time and then returns the progress. The pull continues, and the next publish
//! call finds the tree or waits again. A failure that no call was waiting for is returned to the next call, once.
//! Otherwise a pull that always fails after the wait would look like one in progress.
//!
//! A preload ([`Pulls::start_in_background`]) is the same pull, but no pod waits for it. When a pod requests the
//! recipe, it joins the pull, which is then as urgent as any other. A preload that no pod has joined stops when its
//! [`BackgroundPull`] is dropped.
//!
//! A pull is keyed by the recipe with all its references and not by the key of the tree: a pod that uses the same
//! content from another registry must depend on that registry only, and must not see errors about repositories of
//! others.

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
use super::progress::{Planned, Progress, ProgressCounter, ProgressSnapshot};
use crate::error_class::PullErrorKind;
use crate::state::observer::StoreObserver;
use crate::store::trees::Tree;

/// How long a failure is kept for the next call.
const FAILURE_KEPT_FOR: Duration = Duration::from_mins(10);

/// The result of a pull.
pub type PullResult = Result<Tree, Arc<PullError>>;

struct SharedPull {
    counter: Arc<ProgressCounter>,
    outcome: watch::Receiver<Option<(PullResult, Instant)>>,
    /// Raised when a publish call waits for the pull.
    boost: PriorityBoost,
    stop: CancellationToken,
}

/// The state of a pull after a call has waited for it.
#[derive(Debug)]
pub enum PullStatus {
    /// The tree is in the store.
    Ready(Tree),
    /// The pull failed.
    Failed(Arc<PullError>),
    /// The pull continues.
    Pulling(ProgressSnapshot),
}

/// A preload. Dropping it stops the pull, unless a publish call has joined it.
pub struct BackgroundPull<'a> {
    pulls: &'a Pulls,
    recipe: PinnedRecipe,
    shared: Arc<SharedPull>,
}

/// The pulls of a node.
pub struct Pulls {
    fetcher: Arc<Fetcher>,
    running: Mutex<HashMap<PinnedRecipe, Arc<SharedPull>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Pulls {
    /// Creates a set of pulls that use this fetcher and stop with `stop`.
    pub fn new(fetcher: Arc<Fetcher>, stop: CancellationToken) -> Self {
        Self { fetcher, running: Mutex::default(), tasks: TaskTracker::new(), stop }
    }

    /// Returns the fetcher without credentials.
    pub fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// Waits until the tree of `recipe` is in the store, the pull has failed, or `wait` is over. A new pull uses the
    /// credentials of `fetcher`. The caller must have checked the pull permission before
    /// ([`Fetcher::check_pull_permission`]).
    pub async fn wait_for(
        &self,
        recipe: &PinnedRecipe,
        fetcher: &Arc<Fetcher>,
        wait: Duration,
    ) -> PullStatus {
        let until = Instant::now() + wait;
        let (shared, is_new) = self.join(recipe, fetcher, true);
        let ended = self.wait_until(recipe, &shared, until).await;
        match &ended {
            // The pull ran with the credentials of another call, which are not accepted any more. The credentials of
            // this call were accepted a moment ago.
            PullStatus::Failed(error) if !is_new && is_permission_error(error.kind()) => {
                let (shared, _) = self.join(recipe, fetcher, true);
                self.wait_until(recipe, &shared, until).await
            }
            _ => ended,
        }
    }

    /// Starts a pull that no call waits for, or joins one that is running.
    pub fn start_in_background(&self, recipe: &PinnedRecipe, fetcher: &Arc<Fetcher>) -> BackgroundPull<'_> {
        let (shared, _) = self.join(recipe, fetcher, false);
        BackgroundPull { pulls: self, recipe: recipe.clone(), shared }
    }

    async fn wait_until(
        &self,
        recipe: &PinnedRecipe,
        shared: &Arc<SharedPull>,
        until: Instant,
    ) -> PullStatus {
        let mut outcome = shared.outcome.clone();
        let ended = tokio::select! {
            ended = outcome.wait_for(Option::is_some) => ended.ok().and_then(|ended| ended.clone()),
            () = tokio::time::sleep_until(until.into()) => return PullStatus::Pulling(shared.counter.snapshot()),
            () = self.stop.cancelled() => Some((Err(Arc::new(PullError::Stopped)), Instant::now())),
        };
        self.forget(recipe, shared);
        match ended {
            Some((Ok(tree), _)) => PullStatus::Ready(tree),
            Some((Err(error), _)) => PullStatus::Failed(error),
            // The task ended without a result: it was stopped, or it panicked.
            None => PullStatus::Failed(Arc::new(PullError::Stopped)),
        }
    }

    /// Waits until all pulls have ended. Called after `stop`.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Returns the pull of this recipe, a running one or a new one, and whether it is new.
    fn join(
        &self,
        recipe: &PinnedRecipe,
        fetcher: &Arc<Fetcher>,
        is_urgent: bool,
    ) -> (Arc<SharedPull>, bool) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, shared| {
            shared
                .outcome
                .borrow()
                .as_ref()
                .is_none_or(|(outcome, ended)| outcome.is_err() && ended.elapsed() < FAILURE_KEPT_FOR)
        });
        if let Some(shared) = running.get(recipe) {
            if is_urgent {
                shared.boost.raise();
            }
            return (shared.clone(), false);
        }
        let (sender, outcome) = watch::channel(None);
        let counter = Arc::new(ProgressCounter::default());
        let (boost, stop) = (PriorityBoost::default(), self.stop.child_token());
        if is_urgent {
            boost.raise();
        }
        let fetcher = Arc::new(fetcher.with_priority(Priority::raised_by(&boost)));
        let shared = Arc::new(SharedPull { counter: counter.clone(), outcome, boost, stop: stop.clone() });
        running.insert(recipe.clone(), shared.clone());
        let observer = self.fetcher.store().observer().clone();
        let progress: Arc<dyn Progress> = Arc::new(CountingProgress { counter, observer: observer.clone() });
        let key = fetcher.key(recipe);
        let recipe = recipe.clone();
        self.tasks.spawn(async move {
            let started = Instant::now();
            let outcome = tokio::select! {
                outcome = fetcher.tree(&recipe, &progress) => outcome,
                () = stop.cancelled() => Err(PullError::Stopped),
            };
            let seconds = started.elapsed().as_secs_f64();
            match &outcome {
                Ok(tree) => {
                    let bytes = tree.totals().bytes;
                    tracing::info!(tree = %key, bytes, seconds, "pulled a tree");
                    observer.pull_took(bytes, seconds);
                }
                Err(error) => tracing::warn!(tree = %key, %error, seconds, "cannot pull a tree"),
            }
            observer.pulled(outcome.as_ref().err().map(PullError::kind));
            sender.send_replace(Some((outcome.map_err(Arc::new), Instant::now())));
        });
        (shared, true)
    }

    /// Removes a pull whose result was returned.
    fn forget(&self, recipe: &PinnedRecipe, shared: &Arc<SharedPull>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.get(recipe).is_some_and(|found| Arc::ptr_eq(found, shared)) {
            running.remove(recipe);
        }
    }
}

impl BackgroundPull<'_> {
    /// Returns the current progress.
    pub fn progress(&self) -> ProgressSnapshot {
        self.shared.counter.snapshot()
    }

    /// Waits until the pull has ended.
    pub async fn wait(&self) -> PullResult {
        let mut outcome = self.shared.outcome.clone();
        let ended = outcome.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        self.pulls.forget(&self.recipe, &self.shared);
        ended.map_or_else(|| Err(Arc::new(PullError::Stopped)), |(outcome, _)| outcome)
    }
}

impl Drop for BackgroundPull<'_> {
    fn drop(&mut self) {
        // Other calls join a pull under the same lock.
        let mut running = self.pulls.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.shared.boost.is_raised()
            && running.get(&self.recipe).is_some_and(|found| Arc::ptr_eq(found, &self.shared))
        {
            running.remove(&self.recipe);
            self.shared.stop.cancel();
        }
    }
}

fn is_permission_error(kind: PullErrorKind) -> bool {
    matches!(kind, PullErrorKind::Denied | PullErrorKind::NotFound)
}

struct CountingProgress {
    counter: Arc<ProgressCounter>,
    observer: Arc<dyn StoreObserver>,
}

impl Progress for CountingProgress {
    fn planned(&self, blobs: &[Planned]) {
        self.counter.planned(blobs);
    }

    fn received(&self, blob: &oras_csi_core::digest::Digest, bytes: u64) {
        self.counter.received(blob, bytes);
        self.observer.received(bytes);
    }

    fn found(&self, blob: &oras_csi_core::digest::Digest, bytes: u64) {
        self.counter.found(blob, bytes);
    }

    fn finished(&self, blob: &oras_csi_core::digest::Digest) {
        self.counter.finished(blob);
    }
}
