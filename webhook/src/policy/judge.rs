//! Asks policies about a pod's artifacts, and sorts what they say: a denial, warnings, audit notes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use oras_csi_core::display::Shown;
use oras_csi_core::policy::{ArtifactContents, Author, Mode, Policy, Rule, Source, Violation};
use oras_csi_core::reference::Reference;
use serde_json::json;

use super::Rulebook;
use crate::denial::{Code, Denial};
use crate::intent::{Named, Origin};
use crate::metrics::{Metrics, Verdict};

/// What is noted for the audit log of one pod under one key, at most; the rest is counted.
const MOST_NOTES: usize = 32;

/// The keys of audit annotations. A key that is there in both rounds of one admission has the same value in
/// both (the API server keeps the first and complains of another): what a rule says of an attribute's writing is
/// apart, since a second round finds the attribute rewritten.
const VIOLATIONS: &str = "violations";
const WRITING_VIOLATIONS: &str = "writing-violations";
const WRITING_VIOLATIONS_INLINE: &str = "writing-violations-inline";
/// What rules say of a patch, which no second round finds at a volume that has become canonical.
const PATCH_VIOLATIONS: &str = "patch-violations";
const PATCH_VIOLATIONS_INLINE: &str = "patch-violations-inline";
/// Artifacts that policies in mode Audit could not look at.
const NOT_LOOKED_AT: &str = "not-looked-at";

/// What policies said, but for the denial that ends it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    warnings: Vec<String>,
    notes: BTreeMap<&'static str, Vec<serde_json::Value>>,
    /// How many more there were than are kept.
    more: BTreeMap<&'static str, usize>,
}

/// One policy's word on one artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    author: Author,
    mode: Mode,
    rule: Option<Rule>,
    component: Option<String>,
    is_broken: bool,
    looks_at_contents: bool,
}

impl Opinion {
    /// Whose policy it is.
    pub fn author(&self) -> &Author {
        &self.author
    }

    /// What becomes of those who break its rules.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether a rule of it is broken.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Whether the policy has rules about contents, of which an opinion on a name says nothing.
    pub fn looks_at_contents(&self) -> bool {
        self.looks_at_contents
    }

    /// The rule that decided: the one that is broken, or the list that has the artifact.
    pub fn rule(&self) -> Option<Rule> {
        self.rule
    }

    /// What the rule looked at.
    pub fn component(&self) -> Option<&str> {
        self.component.as_deref()
    }
}

