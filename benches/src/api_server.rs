//! A Kubernetes API server with a script: it serves the objects that it is given and accepts every change. Watches report
//! changes of a status, and nothing else.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedSender;

/// The server. It ends with the runtime.
#[derive(Clone, Debug, Default)]
pub(crate) struct ApiServer(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Objects by their path.
    objects: HashMap<String, Value>,
    /// The paths of objects by the path of their list in all namespaces.
    lists: HashMap<String, Vec<String>>,
    /// The watches by the path of their list.
    watches: Vec<(String, UnboundedSender<Bytes>)>,
    /// How many changes it has accepted.
    changes: usize,
}

impl ApiServer {
    /// Adds an object of a group and version (as `/apis/oras.land/v1alpha1`).
    pub(crate) fn add(
        &self,
        api: &str,
        namespace: Option<&str>,
        plural: &str,
        name: &str,
        mut object: Value,
    ) {
        object["metadata"]["name"] = json!(name);
        object["metadata"]["uid"] = json!(name);
        object["metadata"]["resourceVersion"] = json!("1");
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut path = format!("{api}/{plural}/{name}");
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
            path = format!("{api}/namespaces/{namespace}/{plural}/{name}");
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.lists.entry(format!("{api}/{plural}")).or_default().push(path.clone());
        state.objects.insert(path, object);
    }

    /// How many changes it has accepted.
    pub(crate) fn changes(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).changes
    }

    /// Listens on a free port; returns a kubeconfig in a folder.
    pub(crate) async fn serve(&self, folder: &Path) -> Result<PathBuf> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                let service = hyper::service::service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        let kubeconfig = folder.join("kubeconfig");
        let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}]});
        std::fs::write(&kubeconfig, text.to_string())?;
        Ok(kubeconfig)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        if head.uri.query().unwrap_or_default().contains("watch=true") {
            let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.watches.push((path.to_owned(), sender));
            let events = stream::unfold(receiver, async |mut receiver| {
                receiver.recv().await.map(|event| (Ok::<_, Infallible>(Frame::data(event)), receiver))
            });
            return Response::new(StreamBody::new(events).boxed());
        }
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if head.method != Method::GET {
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            return json_answer(200, &state.change(path, body));
        }
        if let Some(object) = state.objects.get(path) {
            return json_answer(200, object);
        }
        // The API server knows each of these lists, also while it is empty.
        let is_list = state.lists.contains_key(path) || LISTS.iter().any(|plural| path.ends_with(plural));
        if is_list {
            let paths = state.lists.get(path).map(Vec::as_slice).unwrap_or_default();
            let items: Vec<&Value> = paths.iter().filter_map(|path| state.objects.get(path)).collect();
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
            return json_answer(200, &list);
        }
        let message = format!("{path} is not found");
        let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound",
            "code": 404, "message": message});
        json_answer(404, &status)
    }
}

impl State {
    /// Accepts a change; returns the object.
    fn change(&mut self, path: &str, mut body: Value) -> Value {
        self.changes += 1;
        let version = json!((1 + self.changes).to_string());
        let Some((path, object)) =
            path.strip_suffix("/status").and_then(|path| Some((path, self.objects.get_mut(path)?)))
        else {
            body["metadata"]["uid"] = json!("new");
            body["metadata"]["resourceVersion"] = version;
            return body;
        };
        // The webhook replaces a status with a JSON patch.
        let operations = body.as_array().into_iter().flatten();
        if let Some(operation) = operations.into_iter().find(|operation| operation["path"] == "/status") {
            object["status"] = operation["value"].clone();
        }
        object["metadata"]["resourceVersion"] = version;
        let event = Bytes::from(format!("{}\n", json!({"type": "MODIFIED", "object": object})));
        let object = object.clone();
        let lists = self.lists.iter().filter(|(_, paths)| paths.iter().any(|other| other == path));
        let lists: Vec<&String> = lists.map(|(list, _)| list).collect();
        self.watches.retain(|(list, watch)| !lists.contains(&list) || watch.send(event.clone()).is_ok());
        object
    }
}

const LISTS: [&str; 6] = [
    "/artifactpolicies",
    "/artifactsets",
    "/clusterartifactsets",
    "/artifactpins",
    "/nodeartifacts",
    "/namespaces",
];

fn json_answer(status: u16, value: &Value) -> Response<BoxBody<Bytes, Infallible>> {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *answer.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    answer.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    answer
}
