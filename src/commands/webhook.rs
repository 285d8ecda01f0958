//! `oras-csi webhook`: the admission webhook.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use oras_csi_certs::{Names, Settings, Source};
use oras_csi_core::dns_name::{InvalidName, ObjectName, is_label, is_subdomain};
use oras_csi_traces::{Decides, Exporter, ExporterError};
use oras_csi_webhook::credentials::{ClusterSecrets, CredentialSources, NoSecrets, Secrets};
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::pins::ClusterPins;
use oras_csi_webhook::policy::{self, ClusterNamespaces, LabelsFrom, Loaded, Policies};
use oras_csi_webhook::seal::{self, Sealer};
use oras_csi_webhook::server::{self, App, ServerSettings};
use oras_csi_webhook::sets::{self, ClusterSets, SetCatalog, UsableSecrets};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::admission;
use crate::api_client::{self, RetryPolicy};
use crate::exit_status::Failure;
use crate::logging::LogOptions;
use crate::options::policy::PolicyOptions;
use crate::options::registry::RegistryOptions;
use crate::options::traces::TraceOptions;
use crate::registry_client::observed_interactive_client;
use crate::runtime::{cancelled_by_signal, raise_file_limit};

/// Run the admission webhook.
///
/// The webhook serves POST /mutate and POST /warn over TLS, with /healthz, /readyz and /metrics. With --tls-dir alone
/// it creates a CA and a certificate in that folder. The API server must trust the CA: --webhook-configuration keeps
/// the caBundle up to date.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Address to listen at. Port 0 selects a free port, which the log reports.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Folder for the CA and the certificate. The webhook creates them, or uses a certificate that is there already.
    #[arg(long, value_name = "DIR", required_unless_present = "tls_secret", conflicts_with = "tls_secret")]
    tls_dir: Option<PathBuf>,
    /// Secret for the CA. The webhook creates it, or uses the certificate of an existing TLS Secret, for example of
    /// cert-manager.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_secret)]
    tls_secret: Option<(String, String)>,
    /// DNS name or IP address by which clients reach the webhook; can be repeated.
    #[arg(long = "dns-name", value_name = "NAME", default_values = ["localhost", "127.0.0.1"])]
    names: Vec<String>,
    /// MutatingWebhookConfiguration whose caBundle the webhook keeps up to date.
    #[arg(long, value_name = "NAME")]
    webhook_configuration: Option<String>,
    /// ValidatingWebhookConfiguration whose caBundle the webhook keeps up to date. It configures POST /warn, which
    /// warns about workloads whose pods would be denied. Readiness does not depend on it.
    #[arg(long, value_name = "NAME")]
    validating_webhook_configuration: Option<String>,
    /// Enforce the ArtifactPolicy objects of the cluster.
    #[arg(long)]
    watch_policies: bool,
    /// Store the digest of each tag in an ArtifactPin object, so that all pods of one revision of a workload get the
    /// same digest.
    #[arg(long)]
    keep_pins: bool,
    /// Serve the ArtifactSet and ClusterArtifactSet objects of the cluster, and store their pinned recipes in their
    /// status. NAMESPACE holds the pull secrets that cluster sets name.
    #[arg(long, value_name = "NAMESPACE", value_parser = parse_namespace)]
    sets: Option<String>,
    /// Secret in the namespace of --sets that cluster sets can name as their pull secret; can be repeated. A cluster set
    /// that names another Secret is not resolved [default: none].
    #[arg(long = "set-pull-secret", value_name = "NAME", requires = "sets", value_parser = parse_name)]
    set_pull_secrets: Vec<String>,
    /// Use the pull secrets of pods and their service accounts for registry requests. RBAC must allow the webhook to
    /// read these Secrets.
    #[arg(long)]
    read_pull_secrets: bool,
    /// Secret with the private key that seals volumes. The ConfigMap of the same name has the public keys for the
    /// drivers. The webhook creates both if they are missing [default: volumes get no seal, and drivers with
    /// --seal-keys do not mount them].
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_secret, conflicts_with = "seal_dir")]
    seal_secret: Option<(String, String)>,
    /// Folder with the private key that seals volumes (seal.key) and the public keys for the drivers (public/). The
    /// webhook creates them if they are missing.
    #[arg(long, value_name = "DIR")]
    seal_dir: Option<PathBuf>,
    /// Seconds that the webhook still answers after SIGTERM, while /readyz fails, so that clients move to other
    /// replicas.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    lame_duck: u64,
    #[command(flatten)]
    log: LogOptions,
    #[command(flatten)]
    traces: TraceOptions,
    #[command(flatten)]
    registries: RegistryOptions,
    #[command(flatten)]
    policies: PolicyOptions,
}

