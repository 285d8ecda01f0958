//! The controller of sets: resolves the tags of each set when its spec changes and after each interval, and writes the
//! result into its status.
//!
//! Every replica of the webhook runs it, without leader election. Each replica waits for a random delay in addition to the
//! interval, and then checks whether another replica was first. The result is written only if the object is still the one
//! that was read before the registry was contacted, so that an older result never replaces a newer one.
//!
//! The sets of a namespace wait for the share of their namespace ([`super::places`]). The controller of kube has no limit
//! of its own: it does not start waiting objects in the order of their arrival, so some could wait without end.

use std::collections::HashMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::Api;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt as _};
use oras_csi_core::jitter;
use oras_csi_kube_support::call::{CallError, call};
use oras_csi_kube_support::status::{ObjectVersion, StatusWrite, replace_status};
use oras_csi_kube_support::time;
use serde::de::DeserializeOwned;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::Instrument as _;

use super::object::{
    ArtifactSet, ArtifactSetSpec, ClusterArtifactSet, ClusterArtifactSetSpec, SecretName, SetStatus,
};
use super::places::Places;
use super::recipe::SetStep;
use super::status::{self, Due};
use super::{SetPlace, SetResolver, SetToResolve, nodes, status_now};
use crate::FIELD_MANAGER;

/// How long resolving one set can take. Other sets of its namespace can be waiting. One lookup at a registry can take as
/// long, and a pod, which can name more references than a set, has half of that time.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one request to the API server can take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest random delay after an interval.
const MAX_JITTER: Duration = Duration::from_secs(30);
/// The random delay is at most this part of the interval.
const JITTER_PART: u32 = 10;
/// The longest random delay after a change of the spec, which a user is waiting for.
const MAX_JITTER_AFTER_CHANGE: Duration = Duration::from_millis(300);
/// The delay before the first retry.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// The longest delay before a retry.
const MAX_RETRY: Duration = Duration::from_mins(1);
/// How many failures are remembered. When there are more, all are forgotten.
const MAX_FAILURES: usize = 10_000;

/// What both kinds of sets have in common.
pub(super) trait Set:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Returns the kind, the namespace and the name.
    fn place(&self) -> SetPlace;
    /// Returns the parts of the object that the controller reads.
    fn view(&self) -> SetView<'_>;
    /// Returns the API for this object.
    fn api(&self, client: &Client) -> Api<Self>;
}

/// The parts of a set that the controller reads.
#[derive(Clone, Copy)]
pub(super) struct SetView<'a> {
    pub(super) steps: &'a [SetStep],
    /// How often the tags are resolved; `None` means only when the spec changes.
    pub(super) interval: Option<Duration>,
    pub(super) secret: Option<&'a str>,
    pub(super) status: Option<&'a SetStatus>,
}

impl<'a> SetView<'a> {
    fn new(
        steps: &'a [SetStep],
        interval: Option<&str>,
        secret: Option<&'a SecretName>,
        status: Option<&'a SetStatus>,
    ) -> Self {
        let secret = secret.map(|secret| secret.name.as_str());
        Self { steps, interval: status::interval(interval), secret, status }
    }
}

impl Set for ArtifactSet {
    fn place(&self) -> SetPlace {
        let namespace = self.namespace().unwrap_or_default();
        SetPlace::Namespaced { namespace: namespace.as_str().into(), name: self.name_any().as_str().into() }
    }

    fn view(&self) -> SetView<'_> {
        let ArtifactSetSpec { recipe, refresh_interval, pull_secret } = &self.spec;
        SetView::new(recipe, refresh_interval.as_deref(), pull_secret.as_ref(), self.status.as_ref())
    }

    fn api(&self, client: &Client) -> Api<Self> {
        Api::namespaced(client.clone(), &self.namespace().unwrap_or_default())
    }
}

impl Set for ClusterArtifactSet {
    fn place(&self) -> SetPlace {
        SetPlace::Cluster(self.name_any().as_str().into())
    }

