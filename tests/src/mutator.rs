//! Another mutating webhook, before or after ours: the API server calls them in the order of the names of their
//! configurations.

use std::sync::Arc;

use axum::routing::post;
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::registry::served::Served;
use crate::registry::tls::Authority;

/// A webhook that patches every pod of one namespace, and is asked again when another one has changed it.
#[derive(Debug)]
pub struct Mutator {
    name: String,
    _served: Served,
    _authority: Authority,
}

impl Mutator {
    /// Starts it; `patch` gives the JSON Patch for a pod.
    pub async fn start(client: &Client, namespace: &str, name: &str, patch: fn(&Value) -> Value) -> Self {
        let authority = Authority::new(name);
        let config = authority.server(&["127.0.0.1"]).server_config();
        let review = move |Json(review): Json<Value>| async move {
            let patch = patch(&review["request"]["object"]).to_string();
            Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "response": {"uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch",
                    "patch": STANDARD.encode(patch)}}))
        };
        let router = Router::new().route("/", post(review));
        let served = Served::start(move |listener| async move {
            let config = RustlsConfig::from_config(Arc::clone(&config));
            let server = axum_server::from_tcp_rustls(listener, config).expect("a server");
            server.serve(router.into_make_service()).await.expect("it serves");
        });
        let ca = std::fs::read(authority.certificate()).expect("reads");
        let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration", "metadata": {"name": name},
            "webhooks": [{"name": "pods.example.org", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"url": format!("https://{}/", served.address()), "caBundle": STANDARD.encode(ca)},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "reinvocationPolicy": "IfNeeded"}]});
        let configuration = serde_json::from_value(configuration).expect("a configuration");
        let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
        api.create(&PostParams::default(), &configuration).await.expect("accepted");
        Self { name: name.to_owned(), _served: served, _authority: authority }
    }

    /// Takes its configuration away again.
    pub async fn uninstall(self, client: &Client) {
        let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
        api.delete(&self.name, &DeleteParams::default()).await.expect("it was made");
    }
}
