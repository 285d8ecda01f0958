//! Keeps in the status of each set what its tags stand for: when its spec changes, and again after its interval.
//!
//! Every replica of the webhook does so, and none has to lead. Each waits a random while longer than the interval, and
//! sees whether another was first. What is found is written only if the object is what it was before
//! anybody asked a registry, so that no older answer ever replaces a newer one.

use std::collections::HashMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt as _};
use oras_csi_core::jitter;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::object::{
    ArtifactSet, ArtifactSetSpec, ClusterArtifactSet, ClusterArtifactSetSpec, SecretName, SetStatus,
};
use super::recipe::SetStep;
use super::status::{self, Due};
use super::{SetPlace, SetResolver, SetToResolve, nodes, status_now};
use crate::FIELD_MANAGER;

/// How many sets of one kind are looked up at once.
/// A registry that stalls holds up the sets that name it, and these are not all.
const AT_ONCE: u16 = 32;
/// How long looking up one set may take.
const LONGEST_LOOK: Duration = Duration::from_mins(1);
/// How long one request to the API server may take.
const LONGEST_REQUEST: Duration = Duration::from_secs(10);
/// How long a replica waits at most for another to be first: a part of the interval, and never longer than this.
const LONGEST_JITTER: Duration = Duration::from_secs(30);
const JITTER_PART: u32 = 10;
/// The same where the spec was changed and somebody waits.
const SHORT_JITTER: Duration = Duration::from_millis(300);
/// How soon a look that failed is tried again, at first and at last.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_mins(1);
/// How many sets may have failed before their failures are forgotten.
const MOST_FAILURES: usize = 10_000;

/// What both kinds of sets have.
pub(super) trait Set:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Where it is.
    fn place(&self) -> SetPlace;
    /// What is written in it.
    fn written(&self) -> Written<'_>;
    /// The API for the one object.
    fn api(&self, client: &Client) -> Api<Self>;
}

/// What is written in a set, and what the webhook has made of that.
#[derive(Clone, Copy)]
pub(super) struct Written<'a> {
    pub(super) steps: &'a [SetStep],
    /// How often its tags are looked up; `None` is only when it changes.
    pub(super) interval: Option<Duration>,
    pub(super) secret: Option<&'a str>,
    pub(super) status: Option<&'a SetStatus>,
}

impl<'a> Written<'a> {
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
        SetPlace::Own { namespace: namespace.as_str().into(), name: self.name_any().as_str().into() }
    }

    fn written(&self) -> Written<'_> {
        let ArtifactSetSpec { recipe, refresh_interval, pull_secret } = &self.spec;
        Written::new(recipe, refresh_interval.as_deref(), pull_secret.as_ref(), self.status.as_ref())
    }

    fn api(&self, client: &Client) -> Api<Self> {
        Api::namespaced(client.clone(), &self.namespace().unwrap_or_default())
    }
}

impl Set for ClusterArtifactSet {
    fn place(&self) -> SetPlace {
        SetPlace::Cluster(self.name_any().as_str().into())
    }

    fn written(&self) -> Written<'_> {
        let ClusterArtifactSetSpec { recipe, refresh_interval, pull_secret, .. } = &self.spec;
        Written::new(recipe, refresh_interval.as_deref(), pull_secret.as_ref(), self.status.as_ref())
    }

    fn api(&self, client: &Client) -> Api<Self> {
        Api::all(client.clone())
    }
}

/// Keeps the sets of a cluster until `shutdown`.
pub fn keep<R: SetResolver>(
    client: &Client,
    resolver: &Arc<R>,
    shutdown: &CancellationToken,
    tasks: &TaskTracker,
) {
    let keeper = || {
        Arc::new(Keeper {
            client: client.clone(),
            resolver: Arc::clone(resolver) as Arc<dyn SetResolver>,
            failures: Mutex::default(),
        })
    };
    let own = run::<ArtifactSet>(Api::all(client.clone()), keeper(), shutdown.clone());
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(own));
    let cluster = run::<ClusterArtifactSet>(Api::all(client.clone()), keeper(), shutdown.clone());
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(cluster));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(nodes::count(client.clone())));
}

async fn run<K: Set>(api: Api<K>, keeper: Arc<Keeper>, shutdown: CancellationToken) {
    let controller = Controller::new(api, watcher::Config::default())
        .with_config(Config::default().concurrency(AT_ONCE))
        .graceful_shutdown_on(async move { shutdown.cancelled().await });
    let reconciled = controller.run(
        |set: Arc<K>, keeper: Arc<Keeper>| async move { keeper.look(set.as_ref()).await },
        |set, error, keeper| {
            let wait = keeper.failed(&key(set.as_ref()));
            tracing::warn!(set = %set.place(), %error, "the status of a set cannot be kept");
            Action::requeue(wait)
        },
        keeper,
    );
    let mut reconciled = pin!(reconciled);
    while let Some(outcome) = reconciled.next().await {
        if let Err(error) = outcome {
            tracing::debug!(%error, "a set will be looked at again");
        }
    }
}

/// Why the API server's part of a look failed.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("{0}")]
    Api(#[from] Box<kube::Error>),
    #[error("the API server had not answered in time")]
    TooLate,
}

struct Keeper {
    client: Client,
    resolver: Arc<dyn SetResolver>,
    failures: Mutex<HashMap<String, Failed>>,
}

