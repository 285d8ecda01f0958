//! A Kubernetes API server in memory, for clients of the crate `kube`.
//!
//! It stores objects by their path and serves GET, list (in pages), watch (with the events since a resource version), POST, PUT,
//! PATCH (JSON patch, merge patch, apply), DELETE and the subresource `status`, with conflicts as a real server has them.
//! A test can change objects just before a request is answered, answer a request itself, or stop the server.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test cannot go on with a server that is not set up"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Objects by their path, such as `/api/v1/namespaces/team/secrets/name`.
pub type Objects = BTreeMap<String, Value>;

/// A request.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The method, `WATCH` for a watch.
    pub verb: String,
    /// The path.
    pub path: String,
    /// The query.
    pub query: String,
    /// The body, or null.
    pub body: Value,
    /// The status of the answer, once there is one.
    pub code: Option<u16>,
}

impl Recorded {
    /// Returns method, path and query.
    pub fn line(&self) -> String {
        let verb = if self.verb == "WATCH" { "GET" } else { &self.verb };
        let separator = if self.query.is_empty() { "" } else { "?" };
        format!("{verb} {}{separator}{}", self.path, self.query)
    }
}

/// Runs just before a request is answered, and can answer it.
type Hook = Box<dyn FnOnce(&mut Objects) -> Option<Response<Body>> + Send>;
/// Reports whether a client is allowed to send a request.
type Permission = dyn Fn(&Recorded) -> bool + Send + Sync;

/// The server. Clones share their state.
#[derive(Clone, Default)]
pub struct ApiServer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: Objects,
    version: u64,
    events: Vec<Event>,
    watches: Vec<(Selection, mpsc::UnboundedSender<Bytes>)>,
    hooks: Vec<(String, Method, Hook)>,
    requests: Vec<Recorded>,
    permission: Option<Box<Permission>>,
    forbidden: Vec<String>,
    rewrite: Option<fn(&str) -> String>,
    is_down: bool,
    is_silent: bool,
}

/// A change of an object.
struct Event {
    version: u64,
    path: String,
    line: Bytes,
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// Group and version, as in the path.
    api: String,
    namespace: Option<String>,
    plural: String,
    name: Option<String>,
    subresource: Option<String>,
}

impl Target {
    fn parse(path: &str) -> Self {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let length = if segments[0] == "api" { 2 } else { 3 };
        let (api, mut rest) =
            segments.split_at_checked(length).unwrap_or_else(|| panic!("{path} is no resource"));
        let mut namespace = None;
        if rest.len() > 2 && rest[0] == "namespaces" {
            namespace = Some(rest[1].to_owned());
            rest = &rest[2..];
        }
        let part = |position: usize| rest.get(position).map(|&part| part.to_owned());
        Self {
            api: api.join("/"),
            namespace,
            plural: part(0).unwrap_or_else(|| panic!("{path} is no resource")),
            name: part(1),
            subresource: part(2),
        }
    }

    /// The path of an object of this name beside this target.
    fn object_path(&self, name: &str) -> String {
        let namespace = self.namespace.as_ref().map(|name| format!("/namespaces/{name}")).unwrap_or_default();
        format!("/{}{namespace}/{}/{name}", self.api, self.plural)
    }

    fn error(&self, code: u16, reason: &str) -> Response<Body> {
        let name = self.name.as_deref().unwrap_or_default();
        let group = self.api.split('/').nth(1).filter(|_| self.api.starts_with("apis/")).unwrap_or_default();
        let message = format!("{}.{group} \"{name}\" is refused with {reason}", self.plural);
        let details = json!({"name": name, "group": group, "kind": self.plural});
        answer(code, &failure(code, reason, &message, &details).to_string())
    }
}

/// The objects of a list or a watch.
#[derive(Clone, Debug)]
struct Selection {
    target: Target,
    name: Option<String>,
}

impl Selection {
    fn new(target: Target, query: &str) -> Self {
        let selector = query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector="));
        let name = selector.map(|selector| selector.replace("%3D", "="));
        let name = name.and_then(|selector| Some(selector.strip_prefix("metadata.name=")?.to_owned()));
        Self { target, name }
    }

    fn contains(&self, path: &str) -> bool {
        let other = Target::parse(path);
        other.api == self.target.api
            && other.plural == self.target.plural
            && (self.target.namespace.is_none() || other.namespace == self.target.namespace)
            && (self.name.is_none() || other.name == self.name)
    }
}

