//! The webhook as a process beside the API server, with the configuration that the chart installs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::cluster::eventually;
use crate::parts::{oras_csi, repository, testbed};
use crate::process::{Running, free_port, run};

/// A webhook for one namespace of the API server, which is made for it.
#[derive(Debug)]
pub struct Webhook {
    running: Option<Running>,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    namespace: String,
}

impl Webhook {
    /// Starts the webhook, makes the namespace, and installs the chart's configuration for it alone; waits
    /// until the API server trusts the webhook.
    ///
    /// `name` is that of the namespace and of the configuration; `certs` is a `certs.d` folder.
    pub async fn start(client: &Client, name: &str, certs: &Path, arguments: &[&str]) -> Self {
        let namespace = Namespace {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .expect("a namespace");

        let port = free_port();
        let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
        let configuration = configuration(name, port);
        api.create(&PostParams::default(), &configuration).await.expect("the chart's configuration");

        let folder = tempfile::tempdir().expect("a folder");
        let own = [
            "webhook".to_owned(),
            format!("--listen=127.0.0.1:{port}"),
            format!("--tls-dir={}", folder.path().join("tls").display()),
            format!("--certs-dir={}", certs.display()),
            format!("--webhook-configuration={name}"),
            "--lame-duck=0".to_owned(),
        ];
        let arguments =
            own.into_iter().chain(arguments.iter().map(|&argument| argument.to_owned())).collect();
        let mut webhook = Self { running: None, folder, arguments, namespace: name.to_owned() };
        webhook.start_again();
        eventually("the caBundle", Duration::from_secs(30), async || {
            let found = api.get(name).await.map_err(|error| error.to_string())?;
            let hooks = found.webhooks.unwrap_or_default();
            let set = hooks
                .iter()
                .all(|hook| hook.client_config.ca_bundle.as_ref().is_some_and(|ca| !ca.0.is_empty()));
            if set { Ok(()) } else { Err("it is empty".to_owned()) }
        })
        .await;
        webhook.until_called(client).await;
        webhook
    }

    /// The API server reads new configurations from a cache of its own: waits until it calls this one.
    async fn until_called(&self, client: &Client) {
        let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(client.clone(), &self.namespace);
        let probe = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "annotations": {"oras.land/probe": ""}},
            "spec": {"containers": [{"name": "c", "image": "none"}]}});
        let probe = serde_json::from_value(probe).expect("a pod");
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        eventually("the webhook is called", Duration::from_secs(30), async || {
            match pods.create(&dry, &probe).await {
                Err(kube::Error::Api(status))
                    if status.message.contains("oras.land/probe") && status.code == 400 =>
                {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Stops it without a word.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill();
        }
    }

    /// Starts it again, with the certificates that it had.
    pub fn start_again(&mut self) {
        let mut command = Command::new(oras_csi());
        command.args(&self.arguments).env("RUST_LOG", "debug");
        let mut running = Running::start(&mut command, "webhook", self.folder.path());
        let id = running.id();
        running.wait_until("listening", Duration::from_secs(30), || {
            let log = std::fs::read_to_string(self.folder.path().join("webhook.log")).unwrap_or_default();
            log.contains("listening") && id > 0
        });
        self.running = Some(running);
    }

    /// The namespace that it is called for.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Takes its configuration away again.
    pub async fn uninstall(self, client: &Client) {
        let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
        api.delete(&self.namespace, &DeleteParams::default()).await.expect("it was made");
    }
}

/// The MutatingWebhookConfiguration of the chart, but for where the webhook is and which namespace it is for.
fn configuration(name: &str, port: u16) -> MutatingWebhookConfiguration {
    let mut helm = Command::new(testbed("helm"));
    helm.args(["template", "oras-csi"])
        .arg(repository().join("deploy/chart"))
        .args(["--namespace", "oras-csi-system"]);
    let documents: Vec<Value> = serde_saphyr::from_multiple(&run(&mut helm)).expect("the chart is YAML");
    let mut configuration = documents
        .into_iter()
        .find(|document| document["kind"] == "MutatingWebhookConfiguration")
        .expect("the chart has a webhook configuration");
    configuration["metadata"]["name"] = json!(name);
    for hook in configuration["webhooks"].as_array_mut().expect("with webhooks") {
        let path = hook["clientConfig"]["service"]["path"].as_str().expect("a path").to_owned();
        hook["clientConfig"] = json!({"url": format!("https://127.0.0.1:{port}{path}")});
        hook["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    }
    serde_json::from_value(configuration).expect("a webhook configuration")
}
