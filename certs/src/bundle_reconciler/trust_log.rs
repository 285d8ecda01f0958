//! Logging whether a configuration that readiness does not wait for trusts the serving certificate.

use std::sync::Arc;
use std::time::Duration;

use oras_csi_kube_support::repeated_failure::RepeatedFailure;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::observed::{ObservedConfiguration, check_trust};
use crate::clock::Clock;
use crate::store::CertificateStore;

/// Logs, once per change, why the configuration does not trust the serving certificate, until `shutdown`.
///
/// The check runs at an interval and not at each change: after a start and after a replacement of the CA, trust follows
/// within seconds, and the log does not need these.
pub(crate) async fn log_untrusted(
    observed: watch::Receiver<ObservedConfiguration>,
    store: Arc<CertificateStore>,
    clock: Clock,
    interval: Duration,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut last = RepeatedFailure::default();
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        // Without a certificate there is nothing to trust, and readiness reports that.
        let Some(serving) = store.serving() else { continue };
        let check = check_trust(&observed.borrow(), serving.leaf.chain(), clock.now());
        let reason = check.reason();
        if check.is_ok() {
            if last.clear() {
                tracing::info!(%reason, "the API server can call the webhook now");
            }
        } else if last.is_new(reason) {
            tracing::warn!(%reason, "the API server cannot call a webhook yet; readiness does not wait for it");
        }
    }
}