    fn view(&self) -> SetView<'_> {
        let ClusterArtifactSetSpec { recipe, refresh_interval, pull_secret, .. } = &self.spec;
        SetView::new(recipe, refresh_interval.as_deref(), pull_secret.as_ref(), self.status.as_ref())
    }

    fn api(&self, client: &Client) -> Api<Self> {
        Api::all(client.clone())
    }
}

/// Runs the controller for the sets of a cluster until `shutdown`.
pub fn run_controller<R: SetResolver>(
    client: &Client,
    resolver: &Arc<R>,
    shutdown: &CancellationToken,
    tasks: &TaskTracker,
) {
    let reconciler = |places| {
        Arc::new(Reconciler {
            client: client.clone(),
            resolver: Arc::clone(resolver) as Arc<dyn SetResolver>,
            places,
            failures: Mutex::default(),
        })
    };
    let namespaced = reconciler(Places::for_namespaces());
    let namespaced = run::<ArtifactSet>(Api::all(client.clone()), namespaced, shutdown.clone());
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(namespaced));
    let cluster = reconciler(Places::for_cluster());
    let cluster = run::<ClusterArtifactSet>(Api::all(client.clone()), cluster, shutdown.clone());
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(cluster));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(nodes::count_nodes(client.clone())));
}

async fn run<K: Set>(api: Api<K>, reconciler: Arc<Reconciler>, shutdown: CancellationToken) {
    let controller = Controller::new(api, watcher::Config::default())
        .graceful_shutdown_on(async move { shutdown.cancelled().await });
    let outcomes = controller.run(
        |set: Arc<K>, reconciler: Arc<Reconciler>| reconciler.reconcile(set),
        |set, error, reconciler| {
            let wait = reconciler.record_failure(&key(set.as_ref()));
            tracing::warn!(set = %set.place(), %error, "cannot update the status of a set; retrying");
            Action::requeue(wait)
        },
        reconciler,
    );
    let mut outcomes = pin!(outcomes);
    while let Some(outcome) = outcomes.next().await {
        if let Err(error) = outcome {
            tracing::debug!(%error, "the controller failed for a set; it processes the set again");
        }
    }
}

struct Reconciler {
    client: Client,
    resolver: Arc<dyn SetResolver>,
    places: Places,
    failures: Mutex<HashMap<String, Backoff>>,
}

/// Why a set was not processed.
#[derive(Debug, thiserror::Error)]
enum ReconcileError {
    /// A request to the API server failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The task that resolves the set panicked.
    #[error("resolving the set failed unexpectedly: {0}")]
    Task(#[from] JoinError),
}

/// The delay of a generation that failed.
#[derive(Clone, Copy)]
struct Backoff {
    /// How often it failed in a row.
    failures: u32,
    /// When it is tried again.
    until: Instant,
}

/// Identifies a generation of a set.
fn key<K: Set>(set: &K) -> String {
    format!("{} {}", set.uid().unwrap_or_default(), generation_of(set))
}

impl Reconciler {
    /// Resolves a set if that is due, and returns when to process the set again.
    async fn reconcile<K: Set>(self: Arc<Self>, seen: Arc<K>) -> Result<Action, ReconcileError> {
        if seen.meta().deletion_timestamp.is_some() {
            return Ok(Action::await_change());
        }
        if let Some(later) = not_due(seen.as_ref()) {
            return Ok(later);
        }
        // The status of a failure is also a change of the object, and must not cause a retry at once.
        if let Some(left) = self.remaining_backoff(&key(seen.as_ref())) {
            return Ok(Action::requeue(left));
        }
        // The controller polls the futures of all sets whenever one of them is woken. In a task of its own, a set is polled
        // only when it is woken itself, so that thousands of sets can wait.
        let task = async move { self.resolve(seen.as_ref()).await };
        Ok(AbortOnDropHandle::new(tokio::spawn(task.in_current_span())).await??)
    }