/// What each policy says of a reference's name.
pub(crate) fn opinions(book: &Rulebook, reference: &Reference, source: Source) -> Vec<Opinion> {
    book.policies()
        .map(|policy| {
            let (rule, component, is_broken) = match policy.check_reference(reference, source) {
                Ok(None) => (None, None, false),
                Ok(Some(pattern)) => (Some(Rule::RegistriesAllow), Some(pattern.to_string()), false),
                Err(violation) => (Some(violation.rule()), Some(violation.component().to_owned()), true),
            };
            Opinion {
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

/// What each policy that looks at contents says of what a registry has.
pub(crate) fn opinions_of_contents(book: &Rulebook, found: &[ArtifactContents]) -> Vec<Opinion> {
    let policies = book.policies().filter(|policy| policy.looks_at_contents());
    policies
        .map(|policy| {
            let violation = found.iter().find_map(|found| policy.check_contents(found).err());
            Opinion {
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
    /// Asks all policies about a name. The denial is that of the first rule in the order of [`Rule`], so that
    /// what is forbidden comes before what is merely not allowed.
    pub(crate) fn check_name(
        &mut self,
        book: &Rulebook,
        named: &Named,
        metrics: &Metrics,
    ) -> Result<(), Denial> {
        let check = |policy: &Policy| policy.check_reference(&named.reference, named.source).map(|_| ());
        self.check(book, named, metrics, check)
    }

    /// Asks all policies about what a registry has; each of `found` may be what a node mounts.
    pub(crate) fn check_found(
        &mut self,
        book: &Rulebook,
        named: &Named,
        found: &[ArtifactContents],
        metrics: &Metrics,
    ) -> Result<(), Denial> {
        let check = |policy: &Policy| found.iter().try_for_each(|found| policy.check_contents(found));
        self.check(book, named, metrics, check)
    }

    fn check(
        &mut self,
        book: &Rulebook,
        named: &Named,
        metrics: &Metrics,
        check: impl Fn(&Policy) -> Result<(), Violation>,
    ) -> Result<(), Denial> {
        let mut denied: Option<(&Policy, Violation)> = None;
        let mut more = 0_usize;
        for policy in book.policies() {
            let Err(violation) = check(policy) else {
                metrics.verdict(Verdict::Passed);
                continue;
            };
            metrics.verdict(Verdict::Broken(policy.mode(), violation.rule()));
            match policy.mode() {
                Mode::Enforce => match &denied {
                    Some((_, first)) => {
                        more += 1;
                        if violation.rule() < first.rule() {
                            denied = Some((policy, violation));
                        }
                    }
                    None => denied = Some((policy, violation)),
                },
                Mode::Warn => self.warn(policy, named, &violation),
                Mode::Audit => self.note(policy, named, &violation),
            }
        }
        match denied {
            None => Ok(()),
            Some((policy, violation)) => {
                let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
                let rule = format!(
                    "is refused by {}, rule {} ({}){more}",
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

    fn note(&mut self, policy: &Policy, named: &Named, violation: &Violation) {
        let key = match (named.is_patch, violation.rule().is_about_tags(), &named.origin) {
            (true, _, Origin::Annotation { .. }) => PATCH_VIOLATIONS,
            (true, _, Origin::Attribute { .. } | Origin::Field(_)) => PATCH_VIOLATIONS_INLINE,
            (false, false, _) => VIOLATIONS,
            (false, true, Origin::Annotation { .. }) => WRITING_VIOLATIONS,
            (false, true, Origin::Attribute { .. } | Origin::Field(_)) => WRITING_VIOLATIONS_INLINE,
        };
        // A rule on a name says the same of a tag and of the digest that replaces it.
        let note = json!({
            "policy": policy.author().name(),
            "rule": violation.rule().as_str(),
            "artifact": named.reference.name(),
            "component": violation.component(),
        });
        self.keep(key, note);
    }

    /// Says that nobody could look at an artifact, where no policy that would have denies.
    pub(crate) fn not_looked_at(&mut self, book: &Rulebook, named: &Named, failure: &impl fmt::Display) {
        let text = Shown::new(&named.reference.to_string());
        for policy in book.policies().filter(|policy| policy.looks_at_contents()) {
            let author = policy.author();
            match policy.mode() {
                Mode::Warn => self.warnings.push(format!(
                    "{}: \"{text}\" could not be looked at for {author} ({failure})",
                    named.origin.at()
                )),
                Mode::Audit | Mode::Enforce => self.keep(
                    NOT_LOOKED_AT,
                    json!({"policy": author.name(), "artifact": named.reference.name()}),
                ),
            }
        }
    }

    fn keep(&mut self, key: &'static str, note: serde_json::Value) {
        let notes = self.notes.entry(key).or_default();
        if notes.contains(&note) {
            return;
        }
        if notes.len() < MOST_NOTES {
            notes.push(note);
        } else {
            *self.more.entry(key).or_default() += 1;
        }
    }

    /// The warnings, each once.
    pub(crate) fn take_warnings(&mut self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.retain(|warning| seen.insert(warning.clone()));
        warnings
    }

    /// Audit annotations, a JSON list each.
    pub(crate) fn into_audit(mut self) -> BTreeMap<String, String> {
        for (key, more) in self.more {
            self.notes.entry(key).or_default().push(json!({"more": more}));
        }
        let text = |notes: Vec<serde_json::Value>| serde_json::Value::Array(notes).to_string();
        self.notes.into_iter().map(|(key, notes)| (key.to_owned(), text(notes))).collect()
    }
}
