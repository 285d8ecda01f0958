//! An API server in memory: what the driver asks of one, answered as one does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use futures_util::stream;
use oras_csi_driver::preload::ClusterSets;
use serde_json::{Value, json};
use tokio::sync::mpsc;

#[derive(Default)]
struct Objects {
    version: u64,
    sets: BTreeMap<String, Value>,
    secrets: BTreeMap<String, Value>,
    labels: BTreeMap<String, String>,
    artifacts: Option<Value>,
    /// What became of sets, and the version since which it is so.
    news: Vec<(u64, Bytes)>,
    watching: Vec<mpsc::UnboundedSender<Bytes>>,
    is_down: bool,
    writes: usize,
    events: Vec<Value>,
    asked: Vec<String>,
}

/// The API server.
#[derive(Clone, Default)]
pub struct Cluster(Arc<Mutex<Objects>>);

const SETS: &str = "/apis/oras.land/v1alpha1/clusterartifactsets";
const ARTIFACTS: &str = "/apis/oras.land/v1alpha1/nodeartifacts";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const SECRETS: &str = "/api/v1/namespaces/oras-csi-system/secrets/";

impl Cluster {
    fn get(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap()
    }

    /// What a driver gets to know it by; everything goes ten times as fast.
    pub fn sets(&self) -> ClusterSets {
        let cluster = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let cluster = cluster.clone();
            async move { cluster.answer(request).await }
        });
        ClusterSets::new(kube::Client::new(service, "default"), "oras-csi-system")
            .with_rhythm(Duration::from_millis(500))
    }

    /// Writes a set, and tells those who watch.
    pub fn put_set(&self, name: &str, generation: i64, spec: &Value, status: &Value) {
        let mut objects = self.get();
        objects.version += 1;
        let version = objects.version.to_string();
        let set = json!({
            "apiVersion": "oras.land/v1alpha1", "kind": "ClusterArtifactSet",
            "metadata": {"name": name, "uid": name, "generation": generation, "resourceVersion": version},
            "spec": spec, "status": status,
        });
        let kind =
            if objects.sets.insert(name.to_owned(), set.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        objects.tell(kind, &set);
    }

    pub fn drop_set(&self, name: &str) {
        let mut objects = self.get();
        if let Some(set) = objects.sets.remove(name) {
            objects.version += 1;
            objects.tell("DELETED", &set);
        }
    }

    pub fn label(&self, key: &str, value: &str) {
        self.get().labels.insert(key.to_owned(), value.to_owned());
    }

    pub fn put_secret(&self, name: &str, user: &str, password: &str) {
        let config = json!({"auths": {"kind-registry:5000": {"username": user, "password": password}}});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "stringData": {}, "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": k8s_openapi::ByteString(config.to_string().into_bytes())}});
        self.get().secrets.insert(name.to_owned(), secret);
    }

    /// From now on nobody is answered, and what was open is closed.
    pub fn go_down(&self) {
        let mut objects = self.get();
        objects.is_down = true;
        objects.watching.clear();
    }

    pub fn come_back(&self) {
        self.get().is_down = false;
    }

    /// As it was written.
    pub fn artifacts(&self) -> Option<Value> {
        self.get().artifacts.clone()
    }

    /// What the node tells of a set.
    pub fn told(&self, set: &str) -> Option<Value> {
        let artifacts = self.artifacts()?;
        let sets = artifacts["status"]["sets"].as_array()?;
        sets.iter().find(|told| told["name"] == set).cloned()
    }

    pub fn has_told(&self, set: &str, state: &str) -> bool {
        self.told(set).is_some_and(|told| told["state"] == state)
    }

    /// How often the node's object was written.
    pub fn writes(&self) -> usize {
        self.get().writes
    }

    /// The events of the node.
    pub fn events(&self) -> Vec<Value> {
        self.get().events.clone()
    }

    /// All that was asked.
    pub fn asked(&self) -> Vec<String> {
        self.get().asked.clone()
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Result<Response<Body>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        let mut objects = self.get();
        objects.asked.push(format!("{} {path}", parts.method));
        if objects.is_down {
            return Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused"));
        }
        if path == EVENTS && parts.method == Method::POST {
            objects.events.push(body.clone());
            return Ok(Response::new(Body::from(body.to_string())));
        }
        if path == SETS && query.contains("watch=true") {
            let (sender, receiver) = mpsc::unbounded_channel();
            // What happened between the list and the watch is told as well.
            let version = query.split('&').find_map(|word| word.strip_prefix("resourceVersion="));
            let listed: u64 = version.and_then(|version| version.parse().ok()).unwrap_or_default();
            for (_, event) in objects.news.iter().filter(|(version, _)| *version > listed) {
                sender.send(event.clone()).unwrap();
            }
            objects.watching.push(sender);
            let events = stream::unfold(receiver, async |mut receiver| {
                receiver.recv().await.map(|event| (Ok::<_, std::io::Error>(event), receiver))
            });
            return Ok(Response::new(Body::from_stream(events)));
        }
        let answer = if path == SETS {
            Some(json!({"apiVersion": "oras.land/v1alpha1", "kind": "ClusterArtifactSetList",
                "metadata": {"resourceVersion": objects.version.to_string()},
                "items": objects.sets.values().collect::<Vec<_>>()}))
        } else if let Some(name) = path.strip_prefix(SETS) {
            objects.sets.get(&name[1..]).cloned()
        } else if let Some(name) = path.strip_prefix(SECRETS) {
            objects.secrets.get(name).cloned()
        } else if path == "/api/v1/nodes/node-1" {
            Some(json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": "node-1", "uid": "uid-of-node-1", "labels": objects.labels}}))
        } else if path == ARTIFACTS && parts.method == Method::POST {
            objects.artifacts = Some(body.clone());
            Some(body)
        } else if path == format!("{ARTIFACTS}/node-1/status") && parts.method == Method::PATCH {
            assert!(query.contains("fieldManager=oras-csi-driver"), "{query}");
            objects.write(&body)
        } else {
            panic!("the driver has no right to this: {} {path}", parts.method)
        };
        let (status, answer) = answer.map_or_else(
            || (StatusCode::NOT_FOUND, json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
                "status": "Failure", "message": format!("{path} not found"), "reason": "NotFound", "code": 404})),
            |answer| (StatusCode::OK, answer),
        );
        Ok(Response::builder().status(status).body(Body::from(answer.to_string())).unwrap())
    }
}

impl Objects {
    fn tell(&mut self, kind: &str, set: &Value) {
        let event = Bytes::from(format!("{}\n", json!({"type": kind, "object": set})));
        self.news.push((self.version, event.clone()));
        self.watching.retain(|watching| watching.send(event.clone()).is_ok());
    }

    fn write(&mut self, body: &Value) -> Option<Value> {
        let artifacts = self.artifacts.as_mut()?;
        artifacts["status"] = body["status"].clone();
        self.writes += 1;
        Some(artifacts.clone())
    }
}
