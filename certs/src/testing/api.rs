//! An API server with one object: a Secret or a webhook configuration.

use http::Method;
use oras_csi_testkit::api_server::{ApiServer, Objects, Recorded};
use serde_json::Value;

/// An object that may be missing.
#[derive(Clone)]
pub(crate) struct FakeApi {
    server: ApiServer,
    collection: &'static str,
}

/// Stands for the collection of an object whose kind a test leaves to the client.
const ANY: &str = "/api/v1/objects";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

/// Moves the objects of all collections to one.
fn to_any(path: &str) -> String {
    let is_collection = path.ends_with("/secrets") || path.ends_with("configurations");
    let name = path.rsplit('/').next().filter(|_| !is_collection);
    name.map_or_else(|| ANY.to_owned(), |name| format!("{ANY}/{name}"))
}

/// Changes the object of a collection.
fn edit(objects: &mut Objects, collection: &str, change: impl FnOnce(&mut Option<Value>)) {
    let path = objects.keys().find(|path| path.starts_with(collection)).cloned();
    let mut object = path.and_then(|path| objects.remove(&path));
    change(&mut object);
    if let Some(object) = object {
        let name = object["metadata"]["name"].as_str().unwrap();
        objects.insert(format!("{collection}/{name}"), object);
    }
}

impl FakeApi {
    /// Makes a server that holds `object`, and a client.
    pub(crate) fn serve(object: Option<Value>) -> (Self, kube::Client) {
        let server = ApiServer::new().with_paths(to_any);
        let client = server.client();
        (Self::holding(server, ANY, object), client)
    }

    /// Makes servers of a mutating and of a validating webhook configuration, and a client for both.
    pub(crate) fn serve_both(
        mutating: Option<Value>,
        validating: Option<Value>,
    ) -> (Self, Self, kube::Client) {
        let server = ApiServer::new();
        let client = server.client();
        let mutating = Self::holding(server.clone(), MUTATING, mutating);
        (mutating, Self::holding(server, VALIDATING, validating), client)
    }

    fn holding(server: ApiServer, collection: &'static str, object: Option<Value>) -> Self {
        let api = Self { server, collection };
        api.edit(|stored| *stored = object);
        api
    }

    /// Changes, creates or removes the object, as another client would.
    pub(crate) fn edit(&self, change: impl FnOnce(&mut Option<Value>)) {
        self.server.edit(|objects| edit(objects, self.collection, change));
    }

    /// Returns the object.
    pub(crate) fn object(&self) -> Option<Value> {
        let mut objects = self.server.objects().into_iter();
        objects.find(|(path, _)| path.starts_with(self.collection)).map(|(_, object)| object)
    }

    /// Refuses the next request of this method.
    pub(crate) fn refuse(&self, method: Method, code: u16) {
        self.server.refuse_at(self.collection, method, code);
    }

    /// Changes the object just before the next request of this method.
    pub(crate) fn meanwhile(&self, method: Method, change: impl FnOnce(&mut Option<Value>) + Send + 'static) {
        let collection = self.collection;
        self.server.meanwhile_at(collection, method, move |objects| edit(objects, collection, change));
    }

    fn requests(&self) -> impl Iterator<Item = Recorded> {
        let requests = self.server.requests().into_iter();
        requests.filter(|request| request.path.starts_with(self.collection))
    }

    /// Returns the methods of the requests, with `WATCH` for watches.
    pub(crate) fn log(&self) -> Vec<String> {
        self.requests().map(|request| request.verb).collect()
    }

    /// Returns the number of requests with a method.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.requests().filter(|request| request.verb == method).count()
    }

    /// Returns the bodies of the requests, oldest first.
    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.requests().map(|request| request.body).filter(|body| !body.is_null()).collect()
    }
}
