//! Pulls that outlive the call that started them. Concurrent calls for the same recipe share one pull.
//!
//! A publish call waits for a limited time and then returns the progress. The pull continues, and the next publish
//! call finds the tree or waits again. A failure that no call was waiting for is returned to the next call, once.
//! Otherwise a pull that always fails after the wait would look like one in progress.
//!
//! A preload ([`Pulls::start_in_background`]) is the same pull, but no pod waits for it. When a pod requests the
//! recipe, it joins the pull, which then has the priority of a pod. A preload that no pod has joined stops when its
//! [`BackgroundPull`] is dropped. A pull that no pod waits for any more stops as well ([`super::presence`]); what it has
//! downloaded stays in `partial/` for the next one.
//!
//! A pull is keyed by the recipe with all its references and not by the key of the tree: a pod that uses the same
//! content from another registry must depend on that registry only, and must not see errors about repositories of
//! others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::trace::{self, TARGET};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, field};

use super::error::PullError;
use super::fetch::Fetcher;
use super::presence::{Call, Presence};
use super::priority::Priority;
use super::progress::{Planned, Progress, ProgressCounter, ProgressSnapshot};
use super::tenant::Waiter;
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
    /// The volumes that wait for the pull.
    presence: Arc<Presence>,
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

/// A pull that a volume waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullInProgress {
    /// The name of the volume ([`Waiter::with_id`]).
    pub id: String,
    /// How far the pull is.
    pub progress: ProgressSnapshot,
}

/// A preload. Dropping it stops the pull, unless a pod waits for it.
pub struct BackgroundPull<'a> {
    pulls: &'a Pulls,
    recipe: PinnedRecipe,
    shared: Arc<SharedPull>,
}

/// The pulls by recipe. Calls join and leave a pull while they have the lock, so that a pull that stops is not joined.
type Running = Mutex<HashMap<PinnedRecipe, Arc<SharedPull>>>;

/// The pulls of a node.
pub struct Pulls {
    fetcher: Arc<Fetcher>,
    running: Arc<Running>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Pulls {
    /// Creates a set of pulls that use this fetcher and stop with `stop`.
    pub fn new(fetcher: Arc<Fetcher>, stop: CancellationToken) -> Self {
        Self { fetcher, running: Arc::default(), tasks: TaskTracker::new(), stop }
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
        waiter: &Waiter,
        wait: Duration,
    ) -> PullStatus {
        self.wait_with_progress(recipe, fetcher, waiter, wait).await.0
    }

    /// Does the same as [`Self::wait_for`], and also returns how far the pull is, or was at its end.
    pub async fn wait_with_progress(
        &self,
        recipe: &PinnedRecipe,
        fetcher: &Arc<Fetcher>,
        waiter: &Waiter,
        wait: Duration,
    ) -> (PullStatus, ProgressSnapshot) {
        let until = Instant::now() + wait;
        let (shared, is_new, _call) = self.join(recipe, fetcher, Some(waiter));
        let ended = self.wait_until(recipe, &shared, until).await;
        match &ended {
            // The pull ran with the credentials of another call, which are not accepted any more. The credentials of
            // this call were accepted a moment ago.
            PullStatus::Failed(error) if !is_new && is_permission_error(error.kind()) => {
                let (shared, _, _call) = self.join(recipe, fetcher, Some(waiter));
                let ended = self.wait_until(recipe, &shared, until).await;
                (ended, shared.counter.snapshot())
            }
            _ => (ended, shared.counter.snapshot()),
        }
    }

    /// Returns the pulls that run and that volumes with a name wait for, the longest first.
    pub fn in_progress(&self) -> Vec<PullInProgress> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let is_running = |shared: &&Arc<SharedPull>| shared.outcome.borrow().is_none();
        let pulls = running.values().filter(is_running).flat_map(|shared| {
            let progress = shared.counter.snapshot();
            shared.presence.ids().into_iter().map(move |id| PullInProgress { id, progress })
        });
        let mut pulls: Vec<_> = pulls.collect();
        drop(running);
        pulls.sort_by(|one, other| {
            other.progress.elapsed().cmp(&one.progress.elapsed()).then_with(|| one.id.cmp(&other.id))
        });
        pulls
    }