/// A generation that failed.
#[derive(Clone, Copy)]
struct Failed {
    /// How often in a row.
    times: u32,
    /// When it is tried again.
    until: Instant,
}

fn key<K: Set>(set: &K) -> String {
    format!("{} {}", set.uid().unwrap_or_default(), generation_of(set))
}

impl Keeper {
    /// Looks at a set, and says when to look again.
    async fn look<K: Set>(&self, seen: &K) -> Result<Action, KeepError> {
        if seen.meta().deletion_timestamp.is_some() {
            return Ok(Action::await_change());
        }
        if let Some(later) = not_due(seen) {
            return Ok(later);
        }
        // What was written about a failure is a change as well.
        if let Some(left) = self.held_back(&key(seen)) {
            return Ok(Action::requeue(left));
        }
        tokio::time::sleep(jitter::up_to(SHORT_JITTER)).await;
        let api = seen.api(&self.client);
        let Some(set) = self.asked(api.get_opt(&seen.name_any())).await? else {
            return Ok(Action::await_change());
        };
        // Another replica may have been first.
        if let Some(later) = not_due(&set) {
            return Ok(later);
        }
        let Written { steps, interval, secret, status } = set.written();
        let namespace = set.namespace();
        let deadline = Instant::now() + LONGEST_LOOK;
        let name = set.name_any();
        let resolve = SetToResolve { namespace: namespace.as_deref(), name: &name, steps, secret };
        let found = self.resolver.resolve_set(resolve, deadline).await;
        let again = match &found {
            Ok(_) => {
                self.forget(&key(&set));
                interval.map_or_else(Action::await_change, |interval| later(&set, interval))
            }
            Err(denial) => {
                tracing::warn!(set = %set.place(), reason = denial.message(), "a set cannot be resolved");
                Action::requeue(self.failed(&key(&set)))
            }
        };
        self.write(&api, &set, status_now(status, generation_of(&set), found)).await?;
        Ok(again)
    }

    async fn asked<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, KeepError> {
        let answer = timeout(LONGEST_REQUEST, request).await.map_err(|_| KeepError::TooLate)?;
        answer.map_err(|error| KeepError::Api(Box::new(error)))
    }

    /// Writes a status, if the object is what it was. If it is not, whoever changed it has another look made.
    async fn write<K: Set>(&self, api: &Api<K>, set: &K, next: SetStatus) -> Result<(), KeepError> {
        let before = set.written().status;
        if before == Some(&next) {
            return Ok(());
        }
        let changed = before.and_then(|before| before.recipe.as_ref()) != next.recipe.as_ref();
        match self.asked(write_status(api, set, &next)).await {
            Ok(true) => {
                let id = next.id.as_deref().unwrap_or_default();
                if changed {
                    tracing::info!(set = %set.place(), id, "a set has another recipe");
                } else {
                    tracing::debug!(set = %set.place(), id, "the status of a set");
                }
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Notes one failure more; says how long to wait.
    fn failed(&self, key: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() > MOST_FAILURES {
            failures.clear();
        }
        let times = failures.get(key).map_or(0, |failed| failed.times);
        let wait = FIRST_RETRY.saturating_mul(1 << times.min(10)).min(LAST_RETRY);
        let wait = wait + jitter::up_to(wait / JITTER_PART);
        let failed = Failed { times: times.saturating_add(1), until: Instant::now() + wait };
        failures.insert(key.to_owned(), failed);
        wait
    }

    /// How long a generation that failed is left alone yet.
    fn held_back(&self, key: &str) -> Option<Duration> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let left = failures.get(key)?.until.saturating_duration_since(Instant::now());
        Some(left).filter(|left| !left.is_zero())
    }

    fn forget(&self, key: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Writes the status of a set that nobody has changed since it was read; says whether that was so.
pub(super) async fn write_status<K: Set>(
    api: &Api<K>,
    set: &K,
    next: &SetStatus,
) -> Result<bool, kube::Error> {
    let patch = json!([
        {"op": "test", "path": "/metadata/uid", "value": set.uid()},
        {"op": "test", "path": "/metadata/resourceVersion", "value": set.resource_version()},
        {"op": "add", "path": "/status", "value": next},
    ]);
    let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch_status(&set.name_any(), &params, &Patch::<()>::Json(patch)).await {
        Ok(_) => Ok(true),
        // Another version than the one that was read: 422 by the test, 409 where it changed in between.
        Err(kube::Error::Api(answer)) if is_overtaken(&answer) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_overtaken(answer: &kube::core::Status) -> bool {
    match answer.code {
        404 | 409 => true,
        // What breaks the schema has the same code, and must not pass for a test that failed.
        422 => !answer.message.contains("is invalid: status"),
        _ => false,
    }
}

fn generation_of<K: Set>(set: &K) -> i64 {
    set.meta().generation.unwrap_or_default()
}

/// When to look at a set again that is not due now.
fn not_due<K: Set>(set: &K) -> Option<Action> {
    let Written { interval, status, .. } = set.written();
    match status::due(status, generation_of(set), interval, status::now()) {
        Due::Never => Some(Action::await_change()),
        Due::In(left) => Some(later(set, left)),
        Due::Changed | Due::Over => None,
    }
}

/// Again after that time, and a random while.
fn later<K: Set>(set: &K, wait: Duration) -> Action {
    let longest = set.written().interval.map_or(Duration::ZERO, |interval| interval / JITTER_PART);
    Action::requeue(wait + jitter::up_to(longest.min(LONGEST_JITTER)))
}
