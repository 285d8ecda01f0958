//! Puts the volumes of a pod back, with their mounts.

use json_patch::Patch;
use json_patch::jsonptr::Token;
use oras_csi_core::keys::VOLUME_NAME;
use serde_json::Value;

use super::{Change, difference, is_of_this_driver, replace, written};
use crate::denial::{At, Denial};

/// The lists of containers that an update of a pod has.
const LISTS: [&str; 2] = ["initContainers", "containers"];

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn name(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}

/// Puts the volumes of this driver and their mounts back, if the manifest still says what it said. Returns an empty patch
/// where the update changes something else: the API server decides about that.
///
/// A server-side apply can remove what the webhook added to a pod that was created in another way. So the volume of the
/// annotations, and its mounts, may be missing.
pub(crate) fn restore_pod(change: &Change) -> Result<Patch, Denial> {
    let nothing = Ok(Patch(Vec::new()));
    let (old, new) = (&change.old["spec"], &change.new["spec"]);
    let (old_volumes, new_volumes) = (list(old, "volumes"), list(new, "volumes"));
    let ours: Vec<&Value> = old_volumes.iter().filter(|volume| is_of_this_driver(&volume["csi"])).collect();
    let is_ours = |value: &Value| ours.iter().any(|volume| name(volume) == name(value));
    let others =
        |volumes: &[Value]| volumes.iter().filter(|volume| !is_ours(volume)).cloned().collect::<Vec<_>>();
    if ours.is_empty() || others(old_volumes) != others(new_volumes) {
        return nothing;
    }
    for volume in &ours {
        let of_that_name: Vec<&Value> = new_volumes.iter().filter(|new| name(new) == name(volume)).collect();
        match of_that_name.as_slice() {
            [] if name(volume) == VOLUME_NAME => {}
            [now] if is_of_this_driver(&now["csi"]) => {
                let written = written::of_volume(&change.old, name(volume));
                let changed = difference(&volume["csi"], &now["csi"], written.as_ref());
                if let Some(changed) = changed.filter(|_| volume["csi"] != now["csi"]) {
                    let instead = "delete the pod and create it again";
                    return Err(changed.denial(At::Volume(name(volume)), instead));
                }
            }
            _ => return nothing,
        }
    }
    let at = |field: &'static str| [Token::new("spec"), Token::new(field)];
    let mut operations = Vec::new();
    if old_volumes != new_volumes {
        operations.push(replace(at("volumes"), &old["volumes"]));
    }
    for field in LISTS {
        let (before, now) = (list(old, field), list(new, field));
        if before.len() != now.len() {
            return nothing;
        }
        for (index, (before, now)) in before.iter().zip(now).enumerate() {
            let (old_mounts, new_mounts) = (list(before, "volumeMounts"), list(now, "volumeMounts"));
            if old_mounts == new_mounts {
                continue;
            }
            if name(before) != name(now) || !has_same_mounts(old_mounts, new_mounts, is_ours) {
                return nothing;
            }
            let path = at(field).into_iter().chain([index.into(), Token::new("volumeMounts")]);
            operations.push(replace(path, &before["volumeMounts"]));
        }
    }
    if !operations.is_empty() {
        operations.extend(written::restore(change));
    }
    Ok(Patch(operations))
}

/// Reports whether a container has the mounts that it had, apart from those that the webhook added and from `readOnly` on
/// those of this driver's volumes, which the webhook sets.
fn has_same_mounts(old: &[Value], new: &[Value], is_ours: impl Fn(&Value) -> bool) -> bool {
    let plain = |mount: &Value| {
        let mut mount = mount.clone();
        if is_ours(&mount)
            && let Some(fields) = mount.as_object_mut()
        {
            fields.remove("readOnly");
        }
        mount
    };
    let new: Vec<Value> = new.iter().map(plain).collect();
    let old: Vec<Value> = old.iter().map(plain).collect();
    let is_kept = |mount: &&Value| name(mount) != VOLUME_NAME || new.contains(mount);
    old.iter().filter(is_kept).eq(&new)
}
