//! The metrics of the driver, for Prometheus. The names of registries are a label with a bounded number of values
//! ([`oras_csi_metrics::Bounded`]); every other label has a small, fixed set of them. No label has the name of a volume, a
//! pod or a path.

mod calls;
mod preloads;
mod pulls;
mod store;

use std::sync::Arc;

use oras_csi_metrics::RegistryRequests;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

pub use self::calls::CallOutcome;
use self::calls::Calls;
use self::preloads::Preloads;
use self::pulls::PullMetrics;
use self::store::StoreMetrics;
pub(crate) use self::store::TreeLookup;

/// Labels whose values are words of the program.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Returns a counter for each value of a label, so that all series exist from the start.
fn counters(label: &'static str, values: &[&'static str]) -> Family<Labels<1>, Counter> {
    let family = Family::<Labels<1>, Counter>::default();
    for value in values {
        drop(family.get_or_create(&[(label, *value)]));
    }
    family
}

/// The counters of the driver. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    calls: Calls,
    pulls: PullMetrics,
    store: StoreMetrics,
    preloads: Preloads,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = oras_csi_metrics::with_build_info("oras_csi_driver");
        let calls = Calls::register(&mut registry);
        let pulls = PullMetrics::register(&mut registry);
        let store = StoreMetrics::register(&mut registry);
        let preloads = Preloads::register(&mut registry);
        Self(Arc::new(Inner { registry, calls, pulls, store, preloads }))
    }
}

impl Metrics {
    /// Returns the observer for the client of registries.
    pub fn registry_requests(&self) -> Arc<RegistryRequests> {
        self.0.pulls.requests()
    }

    /// Returns all metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        oras_csi_metrics::encode(&self.0.registry)
    }
}
