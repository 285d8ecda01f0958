//! Reads the manifests of files.

use std::cell::Cell;
use std::rc::Rc;

use oras_csi_core::display::Shown;
use serde_json::Value;
use serde_json::value::RawValue;

/// The documents of a YAML stream; JSON is a subset of YAML.
#[derive(Debug)]
pub struct Stream {
    /// The documents; an empty document is `null`.
    pub documents: Vec<Value>,
    /// Whether the stream has comments.
    pub has_comments: bool,
}

/// A text is not a YAML stream; it has the parser's message with line and column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a stream of YAML documents: {0}")]
pub struct StreamError(Shown);

/// Reads a stream of manifests. Every command uses this function, so that a manifest means the same everywhere.
///
/// Numbers are read as `kubectl` reads them (YAML 1.1: `defaultMode: 0644` is octal). The budget allows a stream of
/// 64 MiB; the expansion of aliases has the parser's own, smaller budget.
pub fn read_stream(text: &str) -> Result<Stream, StreamError> {
    match read_yaml(text) {
        Err(error) if text.trim_start_matches('\u{feff}').trim_start().starts_with('{') => {
            read_json_objects(text.trim_start_matches('\u{feff}')).ok_or(error)
        }
        read => read,
    }
}

/// Reads JSON objects one after another, without a line between them, as `kubectl apply` does and as `render --output json`
/// writes them. Each one is read like a YAML document.
fn read_json_objects(text: &str) -> Option<Stream> {
    let mut documents = Vec::new();
    for object in serde_json::Deserializer::from_str(text).into_iter::<Box<RawValue>>() {
        documents.append(&mut read_yaml(object.ok()?.get()).ok()?.documents);
    }
    Some(Stream { documents, has_comments: false })
}

fn read_yaml(text: &str) -> Result<Stream, StreamError> {
    const MAX: usize = 1 << 25;
    let commented = Rc::new(Cell::new(false));
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        budget: serde_saphyr::budget! { max_documents: MAX, max_nodes: MAX, max_events: MAX },
    };
    let options = options.with_budget_report({
        let commented = Rc::clone(&commented);
        move |report| commented.set(report.total_comment_bytes > 0)
    });
    let documents = serde_saphyr::from_multiple_with_options::<Value>(text, options)
        .map_err(|error| StreamError(Shown::from_yaml_error(&error.to_string())))?;
    Ok(Stream { documents, has_comments: commented.get() })
}

/// Returns the JSON type of a value, for an error about a value of the wrong type.
pub(crate) fn what(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Describes the kind of an object, for an error about an object of the wrong kind.
pub(crate) fn said_kind(kind: &str, api_version: &str) -> String {
    match (kind, api_version) {
        ("", _) => "has no kind".to_owned(),
        (_, "") => "has no apiVersion".to_owned(),
        _ => format!("is {} of {}", Shown::new(kind), Shown::new(api_version)),
    }
}

/// Returns the items of a `kind: List`, or of a `PodList` and the like, as `kubectl` applies them.
pub fn flatten(document: Value) -> Vec<Value> {
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let Some(item_kind) = kind.strip_suffix("List") else { return vec![document] };
    let is_plain = version == "v1" && item_kind.is_empty();
    match document {
        Value::Object(mut list) if is_plain || list.get("items").is_some_and(Value::is_array) => {
            let Some(Value::Array(items)) = list.remove("items") else { return Vec::new() };
            let named = items.into_iter().map(|mut item| {
                if let (Value::Object(object), false) = (&mut item, is_plain)
                    && !object.contains_key("apiVersion")
                    && !object.contains_key("kind")
                {
                    object.insert("apiVersion".into(), version.as_str().into());
                    object.insert("kind".into(), item_kind.into());
                }
                item
            });
            named.flat_map(flatten).collect()
        }
        document => vec![document],
    }
}
