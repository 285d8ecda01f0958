//! The controller of pods, which owns their pins.

use oras_csi_core::display::Shown;
use oras_csi_core::dns_name::{is_label, is_subdomain};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::view::Owner;

/// The longest uid of an owner. A uid of the API server has 36 characters.
const MAX_UID: usize = 128;

/// The controller of pods.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PinOwner {
    /// The API group and version of the controller, such as apps/v1.
    #[schemars(length(min = 1, max = 317))]
    pub api_version: String,
    /// The kind of the controller, such as ReplicaSet.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// The name of the controller.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The uid of the controller. A later controller of the same name has another uid, and pins of its own.
    #[schemars(length(min = 1, max = 128))]
    pub uid: String,
}

/// Why the controller in the `ownerReferences` of a pod cannot own a pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("names a controller whose {field} \"{value}\" is not {expected}")]
pub struct InvalidOwner {
    field: &'static str,
    value: Shown,
    expected: &'static str,
}

impl PinOwner {
    /// Checks the fields of an owner. Users who create pods write them, and the API server checks only that they are not
    /// empty (apimachinery, `ValidateOwnerReferences`). The pin repeats them in its own `ownerReferences`, from which
    /// other clients make requests.
    pub(crate) fn parse(owner: Owner<'_>) -> Result<Self, InvalidOwner> {
        let Owner { api_version, kind, name, uid } = owner;
        let is_uid = (1..=MAX_UID).contains(&uid.len())
            && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let checks = [
            ("apiVersion", api_version, is_api_version(api_version), "VERSION or GROUP/VERSION"),
            ("kind", kind, is_label(&kind.to_ascii_lowercase()), "the name of a kind"),
            ("name", name, is_subdomain(name), "the name of an object"),
            ("uid", uid, is_uid, "a uid"),
        ];
        match checks.into_iter().find(|(_, _, is_valid, _)| !is_valid) {
            Some((field, value, _, expected)) => Err(InvalidOwner { field, value: value.into(), expected }),
            None => Ok(Self {
                api_version: api_version.into(),
                kind: kind.into(),
                name: name.into(),
                uid: uid.into(),
            }),
        }
    }
}

fn is_api_version(text: &str) -> bool {
    let (group, version) =
        text.split_once('/').map_or((None, text), |(group, version)| (Some(group), version));
    group.is_none_or(is_subdomain) && is_label(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner<'static> = Owner {
        api_version: "apps/v1",
        kind: "ReplicaSet",
        name: "web-5d4f",
        uid: "6d7e3b0c-6f0a-4b57-9b1e-0a4a3c3e6a11",
    };

    #[test]
    fn a_controller_of_any_api_group_owns_its_pins() {
        for (api_version, kind) in [("v1", "Node"), ("batch/v1", "Job"), ("argoproj.io/v1alpha1", "Rollout")]
        {
            let owner = PinOwner::parse(Owner { api_version, kind, ..OWNER }).unwrap();
            let there = [owner.api_version, owner.kind, owner.name, owner.uid];
            assert_eq!(there, [api_version, kind, OWNER.name, OWNER.uid]);
        }
    }

    #[test]
    fn a_field_that_leaves_its_segment_of_a_path_is_refused_by_its_name() {
        let path = "../../kube-system/secrets/x";
        for (owner, field) in [
            (Owner { api_version: path, ..OWNER }, "apiVersion"),
            (Owner { api_version: "apps/../v1", ..OWNER }, "apiVersion"),
            (Owner { kind: path, ..OWNER }, "kind"),
            (Owner { kind: "Replica Set", ..OWNER }, "kind"),
            (Owner { name: path, ..OWNER }, "name"),
            (Owner { name: "..", ..OWNER }, "name"),
            (Owner { uid: path, ..OWNER }, "uid"),
            (Owner { uid: "", ..OWNER }, "uid"),
        ] {
            let error = PinOwner::parse(owner).unwrap_err().to_string();
            assert!(error.starts_with(&format!("names a controller whose {field} \"")), "{error}");
        }
    }
}