impl ApiServer {
    /// Creates an empty server.
    pub fn new() -> Self {
        Self::default()
    }

    /// Panics on requests that `is_allowed` does not accept.
    #[must_use]
    pub fn with_permission(self, is_allowed: impl Fn(&Recorded) -> bool + Send + Sync + 'static) -> Self {
        self.state().permission = Some(Box::new(is_allowed));
        self
    }

    /// Changes the path of each request, for tests that do not depend on it.
    #[must_use]
    pub fn with_paths(self, rewrite: fn(&str) -> String) -> Self {
        self.state().rewrite = Some(rewrite);
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Returns a client of this server.
    pub fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let server = server.clone();
            async move { server.serve(request).await }
        });
        kube::Client::new(service, "default")
    }

    /// Changes objects, as another client would.
    pub fn edit(&self, change: impl FnOnce(&mut Objects)) {
        self.state().edit(change);
    }

    /// Creates or replaces an object, as another client would.
    pub fn put(&self, path: &str, object: Value) {
        self.edit(|objects| drop(objects.insert(path.to_owned(), object)));
    }

    /// Deletes an object, as another client would.
    pub fn remove(&self, path: &str) {
        self.edit(|objects| drop(objects.remove(path)));
    }

    /// Returns an object.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// Returns all objects.
    pub fn objects(&self) -> Objects {
        self.state().objects.clone()
    }

    /// Changes objects just before the next request of this method, after the hooks that were set before. Watches run no
    /// hooks.
    pub fn meanwhile(&self, method: Method, change: impl FnOnce(&mut Objects) + Send + 'static) {
        self.meanwhile_at("/", method, change);
    }

    /// Like [`Self::meanwhile`], for requests whose path begins with `prefix`.
    pub fn meanwhile_at(
        &self,
        prefix: &str,
        method: Method,
        change: impl FnOnce(&mut Objects) + Send + 'static,
    ) {
        let hook = |objects: &mut Objects| {
            change(objects);
            None
        };
        self.state().hooks.push((prefix.to_owned(), method, Box::new(hook)));
    }

    /// Answers the next GET of this path with the object as it is, and then changes objects: the answer is already out of
    /// date when the client has it.
    pub fn answer_before(&self, path: &str, change: impl FnOnce(&mut Objects) + Send + 'static) {
        let key = path.to_owned();
        let hook = move |objects: &mut Objects| {
            let object = objects.get(&key).cloned();
            change(objects);
            Some(match object {
                Some(object) => answer(200, &object.to_string()),
                None => Target::parse(&key).error(404, "NotFound"),
            })
        };
        self.state().hooks.push((path.to_owned(), Method::GET, Box::new(hook)));
    }

    /// Answers the next request of this method with a status and a body.
    pub fn answer_with(&self, method: Method, code: u16, body: &str) {
        self.answer_with_at("/", method, code, body);
    }

    /// Refuses the next request of this method whose path begins with `prefix`.
    pub fn refuse_at(&self, prefix: &str, method: Method, code: u16) {
        let message = format!("refused with {code}");
        let status = failure(code, "Refused", &message, &Value::Null);
        self.answer_with_at(prefix, method, code, &status.to_string());
    }

    /// Like [`Self::answer_with`], for requests whose path begins with `prefix`.
    pub fn answer_with_at(&self, prefix: &str, method: Method, code: u16, body: &str) {
        let response = answer(code, body);
        self.state().hooks.push((prefix.to_owned(), method, Box::new(|_| Some(response))));
    }

    /// Refuses connections and closes the open watches.
    pub fn go_down(&self) {
        let mut state = self.state();
        state.is_down = true;
        state.watches.clear();
    }

    /// Accepts connections again.
    pub fn come_up(&self) {
        self.state().is_down = false;
    }

    /// Answers no request from now on.
    pub fn stop_answering(&self) {
        self.state().is_silent = true;
    }

    /// Returns all requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state().requests.clone()
    }

    /// Returns method, path and query of all requests so far.
    pub fn log(&self) -> Vec<String> {
        self.requests().iter().map(Recorded::line).collect()
    }

    /// Returns the bodies of all requests with a body.
    pub fn bodies(&self) -> Vec<Value> {
        self.requests().into_iter().map(|request| request.body).filter(|body| !body.is_null()).collect()
    }

    /// Refuses all requests whose path begins with `prefix` from now on, as RBAC does.
    pub fn forbid(&self, prefix: &str) {
        self.state().forbidden.push(prefix.to_owned());
    }

    async fn serve(&self, request: Request<kube::client::Body>) -> Result<Response<Body>, std::io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.expect("the client sends a body");
        if self.state().is_silent {
            return std::future::pending().await;
        }
        // Lets other tasks send their requests between two requests of one task.
        tokio::task::yield_now().await;
        let rewrite = self.state().rewrite;
        let query = head.uri.query().unwrap_or_default().to_owned();
        let is_watch = query.contains("watch=true");
        let recorded = Recorded {
            verb: if is_watch { "WATCH".to_owned() } else { head.method.to_string() },
            path: rewrite.map_or_else(|| head.uri.path().to_owned(), |rewrite| rewrite(head.uri.path())),
            query,
            body: serde_json::from_slice(&body).unwrap_or_default(),
            code: None,
        };
        let mut state = self.state();
        state.requests.push(recorded.clone());
        if state.is_down {
            return Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused"));
        }
        if let Some(is_allowed) = &state.permission {
            assert!(is_allowed(&recorded), "the client is not allowed to send {}", recorded.line());
        }
        let target = Target::parse(&recorded.path);
        if state.forbidden.iter().any(|prefix| recorded.path.starts_with(prefix)) {
            let verb = if target.name.is_none() { "list" } else { "get" };
            let message = format!("{} is forbidden: User \"user\" cannot {verb} it", target.plural);
            return Ok(answer(403, &failure(403, "Forbidden", &message, &Value::Null).to_string()));
        }
        if is_watch {
            return Ok(state.watch(Selection::new(target, &recorded.query), &recorded.query));
        }
        let index = state.requests.len() - 1;
        let patch_type = head.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let response = state.run_hook(&head.method, &recorded.path);
        let response = response.unwrap_or_else(|| {
            state.answer(&head.method, &target, &recorded, patch_type.unwrap_or_default())
        });
        state.requests[index].code = Some(response.status().as_u16());
        Ok(response)
    }
}

