//! Keeping the `caBundle` of webhook configurations in step with the CAs that we serve from.
//!
//! A watch for the life of the process: whoever empties or replaces the bundle gets it back. Each webhook
//! of the configuration is looked at, and nothing but its `caBundle` is ever written.
//!
//! **JSON patch rather than server-side apply.** An apply of one field in `webhooks` makes us an owner of
//! the list entry, so that an entry which the chart drops would stay behind as a stub that the API server
//! refuses. The patch tests the `resourceVersion` that was looked at and each entry's name before it sets
//! the field, so it can hit neither another entry than was meant nor a configuration that has been
//! handed to cert-manager in between; it fails as a whole, and the watch brings the newer object.
//!
//! **Old and new overlap.** CAs that are not ours are left in the bundle for a minute and then removed: a
//! replica that has read the Secret a moment earlier may serve from them already, and one that has not
//! may serve from them still.
//!
//! A configuration with the annotation `cert-manager.io/inject-ca-from` (or its siblings) is never
//! patched; readiness then waits for cert-manager's injector.
//!
//! Readiness waits for the MutatingWebhookConfiguration alone. Of the other kind, which is there to warn,
//! [`tell`] tells the log.

mod configuration;
mod live;
mod plan;
mod telling;

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bundle::Bundle;
use crate::clock::Clock;
use crate::error::api_words;

use configuration::Configuration;
pub(crate) use live::{Live, judge, trusts};
use plan::{Plan, plan};
pub(crate) use telling::tell;

/// Who writes, for the API server's record.
const FIELD_MANAGER: &str = "oras-csi-certs";
/// How long CAs that are not ours stay in a bundle, at least.
const GRACE: Duration = Duration::from_mins(1);
/// For how many looks at the Secret they stay, at least: until all replicas have seen what this one has.
const GRACE_LOOKS: u32 = 6;
/// How long to wait after a first refusal; doubled after each further one.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// How long to wait at most.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Keeps one configuration's `caBundle` in step.
pub(crate) struct TrustKeeper<C> {
    api: Api<C>,
    name: String,
    wanted: watch::Receiver<Bundle>,
    live: watch::Sender<Live>,
    clock: Clock,
    configuration: Option<C>,
    /// When CAs that are not ours were first seen.
    others_since: Option<Instant>,
    grace: Duration,
    refusals: u32,
    /// Before when nothing is written again, so that two who disagree do not write as fast as they can.
    pause: Option<Instant>,
}

impl<C: Configuration> TrustKeeper<C> {
    /// A keeper of the configuration `name`, with what it shall publish, and how often replicas look for
    /// changes of that; and what it knows of the live one.
    pub(crate) fn new(
        client: kube::Client,
        name: &str,
        wanted: watch::Receiver<Bundle>,
        poll: Duration,
        clock: Clock,
    ) -> (Self, watch::Receiver<Live>) {
        let (live, receiver) = watch::channel(Live::unknown::<C>(name));
        let keeper = Self {
            api: Api::all(client),
            name: name.to_owned(),
            wanted,
            live,
            clock,
            configuration: None,
            others_since: None,
            grace: GRACE.max(poll * GRACE_LOOKS),
            refusals: 0,
            pause: None,
        };
        (keeper, receiver)
    }

    /// Watches and reconciles until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = pin!(watch_object(self.api.clone(), &self.name).default_backoff());
        let mut again: Option<Instant> = None;
        loop {
            let wake = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                change = changes.next() => match change {
                    Some(Ok(configuration)) => self.seen(configuration),
                    Some(Err(error)) => { self.unseen(&error); continue }
                    None => return,
                },
                result = self.wanted.changed() => {
                    if result.is_err() { return }
                    self.others_since = None;
                    if let Some(configuration) = self.configuration.take() {
                        self.seen(Some(configuration));
                    }
                }
                () = wake => {}
            }
            let Some(next) = shutdown.run_until_cancelled(self.reconcile()).await else { return };
            again = next;
        }
    }

    fn seen(&mut self, configuration: Option<C>) {
        let live = if let Some(found) = &configuration {
            Live::found(&self.name, found, self.expects_us())
        } else {
            self.others_since = None;
            Live::missing::<C>(&self.name)
        };
        self.configuration = configuration;
        // What was refused before may go through now.
        self.pause = self.pause.map(|pause| pause.min(Instant::now() + FIRST_WAIT));
        self.publish(live);
    }

    /// The watch failed: what was last seen stays true until something else is seen.
    fn unseen(&mut self, error: &watcher::Error) {
        let words = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => api_words(error),
            other => other.to_string(),
        };
        let trouble = format!("it cannot be watched: {words}; grant list and watch on it");
        if self.note(trouble) {
            tracing::warn!(kind = C::KIND, configuration = %self.name, %words, "webhook configuration cannot be watched");
        }
    }

    /// Notes a failure; true if it is to be logged.
    fn note(&self, trouble: String) -> bool {
        self.live.send_if_modified(|live| live.set_trouble(trouble)) || C::AWAITED
    }

    fn expects_us(&self) -> bool {
        !self.wanted.borrow().is_empty()
    }

    fn publish(&self, live: Live) {
        self.live.send_if_modified(|known| {
            let news = *known != live;
            if news {
                tracing::debug!(kind = C::KIND, configuration = %self.name, "webhook configuration seen");
                *known = live;
            }
            news
        });
    }

    /// Brings the configuration in step, once. Gives when to look again, if not only on a change.
    async fn reconcile(&mut self) -> Option<Instant> {
        let configuration = self.configuration.as_ref()?;
        let wanted = self.wanted.borrow().clone();
        let prune = self.others_since.is_some_and(|since| since.elapsed() >= self.grace);
        match plan(configuration, &wanted, prune, self.clock.now()) {
            Plan::Nothing { others: false } => {
                (self.others_since, self.refusals) = (None, 0);
                None
            }
            Plan::Nothing { others: true } => {
                self.refusals = 0;
                Some(*self.others_since.get_or_insert_with(Instant::now) + self.grace)
            }
            Plan::Patch { .. } if self.pause.is_some_and(|pause| pause > Instant::now()) => self.pause,
            Plan::Patch { patch, webhooks } => {
                let params =
                    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
                match self.api.patch(&self.name, &params, &Patch::Json::<()>(patch)).await {
                    Ok(patched) => {
                        tracing::info!(kind = C::KIND, configuration = %self.name, ?webhooks, "caBundle set");
                        self.refusals = 0;
                        if prune {
                            self.others_since = None;
                        }
                        self.seen(Some(patched));
                        // Others may have been left in: look again.
                        self.pause = Some(Instant::now() + FIRST_WAIT);
                        self.pause
                    }
                    Err(error) => {
                        self.pause = Some(self.refused(&error));
                        self.pause
                    }
                }
            }
        }
    }

    fn refused(&mut self, error: &kube::Error) -> Instant {
        let words = api_words(error);
        let wait = (FIRST_WAIT * 2u32.saturating_pow(self.refusals.min(16))).min(LONGEST_WAIT);
        self.refusals = self.refusals.saturating_add(1);
        // A failed test (422) or a conflict means that the object has changed: the watch brings it.
        let trouble = format!("its caBundle cannot be set: {words}; grant patch on it");
        if self.note(trouble) {
            tracing::warn!(kind = C::KIND, configuration = %self.name, %words, ?wait, "caBundle not set, trying again");
        }
        Instant::now() + wait
    }
}

#[cfg(test)]
#[path = "trust/trust_tests.rs"]
mod tests;
