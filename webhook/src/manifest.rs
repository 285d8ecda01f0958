//! Manifests, as files have them.

use serde_json::Value;

/// The items of a `kind: List`, or of a `PodList` and the like, as `kubectl` applies them.
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