impl State {
    /// Runs the first hook for a path if it is for this method. Returns its answer, if it has one.
    fn run_hook(&mut self, method: &Method, path: &str) -> Option<Response<Body>> {
        let index = self.hooks.iter().position(|(prefix, ..)| path.starts_with(prefix))?;
        if self.hooks[index].1 != *method {
            return None;
        }
        let (_, _, hook) = self.hooks.remove(index);
        self.edit(hook)
    }

    /// Runs a change, gives each changed object a new resource version, and tells the watches.
    fn edit<T>(&mut self, change: impl FnOnce(&mut Objects) -> T) -> T {
        let before = self.objects.clone();
        let result = change(&mut self.objects);
        let paths: BTreeSet<String> = before.keys().chain(self.objects.keys()).cloned().collect();
        for path in paths {
            let (old, new) = (before.get(&path), self.objects.get(&path));
            let exists = new.is_some();
            let (kind, mut object) = match (old, new) {
                (None, Some(new)) => ("ADDED", new.clone()),
                (Some(old), Some(new)) if old != new => ("MODIFIED", new.clone()),
                (Some(old), None) => ("DELETED", old.clone()),
                _ => continue,
            };
            // The version of an empty server is 1: see `list`.
            self.version = self.version.max(1) + 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
            if exists {
                self.objects.insert(path.clone(), object);
            }
            self.watches.retain(|(selection, sender)| {
                !selection.contains(&path) || sender.send(line.clone()).is_ok()
            });
            self.events.push(Event { version: self.version, path, line });
        }
        result
    }

