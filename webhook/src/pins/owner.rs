//! The controller of pods, which owns their pins.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::view::Owner;

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

impl From<Owner<'_>> for PinOwner {
    fn from(owner: Owner<'_>) -> Self {
        let Owner { api_version, kind, name, uid } = owner;
        Self { api_version: api_version.into(), kind: kind.into(), name: name.into(), uid: uid.into() }
    }
}
