//! The metrics of the webhook. The names of policies and registries are labels with a bounded number of values
//! ([`oras_csi_metrics::Bounded`]); every other label has a small, fixed set of them. No label holds a namespace, the name
//! of a pod or a path.

mod pins;
mod policies;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use oras_csi_certs::Expiry;
use oras_csi_metrics::RegistryRequests;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

pub(crate) use self::pins::PinWrite;
use self::policies::PolicyMetrics;
pub(crate) use self::policies::Verdict;
pub(crate) use self::requests::RequestOutcome;
use self::requests::Requests;

/// Labels whose values are words of the program.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Where the digest of a tag came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CacheOutcome {
    /// From the cache.
    Hit,
    /// From the cache: the tag is known not to exist.
    Negative,
    /// From the registry.
    Miss,
    /// From the registry, because `pullalways` skips the cache.
    Bypass,
}

/// The series of each [`CacheOutcome`].
#[derive(Debug)]
struct Resolutions {
    hit: Histogram,
    negative: Histogram,
    miss: Histogram,
    bypass: Histogram,
}

/// The metrics of the webhook.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Requests,
    resolutions: Resolutions,
    policies: PolicyMetrics,
    slack: Histogram,
    pin_writes: Family<Labels<1>, Counter>,
    seal_failures: Counter,
    certificate_expiry: Family<Labels<1>, Gauge>,
    registry_requests: Arc<RegistryRequests>,
}

/// The buckets of durations, from a lookup in memory to the longest timeout of the API server.
const DURATION_BUCKETS: [f64; 11] = [0.000_01, 0.000_1, 0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers all metrics. Those whose labels have fixed values have the value 0.
    pub fn new() -> Self {
        let mut registry = oras_csi_metrics::with_build_info("oras_csi_webhook");
        let requests = Requests::register(&mut registry);
        let resolve = Family::<Labels<1>, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(DURATION_BUCKETS)
        });
        registry.register_with_unit(
            "resolve_duration",
            "Time to resolve a tag to a digest, by use of the cache",
            Unit::Seconds,
            resolve.clone(),
        );
        let resolutions = {
            let of = |cache| resolve.get_or_create_owned(&[("cache", cache)]);
            Resolutions { hit: of("hit"), negative: of("negative"), miss: of("miss"), bypass: of("bypass") }
        };
        let policies = PolicyMetrics::register(&mut registry);
        let slack = Histogram::new(DURATION_BUCKETS);
        registry.register_with_unit(
            "deadline_slack",
            "Time left until the timeout of the API server when the request was answered",
            Unit::Seconds,
            slack.clone(),
        );
        let pin_writes = Family::<Labels<1>, Counter>::default();
        registry.register("pin_writes", "Attempts to store an ArtifactPin, by outcome", pin_writes.clone());
        for outcome in PinWrite::OUTCOMES {
            drop(pin_writes.get_or_create(&[("outcome", outcome)]));
        }
        let seal_failures = Counter::default();
        registry.register(
            "seal_failures",
            "Volumes that could not be sealed, because the webhook has no key",
            seal_failures.clone(),
        );
        let certificate_expiry = Family::<Labels<1>, Gauge>::default();
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When a certificate expires, in seconds since 1970: the serving certificate and, if it is known, its CA",
            Unit::Seconds,
            certificate_expiry.clone(),
        );
        let registry_requests = Arc::new(RegistryRequests::register(&mut registry));
        Self {
            registry,
            requests,
            resolutions,
            policies,
            slack,
            pin_writes,
            seal_failures,
            certificate_expiry,
            registry_requests,
        }
    }

    /// Returns the observer for the client of registries.
    pub fn registry_requests(&self) -> Arc<RegistryRequests> {
        Arc::clone(&self.registry_requests)
    }

    pub(crate) fn verdict(&self, policy: &str, verdict: Verdict) {
        self.policies.verdict(policy, verdict);
    }

    pub(crate) fn set_policies(&self, all: usize, unreadable: usize) {
        self.policies.set_counts(all, unreadable);
    }

    pub(crate) fn request(&self, outcome: RequestOutcome) {
        self.requests.count(outcome);
    }

    pub(crate) fn resolved(&self, cache: CacheOutcome, took: Duration) {
        let series = match cache {
            CacheOutcome::Hit => &self.resolutions.hit,
            CacheOutcome::Negative => &self.resolutions.negative,
            CacheOutcome::Miss => &self.resolutions.miss,
            CacheOutcome::Bypass => &self.resolutions.bypass,
        };
        series.observe(took.as_secs_f64());
    }

    pub(crate) fn slack(&self, left: Duration) {
        self.slack.observe(left.as_secs_f64());
    }

    pub(crate) fn pin_written(&self, write: PinWrite<'_>) {
        self.pin_writes.get_or_create(&[("outcome", write.outcome())]).inc();
    }

    pub(crate) fn seal_failed(&self) {
        self.seal_failures.inc();
    }

    /// Sets when the certificates expire. A certificate that is not known has no series.
    pub fn set_certificate_expiry(&self, expiry: Expiry) {
        for (kind, at) in [("serving", expiry.leaf), ("ca", expiry.authority)] {
            let labels = [("kind", kind)];
            match at {
                Some(seconds) => drop(self.certificate_expiry.get_or_create(&labels).set(seconds)),
                None => drop(self.certificate_expiry.remove(&labels)),
            }
        }
    }

    /// Returns the metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        oras_csi_metrics::encode(&self.registry)
    }
}
