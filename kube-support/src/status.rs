//! Writing the status of an object that several processes write.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::Patch;
use kube::core::Status;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::field_manager::FieldManager;

/// Which version of which object was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectVersion {
    /// The name.
    pub name: String,
    /// The uid: a later object of the same name is another object.
    pub uid: Option<String>,
    /// The version, which changes with every write.
    pub resource_version: Option<String>,
}

impl ObjectVersion {
    /// Returns the version that an object states.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
        }
    }
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusWrite {
    /// The status is written.
    Written,
    /// The object has changed since it was read: nothing is written.
    Changed,
    /// The object does not exist any more.
    Deleted,
}

/// Replaces the whole status of an object, if the object is still the version that was read.
///
/// A JSON patch with tests of `uid` and `resourceVersion`: a merge patch would leave old fields in the status.
pub async fn replace_status<K: Clone + DeserializeOwned + Debug>(
    api: &Api<K>,
    version: &ObjectVersion,
    status: &impl Serialize,
    manager: FieldManager,
) -> Result<StatusWrite, kube::Error> {
    let patch = json!([
        {"op": "test", "path": "/metadata/uid", "value": version.uid},
        {"op": "test", "path": "/metadata/resourceVersion", "value": version.resource_version},
        {"op": "add", "path": "/status", "value": status},
    ]);
    let patch: json_patch::Patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
    match api.patch_status(&version.name, &manager.patch(), &Patch::<()>::Json(patch)).await {
        Ok(_) => Ok(StatusWrite::Written),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(StatusWrite::Deleted),
        Err(kube::Error::Api(answer)) if is_another_version(&answer) => Ok(StatusWrite::Changed),
        Err(error) => Err(error),
    }
}

/// Reports whether the object has another version: 422 when a test of the patch failed, 409 when the object changed
/// while the API server applied the patch.
fn is_another_version(answer: &Status) -> bool {
    match answer.code {
        409 => true,
        // A status that breaks the schema gets the same code, and must not pass for a test that failed.
        422 => !answer.message.contains("is invalid: status"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::client::Body;
    use rstest::rstest;

    use super::*;

    async fn write(code: u16, message: &'static str) -> Result<StatusWrite, kube::Error> {
        let service = tower::service_fn(move |_: Request<Body>| async move {
            let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
                "message": message, "reason": "", "code": code});
            let body = Body::from(body.to_string().into_bytes());
            Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
        });
        let api: Api<ConfigMap> = Api::namespaced(kube::Client::new(service, "default"), "team");
        let version = ObjectVersion { name: "x".into(), uid: None, resource_version: None };
        replace_status(&api, &version, &json!({}), FieldManager::new("test")).await
    }

    #[rstest]
    #[case(404, "not found", StatusWrite::Deleted)]
    #[case(409, "the object has been modified", StatusWrite::Changed)]
    #[case(422, "the server rejected our request due to an error in our request", StatusWrite::Changed)]
    #[tokio::test]
    async fn an_object_that_is_another_by_now_is_not_written(
        #[case] code: u16,
        #[case] message: &'static str,
        #[case] ended: StatusWrite,
    ) {
        assert_eq!(write(code, message).await.unwrap(), ended);
    }

    #[rstest]
    #[case(422, "ArtifactSet.oras.land \"x\" is invalid: status.history: Too many")]
    #[case(403, "forbidden")]
    #[tokio::test]
    async fn a_status_that_breaks_the_schema_is_an_error(#[case] code: u16, #[case] message: &'static str) {
        assert!(write(code, message).await.is_err());
    }
}
