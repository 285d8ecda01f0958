//! Telling the log about a configuration that readiness does not wait for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::live::{Live, judge};
use crate::clock::Clock;
use crate::store::CertificateStore;

/// Tells the log, once per change, why the configuration does not trust what is served; until `shutdown`.
///
/// Judged every so often rather than at each change: at a start and after a replacement of the CA trust
/// comes within moments, and nobody needs to read of those.
pub(crate) async fn tell(
    live: watch::Receiver<Live>,
    store: Arc<CertificateStore>,
    clock: Clock,
    every: Duration,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut told = None;
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        // Without a certificate there is nothing to trust, and readiness says so.
        let Some(serving) = store.serving() else { continue };
        let check = judge(&live.borrow(), serving.leaf.chain(), clock.now());
        let reason = check.reason();
        let problem = (!check.is_ok()).then(|| reason.to_owned());
        if problem == told {
            continue;
        }
        if problem.is_some() {
            tracing::warn!(%reason, "a webhook cannot be called yet; readiness does not wait for it");
        } else {
            tracing::info!(%reason, "the webhook can be called now");
        }
        told = problem;
    }
}
