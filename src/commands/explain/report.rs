//! The keys of the output of `oras-csi explain`, and their text form.

use std::fmt::Write as _;

use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;
use oras_csi_core::policy::{Mode, Rule};
use oras_csi_core::reference::Reference;
use oras_csi_webhook::policy::Evaluation;
use serde_json::{Map, Value, json};

/// The keys of a volume or a reference, in output order.
pub(super) type Keys = Map<String, Value>;

/// Returns the parts of a reference.
pub(super) fn reference_keys(reference: &Reference, digest: Option<&Digest>) -> Keys {
    let mut parts = Map::new();
    parts.insert("reference".into(), json!(reference));
    parts.insert("host".into(), json!(reference.registry()));
    parts.insert("repository".into(), json!(reference.repository()));
    if let Some(tag) = reference.tag() {
        parts.insert("tag".into(), json!(tag));
    }
    if let Some(digest) = digest {
        parts.insert("digest".into(), json!(digest));
    }
    parts
}

/// Returns whether a reference is allowed, and the decision of each policy. A policy with rules about content has
/// checked only its other rules if no registry request was sent.
pub(super) fn policy_keys(opinions: &[Evaluation], used_network: bool) -> Keys {
    let policies = opinions.iter().map(|opinion| {
        let mut policy = json!({
            "policy": opinion.author().name(),
            "mode": opinion.mode().as_str(),
            "passes": !opinion.is_broken(),
        });
        if let Some(rule) = opinion.rule() {
            policy["rule"] = json!(rule.as_str());
        }
        if let Some(component) = opinion.component() {
            policy["component"] = json!(component);
        }
        if opinion.looks_at_contents() && !used_network {
            policy["contents"] = json!("not asked");
        }
        policy
    });
    let policies = policies.collect::<Vec<_>>();
    Keys::from_iter([
        ("allowed".to_owned(), json!(!opinions.iter().any(is_denial))),
        ("policies".to_owned(), json!(policies)),
    ])
}

/// Reports whether a policy denies the reference; policies in mode Warn or Audit do not.
pub(super) fn is_denial(opinion: &Evaluation) -> bool {
    opinion.is_broken() && opinion.mode() == Mode::Enforce
}

/// Returns the rule that decided, such as `registries.deny (registry ghcr.io matches ghcr.io)`.
pub(super) fn describe_rule(opinion: &Evaluation) -> String {
    let rule = opinion.rule().map(Rule::as_str).unwrap_or_default();
    match opinion.component() {
        Some(component) => format!("{rule} ({component})"),
        None => rule.to_owned(),
    }
}

/// Formats keys as text, one per line.
pub(super) fn lines(keys: &Keys, indent: &str) -> String {
    let mut text = String::new();
    for (key, value) in keys {
        let values = match value {
            Value::String(text) => vec![text.clone()],
            Value::Bool(flag) => vec![if *flag { "yes" } else { "no" }.to_owned()],
            Value::Array(policies) if policies.is_empty() => vec!["none: everything is allowed".to_owned()],
            Value::Array(policies) => policies.iter().map(policy_line).collect(),
            other => vec![other.to_string()],
        };
        for value in values {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "{indent}{key:<11} {value}");
        }
    }
    if keys.contains_key("reference") && !keys.contains_key("digest") {
        let _ = writeln!(text, "{indent}{:<11} not resolved", "digest");
    }
    text
}

/// Formats the decision of a policy, such as
/// `team-a (Enforce): violated, registries.deny (registry ghcr.io matches ghcr.io)`.
fn policy_line(policy: &Value) -> String {
    let text = |key: &str| policy.get(key).and_then(Value::as_str).map(|text| Shown::new(text).to_string());
    let (name, mode) = (text("policy").unwrap_or_default(), text("mode").unwrap_or_default());
    let result = match (policy.get("passes"), policy.get("contents")) {
        (Some(Value::Bool(true)), None) => "passes",
        (Some(Value::Bool(true)), Some(_)) => "passes so far",
        _ => "violated",
    };
    match (text("rule"), text("component")) {
        (Some(rule), Some(component)) => format!("{name} ({mode}): {result}, {rule} ({component})"),
        _ => format!("{name} ({mode}): {result}"),
    }
}
