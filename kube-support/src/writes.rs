//! Writes that another process may make at the same time: the API server decides who is first.

use std::fmt::Debug;

use kube::api::Patch;
use kube::{Api, Error};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::errors::{is_already_exists, is_conflict};
use crate::field_manager::FieldManager;

/// Creates an object. Returns `None` if an object of that name exists already.
pub async fn create_if_absent<K: Clone + DeserializeOwned + Debug + Serialize>(
    api: &Api<K>,
    object: &K,
    manager: FieldManager,
) -> Result<Option<K>, Error> {
    unless(is_already_exists, api.create(&manager.post(), object).await)
}

/// Replaces an object that was read, if it has not changed since. Returns `None` if it has.
pub async fn replace_if_unchanged<K: Clone + DeserializeOwned + Debug + Serialize>(
    api: &Api<K>,
    name: &str,
    object: &K,
    manager: FieldManager,
) -> Result<Option<K>, Error> {
    unless(is_conflict, api.replace(name, &manager.post(), object).await)
}

/// Merges `changes` into an object that was read at `version`, if it has not changed since. Returns `None` if it has.
pub async fn merge_if_unchanged<K: Clone + DeserializeOwned + Debug>(
    api: &Api<K>,
    name: &str,
    version: Option<&str>,
    mut changes: Value,
    manager: FieldManager,
) -> Result<Option<K>, Error> {
    // The API server refuses a patch that changes the version of an object (Kubernetes, "Resource Versions").
    changes["metadata"]["resourceVersion"] = json!(version);
    unless(is_conflict, api.patch(name, &manager.patch(), &Patch::Merge(changes)).await)
}

fn unless<K>(is_expected: fn(&Error) -> bool, written: Result<K, Error>) -> Result<Option<K>, Error> {
    match written {
        Err(error) if is_expected(&error) => Ok(None),
        written => written.map(Some),
    }
}
