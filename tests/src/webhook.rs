//! The webhook as a process beside the API server, with the configuration that the chart installs.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::cluster::eventually;
use crate::parts::{oras_csi, repository, testbed};
use crate::process::{Running, free_port, http_get, run};

/// A webhook for one namespace of the API server.
#[derive(Debug)]
pub struct Webhook {
    binary: PathBuf,
    running: Option<Running>,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    namespace: String,
    configuration: String,
    port: u16,
}

/// The label of pods for the other replica: see [`Webhook::start_other`].
const REPLICA: (&str, &str) = ("oras-csi-test-replica", "other");

impl Webhook {
    /// Starts the webhook, makes the namespace if it is not there, and installs the chart's configuration for it
    /// alone; waits until the API server trusts the webhook.
    ///
    /// `name` is that of the namespace and of the configuration; `certs` is a `certs.d` folder.
    pub async fn start(client: &Client, name: &str, certs: &Path, arguments: &[&str]) -> Self {
        install_definitions(client).await;
        let namespace = Namespace {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        match Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => _ = made.expect("a namespace"),
        }
        Self::install(client, name, name, certs, arguments).await
    }

    /// Another replica for the same namespace, which the API server asks about pods with a label that
    /// [`Self::for_other`] gives, and the first one about all others.
    pub async fn start_other(&self, client: &Client, certs: &Path, arguments: &[&str]) -> Self {
        let configuration = format!("{}-other", self.namespace);
        Self::install(client, &self.namespace, &configuration, certs, arguments).await
    }

    /// Returns the same pod for the other replica.
    #[must_use]
    pub fn for_other(mut pod: Value) -> Value {
        pod["metadata"]["labels"][REPLICA.0] = json!(REPLICA.1);
        pod
    }

    async fn install(client: &Client, namespace: &str, name: &str, certs: &Path, arguments: &[&str]) -> Self {
        let port = free_port();
        let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
        let configuration = configured(namespace, name, port, "MutatingWebhookConfiguration");
        api.create(&PostParams::default(), &configuration).await.expect("the chart's configuration");
        let warning = configured(namespace, name, port, "ValidatingWebhookConfiguration");
        Api::<ValidatingWebhookConfiguration>::all(client.clone())
            .create(&PostParams::default(), &warning)
            .await
            .expect("the chart's configuration of the webhook that warns");

        let folder = tempfile::tempdir().expect("a folder");
        let own = [
            "webhook".to_owned(),
            format!("--listen=127.0.0.1:{port}"),
            format!("--tls-dir={}", folder.path().join("tls").display()),
            format!("--certs-dir={}", certs.display()),
            format!("--webhook-configuration={name}"),
            format!("--validating-webhook-configuration={name}"),
            "--watch-policies".to_owned(),
            "--lame-duck=0".to_owned(),
        ];
        let arguments =
            own.into_iter().chain(arguments.iter().map(|&argument| argument.to_owned())).collect();
        let (namespace, configuration) = (namespace.to_owned(), name.to_owned());
        let binary = oras_csi();
        let mut webhook = Self { binary, running: None, folder, arguments, namespace, configuration, port };
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

    /// Waits until the API server, which caches configurations, calls this webhook.
    async fn until_called(&self, client: &Client) {
        let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(client.clone(), &self.namespace);
        let probe = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "annotations": {"oras.land/probe": ""}},
            "spec": {"containers": [{"name": "c", "image": "none"}]}});
        let probe = if self.configuration == self.namespace { probe } else { Self::for_other(probe) };
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

    /// Kills it.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill();
        }
    }

    /// Ends it as kubelet does, and starts another build with its certificates.
    pub fn replace(&mut self, binary: &Path) {
        if let Some(running) = self.running.take() {
            running.terminate();
        }
        binary.clone_into(&mut self.binary);
        // Otherwise the line of the process before would count.
        std::fs::write(self.folder.path().join("webhook.log"), "").expect("its log");
        self.start_again();
    }

    /// Starts it again with its certificates.
    pub fn start_again(&mut self) {
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).env("RUST_LOG", "debug");
        let mut running = Running::start(&mut command, "webhook", self.folder.path());
        let id = running.id();
        running.wait_until("listening", Duration::from_secs(30), || {
            let log = std::fs::read_to_string(self.folder.path().join("webhook.log")).unwrap_or_default();
            log.contains("listening") && id > 0
        });
        self.running = Some(running);
    }

    /// Returns the address at which it listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the file with the CA of its certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("tls/ca.crt")
    }

    /// Returns all that it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("webhook.log")).unwrap_or_default()
    }

    /// Returns what it answers at `/metrics`.
    pub fn metrics(&self) -> String {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(self.ca()).expect("the CA") {
            roots.add(certificate.expect("a certificate")).expect("a root");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
        let name = "127.0.0.1".try_into().expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
        let stream = TcpStream::connect(self.address()).expect("it listens");
        http_get(StreamOwned::new(connection, stream), &self.address(), "/metrics")
    }

    /// Returns its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Deletes its configuration.
    pub async fn uninstall(self, client: &Client) {
        let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
        api.delete(&self.configuration, &DeleteParams::default()).await.expect("it was made");
        let api = Api::<ValidatingWebhookConfiguration>::all(client.clone());
        api.delete(&self.configuration, &DeleteParams::default()).await.expect("it was made");
    }
}