    /// Waits for a place, and resolves a set if that is still due.
    async fn resolve<K: Set>(&self, seen: &K) -> Result<Action, CallError> {
        tokio::time::sleep(jitter::up_to(MAX_JITTER_AFTER_CHANGE)).await;
        let _place = self.places.acquire(seen.namespace().as_deref(), self.has_failed(&key(seen))).await;
        let api = seen.api(&self.client);
        let Some(set) = call(REQUEST_TIMEOUT, api.get_opt(&seen.name_any())).await? else {
            return Ok(Action::await_change());
        };
        // Another replica may have been first, or the set has waited for a place until it changed.
        if let Some(later) = not_due(&set) {
            return Ok(later);
        }
        let SetView { steps, interval, secret, status } = set.view();
        let namespace = set.namespace();
        let deadline = Instant::now() + RESOLVE_TIMEOUT;
        let name = set.name_any();
        let resolve = SetToResolve { namespace: namespace.as_deref(), name: &name, steps, secret };
        let found = self.resolver.resolve_set(resolve, deadline).await;
        let next = match &found {
            Ok(_) => {
                self.clear_failures(&key(&set));
                interval.map_or_else(Action::await_change, |interval| later(&set, interval))
            }
            Err(denial) => {
                tracing::warn!(set = %set.place(), reason = denial.message(), "cannot resolve a set; retrying");
                Action::requeue(self.record_failure(&key(&set)))
            }
        };
        self.write(&api, &set, status_now(status, generation_of(&set), found)).await?;
        Ok(next)
    }

    /// Writes a status if the object has not changed. A change of the object makes the controller process it again.
    async fn write<K: Set>(&self, api: &Api<K>, set: &K, next: SetStatus) -> Result<(), CallError> {
        let before = set.view().status;
        if before == Some(&next) {
            return Ok(());
        }
        let changed = before.and_then(|before| before.recipe.as_ref()) != next.recipe.as_ref();
        let version = ObjectVersion::of(set.meta());
        let written = call(REQUEST_TIMEOUT, replace_status(api, &version, &next, FIELD_MANAGER)).await?;
        if written == StatusWrite::Written {
            let id = next.id.as_deref().unwrap_or_default();
            if changed {
                tracing::info!(set = %set.place(), id, "a set has a new recipe");
            } else {
                tracing::debug!(set = %set.place(), id, "wrote the status of a set");
            }
        }
        Ok(())
    }

    /// Records a failure, and returns how long to wait.
    fn record_failure(&self, key: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() > MAX_FAILURES {
            failures.clear();
        }
        let before = failures.get(key).map_or(0, |backoff| backoff.failures);
        let wait = FIRST_RETRY.saturating_mul(1 << before.min(10)).min(MAX_RETRY);
        let wait = wait + jitter::up_to(wait / JITTER_PART);
        let backoff = Backoff { failures: before.saturating_add(1), until: Instant::now() + wait };
        failures.insert(key.to_owned(), backoff);
        wait
    }

    /// Returns how long to wait before the next try of a generation that failed.
    fn remaining_backoff(&self, key: &str) -> Option<Duration> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let left = failures.get(key)?.until.saturating_duration_since(Instant::now());
        Some(left).filter(|left| !left.is_zero())
    }

    /// Reports whether the last try of a generation failed.
    fn has_failed(&self, key: &str) -> bool {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    fn clear_failures(&self, key: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

fn generation_of<K: Set>(set: &K) -> i64 {
    set.meta().generation.unwrap_or_default()
}

/// Returns when to process a set again, if its tags are not due now.
fn not_due<K: Set>(set: &K) -> Option<Action> {
    let SetView { interval, status, .. } = set.view();
    match status::due(status, generation_of(set), interval, time::now()) {
        Due::Never => Some(Action::await_change()),
        Due::In(left) => Some(later(set, left)),
        Due::SpecChanged | Due::IntervalOver => None,
    }
}

/// Processes the set again after `wait` and a random delay.
fn later<K: Set>(set: &K, wait: Duration) -> Action {
    let longest = set.view().interval.map_or(Duration::ZERO, |interval| interval / JITTER_PART);
    Action::requeue(wait + jitter::up_to(longest.min(MAX_JITTER)))
}

#[cfg(test)]
mod tests;
