//! Writing the CAs that this process uses into the `caBundle` of webhook configurations.
//!
//! A watch runs for the life of the process, so that a bundle that another client removes or replaces is restored. The
//! reconciler checks each webhook of the configuration, and never writes anything but its `caBundle`.
//!
//! **JSON patch and not server-side apply.** An apply of one field in `webhooks` would make this process an owner of the
//! list entry. An entry that the chart removes would then stay as a stub, which the API server rejects. The patch tests the
//! `resourceVersion` that was read and the name of each entry before it sets the field. So it can neither change another
//! entry nor a configuration that was handed over to cert-manager in the meantime: it fails as a whole, and the watch
//! delivers the newer object.
//!
//! **Old and new CAs overlap.** CAs that this process does not use stay in the bundle for a minute and are then removed.
//! Another replica that has read the Secret earlier may serve a certificate from the new CA already, and a replica that has
//! not read it yet may still serve one from the old CA.
//!
//! A configuration with the annotation `cert-manager.io/inject-ca-from` (or a similar one) is never patched. Readiness then
//! waits for the injector of cert-manager.
//!
//! Readiness waits only for the MutatingWebhookConfiguration. The ValidatingWebhookConfiguration only causes warnings, so
//! [`log_untrusted`] logs its state.

mod observed;
mod plan;
mod trust_log;
mod webhook_configuration;

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{Api, Patch};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use oras_csi_kube_support::errors::message;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::FIELD_MANAGER;
use crate::ca_bundle::CaBundle;
use crate::clock::Clock;

pub(crate) use observed::{ObservedConfiguration, check_trust, is_trusted};
use plan::{ForeignCas, Plan, plan};
pub(crate) use trust_log::log_untrusted;
use webhook_configuration::WebhookConfiguration;

/// How long foreign CAs stay in a bundle, at least.
const OVERLAP: Duration = Duration::from_mins(1);
/// For how many polls of the Secret foreign CAs stay, at least: until all replicas have read the present Secret.
const OVERLAP_POLLS: u32 = 6;
/// The delay after the first failed write. It doubles with each further failure.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest delay after a failed write.
const MAX_RETRY: Duration = Duration::from_mins(1);

/// Reconciles the `caBundle` of one configuration.
pub(crate) struct BundleReconciler<C> {
    api: Api<C>,
    name: String,
    desired: watch::Receiver<CaBundle>,
    observed: watch::Sender<ObservedConfiguration>,
    clock: Clock,
    configuration: Option<C>,
    /// When foreign CAs were first seen.
    foreign_since: Option<Instant>,
    /// How long foreign CAs stay.
    overlap: Duration,
    /// How many writes failed in a row.
    failures: u32,
    /// Until when nothing is written, so that two processes that disagree do not write as fast as they can.
    paused_until: Option<Instant>,
}

impl<C: WebhookConfiguration> BundleReconciler<C> {
    /// Makes a reconciler for the configuration `name`, and the receiver of what it observes. `desired` is the bundle to
    /// write, and `poll` how often replicas read the Secret.
    pub(crate) fn new(
        client: kube::Client,
        name: &str,
        desired: watch::Receiver<CaBundle>,
        poll: Duration,
        clock: Clock,
    ) -> (Self, watch::Receiver<ObservedConfiguration>) {
        let (observed, receiver) = watch::channel(ObservedConfiguration::unknown::<C>(name));
        let reconciler = Self {
            api: Api::all(client),
            name: name.to_owned(),
            desired,
            observed,
            clock,
            configuration: None,
            foreign_since: None,
            overlap: OVERLAP.max(poll * OVERLAP_POLLS),
            failures: 0,
            paused_until: None,
        };
        (reconciler, receiver)
    }

