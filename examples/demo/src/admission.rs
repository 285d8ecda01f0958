//! The API server's part: sends an AdmissionReview over TLS and applies the patch of the answer.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use serde_json::{Value, json};

/// What an API server knows of a webhook: its address, and the CA of its `caBundle`.
#[derive(Debug)]
pub(crate) struct ApiServer {
    client: reqwest::Client,
    webhook: String,
}

impl ApiServer {
    /// Trusts only the CA in the file `bundle`, as an API server does for a webhook.
    pub(crate) fn new(port: u16, bundle: &Path) -> anyhow::Result<Self> {
        let pem = std::fs::read(bundle).context("cannot read the CA of the webhook")?;
        let roots =
            reqwest::Certificate::from_pem_bundle(&pem).context("cannot parse the CA of the webhook")?;
        let client = reqwest::Client::builder()
            .tls_certs_only(roots)
            .https_only(true)
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()
            .context("cannot set up TLS to the webhook")?;
        Ok(Self { client, webhook: format!("https://localhost:{port}") })
    }

    /// Reports whether the webhook's readiness endpoint answers with success.
    pub(crate) async fn is_ready(&self) -> bool {
        let answer = self.client.get(format!("{}/readyz", self.webhook)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Sends a pod to the webhook; returns the patched pod, and the warnings that `kubectl` would print.
    pub(crate) async fn admit(&self, pod: &Value, namespace: &str) -> anyhow::Result<(Value, Vec<String>)> {
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
        let answer = self.post(review.to_string()).await.context("the webhook did not answer")?;
        let response = &answer["response"];
        if response["allowed"] != true {
            bail!("the pod was denied: {}", response["status"]["message"]);
        }
        let mut admitted = pod.clone();
        if let Some(patch) = response["patch"].as_str() {
            apply(&mut admitted, patch).context("cannot apply the patch of the webhook")?;
        }
        let warnings = response["warnings"].as_array().into_iter().flatten();
        Ok((admitted, warnings.filter_map(|warning| warning.as_str().map(str::to_owned)).collect()))
    }

    async fn post(&self, review: String) -> anyhow::Result<Value> {
        let url = format!("{}/mutate?timeout=10s", self.webhook);
        let request = self.client.post(url).header("content-type", "application/json").body(review);
        let body = request.send().await?.bytes().await?;
        Ok(serde_json::from_slice(&body)?)
    }
}

fn apply(pod: &mut Value, patch: &str) -> anyhow::Result<()> {
    let patch = base64::engine::general_purpose::STANDARD.decode(patch)?;
    let patch: json_patch::Patch = serde_json::from_slice(&patch)?;
    Ok(json_patch::patch(pod, &patch)?)
}
