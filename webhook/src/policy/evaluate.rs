//! Applies the policies of a namespace to the artifacts of a pod. The result is a denial, warnings and audit
//! annotations. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use oras_csi_core::display::Shown;
use oras_csi_core::policy::{ArtifactContents, Author, Mode, Policy, Rule, Source, Violation};
use oras_csi_core::reference::Reference;
use serde_json::json;

use super::ApplicablePolicies;
use crate::denial::{Code, Denial};
use crate::intent::{Named, Origin};
use crate::metrics::{Metrics, Verdict};

/// How many entries one audit annotation of a pod can have; further entries are counted.
const MAX_AUDIT_ENTRIES: usize = 32;

/// The keys of audit annotations. A key that is set in both rounds of one admission must have the same value in both: the
/// API server keeps the first value and reports an error for another one. So violations by the spelling of a volume
/// attribute have a key of their own, because the second round sees the attribute rewritten.
const VIOLATIONS: &str = "violations";
const WRITING_VIOLATIONS: &str = "writing-violations";
const WRITING_VIOLATIONS_INLINE: &str = "writing-violations-inline";
/// Violations by a patch: the second round sees a canonical volume without the patch.
const PATCH_VIOLATIONS: &str = "patch-violations";
const PATCH_VIOLATIONS_INLINE: &str = "patch-violations-inline";
/// Artifacts whose contents could not be checked. The value is part of the interface.
const UNCHECKED: &str = "not-looked-at";

/// What the policies reported for a pod, except a denial.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    warnings: Vec<String>,
    audit: BTreeMap<&'static str, Vec<serde_json::Value>>,
    /// How many entries were left out.
    more: BTreeMap<&'static str, usize>,
}

/// The result of one policy for one artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    author: Author,
    mode: Mode,
    rule: Option<Rule>,
    component: Option<String>,
    is_broken: bool,
    looks_at_contents: bool,
}

impl Evaluation {
    /// Returns the policy, or the option that stands for one.
    pub fn author(&self) -> &Author {
        &self.author
    }

    /// Returns the mode: what happens when a rule is broken.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Reports whether the artifact breaks a rule.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Reports whether the policy has rules about contents, which an evaluation of a reference does not cover.
    pub fn looks_at_contents(&self) -> bool {
        self.looks_at_contents
    }

    /// Returns the rule that decided: the broken rule, or the list that allows the artifact.
    pub fn rule(&self) -> Option<Rule> {
        self.rule
    }

    /// Returns the part of the artifact that the rule matched.
    pub fn component(&self) -> Option<&str> {
        self.component.as_deref()
    }
}

/// Evaluates each policy for a reference.
pub(crate) fn evaluate_reference(
    policies: &ApplicablePolicies,
    reference: &Reference,
    source: Source,
) -> Vec<Evaluation> {
    policies
        .policies()
        .map(|policy| {
            let (rule, component, is_broken) = match policy.check_reference(reference, source) {
                Ok(None) => (None, None, false),
                Ok(Some(pattern)) => (Some(Rule::RegistriesAllow), Some(pattern.to_string()), false),
                Err(violation) => (Some(violation.rule()), Some(violation.component().to_owned()), true),
            };
            Evaluation {
                author: policy.author().clone(),
                mode: policy.mode(),
                rule,
                component,
                is_broken,
                looks_at_contents: policy.looks_at_contents(),
            }
        })
        .collect()
}

/// Evaluates each policy with rules about contents, for the manifests that the registry returned.
pub(crate) fn evaluate_contents(
    applicable: &ApplicablePolicies,
    found: &[ArtifactContents],
) -> Vec<Evaluation> {
    let policies = applicable.policies().filter(|policy| policy.looks_at_contents());
    policies
        .map(|policy| {
            let violation = found.iter().find_map(|found| policy.check_contents(found).err());
            Evaluation {
                author: policy.author().clone(),
                mode: policy.mode(),
                rule: violation.as_ref().map(Violation::rule),
                component: violation.as_ref().map(|violation| violation.component().to_owned()),
                is_broken: violation.is_some(),
                looks_at_contents: true,
            }
        })
        .collect()
}

impl Findings {
    /// Checks a reference against all policies. The denial names the first broken rule in the order of [`Rule`], so that
    /// a deny list is reported before a missing entry of an allow list.
    pub(crate) fn check_name(
        &mut self,
        policies: &ApplicablePolicies,
        named: &Named,
        metrics: &Metrics,
    ) -> Result<(), Denial> {
        let check = |policy: &Policy| policy.check_reference(&named.reference, named.source).map(|_| ());
        self.check(policies, named, metrics, check)
    }

    /// Checks contents against all policies; a node may mount any of `found`.
    pub(crate) fn check_found(
        &mut self,
        policies: &ApplicablePolicies,
        named: &Named,
        found: &[ArtifactContents],
        metrics: &Metrics,
    ) -> Result<(), Denial> {
        let check = |policy: &Policy| found.iter().try_for_each(|found| policy.check_contents(found));
        self.check(policies, named, metrics, check)
    }

