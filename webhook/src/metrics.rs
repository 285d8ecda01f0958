//! What the webhook counts. Every label has a fixed, small set of values: no name of an object, a
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
    /// Allowed, and none of our business.
    Untouched,
    /// Allowed with a patch.
    Patched,
    /// Allowed; all was there already.
    Unchanged,
    /// A workload whose pods will meet something that is worth a word.
    Warned,
    /// Denied, with one of the few codes of a denial.
    Denied(Code),
    /// Answered with an HTTP error: the request is not an AdmissionReview that can be answered.
    Unreadable,
    /// Turned away because too many were at work.
    Overload,
    /// A bug.
    Crashed,
}

/// What a policy said of an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    /// No rule is broken.
    Passed,
    /// A rule is broken, of a policy in that mode.
    Broken(Mode, Rule),
}

/// Where a tag's digest came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CacheOutcome {
    /// From memory.
    Hit,
    /// From memory, which knows that it does not exist.
    Negative,
    /// From the registry.
    Miss,
    /// From the registry, as `pullalways` asks.
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

/// The webhook's metrics.
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

/// From a map look-up to the longest that an API server waits.
const SECONDS: [f64; 11] = [0.000_01, 0.000_1, 0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at nought, and registered.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("oras_csi_webhook");
        let requests = Family::default();
        registry.register("requests", "Admission requests by how they ended", requests.clone());
        let resolve: Family<CacheLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(SECONDS));
        registry.register_with_unit(
            "resolve_duration",
            "Time until a tag's digest was known, by where it came from",
            Unit::Seconds,
            resolve.clone(),
        );
        let verdicts = Family::default();
        registry.register(
            "policy_verdicts",
            "What policies said of artifacts, one count a policy and artifact",
            verdicts.clone(),
        );
        let policies = Gauge::default();
        registry.register("policies", "Policies that are known", policies.clone());
        let unreadable_policies = Gauge::default();
        registry.register(
            "unreadable_policies",
            "Policies whose last generation cannot be read; an earlier one is in force, or nothing is allowed",
            unreadable_policies.clone(),
        );
        let slack = Histogram::new(SECONDS);
        registry.register_with_unit(
            "deadline_slack",
            "Time that was left of the API server's timeout",
            Unit::Seconds,
            slack.clone(),
        );
        let certificate_not_after = Gauge::default();
        registry.register_with_unit(
            "certificate_not_after",
            "When the serving certificate ends, since 1970",
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

    /// Notes when the serving certificate ends, in seconds since 1970.
    pub fn set_certificate_not_after(&self, seconds: f64) {
        self.certificate_not_after.set(seconds);
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
