//! A manifest that is applied again after its object was created.
//!
//! The webhook replaces the volume attributes that a user writes by canonical ones, and Kubernetes lets no client change
//! the source of a volume later. So each `kubectl apply`, `helm upgrade` and sync of a GitOps engine would fail: it puts
//! what the manifest says back beside the canonical attributes. The API server therefore calls the webhook for updates
//! that change a volume of this driver, and the webhook puts back what the object has, if the manifest still says what
//! it said when the object was created ([`written`] keeps that). Else it denies the update with what to do.
//!
//! No registry is contacted, and nothing of the object changes: what is put back is what the API server has. A user who
//! forges the record gets no more than an update without effect.
//!
//! | written now | answer |
//! |---|---|
//! | the same as at creation | the volume of the object is put back |
//! | something else | denied: delete the object and create it again |
//! | another part of the spec changed as well | allowed unchanged: the API server decides |

mod pod;
pub(crate) mod written;

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, Patch, PatchOperation};
use oras_csi_core::display::Shown;
use oras_csi_core::keys::{ANNOTATION_PREFIX, DRIVER, annotation, canonical};
use serde_json::{Map, Value};

pub(crate) use self::pod::restore_pod;
use crate::denial::{At, Code, Denial};

/// The field with the attributes of a volume.
const ATTRIBUTES: &str = "volumeAttributes";
/// The annotations that the webhook writes.
const OWN: [&str; 3] = [annotation::PINNED, annotation::PINNED_PATCH, annotation::WRITTEN];

/// An object before and after an update.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) old: Value,
    pub(crate) new: Value,
}

fn is_of_this_driver(source: &Value) -> bool {
    source["driver"] == DRIVER
}

fn replace(path: impl IntoIterator<Item = Token<'static>>, value: &Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path), value: value.clone() })
}

/// Puts the source of a `PersistentVolume` back, if the manifest still says what it said.
pub(crate) fn restore_persistent_volume(change: &Change) -> Result<Patch, Denial> {
    let (old, new) = (&change.old["spec"]["csi"], &change.new["spec"]["csi"]);
    if old == new || !is_of_this_driver(old) || !is_of_this_driver(new) {
        return Ok(Patch(Vec::new()));
    }
    let written = written::of_persistent_volume(&change.old);
    if let Some(changed) = difference(old, new, written.as_ref()) {
        return Err(changed.denial(
            At::Field("spec.csi"),
            "delete the PersistentVolume and create it again, or write a new one with another name",
        ));
    }
    let mut operations = vec![replace([Token::new("spec"), Token::new("csi")], old)];
    operations.extend(written::restore(change));
    Ok(Patch(operations))
}

/// What a manifest says other than at creation.
struct Changed {
    field: String,
    before: Option<Value>,
    now: Option<Value>,
}

impl Changed {
    fn denial(&self, at: At<'_>, instead: &str) -> Denial {
        let show = |value: &Option<Value>| match value {
            None => "nothing".to_owned(),
            Some(Value::String(text)) => format!("\"{}\"", Shown::new(text)),
            Some(value) => Shown::new(&value.to_string()).to_string(),
        };
        let rule = format!(
            "{} was {} when the object was created and is {} now, and Kubernetes lets no client change the source of a volume",
            Shown::new(&self.field),
            show(&self.before),
            show(&self.now)
        );
        // Kubernetes answers so about a field that cannot change, and clients recreate an object only after that answer:
        // `kubectl apply --force`, `kubectl replace --force`, Argo CD with Force, Flux with force.
        Denial::new(Code::Unprocessable, at, None, rule, instead)
    }
}

/// Compares what a manifest says now with what it said when the object was created: `old` is the source that the object
/// has, `new` the one after the update, and `written` what the manifest said at creation. Returns the first difference.
///
/// A client puts the fields of the manifest beside those of the object, or in their place. So a field of `new` is right
/// if it has the value of the object or the value that was written.
fn difference(old: &Value, new: &Value, written: Option<&Value>) -> Option<Changed> {
    let empty = Map::new();
    let members = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
    let (old, new, written) = (members(Some(old)), members(Some(new)), members(written));
    let other = |key: &&String| key.as_str() != ATTRIBUTES;
    for key in new.keys().chain(written.keys()).filter(other) {
        let (now, before) = (new.get(key), written.get(key));
        let is_same = now.is_some_and(|now| Some(now) == old.get(key)) || now == before;
        if !is_same {
            return Some(Changed {
                field: key.clone(),
                before: before.or(old.get(key)).cloned(),
                now: now.cloned(),
            });
        }
    }
    let attributes = |source: &Map<String, Value>| {
        source.get(ATTRIBUTES).and_then(Value::as_object).unwrap_or(&empty).clone()
    };
    let (old, new, written) = (attributes(&old), attributes(&new), attributes(&written));
    let is_kept = |(key, value): (&String, &Value)| old.get(key) == Some(value);
    if new.contains_key(canonical::RECIPE) && new.iter().all(is_kept) {
        // The manifest has the recipe of the object: it is from `oras-csi render`, or a copy.
        return None;
    }
    for key in new.keys().chain(written.keys()) {
        // What the object has belongs to the object. Of the rest, the manifest must say the same.
        let own = |value: Option<&Value>| value.filter(|value| old.get(key) != Some(value)).cloned();
        let (now, before) = (own(new.get(key)), own(written.get(key)));
        if now != before {
            return Some(Changed { field: format!("{ATTRIBUTES} {key}"), before, now });
        }
    }
    None
}

/// Returns warnings about annotations that were added to or changed on a pod that exists.
pub(crate) fn warnings(change: &Change) -> Vec<String> {
    let annotations = |pod: &Value| pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    let (old, new) = (annotations(&change.old), annotations(&change.new));
    let is_ignored =
        |key: &str| key.to_ascii_lowercase().starts_with(ANNOTATION_PREFIX) && !OWN.contains(&key);
    let changed = new.iter().filter(|(key, value)| is_ignored(key) && old.get(*key) != Some(value));
    let warn = |(key, _): (&String, &Value)| {
        format!(
            "annotation {} has no effect on a pod that exists: oras-csi reads annotations when a pod is created. Delete the pod and create it again",
            Shown::new(key)
        )
    };
    changed.map(warn).collect()
}

#[cfg(test)]
mod tests;