    fn check(
        &mut self,
        policies: &ApplicablePolicies,
        named: &Named,
        metrics: &Metrics,
        check: impl Fn(&Policy) -> Result<(), Violation>,
    ) -> Result<(), Denial> {
        let mut denied: Option<(&Policy, Violation)> = None;
        let mut others = 0_usize;
        for policy in policies.policies() {
            let Err(violation) = check(policy) else {
                metrics.verdict(policy.author().name(), Verdict::Passed);
                continue;
            };
            let verdict = Verdict::Broken(policy.mode(), violation.rule());
            metrics.verdict(policy.author().name(), verdict);
            match policy.mode() {
                Mode::Enforce => match &denied {
                    Some((_, first)) => {
                        others += 1;
                        if violation.rule() < first.rule() {
                            denied = Some((policy, violation));
                        }
                    }
                    None => denied = Some((policy, violation)),
                },
                Mode::Warn => self.warn(policy, named, &violation),
                Mode::Audit => self.record_violation(policy, named, &violation),
            }
        }
        match denied {
            None => Ok(()),
            Some((policy, violation)) => {
                let others = if others > 0 { format!(" (and {others} more)") } else { String::new() };
                let rule = format!(
                    "is refused by {}, rule {} ({}){others}",
                    policy.author(),
                    violation.rule(),
                    violation.component()
                );
                let text = named.reference.to_string();
                Err(Denial::new(Code::Forbidden, named.origin.at(), Some(&text), rule, violation.instead()))
            }
        }
    }

    fn warn(&mut self, policy: &Policy, named: &Named, violation: &Violation) {
        self.warnings.push(format!(
            "{}: \"{}\" breaks {}, rule {} ({}): {}",
            named.origin.at(),
            Shown::new(&named.reference.to_string()),
            policy.author(),
            violation.rule(),
            violation.component(),
            violation.instead()
        ));
    }

    fn record_violation(&mut self, policy: &Policy, named: &Named, violation: &Violation) {
        let key = match (named.is_patch, violation.rule().is_about_tags(), &named.origin) {
            (true, _, Origin::Annotation { .. }) => PATCH_VIOLATIONS,
            (true, _, Origin::Attribute { .. } | Origin::Field(_)) => PATCH_VIOLATIONS_INLINE,
            (false, false, _) => VIOLATIONS,
            (false, true, Origin::Annotation { .. }) => WRITING_VIOLATIONS,
            (false, true, Origin::Attribute { .. } | Origin::Field(_)) => WRITING_VIOLATIONS_INLINE,
        };
        // Without tag or digest: a rule on a name has the same result for a tag and for the digest that replaces it.
        let entry = json!({
            "policy": policy.author().name(),
            "rule": violation.rule().as_str(),
            "artifact": named.reference.name(),
            "component": violation.component(),
        });
        self.add_audit_entry(key, entry);
    }

    /// Records that the contents of an artifact could not be checked, for policies that do not deny.
    pub(crate) fn record_unchecked(
        &mut self,
        policies: &ApplicablePolicies,
        named: &Named,
        failure: &impl fmt::Display,
    ) {
        let text = Shown::new(&named.reference.to_string());
        for policy in policies.policies().filter(|policy| policy.looks_at_contents()) {
            let author = policy.author();
            match policy.mode() {
                Mode::Warn => self.warnings.push(format!(
                    "{}: \"{text}\" could not be checked against {author} ({failure})",
                    named.origin.at()
                )),
                Mode::Audit | Mode::Enforce => self.add_audit_entry(
                    UNCHECKED,
                    json!({"policy": author.name(), "artifact": named.reference.name()}),
                ),
            }
        }
    }

    fn add_audit_entry(&mut self, key: &'static str, entry: serde_json::Value) {
        let entries = self.audit.entry(key).or_default();
        if entries.contains(&entry) {
            return;
        }
        if entries.len() < MAX_AUDIT_ENTRIES {
            entries.push(entry);
        } else {
            *self.more.entry(key).or_default() += 1;
        }
    }

    /// Returns the warnings, each once.
    pub(crate) fn take_warnings(&mut self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.retain(|warning| seen.insert(warning.clone()));
        warnings
    }

    /// Returns the audit annotations; each value is a JSON list.
    pub(crate) fn into_audit_annotations(mut self) -> BTreeMap<String, String> {
        for (key, more) in self.more {
            self.audit.entry(key).or_default().push(json!({"more": more}));
        }
        let text = |entries: Vec<serde_json::Value>| serde_json::Value::Array(entries).to_string();
        self.audit.into_iter().map(|(key, entries)| (key.to_owned(), text(entries))).collect()
    }
}
