//! The requests to registries: how long they take, and how they fail.

use std::borrow::Cow;
use std::time::Duration;

use oras_csi_core::reference::RegistryHost;
use oras_csi_core::registry::{RegistryErrorKind, RequestObserver};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::bounded::Bounded;

/// The buckets of a request: a registry beside the node answers in milliseconds, and the timeout for headers is 30 s.
const BUCKETS: [f64; 10] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

type OfRegistry = [(&'static str, Cow<'static, str>); 1];
type OfKind = [(&'static str, Cow<'static, str>); 2];

/// The series of one registry.
#[derive(Debug)]
struct Series {
    duration: Histogram,
    failures: Vec<Counter>,
}

/// Counts the requests to each registry.
#[derive(Debug)]
pub struct RegistryRequests(Bounded<Series>);

impl RegistryRequests {
    /// Adds the metrics to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let durations = Family::<OfRegistry, Histogram, fn() -> Histogram>::new_with_constructor(|| {
            Histogram::new(BUCKETS)
        });
        registry.register_with_unit(
            "registry_request_duration",
            "Time until a registry answered a request, or the request failed, by the registry of the reference",
            Unit::Seconds,
            durations.clone(),
        );
        let failures = Family::<OfKind, Counter>::default();
        registry.register(
            "registry_request_failures",
            "Failed requests to registries and content that cannot be used, each try, by registry and kind of failure",
            failures.clone(),
        );
        Self(Bounded::new(move |host| {
            let host: Cow<'static, str> = Cow::Owned(host.to_owned());
            let of_kind = |kind: &RegistryErrorKind| {
                let kind = Cow::Borrowed(kind.as_str());
                failures.get_or_create_owned(&[("registry", host.clone()), ("kind", kind)])
            };
            Series {
                duration: durations.get_or_create_owned(&[("registry", host.clone())]),
                failures: RegistryErrorKind::ALL.iter().map(of_kind).collect(),
            }
        }))
    }
}

impl RegistryRequests {
    /// Returns how often a registry has limited the rate of requests, since the start of the program. It is 0 for a registry
    /// that shares its series with others.
    pub fn rate_limits(&self, registry: &RegistryHost) -> u64 {
        let position = position(RegistryErrorKind::RateLimited);
        let count = self.0.get(&registry.to_string(), |series| {
            position.and_then(|position| series.failures.get(position)).map_or(0, Counter::get)
        });
        count.unwrap_or(0)
    }
}

/// Returns the position of the counter of a kind.
fn position(kind: RegistryErrorKind) -> Option<usize> {
    RegistryErrorKind::ALL.iter().position(|known| *known == kind)
}

impl RequestObserver for RegistryRequests {
    fn requested(&self, registry: &RegistryHost, took: Duration) {
        self.0.with(&registry.to_string(), |series| series.duration.observe(took.as_secs_f64()));
    }

    fn failed(&self, registry: &RegistryHost, kind: RegistryErrorKind) {
        let position = position(kind);
        self.0.with(&registry.to_string(), |series| {
            if let Some(counter) = position.and_then(|position| series.failures.get(position)) {
                counter.inc();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_VALUES, encode};

    #[test]
    fn registries_have_series_of_their_own_up_to_the_limit() {
        let mut registry = Registry::with_prefix("oras_csi_test");
        let requests = RegistryRequests::register(&mut registry);
        for number in 0..2 * MAX_VALUES {
            let host = format!("registry-{number}.example").parse().unwrap();
            requests.requested(&host, Duration::from_millis(300));
            requests.failed(&host, RegistryErrorKind::RateLimited);
        }
        assert_eq!(requests.rate_limits(&"registry-7.example".parse().unwrap()), 1);
        assert_eq!(requests.rate_limits(&"registry-77.example".parse().unwrap()), 0, "it shares its series");
        let text = encode(&registry);
        for line in [
            "oras_csi_test_registry_request_duration_seconds_bucket{le=\"0.25\",registry=\"registry-7.example\"} 0",
            "oras_csi_test_registry_request_duration_seconds_bucket{le=\"0.5\",registry=\"registry-7.example\"} 1",
            "oras_csi_test_registry_request_failures_total{registry=\"registry-7.example\",kind=\"rate_limited\"} 1",
            "oras_csi_test_registry_request_failures_total{registry=\"registry-7.example\",kind=\"stalled\"} 0",
            "oras_csi_test_registry_request_failures_total{registry=\"other\",kind=\"rate_limited\"} 50",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let hosts = text.lines().filter(|line| line.contains("_duration_seconds_count{")).count();
        assert_eq!(hosts, MAX_VALUES + 1);
    }
}
