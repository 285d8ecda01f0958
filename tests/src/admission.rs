//! A webhook for the API server with a real registry behind it, and pods to create.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::core::Status;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::cluster::client;
use crate::parts::{oras_csi, repository};
use crate::process::run;
use crate::registry::Distribution;
use crate::webhook::Webhook;

/// A registry with the artifacts of the examples, and a webhook for one namespace.
pub struct Cluster {
    /// A client with the permissions of an administrator.
    pub client: Client,
    /// The registry, `kind-registry:5000` for the webhook.
    pub registry: Distribution,
    /// The `certs.d` folder of the webhook.
    pub certs: tempfile::TempDir,
    /// The webhook.
    pub webhook: Webhook,
    /// The digest of `java-app:v1`.
    pub digest: String,
}

impl Cluster {
    /// Starts a webhook for the namespace `name` with more arguments.
    pub async fn start(name: &str, arguments: &[&str]) -> Self {
        let client = client().await;
        let registry = Distribution::start();
        let digest = push_examples(&registry);
        let certs = registry.certs_d(&["kind-registry:5000"]);
        let webhook = Webhook::start(&client, name, certs.path(), arguments).await;
        Self { client, registry, certs, webhook, digest }
    }

    /// Returns the pods of the namespace.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), self.webhook.namespace())
    }

    /// Creates a pod; returns what was stored.
    pub async fn create(&self, pod: &Value) -> Result<Value, Box<Status>> {
        create_in(&self.pods(), pod, &PostParams::default()).await
    }

    /// Creates a pod, which must be refused; returns the refusal.
    pub async fn refusal(&self, pod: &Value) -> Box<Status> {
        self.create(pod).await.expect_err("the pod is refused")
    }
}

/// Creates a pod; returns what was stored.
pub async fn create_in(pods: &Api<Pod>, pod: &Value, params: &PostParams) -> Result<Value, Box<Status>> {
    let pod = serde_json::from_value(pod.clone()).expect("a pod");
    match pods.create(params, &pod).await {
        Ok(pod) => Ok(serde_json::to_value(pod).expect("JSON")),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("no answer: {error}"),
    }
}

/// Pushes all artifacts that the manifests in `examples/` name; returns the digest of `java-app:v1`.
pub fn push_examples(registry: &Distribution) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("HelloWorldServer.jar"), "PK jar").expect("writes");
    std::fs::write(folder.path().join("notes.txt"), "notes").expect("writes");
    let files = ["HelloWorldServer.jar:application/java-archive", "notes.txt:text/plain"];
    let digest = registry.push("java-app:v1", folder.path(), &files);
    for also in ["java-app:latest", "acme/tokenizer:v3", "acme/dataset:2024"] {
        registry.push(also, folder.path(), &files);
    }
    // An overlay has another digest than its base.
    for (level, text) in [("acme/config:v1", "config"), ("acme/model:v1", "model")] {
        std::fs::write(folder.path().join("notes.txt"), text).expect("writes");
        registry.push(level, folder.path(), &files);
    }
    let certs = registry.certs_d(&["kind-registry:5000"]);
    let mut patch = Command::new(oras_csi());
    patch.args(["patch", "kind-registry:5000/java-app:v1", "--push", "kind-registry:5000/java-app:patched"]);
    patch.args([
        "--minor",
        "kind-registry:5000/acme/config:v1",
        "--major",
        "kind-registry:5000/acme/model:v1",
    ]);
    run(patch.arg("--certs-dir").arg(certs.path()).env("DOCKER_CONFIG", "/nonexistent"));
    digest
}

/// Returns the attributes of the first volume of the driver in a pod, which kubelet passes to the driver.
pub fn volume_attributes(pod: &Value) -> HashMap<String, String> {
    let volumes = pod["spec"]["volumes"].as_array().expect("volumes");
    let ours = volumes.iter().find(|volume| volume["csi"]["driver"] == "csi.oras.land").expect("ours");
    serde_json::from_value(ours["csi"]["volumeAttributes"].clone()).expect("attributes")
}

/// Returns a pod with annotations and one container.
pub fn pod(name: &str, annotations: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "none"}]}})
}

/// Returns the manifests of `examples/`.
pub fn example_files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(repository().join("examples"))
        .expect("examples")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

/// Reports whether the pods of an example name sets, which need a webhook with `--sets`; `integration/sets.rs` has them.
pub fn needs_sets(file: &Path) -> bool {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    ["artifact-set", "cluster-artifact-set", "issue-25-second"].contains(&&*stem)
}

/// Returns the pods of `examples/` that name no set, by file name; the pod of a workload is that of its template.
pub fn example_pods() -> Vec<(String, Value)> {
    let mut pods = Vec::new();
    for file in example_files().into_iter().filter(|file| !needs_sets(file)) {
        let text = std::fs::read_to_string(&file).expect("reads");
        for (number, document) in
            serde_saphyr::from_multiple::<Value>(&text).expect("YAML").into_iter().enumerate()
        {
            let mut pod = match document["kind"].as_str() {
                Some("Pod") => document,
                Some("Deployment" | "Job" | "StatefulSet" | "DaemonSet") => {
                    document["spec"]["template"].clone()
                }
                _ => continue,
            };
            let stem = file.file_stem().expect("a name").to_string_lossy().into_owned();
            pod["apiVersion"] = json!("v1");
            pod["kind"] = json!("Pod");
            pod["metadata"]["name"] = json!(format!("{stem}-{number}"));
            if let Some(metadata) = pod["metadata"].as_object_mut() {
                metadata.remove("namespace");
            }
            pods.push((format!("{}-{number}", file.display()), pod));
        }
    }
    assert!(!pods.is_empty(), "there are examples");
    pods
}
