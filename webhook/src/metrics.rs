//! The metrics of the webhook. Every label has a small, fixed set of values: no label holds the name of an object, a
//! namespace or a registry.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use oras_csi_core::policy::{Mode, Rule};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::denial::Code;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RequestOutcome {
    /// Allowed without a change: the object requests no artifact.
    Untouched,
    /// Allowed with a patch.
    Patched,
    /// Allowed without a change: the object is complete already.
    Unchanged,
    /// Allowed with a warning: the pods of a workload will be denied.
    Warned,
    /// Denied, with the code of the denial.
    Denied(Code),
    /// Answered with an HTTP error: the request is not a valid AdmissionReview.
    Unreadable,
    /// Rejected because too many requests were in progress.
    Overload,
    /// The handler panicked: a bug.
    Crashed,
}

/// The result of a policy for an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    /// No rule is broken.
    Passed,
    /// A rule of a policy in that mode is broken.
    Broken(Mode, Rule),
}

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

impl EncodeLabelValue for RequestOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let word = match self {
            Self::Untouched => "untouched",
            Self::Patched => "patched",
            Self::Unchanged => "unchanged",
            Self::Warned => "warned",
            Self::Denied(code) => {
                return EncodeLabelValue::encode(&format!("denied_{}", code.number()), encoder);
            }
            Self::Unreadable => "unreadable",
            Self::Overload => "overload",
            Self::Crashed => "crashed",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

impl EncodeLabelValue for CacheOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let word = match self {
            Self::Hit => "hit",
            Self::Negative => "negative",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    outcome: RequestOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabels {
    cache: CacheOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: &'static str,
    rule: &'static str,
}

/// The metrics of the webhook.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    resolve: Family<CacheLabels, Histogram, fn() -> Histogram>,
    verdicts: Family<VerdictLabels, Counter>,
    slack: Histogram,
    policies: Gauge,
    unreadable_policies: Gauge,
    certificate_not_after: Gauge<f64, AtomicU64>,
}

/// The buckets of durations, from a lookup in memory to the longest timeout of the API server.
const DURATION_BUCKETS: [f64; 11] = [0.000_01, 0.000_1, 0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers all metrics, with the value 0.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("oras_csi_webhook");
        let requests = Family::default();
        registry.register("requests", "Admission requests, by outcome", requests.clone());
        let resolve: Family<CacheLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS));
        registry.register_with_unit(
            "resolve_duration",
            "Time to resolve a tag to a digest, by use of the cache",
            Unit::Seconds,
            resolve.clone(),
        );
        let verdicts = Family::default();
        registry.register(
            "policy_verdicts",
            "Results of policies for artifacts, one for each policy and artifact",
            verdicts.clone(),
        );
        let policies = Gauge::default();
        registry.register("policies", "Number of policies", policies.clone());
        let unreadable_policies = Gauge::default();
        registry.register(
            "unreadable_policies",
            "Policies whose last generation is invalid: an earlier generation is in force, or no artifact is allowed",
            unreadable_policies.clone(),
        );
        let slack = Histogram::new(DURATION_BUCKETS);
        registry.register_with_unit(
            "deadline_slack",
            "Time left until the timeout of the API server when the request was answered",
            Unit::Seconds,
            slack.clone(),
        );
        let certificate_not_after = Gauge::default();
        registry.register_with_unit(
            "certificate_not_after",
            "Expiry of the serving certificate, in seconds since 1970",
            Unit::Seconds,
            certificate_not_after.clone(),
        );
        Self {
            registry,
            requests,
            resolve,
            verdicts,
            slack,
            policies,
            unreadable_policies,
            certificate_not_after,
        }
    }

    pub(crate) fn verdict(&self, verdict: Verdict) {
        let (verdict, rule) = match verdict {
            Verdict::Passed => ("passed", ""),
            Verdict::Broken(Mode::Enforce, rule) => ("denied", rule.as_str()),
            Verdict::Broken(Mode::Warn, rule) => ("warned", rule.as_str()),
            Verdict::Broken(Mode::Audit, rule) => ("audited", rule.as_str()),
        };
        self.verdicts.get_or_create(&VerdictLabels { verdict, rule }).inc();
    }

    pub(crate) fn set_policies(&self, all: usize, unreadable: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.policies.set(number(all));
        self.unreadable_policies.set(number(unreadable));
    }

    pub(crate) fn request(&self, outcome: RequestOutcome) {
        self.requests.get_or_create(&RequestLabels { outcome }).inc();
    }

    pub(crate) fn resolved(&self, cache: CacheOutcome, took: Duration) {
        self.resolve.get_or_create(&CacheLabels { cache }).observe(took.as_secs_f64());
    }

    pub(crate) fn slack(&self, left: Duration) {
        self.slack.observe(left.as_secs_f64());
    }

    /// Sets the expiry of the serving certificate, in seconds since 1970.
    pub fn set_certificate_not_after(&self, seconds: f64) {
        self.certificate_not_after.set(seconds);
    }

    /// Returns the metrics in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
