//! The decisions of policies, and how many policies there are.

use std::borrow::Cow;

use oras_csi_core::policy::{Mode, Rule};
use oras_csi_metrics::Bounded;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The result of a policy for an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    /// No rule is broken.
    Passed,
    /// A rule of a policy in that mode is broken.
    Broken(Mode, Rule),
}

type OfVerdict = [(&'static str, Cow<'static, str>); 3];

/// The series of one policy. That of a verdict which is not `passed` is looked up, because it needs a message anyway.
#[derive(Debug)]
struct Series {
    name: Cow<'static, str>,
    passed: Counter,
}

/// The metrics of policies.
#[derive(Debug)]
pub(super) struct PolicyMetrics {
    verdicts: Family<OfVerdict, Counter>,
    by_policy: Bounded<Series>,
    policies: Gauge,
    unreadable: Gauge,
}

fn labels(policy: Cow<'static, str>, verdict: &'static str, rule: &'static str) -> OfVerdict {
    [("policy", policy), ("verdict", Cow::Borrowed(verdict)), ("rule", Cow::Borrowed(rule))]
}

impl PolicyMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let verdicts = Family::<OfVerdict, Counter>::default();
        registry.register(
            "policy_verdicts",
            "Results of policies for artifacts, one for each policy and artifact, by policy, verdict and broken rule",
            verdicts.clone(),
        );
        let (policies, unreadable) = (Gauge::default(), Gauge::default());
        registry.register("policies", "Number of policies", policies.clone());
        registry.register(
            "unreadable_policies",
            "Policies whose last generation is invalid: an earlier generation is in force, or no artifact is allowed",
            unreadable.clone(),
        );
        let family = verdicts.clone();
        let by_policy = Bounded::new(move |name| {
            let name: Cow<'static, str> = Cow::Owned(name.to_owned());
            let passed = family.get_or_create_owned(&labels(name.clone(), "passed", ""));
            Series { name, passed }
        });
        Self { verdicts, by_policy, policies, unreadable }
    }

    pub(super) fn verdict(&self, policy: &str, verdict: Verdict) {
        self.by_policy.with(policy, |series| {
            let (verdict, rule) = match verdict {
                Verdict::Passed => {
                    series.passed.inc();
                    return;
                }
                Verdict::Broken(Mode::Enforce, rule) => ("denied", rule),
                Verdict::Broken(Mode::Warn, rule) => ("warned", rule),
                Verdict::Broken(Mode::Audit, rule) => ("audited", rule),
            };
            self.verdicts.get_or_create(&labels(series.name.clone(), verdict, rule.as_str())).inc();
        });
    }

    pub(super) fn set_counts(&self, all: usize, unreadable: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.policies.set(number(all));
        self.unreadable.set(number(unreadable));
    }
}
