//! A small API server that holds the pins of all namespaces, in place of a connection.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

/// The objects by their paths.
type Objects = BTreeMap<String, Value>;
/// What happens before a request is answered: another client is faster, or the server gives a fixed answer.
type Meanwhile = Box<dyn FnOnce(&mut Objects) -> Option<Response<Body>> + Send>;

const API: &str = "/apis/oras.land/v1alpha1/namespaces/";

/// The API server.
#[derive(Clone, Default)]
pub(super) struct FakeApi(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: Objects,
    meanwhile: VecDeque<(Method, Meanwhile)>,
    log: Vec<String>,
    bodies: Vec<Value>,
    is_silent: bool,
}

impl FakeApi {
    /// Returns a client.
    pub(super) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Leaves all requests from now on without an answer.
    pub(super) fn stop_answering(&self) {
        self.0.lock().unwrap().is_silent = true;
    }

    /// Runs a change just before the next request of this method. Several changes run in their order, one per request.
    pub(super) fn meanwhile(&self, method: Method, change: impl FnOnce(&mut Objects) + Send + 'static) {
        let change = |objects: &mut Objects| {
            change(objects);
            None
        };
        self.0.lock().unwrap().meanwhile.push_back((method, Box::new(change)));
    }

    /// Sets the answer to the next request of this method.
    pub(super) fn answer_with(&self, method: Method, code: u16, body: &str) {
        let answer = answer(code, body);
        self.0.lock().unwrap().meanwhile.push_back((method, Box::new(|_| Some(answer))));
    }

    /// Stores an object as another client would.
    pub(super) fn put(&self, namespace: &str, object: Value) {
        let path = path(namespace, object["metadata"]["name"].as_str().unwrap());
        self.0.lock().unwrap().objects.insert(path, object);
    }

    /// Returns all objects by their paths.
    pub(super) fn objects(&self) -> Objects {
        self.0.lock().unwrap().objects.clone()
    }

    /// Returns the requests, each as `METHOD PATH?QUERY`.
    pub(super) fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }

    /// Returns the bodies of the requests, oldest first.
    pub(super) fn bodies(&self) -> Vec<Value> {
        self.0.lock().unwrap().bodies.clone()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        if self.0.lock().unwrap().is_silent {
            return std::future::pending().await;
        }
        // Other tasks run between two requests of one writer.
        tokio::task::yield_now().await;
        let mut state = self.0.lock().unwrap();
        state.log.push(format!("{} {}", head.method, head.uri));
        if state.meanwhile.front().is_some_and(|(method, _)| *method == head.method) {
            let (_, change) = state.meanwhile.pop_front().unwrap();
            if let Some(answer) = change(&mut state.objects) {
                return answer;
            }
        }
        let path_of_request = head.uri.path();
        if head.method == Method::GET {
            let name = path_of_request.rsplit('/').next().unwrap();
            let found = state.objects.get(path_of_request);
            return found
                .map_or_else(|| refusal(404, "NotFound", name), |object| answer(200, &object.to_string()));
        }
        assert_eq!(head.method, Method::POST, "no other method is used");
        let mut object: Value = serde_json::from_slice(&body).unwrap();
        state.bodies.push(object.clone());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let namespace = path_of_request.strip_prefix(API).unwrap().split('/').next().unwrap();
        let path = path(namespace, &name);
        assert_eq!(path.strip_suffix(&format!("/{name}")), Some(path_of_request));
        if state.objects.contains_key(&path) {
            return refusal(409, "AlreadyExists", &name);
        }
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["uid"] = json!("of-the-pin");
        state.objects.insert(path, object.clone());
        answer(201, &object.to_string())
    }
}

/// Returns the path of a pin.
pub(super) fn path(namespace: &str, name: &str) -> String {
    format!("{API}{namespace}/artifactpins/{name}")
}

fn refusal(code: u16, reason: &str, name: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("artifactpins.oras.land \"{name}\" is refused with {reason}"), "reason": reason,
        "details": {"name": name, "group": "oras.land", "kind": "artifactpins"}, "code": code});
    answer(code, &status.to_string())
}

fn answer(code: u16, body: &str) -> Response<Body> {
    Response::builder().status(code).body(Body::from(body.as_bytes().to_vec())).unwrap()
}
