//! The annotation `oras.land/written`: what the user wrote as the source of each volume, before the webhook made it
//! canonical.
//!
//! ```text
//! of a pod               {"VOLUME":{"volumeAttributes":{"oras.artifact.reference":"ghcr.io/team/model:v1"}}}
//! of a PersistentVolume  {"volumeAttributes":{…}}
//! ```
//!
//! It has the fields of `csi` that the webhook changes: `volumeAttributes`, `readOnly`, `nodePublishSecretRef`.

use std::collections::BTreeMap;

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation};
use oras_csi_core::keys::annotation::WRITTEN;
use oras_csi_core::keys::canonical;
use serde_json::{Map, Value, json};

use super::{ATTRIBUTES, Change, is_of_this_driver, replace};

/// The fields of a source that the webhook changes.
const FIELDS: [&str; 3] = [ATTRIBUTES, "readOnly", "nodePublishSecretRef"];
/// The longest record. All annotations of an object together have 256 KiB.
const MAX_BYTES: usize = 128 << 10;

/// Returns what was written as the source of a `PersistentVolume`.
pub(super) fn of_persistent_volume(object: &Value) -> Option<Value> {
    record(object)
}

/// Returns what was written as the source of a pod's volume.
pub(super) fn of_volume(pod: &Value, name: &str) -> Option<Value> {
    record(pod)?.get_mut(name).map(Value::take)
}

fn record(object: &Value) -> Option<Value> {
    let text = object["metadata"]["annotations"][WRITTEN].as_str()?;
    serde_json::from_str(text).ok().filter(Value::is_object)
}

/// Puts the annotation back where an update removes or changes it.
pub(super) fn restore(change: &Change) -> Option<PatchOperation> {
    let of = |object: &Value| object["metadata"]["annotations"].get(WRITTEN).cloned();
    let old = of(&change.old).filter(|old| of(&change.new).as_ref() != Some(old))?;
    let metadata = || [Token::new("metadata"), Token::new("annotations")];
    Some(if change.new["metadata"]["annotations"].is_object() {
        replace(metadata().into_iter().chain([Token::new(WRITTEN)]), &old)
    } else {
        replace(metadata(), &json!({ WRITTEN: old }))
    })
}

/// Adds the annotation to the patch of a new pod.
pub(crate) fn record_pod(pod: &Value, patch: &mut Patch) {
    let volumes = pod["spec"]["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let earlier = record(pod).unwrap_or_default();
    let has_volumes = volumes.iter().any(|volume| is_of_this_driver(&volume["csi"]));
    // The manifest of a pod that has a controller is that of its workload.
    if !has_volumes || has_controller(pod) {
        return;
    }
    let mut written = Map::new();
    for (index, volume) in volumes.iter().enumerate() {
        let (source, name) = (&volume["csi"], volume["name"].as_str().unwrap_or_default());
        if !is_of_this_driver(source) {
            continue;
        }
        // A canonical volume with a record is from an earlier call for this pod, from a copy, or from `oras-csi render`.
        match earlier.get(name).filter(|_| is_canonical(source)) {
            Some(earlier) => _ = written.insert(name.to_owned(), earlier.clone()),
            None if changes(patch, &format!("/spec/volumes/{index}/csi")) => {
                written.insert(name.to_owned(), fields(source));
            }
            None => {}
        }
    }
    let written = Some(Value::Object(written)).filter(|written| *written != json!({}));
    add(pod, written, patch);
}

/// Adds the annotation to the patch of a new `PersistentVolume`.
pub(crate) fn record_persistent_volume(object: &Value, patch: &mut Patch) {
    let source = &object["spec"]["csi"];
    if !is_of_this_driver(source) {
        return;
    }
    let earlier = record(object).filter(|_| is_canonical(source));
    let written = earlier.or_else(|| changes(patch, "/spec/csi").then(|| fields(source)));
    add(object, written, patch);
}

fn has_controller(pod: &Value) -> bool {
    let owners = pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    owners.iter().any(|owner| owner["controller"] == true)
}

fn is_canonical(source: &Value) -> bool {
    source[ATTRIBUTES].get(canonical::RECIPE).is_some()
}

fn changes(patch: &Patch, beneath: &str) -> bool {
    patch.0.iter().any(|operation| {
        operation.path().as_str().strip_prefix(beneath).is_some_and(|rest| rest.starts_with('/'))
    })
}

/// Returns the same value with its keys in order, as the API server writes them.
fn sorted(value: &Value) -> Value {
    let Some(members) = value.as_object() else { return value.clone() };
    let members: BTreeMap<&String, &Value> = members.iter().collect();
    Value::Object(members.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect())
}

fn fields(source: &Value) -> Value {
    let found = FIELDS.iter().filter_map(|field| Some(((*field).to_owned(), sorted(source.get(*field)?))));
    Value::Object(found.collect())
}

/// Returns the annotations that an operation adds to an object without any.
fn annotations_in(add: &mut AddOperation) -> Option<&mut Map<String, Value>> {
    match add.path.as_str() {
        "/metadata/annotations" => add.value.as_object_mut(),
        "/metadata" => add.value["annotations"].as_object_mut(),
        _ => None,
    }
}

fn add(object: &Value, written: Option<Value>, patch: &mut Patch) {
    let text = written.map(|written| written.to_string()).filter(|text| text.len() <= MAX_BYTES);
    let annotations = &object["metadata"]["annotations"];
    let at = || ["metadata", "annotations", WRITTEN].into_iter().map(Token::new);
    match text {
        Some(text) if annotations[WRITTEN] == text => {}
        Some(text) => {
            let is_there = annotations.is_object();
            // The patch may have made the annotations already.
            let made = patch.0.iter_mut().find_map(|operation| match operation {
                PatchOperation::Add(add) if !is_there => annotations_in(add),
                _ => None,
            });
            match made {
                Some(made) => _ = made.insert(WRITTEN.to_owned(), json!(text)),
                None if is_there => patch.0.push(replace(at(), &json!(text))),
                None if object["metadata"].is_object() => {
                    patch.0.push(replace(at().take(2), &json!({ WRITTEN: text })));
                }
                None => patch.0.push(replace(at().take(1), &json!({"annotations": {WRITTEN: text}}))),
            }
        }
        None if annotations.get(WRITTEN).is_some() => {
            let removed = RemoveOperation { path: PointerBuf::from_tokens(at()) };
            patch.0.push(PatchOperation::Remove(removed));
        }
        None => {}
    }
}