impl Arguments {
    /// Returns the options for the log.
    pub(crate) fn log(&self) -> &LogOptions {
        &self.log
    }

    /// Makes the exporter of traces, if traces are wanted.
    pub(crate) fn traces(&self) -> Result<Option<Exporter>, ExporterError> {
        self.traces.exporter("oras-csi-webhook", [], Decides::ByRatio)
    }
}

const EXAMPLES: &str = "\
Examples:
  # Without Kubernetes: certificate and seal key in folders, policies from files
  oras-csi webhook --listen 127.0.0.1:8443 --tls-dir ./tls --seal-dir ./seal --policy ./policies

  # In a cluster, as the Helm chart runs it
  oras-csi webhook --tls-secret oras-csi-system/oras-csi-webhook-tls \\
    --dns-name oras-csi-webhook.oras-csi-system.svc --webhook-configuration oras-csi \\
    --seal-secret oras-csi-system/oras-csi-seal --watch-policies --keep-pins --sets oras-csi-system";

/// Parses NAMESPACE/NAME.
fn parse_secret(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if is_label(namespace) && is_subdomain(name) => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("write NAMESPACE/NAME".to_owned()),
    }
}

fn parse_name(text: &str) -> Result<String, InvalidName> {
    text.parse::<ObjectName>().map(|name| name.to_string())
}

fn parse_namespace(text: &str) -> Result<String, String> {
    if is_label(text) { Ok(text.to_owned()) } else { Err("write the name of a namespace".to_owned()) }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    raise_file_limit();
    let hosts = arguments.registries.hosts()?;
    let metrics = Arc::new(Metrics::new());
    let stop = cancelled_by_signal();
    let tasks = TaskTracker::new();
    let needs_cluster = arguments.tls_secret.is_some()
        || arguments.webhook_configuration.is_some()
        || arguments.validating_webhook_configuration.is_some()
        || arguments.watch_policies
        || arguments.read_pull_secrets
        || arguments.keep_pins
        || arguments.sets.is_some()
        || arguments.seal_secret.is_some();
    let cluster = if needs_cluster { Some(api_client::connect(RetryPolicy::Never).await?) } else { None };
    let policies = policies(&arguments, cluster.as_ref(), &stop, &tasks)?;
    let secrets: Box<dyn Secrets> = match cluster.as_ref().filter(|_| arguments.read_pull_secrets) {
        Some(client) => Box::new(ClusterSecrets::new(client.clone())),
        None => Box::new(NoSecrets),
    };
    let credentials =
        CredentialSources { secrets, administrator: arguments.registries.service_credentials()? };
    let sealer = sealer(&arguments, cluster.as_ref(), &stop, &tasks)?;
    let registry = observed_interactive_client(&hosts, metrics.registry_requests());
    let admission = admission(registry, &hosts, policies, credentials, &metrics).with_sealer(sealer);
    let pins =
        cluster.as_ref().filter(|_| arguments.keep_pins).map(|client| ClusterPins::new(client.clone()));
    let admission = match pins {
        Some(pins) => admission.with_pins(Arc::new(pins)),
        None => admission,
    };
    let admission = Arc::new(match cluster.as_ref().zip(arguments.sets.as_ref()) {
        Some((client, namespace)) => {
            let book = SetCatalog::new(Arc::new(ClusterSets::new(client.clone())));
            let usable = UsableSecrets::Listed(arguments.set_pull_secrets.iter().cloned().collect());
            let secrets = Arc::new(ClusterSecrets::new(client.clone()));
            admission.with_sets(book.with_secrets(secrets, namespace, usable))
        }
        None => admission,
    });
    if let Some(client) = cluster.as_ref().filter(|_| arguments.sets.is_some()) {
        sets::run_controller(client, &admission, &stop, &tasks);
    }
    let settings = certificate_settings(&arguments)?;
    let certificates =
        oras_csi_certs::start(settings, cluster, stop.clone(), &tasks).await.map_err(Failure::failed)?;

    let listen = arguments.listen;
    let cannot = |error: std::io::Error| Failure::failed(format!("cannot listen at {listen}: {error}"));
    let listener = TcpListener::bind(listen).map_err(cannot)?;
    listener.set_nonblocking(true).map_err(cannot)?;
    tracing::info!(address = %listener.local_addr().map_err(cannot)?, "listening");

    let settings = ServerSettings {
        lame_duck: std::time::Duration::from_secs(arguments.lame_duck),
        ..Default::default()
    };
    let tls = certificates.server_config();
    let app = App::new(admission, certificates, metrics, settings);
    let served = server::serve(listener, tls, app, stop.clone()).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    served.map_err(cannot)
}