    /// Watches and reconciles until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = pin!(watch_object(self.api.clone(), &self.name).default_backoff());
        let mut next: Option<Instant> = None;
        loop {
            let wake = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                change = changes.next() => match change {
                    Some(Ok(configuration)) => self.observe(configuration),
                    Some(Err(error)) => { self.observe_failure(&error); continue }
                    None => return,
                },
                result = self.desired.changed() => {
                    if result.is_err() { return }
                    self.foreign_since = None;
                    if let Some(configuration) = self.configuration.take() {
                        self.observe(Some(configuration));
                    }
                }
                () = wake => {}
            }
            let Some(at) = shutdown.run_until_cancelled(self.reconcile()).await else { return };
            next = at;
        }
    }

    fn observe(&mut self, configuration: Option<C>) {
        let observed = if let Some(found) = &configuration {
            ObservedConfiguration::found(&self.name, found, self.has_bundle())
        } else {
            self.foreign_since = None;
            ObservedConfiguration::missing::<C>(&self.name)
        };
        self.configuration = configuration;
        // A write that was refused before may succeed now.
        let soon = Instant::now() + FIRST_RETRY;
        self.paused_until = self.paused_until.map(|until| until.min(soon));
        self.publish(observed);
    }

    /// Records a failure of the watch. The configuration that was read last stays valid.
    fn observe_failure(&mut self, error: &watcher::Error) {
        let error = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => message(error),
            other => other.to_string(),
        };
        let problem = format!("it cannot be watched: {error}; grant list and watch on it");
        if self.record_problem(problem) {
            tracing::warn!(kind = C::KIND, configuration = %self.name, %error, "cannot watch a webhook configuration; retrying");
        }
    }

    /// Records a failure. Returns true if it must be logged.
    fn record_problem(&self, problem: String) -> bool {
        self.observed.send_if_modified(|observed| observed.set_problem(problem)) || C::READINESS_WAITS
    }

    fn has_bundle(&self) -> bool {
        !self.desired.borrow().is_empty()
    }

    fn publish(&self, observed: ObservedConfiguration) {
        self.observed.send_if_modified(|known| {
            let is_new = *known != observed;
            if is_new {
                tracing::debug!(kind = C::KIND, configuration = %self.name, "read a webhook configuration");
                *known = observed;
            }
            is_new
        });
    }

    /// Writes the bundle if that is needed. Returns when to reconcile again, if that must happen without a change.
    async fn reconcile(&mut self) -> Option<Instant> {
        let configuration = self.configuration.as_ref()?;
        let desired = self.desired.borrow().clone();
        let is_over = self.foreign_since.is_some_and(|since| since.elapsed() >= self.overlap);
        let foreign = if is_over { ForeignCas::Remove } else { ForeignCas::Keep };
        match plan(configuration, &desired, foreign, self.clock.now()) {
            Plan::Nothing { has_foreign_cas: false } => {
                (self.foreign_since, self.failures) = (None, 0);
                None
            }
            Plan::Nothing { has_foreign_cas: true } => {
                self.failures = 0;
                Some(*self.foreign_since.get_or_insert_with(Instant::now) + self.overlap)
            }
            Plan::Patch { .. } if self.paused_until.is_some_and(|until| until > Instant::now()) => {
                self.paused_until
            }
            Plan::Patch { patch, webhooks } => {
                let params = FIELD_MANAGER.patch();
                match self.api.patch(&self.name, &params, &Patch::Json::<()>(patch)).await {
                    Ok(patched) => {
                        tracing::info!(kind = C::KIND, configuration = %self.name, ?webhooks, "wrote the caBundle");
                        self.failures = 0;
                        if foreign == ForeignCas::Remove {
                            self.foreign_since = None;
                        }
                        self.observe(Some(patched));
                        // Foreign CAs may have been left in the bundle.
                        self.paused_until = Some(Instant::now() + FIRST_RETRY);
                        self.paused_until
                    }
                    Err(error) => {
                        self.paused_until = Some(self.back_off(&error));
                        self.paused_until
                    }
                }
            }
        }
    }

    /// Records a failed write, and returns when to try again.
    fn back_off(&mut self, error: &kube::Error) -> Instant {
        let error = message(error);
        let wait = (FIRST_RETRY * 2u32.saturating_pow(self.failures.min(16))).min(MAX_RETRY);
        self.failures = self.failures.saturating_add(1);
        // A failed test (422) or a conflict means that the object has changed: the watch delivers the newer one.
        let problem = format!("its caBundle cannot be written: {error}; grant patch on it");
        if self.record_problem(problem) {
            tracing::warn!(kind = C::KIND, configuration = %self.name, %error, ?wait, "cannot write the caBundle; retrying");
        }
        Instant::now() + wait
    }
}

#[cfg(test)]
#[path = "bundle_reconciler/tests.rs"]
mod tests;