    fn watch(&mut self, selection: Selection, query: &str) -> Response<Body> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let since = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let since: u64 = since.and_then(|version| version.parse().ok()).unwrap_or_default();
        // The events between the list and the watch are sent as well.
        for event in
            self.events.iter().filter(|event| event.version > since && selection.contains(&event.path))
        {
            sender.send(event.line.clone()).expect("the receiver is here");
        }
        self.watches.push((selection, sender));
        let events = stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|event| (Ok::<_, std::io::Error>(event), receiver))
        });
        Response::new(Body::from_stream(events))
    }

    fn answer(
        &mut self,
        method: &Method,
        target: &Target,
        request: &Recorded,
        patch_type: &str,
    ) -> Response<Body> {
        let Some(name) = &target.name else {
            return match *method {
                Method::GET => self.list(&Selection::new(target.clone(), &request.query), &request.query),
                Method::POST => self.create(target, request),
                _ => panic!("{} is not served", request.line()),
            };
        };
        let path = target.object_path(name);
        let object = self.objects.get(&path).cloned();
        match (method, object) {
            (&Method::PATCH, None) if patch_type.contains("apply-patch") && target.subresource.is_none() => {
                self.store(&path, target, request.body.clone())
            }
            (_, None) => target.error(404, "NotFound"),
            (&Method::GET, Some(object)) => answer(200, &object.to_string()),
            (&Method::PUT, Some(object)) => {
                if request.body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                    return target.error(409, "Conflict");
                }
                self.store(&path, target, with_subresource(object, target, &request.body))
            }
            (&Method::PATCH, Some(object)) => match patched(&object, &request.body, patch_type) {
                Some(new) if new["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] => {
                    target.error(409, "Conflict")
                }
                Some(new) => self.store(&path, target, with_subresource(object, target, &new)),
                None => target.error(422, "Invalid"),
            },
            (&Method::DELETE, Some(object)) => {
                self.edit(|objects| drop(objects.remove(&path)));
                answer(200, &object.to_string())
            }
            _ => panic!("{} is not served", request.line()),
        }
    }

    /// Answers with the objects of one page. The token of the next page is the number of objects before it.
    fn list(&self, selection: &Selection, query: &str) -> Response<Body> {
        let number = |key: &str| {
            let pair = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            pair.and_then(|number| number.parse::<usize>().ok())
        };
        let items = self.objects.iter().filter(|(path, _)| selection.contains(path));
        let items: Vec<&Value> = items.map(|(_, object)| object).collect();
        let start = number("continue").unwrap_or_default().min(items.len());
        let end = number("limit").map_or(items.len(), |limit| (start + limit).min(items.len()));
        let version = self.version.max(1).to_string();
        let mut list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version},
            "items": items[start..end]});
        if end < items.len() {
            list["metadata"]["continue"] = json!(end.to_string());
        }
        answer(200, &list.to_string())
    }

    fn create(&mut self, target: &Target, request: &Recorded) -> Response<Body> {
        let metadata = &request.body["metadata"];
        let name = match (metadata["name"].as_str(), metadata["generateName"].as_str()) {
            (Some(name), _) => name.to_owned(),
            (None, Some(prefix)) => format!("{prefix}{}", self.version),
            _ => panic!("an object has a name"),
        };
        let target = Target { name: Some(name.clone()), ..target.clone() };
        let path = target.object_path(&name);
        if self.objects.contains_key(&path) {
            return target.error(409, "AlreadyExists");
        }
        let mut object = request.body.clone();
        if let Some(namespace) = &target.namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-of-{name}"));
        }
        let mut response = self.store(&path, &target, object);
        *response.status_mut() = StatusCode::CREATED;
        response
    }

    fn store(&mut self, path: &str, target: &Target, mut object: Value) -> Response<Body> {
        if object["metadata"]["name"].is_null() {
            object["metadata"]["name"] = json!(target.name);
        }
        self.edit(|objects| drop(objects.insert(path.to_owned(), object)));
        answer(200, &self.objects[path].to_string())
    }
}

/// Takes only the status of `new` when a request names the subresource `status`.
fn with_subresource(mut old: Value, target: &Target, new: &Value) -> Value {
    if target.subresource.is_none() {
        return new.clone();
    }
    old["status"] = new["status"].clone();
    old
}

/// Returns the object after a patch, or `None` if the patch fails.
fn patched(object: &Value, patch: &Value, patch_type: &str) -> Option<Value> {
    let mut object = object.clone();
    if patch_type.contains("json-patch") {
        let patch: json_patch::Patch = serde_json::from_value(patch.clone()).expect("a JSON patch");
        json_patch::patch(&mut object, &patch).ok()?;
    } else if patch_type.contains("apply-patch") {
        // One manager owns all fields but those of the metadata.
        for (key, value) in patch.as_object()? {
            match key.as_str() {
                "metadata" => json_patch::merge(&mut object[key], value),
                _ => object[key] = value.clone(),
            }
        }
    } else {
        json_patch::merge(&mut object, patch);
    }
    Some(object)
}

/// Returns a `Status` object of a failure.
pub fn failure(code: u16, reason: &str, message: &str, details: &Value) -> Value {
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    if !details.is_null() {
        status["details"] = details.clone();
    }
    status
}

fn answer(code: u16, body: &str) -> Response<Body> {
    Response::builder().status(code).body(Body::from(body.to_owned())).expect("a status")
}