/// The objects of the chart, as helm renders them with its own values.
pub fn chart() -> Vec<Value> {
    let mut helm = Command::new(testbed("helm"));
    helm.args(["template", "oras-csi"]).arg(repository().join("deploy/chart")).args([
        "--namespace",
        "oras-csi-system",
        "--set",
        "backstop.enabled=true",
        "--set",
        "image.repository=localhost/oras-csi",
    ]);
    serde_saphyr::from_multiple(&run(&mut helm)).expect("the chart is YAML")
}

/// Installs the chart's custom resource definitions, where another test has not done so, and waits until the API
/// server serves them.
pub async fn install_definitions(client: &Client) {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in chart().into_iter().filter(|object| object["kind"] == "CustomResourceDefinition") {
        let definition: CustomResourceDefinition = serde_json::from_value(definition).expect("a definition");
        let name = definition.metadata.name.clone().expect("a name");
        match api.create(&PostParams::default(), &definition).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("{name}: {error}"),
        }
        eventually("the definition is served", Duration::from_secs(30), async || {
            let found = api.get(&name).await.map_err(|error| error.to_string())?;
            let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
            let is_served = conditions
                .iter()
                .any(|condition| condition.type_ == "Established" && condition.status == "True");
            if is_served { Ok(()) } else { Err(format!("{conditions:?}")) }
        })
        .await;
    }
}

/// Returns a webhook configuration of the chart with the address and the namespace of a test.
fn configured<T: serde::de::DeserializeOwned>(namespace: &str, name: &str, port: u16, kind: &str) -> T {
    let found = chart().into_iter().find(|object| object["kind"] == kind);
    let mut configuration = found.expect("the chart has a webhook configuration");
    configuration["metadata"]["name"] = json!(name);
    for hook in configuration["webhooks"].as_array_mut().expect("with webhooks") {
        let path = hook["clientConfig"]["service"]["path"].as_str().expect("a path").to_owned();
        hook["clientConfig"] = json!({"url": format!("https://127.0.0.1:{port}{path}")});
        // A label assigns cluster-scoped objects to the webhook of a test.
        if hook["rules"][0]["scope"] == "Cluster" {
            hook["objectSelector"] = json!({"matchLabels": {"oras-csi-test": name}});
        } else {
            hook["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
            let operator = if namespace == name { "NotIn" } else { "In" };
            hook["objectSelector"] = json!({"matchExpressions": [{"key": REPLICA.0, "operator": operator,
                "values": [REPLICA.1]}]});
        }
    }
    serde_json::from_value(configuration).expect("a webhook configuration")
}
