//! The metrics of preloads.

use oras_csi_store::PullErrorKind;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::pulls::{PULL_OUTCOMES, pull_outcome};
use super::{Labels, Metrics, counters};

#[derive(Clone, Debug)]
pub(super) struct Preloads {
    attempts: Family<Labels<1>, Counter>,
    wanted: Gauge,
    ready: Gauge,
}

impl Preloads {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let attempts = counters("outcome", &PULL_OUTCOMES);
        let new = Self { attempts, wanted: Gauge::default(), ready: Gauge::default() };
        let metrics = new.clone();
        registry.register("preloads", "Attempts to preload a cluster set, by outcome", metrics.attempts);
        registry.register(
            "preload_sets_wanted",
            "Cluster sets that select this node for preloading",
            metrics.wanted,
        );
        registry.register(
            "preload_sets_ready",
            "Preloaded cluster sets that are completely in the store",
            metrics.ready,
        );
        new
    }
}

impl Metrics {
    pub(crate) fn preloaded(&self, failure: Option<PullErrorKind>) {
        self.0.preloads.attempts.get_or_create(&[("outcome", pull_outcome(failure))]).inc();
    }

    pub(crate) fn sets(&self, wanted: usize, ready: usize) {
        let amount = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.0.preloads.wanted.set(amount(wanted));
        self.0.preloads.ready.set(amount(ready));
    }
}