    /// Starts a pull that no call waits for, or joins one that is running.
    pub fn start_in_background(&self, recipe: &PinnedRecipe, fetcher: &Arc<Fetcher>) -> BackgroundPull<'_> {
        let (shared, ..) = self.join(recipe, fetcher, None);
        BackgroundPull { pulls: self, recipe: recipe.clone(), shared }
    }

    /// Records that the pod of a volume was deleted: no call for it will come any more.
    pub fn withdraw(&self, volume: &str) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for shared in running.values() {
            shared.presence.withdraw(volume);
        }
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

    /// Joins the pull of this recipe, a running one or a new one, as a call or as a preload. Also returns whether it is
    /// new.
    fn join(
        &self,
        recipe: &PinnedRecipe,
        fetcher: &Arc<Fetcher>,
        waiter: Option<&Waiter>,
    ) -> (Arc<SharedPull>, bool, Option<Call>) {
        let enter = |presence: &Arc<Presence>| {
            if waiter.is_none() {
                presence.enter_preload();
            }
            waiter.map(|waiter| presence.enter(waiter))
        };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, shared| {
            shared
                .outcome
                .borrow()
                .as_ref()
                .is_none_or(|(outcome, ended)| outcome.is_err() && ended.elapsed() < FAILURE_KEPT_FOR)
        });
        if let Some(shared) = running.get(recipe) {
            let call = enter(&shared.presence);
            return (shared.clone(), false, call);
        }
        let (sender, outcome) = watch::channel(None);
        let counter = Arc::new(ProgressCounter::default());
        let (presence, stop) = (Arc::new(Presence::default()), self.stop.child_token());
        let call = enter(&presence);
        let fetcher = Arc::new(fetcher.with_priority(Priority::of(presence.waiters())));
        let shared = Arc::new(SharedPull { counter, outcome, presence, stop });
        running.insert(recipe.clone(), shared.clone());
        drop(running);
        // It belongs to the trace of the call that starts it, although it can outlive that call.
        let span = tracing::trace_span!(
            target: TARGET,
            "pull",
            oras_csi.bytes = field::Empty,
            otel.status_code = field::Empty,
            otel.status_description = field::Empty,
        );
        let pull = run(self.running.clone(), fetcher, recipe.clone(), shared.clone(), sender);
        self.tasks.spawn(pull.instrument(span));
        (shared, true, call)
    }

    /// Removes a pull whose result was returned.
    fn forget(&self, recipe: &PinnedRecipe, shared: &Arc<SharedPull>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        remove(&mut running, recipe, shared);
    }
}

/// Removes a pull, if it is still the one of its recipe.
#[expect(clippy::mutable_key_type, reason = "the hash of a recipe does not depend on what its globs cache")]
fn remove(
    running: &mut HashMap<PinnedRecipe, Arc<SharedPull>>,
    recipe: &PinnedRecipe,
    shared: &Arc<SharedPull>,
) {
    if running.get(recipe).is_some_and(|found| Arc::ptr_eq(found, shared)) {
        running.remove(recipe);
    }
}

/// Pulls the tree of a recipe until it is complete, or no pod waits for it any more.
async fn run(
    running: Arc<Running>,
    fetcher: Arc<Fetcher>,
    recipe: PinnedRecipe,
    shared: Arc<SharedPull>,
    sender: watch::Sender<Option<(PullResult, Instant)>>,
) {
    let (key, observer) = (fetcher.key(&recipe), fetcher.store().observer().clone());
    let progress: Arc<dyn Progress> =
        Arc::new(CountingProgress { counter: shared.counter.clone(), observer: observer.clone() });
    let started = Instant::now();
    let outcome = tokio::select! {
        outcome = fetcher.tree(&recipe, &progress) => outcome,
        () = shared.stop.cancelled() => Err(PullError::Stopped),
        () = stop_when_abandoned(&running, &recipe, &shared) => Err(PullError::Abandoned),
    };
    let seconds = started.elapsed().as_secs_f64();
    let span = Span::current();
    match &outcome {
        Ok(tree) => {
            let bytes = tree.totals().bytes;
            tracing::info!(tree = %key, bytes, seconds, "pulled a tree");
            observer.pull_took(bytes, seconds);
            span.record("oras_csi.bytes", bytes);
        }
        Err(PullError::Abandoned) => {
            tracing::info!(tree = %key, seconds, "stopped a pull that no pod waits for any more");
        }
        Err(error) => tracing::warn!(tree = %key, %error, seconds, "cannot pull a tree"),
    }
    if let Err(error) = &outcome {
        trace::record_error(&span, error);
    }
    observer.pulled(outcome.as_ref().err().map(PullError::kind));
    sender.send_replace(Some((outcome.map_err(Arc::new), Instant::now())));
}

/// Waits until no pod and no preload waits for a pull, and removes it, so that no call joins it any more.
async fn stop_when_abandoned(running: &Running, recipe: &PinnedRecipe, shared: &Arc<SharedPull>) {
    loop {
        shared.presence.wait_until_abandoned().await;
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.presence.is_abandoned() {
            remove(&mut running, recipe, shared);
            return;
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
        let mut running = self.pulls.running.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.presence.leave_preload() {
            remove(&mut running, &self.recipe, &self.shared);
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
        self.observer.reused(bytes);
    }

    fn finished(&self, blob: &oras_csi_core::digest::Digest) {
        self.counter.finished(blob);
    }
}
