//! A small API server, with one object of a kind: real resourceVersions, conflicts, JSON patches and watches, over
//! `tower_test`'s mock in place of a connection.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

/// A change by another client before a request is answered.
type Meanwhile = Box<dyn FnOnce(&mut Option<Value>) + Send>;

/// The API server: one object of one kind, which may be missing.
#[derive(Clone)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    object: Option<Value>,
    last: Value,
    refusals: VecDeque<(Method, u16)>,
    meanwhile: VecDeque<(Method, Meanwhile)>,
    log: Vec<String>,
    bodies: Vec<Value>,
}

impl FakeApi {
    /// Makes a server that holds `object`, and a client.
    pub(crate) fn serve(object: Option<Value>) -> (Self, kube::Client) {
        let api = Self::holding(object);
        let server = api.clone();
        (api, connect(move |_| server.clone()))
    }

    /// Makes servers of a mutating and of a validating webhook configuration, and a client for both.
    pub(crate) fn serve_both(
        mutating: Option<Value>,
        validating: Option<Value>,
    ) -> (Self, Self, kube::Client) {
        let (mutating, validating) = (Self::holding(mutating), Self::holding(validating));
        let servers = (mutating.clone(), validating.clone());
        let client = connect(move |path| {
            let resource = path.trim_start_matches("/apis/admissionregistration.k8s.io/v1/");
            match resource.split('/').next() {
                Some("mutatingwebhookconfigurations") => servers.0.clone(),
                Some("validatingwebhookconfigurations") => servers.1.clone(),
                _ => panic!("{path} is not served"),
            }
        });
        (mutating, validating, client)
    }

    fn holding(object: Option<Value>) -> Self {
        let api = Self { state: Arc::default(), version: watch::channel(1).0 };
        if let Some(object) = object {
            api.edit(|stored| *stored = Some(object));
        }
        api
    }

    /// Changes, creates or removes the object, as another client would.
    pub(crate) fn edit(&self, change: impl FnOnce(&mut Option<Value>)) {
        let mut state = self.state.lock().unwrap();
        change(&mut state.object);
        self.bump(&mut state);
    }

    /// Returns the object.
    pub(crate) fn object(&self) -> Option<Value> {
        self.state.lock().unwrap().object.clone()
    }

    /// Refuses the next request of this method.
    pub(crate) fn refuse(&self, method: Method, code: u16) {
        self.state.lock().unwrap().refusals.push_back((method, code));
    }

    /// Changes the object just before the next request of this method.
    pub(crate) fn meanwhile(&self, method: Method, change: impl FnOnce(&mut Option<Value>) + Send + 'static) {
        self.state.lock().unwrap().meanwhile.push_back((method, Box::new(change)));
    }

    /// Returns the methods of the requests, with `WATCH` for watches.
    pub(crate) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    /// Returns the number of requests with a method.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.log().iter().filter(|called| *called == method).count()
    }

    /// Returns the bodies of the requests, oldest first.
    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.state.lock().unwrap().bodies.clone()
    }

    fn bump(&self, state: &mut State) {
        let next = *self.version.borrow() + 1;
        if let Some(object) = &mut state.object {
            object["metadata"]["resourceVersion"] = json!(next.to_string());
            state.last = object.clone();
        } else if !state.last.is_null() {
            state.last["metadata"]["resourceVersion"] = json!(next.to_string());
        }
        self.version.send_replace(next);
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let query = head.uri.query().unwrap_or_default().to_owned();
        if query.contains("watch=true") {
            self.state.lock().unwrap().log.push("WATCH".to_owned());
            return self.watch(&query).await;
        }
        let mut state = self.state.lock().unwrap();
        state.log.push(head.method.to_string());
        if !body.is_empty() {
            state.bodies.push(serde_json::from_slice(&body).unwrap());
        }
        if state.refusals.front().is_some_and(|(method, _)| *method == head.method) {
            let (_, code) = state.refusals.pop_front().unwrap();
            return refusal(code, "Refused");
        }
        if state.meanwhile.front().is_some_and(|(method, _)| *method == head.method) {
            let (_, change) = state.meanwhile.pop_front().unwrap();
            change(&mut state.object);
            self.bump(&mut state);
        }
        let is_list = query.contains("fieldSelector");
        match (head.method, state.object.clone()) {
            (Method::GET, object) if is_list => {
                let version = self.version.borrow().to_string();
                let items: Vec<Value> = object.into_iter().collect();
                reply(&json!({"metadata": {"resourceVersion": version}, "items": items}))
            }
            (Method::POST, Some(_)) => refusal(409, "AlreadyExists"),
            (Method::POST, None) => {
                state.object = Some(serde_json::from_slice(&body).unwrap());
                self.bump(&mut state);
                reply(state.object.as_ref().unwrap())
            }
            (_, None) => refusal(404, "NotFound"),
            (Method::GET, Some(object)) => reply(&object),
            (Method::PUT, Some(object)) => {
                let new: Value = serde_json::from_slice(&body).unwrap();
                if new["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                    return refusal(409, "Conflict");
                }
                state.object = Some(new);
                self.bump(&mut state);
                reply(state.object.as_ref().unwrap())
            }
            (Method::PATCH, Some(mut object)) => {
                let patch: json_patch::Patch = serde_json::from_slice(&body).unwrap();
                if json_patch::patch(&mut object, &patch).is_err() {
                    return refusal(422, "Invalid");
                }
                state.object = Some(object);
                self.bump(&mut state);
                reply(state.object.as_ref().unwrap())
            }
            (method, _) => panic!("{method} is not served"),
        }
    }

    /// Waits for a newer version than the one in the query, and returns it as one event.
    async fn watch(&self, query: &str) -> Response<Body> {
        let since = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).unwrap();
        let since: u64 = since.parse().unwrap();
        self.version.subscribe().wait_for(|version| *version > since).await.unwrap();
        let state = self.state.lock().unwrap();
        let kind = if state.object.is_some() { "MODIFIED" } else { "DELETED" };
        reply(&json!({"type": kind, "object": state.last}))
    }
}

/// Makes a client whose requests go to the server for their path.
fn connect(route: impl Fn(&str) -> FakeApi + Send + 'static) -> kube::Client {
    let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    tokio::spawn(async move {
        let mut handle = pin!(handle);
        while let Some((request, respond)) = handle.next_request().await {
            let server = route(request.uri().path());
            tokio::spawn(async move { respond.send_response(server.answer(request).await) });
        }
    });
    kube::Client::new(service, "default")
}

fn reply(body: &Value) -> Response<Body> {
    Response::new(Body::from(format!("{body}\n").into_bytes()))
}

fn refusal(code: u16, reason: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": format!("refused with {code}"), "reason": reason, "code": code,
    });
    Response::builder().status(code).body(Body::from(status.to_string().into_bytes())).unwrap()
}