/// Loads or creates the key that seals volumes.
fn sealer(
    arguments: &Arguments,
    cluster: Option<&kube::Client>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<Sealer, Failure> {
    match (&arguments.seal_secret, cluster, &arguments.seal_dir) {
        (Some((namespace, name)), Some(client), _) => {
            Ok(seal::follow_secret(client, namespace, name, stop, tasks))
        }
        (_, _, Some(folder)) => seal::open_folder(folder).map_err(Failure::bad_input),
        _ => {
            tracing::warn!("volumes are not sealed: neither --seal-secret nor --seal-dir is set");
            Ok(Sealer::none())
        }
    }
}

/// Loads the policies, and reloads them when their files or the objects of the cluster change.
fn policies(
    arguments: &Arguments,
    cluster: Option<&kube::Client>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<Arc<Policies>, Failure> {
    let options = &arguments.policies;
    let (policies, labels) = match cluster.filter(|_| arguments.watch_policies) {
        None => (options.policies(Loaded::default())?, LabelsFrom::Files),
        Some(client) => {
            let namespaces = ClusterNamespaces::watch(client, stop, tasks);
            let policies = options.policies_of_cluster(namespaces)?;
            policy::watch(client, Arc::clone(&policies), stop, tasks);
            (policies, LabelsFrom::Cluster)
        }
    };
    if !options.files().is_empty() {
        let files = options.files().to_vec();
        tasks.spawn(policy::reload_files(files, Arc::clone(&policies), labels, stop.clone()));
    }
    Ok(policies)
}

fn certificate_settings(arguments: &Arguments) -> Result<Settings, Failure> {
    let source = match (&arguments.tls_dir, &arguments.tls_secret) {
        (Some(folder), _) => Source::Folder(folder.clone()),
        (None, Some((namespace, name))) => {
            Source::Secret { namespace: namespace.clone(), name: name.clone() }
        }
        (None, None) => {
            return Err(Failure::bad_input("a TLS certificate is required: set --tls-dir or --tls-secret"));
        }
    };
    let is_address = |name: &&String| name.parse::<IpAddr>().is_ok();
    let addresses = arguments.names.iter().filter_map(|name| name.parse().ok());
    let names = arguments.names.iter().filter(|name| !is_address(name)).cloned();
    let names = Names::new(names, addresses).map_err(Failure::bad_input)?;
    Ok(Settings::new(source, names)
        .webhook_configuration(arguments.webhook_configuration.clone())
        .validating_webhook_configuration(arguments.validating_webhook_configuration.clone()))
}
