//! Selectors over the labels of namespaces. A policy with a selector that no namespace can match would never apply, so a
//! key or value that no label can have is an error.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Rule, Selector};
use oras_csi_core::display::Shown;
use schemars::{Schema, SchemaGenerator, json_schema};

use super::spec_error::SpecError;

const FIELD: &str = "spec.namespaceSelector";
/// `[PREFIX/]NAME` (Kubernetes, "Labels and Selectors", syntax).
const KEY: &str = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
const VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// Parses a selector.
pub(crate) fn read(selector: LabelSelector) -> Result<Selector, SpecError> {
    for (key, value) in selector.match_labels.iter().flatten() {
        check(&format!("{FIELD}.matchLabels"), key, [value])?;
    }
    for (index, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        let field = format!("{FIELD}.matchExpressions[{index}]");
        let values = requirement.values.as_deref().unwrap_or_default();
        check(&field, &requirement.key, values)?;
        let problem = match requirement.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => "has no values",
            "Exists" | "DoesNotExist" if !values.is_empty() => "has values, which its operator does not take",
            "In" | "NotIn" | "Exists" | "DoesNotExist" => continue,
            _ => "has an operator other than In, NotIn, Exists and DoesNotExist",
        };
        return Err(SpecError::new(field, problem));
    }
    selector.try_into().map_err(|error| SpecError::new(FIELD, error))
}

fn check<'a>(field: &str, key: &str, values: impl IntoIterator<Item = &'a String>) -> Result<(), SpecError> {
    if !is_key(key) {
        return Err(SpecError::new(field, format_args!("no label has the key \"{}\"", Shown::new(key))));
    }
    match values.into_iter().find(|value| !value.is_empty() && !is_name(value)) {
        None => Ok(()),
        Some(value) => {
            let problem = format_args!("no label has the value \"{}\"", Shown::new(value));
            Err(SpecError::new(field, problem))
        }
    }
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        None => is_name(key),
        Some((prefix, name)) => {
            let is_part = |part: &str| {
                is_name(part)
                    && part
                        .bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            };
            prefix.len() <= 253 && prefix.split('.').all(is_part) && is_name(name)
        }
    }
}

fn is_name(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// Returns the schema of a label selector. It rejects what the parser rejects: a selector that cannot be parsed selects an
/// unknown set of namespaces.
pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    let rule = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)")
        .message("In and NotIn need values, Exists and DoesNotExist take none");
    let value = json_schema!({"type": "string", "maxLength": 63, "pattern": VALUE});
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "type": "object", "maxProperties": 64, "additionalProperties": value,
                "description": "Labels that a namespace must have, with their values.",
            },
            "matchExpressions": {
                "type": "array", "maxItems": 32,
                "description": "Requirements on the labels of a namespace. All of them must be met.",
                "items": {
                    "type": "object", "required": ["key", "operator"], "x-kubernetes-validations": [rule],
                    "properties": {
                        "key": {
                            "type": "string", "maxLength": 317, "pattern": KEY, "description": "The key of the label.",
                        },
                        "operator": {
                            "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                            "description": "How the value of the label relates to values.",
                        },
                        "values": {
                            "type": "array", "maxItems": 64, "items": value, "x-kubernetes-list-type": "set",
                            "description": "Values for In and NotIn.",
                        },
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("kubernetes.io/metadata.name", true)]
    #[case("team", true)]
    #[case("a_b.C", true)]
    #[case("a b", false)]
    #[case("", false)]
    #[case("/x", false)]
    #[case("x/", false)]
    #[case("A.io/x", false)]
    #[case("a..b/x", false)]
    #[case("a/b/c", false)]
    #[case("-a", false)]
    fn only_keys_of_labels_are_accepted(#[case] key: &str, #[case] fits: bool) {
        assert_eq!(is_key(key), fits);
        let labels = [(key.to_owned(), "x".to_owned())].into();
        let selector = LabelSelector { match_labels: Some(labels), match_expressions: None };
        assert_eq!(read(selector).is_ok(), fits);
    }

    #[test]
    fn a_value_that_no_label_can_have_is_an_error() {
        let labels = [("team".to_owned(), "c d".to_owned())].into();
        let selector = LabelSelector { match_labels: Some(labels), match_expressions: None };
        let error = read(selector).unwrap_err().to_string();
        assert_eq!(error, "spec.namespaceSelector.matchLabels: no label has the value \"c d\"");
    }
}
