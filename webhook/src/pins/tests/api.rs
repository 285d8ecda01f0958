//! An API server with the pins of all namespaces.

use std::ops::Deref;

use oras_csi_testkit::api_server::ApiServer;
use serde_json::Value;

/// The API server.
#[derive(Clone, Default)]
pub(super) struct FakeApi(ApiServer);

impl FakeApi {
    /// Creates a pin, as another client would.
    pub(super) fn put(&self, namespace: &str, object: Value) {
        let path = path(namespace, object["metadata"]["name"].as_str().unwrap());
        self.0.put(&path, object);
    }
}

impl Deref for FakeApi {
    type Target = ApiServer;

    fn deref(&self) -> &ApiServer {
        &self.0
    }
}

/// Returns the path of a pin.
pub(super) fn path(namespace: &str, name: &str) -> String {
    format!("/apis/oras.land/v1alpha1/namespaces/{namespace}/artifactpins/{name}")
}
