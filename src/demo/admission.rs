//! The API server's part in the tour: one AdmissionReview over TLS, and the patch it answers with.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::exit_status::Failure;

/// What an API server has of a webhook: an address, and a CA from its `caBundle`.
#[derive(Debug)]
pub(super) struct ApiServer {
    client: reqwest::Client,
    webhook: String,
}

impl ApiServer {
    /// Trusts the CA in `bundle` and nothing else, as an API server does for a webhook.
    pub(super) fn new(port: u16, bundle: &Path) -> Result<Self, Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::failed(format!("no TLS to the webhook: {error}"));
        let pem = std::fs::read(bundle).map_err(|error| failed(&error))?;
        let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(&error))?;
        let client = reqwest::Client::builder()
            .tls_certs_only(roots)
            .https_only(true)
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()
            .map_err(|error| failed(&error))?;
        Ok(Self { client, webhook: format!("https://localhost:{port}") })
    }

    /// Whether the webhook says that it is ready.
    pub(super) async fn is_ready(&self) -> bool {
        let answer = self.client.get(format!("{}/readyz", self.webhook)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Has a pod admitted: gives it as it would be stored, and the warnings that `kubectl` would print.
    pub(super) async fn admit(&self, pod: &Value, namespace: &str) -> Result<(Value, Vec<String>), Failure> {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "5f0c6e0a-0d3c-4b7e-9c55-6b1f3f1d7a10",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "operation": "CREATE",
                "namespace": namespace,
                "object": pod,
            },
        });
        let failed =
            |error: &dyn std::fmt::Display| Failure::failed(format!("the webhook did not answer: {error}"));
        let answer = self
            .client
            .post(format!("{}/mutate?timeout=10s", self.webhook))
            .header("content-type", "application/json")
            .body(review.to_string())
            .send()
            .await
            .map_err(|error| failed(&error))?;
        let body = answer.bytes().await.map_err(|error| failed(&error))?;
        let answer: Value = serde_json::from_slice(&body).map_err(|error| failed(&error))?;
        let response = &answer["response"];
        if response["allowed"] != true {
            return Err(Failure::failed(format!("the pod was denied: {}", response["status"]["message"])));
        }
        let mut admitted = pod.clone();
        if let Some(patch) = response["patch"].as_str() {
            let patch =
                base64::engine::general_purpose::STANDARD.decode(patch).map_err(|error| failed(&error))?;
            let patch: json_patch::Patch = serde_json::from_slice(&patch).map_err(|error| failed(&error))?;
            json_patch::patch(&mut admitted, &patch).map_err(|error| failed(&error))?;
        }
        let warnings = response["warnings"].as_array().into_iter().flatten();
        Ok((admitted, warnings.filter_map(|warning| warning.as_str().map(str::to_owned)).collect()))
    }
}
