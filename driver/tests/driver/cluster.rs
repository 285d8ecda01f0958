//! A fake API server for a driver: cluster sets, Secrets, a node, and the objects that the driver writes.

use std::time::Duration;

use http::Method;
use oras_csi_driver::PodEvents;
use oras_csi_driver::preload::ClusterSets;
use oras_csi_testkit::api_server::{ApiServer, Recorded, failure};
use serde_json::{Value, json};

/// The API server.
#[derive(Clone)]
pub struct Cluster(ApiServer);

const SETS: &str = "/apis/oras.land/v1alpha1/clusterartifactsets";
const ARTIFACTS: &str = "/apis/oras.land/v1alpha1/nodeartifacts";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const SECRETS: &str = "/api/v1/namespaces/oras-csi-system/secrets";
const NODE: &str = "/api/v1/nodes/node-1";

/// Reports whether the chart gives the driver the permission for a request.
fn is_allowed(request: &Recorded) -> bool {
    let is_below = |folder: &str| request.path.starts_with(&format!("{folder}/"));
    match request.verb.as_str() {
        "WATCH" => request.path == SETS,
        "GET" => request.path == SETS || is_below(SETS) || is_below(SECRETS) || request.path == NODE,
        "POST" => request.path == EVENTS || request.path == ARTIFACTS,
        "PATCH" => {
            assert!(request.query.contains("fieldManager=oras-csi-driver"), "{}", request.query);
            request.path == format!("{ARTIFACTS}/node-1/status")
        }
        _ => false,
    }
}

impl Default for Cluster {
    fn default() -> Self {
        let server = ApiServer::new().with_permission(is_allowed);
        let metadata = json!({"name": "node-1", "uid": "uid-of-node-1", "labels": {}});
        server.put(
            NODE,
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata}),
        );
        Self(server)
    }
}

impl Cluster {
    /// Returns the driver's connection to it, whose intervals are a tenth of the usual ones.
    pub fn sets(&self) -> ClusterSets {
        ClusterSets::new(self.0.client(), "oras-csi-system").with_report_interval(Duration::from_millis(500))
    }

    /// Returns the driver's connection to it for events of pods.
    pub fn pod_events(&self) -> PodEvents {
        PodEvents::new(self.0.client())
    }

    pub fn put_set(&self, name: &str, generation: i64, spec: &Value, status: &Value) {
        let set = json!({
            "apiVersion": "oras.land/v1alpha1", "kind": "ClusterArtifactSet",
            "metadata": {"name": name, "uid": name, "generation": generation},
            "spec": spec, "status": status,
        });
        self.0.put(&format!("{SETS}/{name}"), set);
    }

    pub fn drop_set(&self, name: &str) {
        self.0.remove(&format!("{SETS}/{name}"));
    }

    /// Labels the node.
    pub fn label(&self, key: &str, value: &str) {
        self.0.edit(|objects| objects.get_mut(NODE).unwrap()["metadata"]["labels"][key] = json!(value));
    }

    pub fn put_secret(&self, name: &str, user: &str, password: &str) {
        let config = json!({"auths": {"kind-registry:5000": {"username": user, "password": password}}});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "stringData": {}, "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": k8s_openapi::ByteString(config.to_string().into_bytes())}});
        self.0.put(&format!("{SECRETS}/{name}"), secret);
    }

    /// Has the object of the node, and refuses the next write of its status as Kubernetes 1.37 refuses fields that the
    /// definition does not have.
    pub fn refuse_newer_fields(&self) {
        let object = json!({"apiVersion": "oras.land/v1alpha1", "kind": "NodeArtifacts", "metadata": {"name": "node-1"}, "spec": {}});
        self.0.put(&format!("{ARTIFACTS}/node-1"), object);
        let message = "failed to create typed patch object (/node-1; oras.land/v1alpha1, Kind=NodeArtifacts): .status.version: \
                       field not declared in schema";
        let body = failure(500, "", message, &Value::Null).to_string();
        self.0.answer_with_at(ARTIFACTS, Method::PATCH, 500, &body);
    }

    /// Refuses connections and closes watches.
    pub fn go_down(&self) {
        self.0.go_down();
    }

    pub fn come_back(&self) {
        self.0.come_up();
    }

    /// Returns the NodeArtifacts object of the node.
    pub fn artifacts(&self) -> Option<Value> {
        self.0.get(&format!("{ARTIFACTS}/node-1"))
    }

    /// Returns what the node reports about a set.
    pub fn told(&self, set: &str) -> Option<Value> {
        let artifacts = self.artifacts()?;
        let sets = artifacts["status"]["sets"].as_array()?;
        sets.iter().find(|told| told["name"] == set).cloned()
    }

    pub fn has_told(&self, set: &str, state: &str) -> bool {
        self.told(set).is_some_and(|told| told["state"] == state)
    }

    /// Returns how often the status of the node's object was written.
    pub fn writes(&self) -> usize {
        let requests = self.0.requests().into_iter();
        requests.filter(|request| request.verb == "PATCH" && request.code == Some(200)).count()
    }

    /// Returns the events of the node.
    pub fn events(&self) -> Vec<Value> {
        let requests = self.0.requests().into_iter();
        requests
            .filter(|request| request.path == EVENTS && request.code.is_some())
            .map(|request| request.body)
            .collect()
    }

    /// Returns method and path of all requests.
    pub fn asked(&self) -> Vec<String> {
        let line = |request: Recorded| {
            let verb = if request.verb == "WATCH" { "GET" } else { &request.verb };
            format!("{verb} {}", request.path)
        };
        self.0.requests().into_iter().map(line).collect()
    }
}
