//! A small API server with the pins of all namespaces, in place of a connection.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

/// The objects by their paths.
type Objects = BTreeMap<String, Value>;
/// What happens before a request is answered: somebody else is faster, or the server says something of its own.
type Meanwhile = Box<dyn FnOnce(&mut Objects) -> Option<Response<Body>> + Send>;

const API: &str = "/apis/oras.land/v1alpha1/namespaces/";

/// The server.
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
    /// A client for it.
    pub(super) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Nothing is answered from now on.
    pub(super) fn fall_silent(&self) {
        self.0.lock().unwrap().is_silent = true;
    }

    /// What happens just before the next request of this method that nothing else was to happen before.
    pub(super) fn meanwhile(&self, method: Method, change: impl FnOnce(&mut Objects) + Send + 'static) {
        let change = |objects: &mut Objects| {
            change(objects);
            None
        };
        self.0.lock().unwrap().meanwhile.push_back((method, Box::new(change)));
    }

    /// The answer to that request.
    pub(super) fn say(&self, method: Method, code: u16, body: &str) {
        let answer = answer(code, body);
        self.0.lock().unwrap().meanwhile.push_back((method, Box::new(|_| Some(answer))));
    }

    /// Somebody makes an object.
    pub(super) fn put(&self, namespace: &str, object: Value) {
        let path = path(namespace, object["metadata"]["name"].as_str().unwrap());
        self.0.lock().unwrap().objects.insert(path, object);
    }

    /// All objects.
    pub(super) fn objects(&self) -> Objects {
        self.0.lock().unwrap().objects.clone()
    }

    /// What was asked, as `METHOD PATH?QUERY`.
    pub(super) fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }

    /// What was sent, oldest first.
    pub(super) fn bodies(&self) -> Vec<Value> {
        self.0.lock().unwrap().bodies.clone()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        if self.0.lock().unwrap().is_silent {
            return std::future::pending().await;
        }
        // Others have their turn between two requests of one keeper.
        tokio::task::yield_now().await;
        let mut state = self.0.lock().unwrap();
        state.log.push(format!("{} {}", head.method, head.uri));
        if state.meanwhile.front().is_some_and(|(method, _)| *method == head.method) {
            let (_, change) = state.meanwhile.pop_front().unwrap();
            if let Some(answer) = change(&mut state.objects) {
                return answer;
            }
        }
        let asked = head.uri.path();
        if head.method == Method::GET {
            let name = asked.rsplit('/').next().unwrap();
            let found = state.objects.get(asked);
            return found
                .map_or_else(|| refusal(404, "NotFound", name), |object| answer(200, &object.to_string()));
        }
        assert_eq!(head.method, Method::POST, "nothing else is asked");
        let mut object: Value = serde_json::from_slice(&body).unwrap();
        state.bodies.push(object.clone());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let namespace = asked.strip_prefix(API).unwrap().split('/').next().unwrap();
        let path = path(namespace, &name);
        assert_eq!(path.strip_suffix(&format!("/{name}")), Some(asked));
        if state.objects.contains_key(&path) {
            return refusal(409, "AlreadyExists", &name);
        }
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["uid"] = json!("of-the-pin");
        state.objects.insert(path, object.clone());
        answer(201, &object.to_string())
    }
}

/// The path of a pin.
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
