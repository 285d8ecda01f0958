//! The review that every program answers: the creation of a pod of 9.1 KB, as the API server sends it.

use serde_json::{Value, json};

/// The body. The test that counts instructions sends it too.
const BODY: &str = include_str!("../review.json");
/// The namespace of the pod.
pub(crate) const NAMESPACE: &str = "team";
/// The repository and the tag of the artifact that the pod requests.
pub(crate) const REPOSITORY: &str = "acme/model";
pub(crate) const TAG: &str = "v1";
/// The name of the registry, which `hosts.toml` maps to the registry of the benchmark.
pub(crate) const REGISTRY: &str = "registry.example:5000";
/// The uid in the body, which each request replaces by another one of the same length.
pub(crate) const UID: &str = "705ab4f5-6393-11e8-b7cc-000000000000";

/// Returns the body. With `is_owned`, the pod belongs to a ReplicaSet, so that the webhook reads an `ArtifactPin`.
pub(crate) fn body(is_owned: bool) -> String {
    if !is_owned {
        return BODY.to_owned();
    }
    let mut review: Value = serde_json::from_str(BODY).expect("a review");
    review["request"]["object"]["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1",
        "kind": "ReplicaSet", "name": "inference-6b7f9c8d5", "uid": "d9607e19-f88f-11e6-a518-42010a800195",
        "controller": true, "blockOwnerDeletion": true}]);
    review.to_string()
}
