//! What the webhook needs beside it: an API server with policies, and a registry with one artifact. Both answer from
//! memory, on a thread of their own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes, to_bytes};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use futures_util::stream;
use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

use crate::review::{NAMESPACE, REGISTRY, REPOSITORY, TAG};

const POLICIES: &str = "/apis/oras.land/v1alpha1/artifactpolicies";
const NAMESPACES: &str = "/api/v1/namespaces";

/// An API server and a registry in this process, and the files that lead the webhook to them.
pub(crate) struct Cluster {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) certs: PathBuf,
}

impl Cluster {
    pub(crate) fn start(folder: &Path) -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let local = SocketAddr::from(([127, 0, 0, 1], 0));
                let registry = TcpListener::bind(local).await.expect("a port");
                let api = TcpListener::bind(local).await.expect("a port");
                let address = |listener: &TcpListener| listener.local_addr().expect("it is bound");
                sender.send((address(&api), address(&registry))).expect("the receiver waits");
                let (api, registry) =
                    (axum::serve(api, api_server()), axum::serve(registry, artifact_registry()));
                let _ = tokio::join!(api.into_future(), registry.into_future());
            });
        });
        let (api, registry) = receiver.recv().expect("the servers start");
        let certs = folder.join("certs.d");
        let host = certs.join(REGISTRY);
        fs::create_dir_all(&host).expect("a folder");
        let hosts = format!("server = \"http://{registry}\"\n[host.\"http://{registry}\"]\n");
        fs::write(host.join("hosts.toml"), hosts).expect("a file");
        let kubeconfig = folder.join("kubeconfig");
        let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {"server": format!("http://{api}")}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}]});
        fs::write(&kubeconfig, text.to_string()).expect("a file");
        Self { kubeconfig, certs }
    }
}

/// Three policies, of which two select the namespace of the pod.
fn policies() -> [(&'static str, Value); 3] {
    let of_team = |team: &str| json!({"matchLabels": {"team": team}});
    let own = format!("{REGISTRY}/acme/*");
    [
        ("registries", json!({"registries": {"allow": ["ghcr.io/acme/**", own, "*.internal.example/**"]}})),
        (
            "models",
            json!({"namespaceSelector": of_team("ml"),
                "registries": {"deny": [format!("{REGISTRY}/acme/experimental")]}}),
        ),
        (
            "payments",
            json!({"namespaceSelector": of_team("payments"), "registries": {"allow": ["ghcr.io/payments/**"]}}),
        ),
    ]
}

/// Objects by their path.
type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

/// Serves objects as an API server does whose objects never change, but that creates new ones.
fn api_server() -> Router {
    let mut objects = BTreeMap::new();
    for (name, spec) in policies() {
        let metadata = json!({"name": name, "generation": 1, "uid": name, "resourceVersion": "1"});
        let kind = json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPolicy", "metadata": metadata, "spec": spec});
        objects.insert(format!("{POLICIES}/{name}"), kind);
    }
    for name in ["default", NAMESPACE] {
        let metadata = json!({"name": name, "resourceVersion": "1",
            "labels": {"kubernetes.io/metadata.name": name, "team": "ml"}});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        objects.insert(format!("{NAMESPACES}/{name}"), namespace);
    }
    let objects = Arc::new(Mutex::new(objects));
    Router::new().fallback(move |request| answer(objects.clone(), request))
}

async fn answer(objects: Objects, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.expect("a short body");
    let path = head.uri.path().trim_end_matches("/status").to_owned();
    if head.uri.query().is_some_and(|query| query.contains("watch=true")) {
        return Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()).into_response();
    }
    let mut objects = objects.lock().expect("no panic");
    if head.method == Method::POST {
        let mut object: Value = serde_json::from_slice(&body).expect("an object");
        object["metadata"]["resourceVersion"] = json!("1");
        object["metadata"]["uid"] = json!("created");
        let name = object["metadata"]["name"].as_str().expect("a name");
        objects.insert(format!("{path}/{name}"), object.clone());
        return (StatusCode::CREATED, Json(object)).into_response();
    }
    if [POLICIES, NAMESPACES].contains(&path.as_str()) {
        let is_listed = |key: &&String| key.rsplit_once('/').is_some_and(|(folder, _)| folder == path);
        let items: Vec<&Value> = objects.keys().filter(is_listed).map(|key| &objects[key]).collect();
        let list =
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
        return Json(list).into_response();
    }
    if let Some(object) = objects.get(&path) {
        return Json(object).into_response();
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "not found", "reason": "NotFound", "code": 404,
        "details": {"name": path.rsplit('/').next(), "kind": "object"}});
    (StatusCode::NOT_FOUND, Json(status)).into_response()
}

/// Serves the manifest of an artifact of one file. The webhook reads no blobs.
fn artifact_registry() -> Router {
    let digest = |bytes: &[u8]| {
        Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut digest, byte| {
            let _ = write!(digest, "{byte:02x}");
            digest
        })
    };
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "artifactType": "application/vnd.acme.model",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/vnd.acme.weights", "digest": digest(b"weights"), "size": 7,
            "annotations": {"org.opencontainers.image.title": "model.gguf"}}]});
    let manifest = manifest.to_string();
    let digest = digest(manifest.as_bytes());
    let paths = [TAG, &digest].map(|name| format!("/v2/{REPOSITORY}/manifests/{name}"));
    Router::new().fallback(move |request: Request<Body>| {
        let is_known = paths.iter().any(|path| path == request.uri().path());
        let headers = [(header::CONTENT_TYPE.as_str(), media_type), ("docker-content-digest", &digest)];
        let response = if is_known {
            (headers, manifest.clone()).into_response()
        } else {
            StatusCode::NOT_FOUND.into_response()
        };
        async { response }
    })
}
