//! `oras-csi webhook`.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use oras_csi_certs::{Names, Settings, Source};
use oras_csi_webhook::credentials::{ClusterSecrets, CredentialSources, NoSecrets, Secrets};
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::pins::ClusterPins;
use oras_csi_webhook::policy::{self, ClusterNamespaces, LabelsFrom, Loaded, Policies};
use oras_csi_webhook::seal::{self, Sealer};
use oras_csi_webhook::server::{self, App, ServerSettings};
use oras_csi_webhook::sets::{self, ClusterSets, SetCatalog};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::failure::Failure;
use crate::policies::PolicyOptions;
use crate::registries::{RegistryOptions, admission, client};
use crate::runtime::stopped_by_signal;

/// Serves the admission webhook: POST /mutate and /warn over TLS, with /healthz, /readyz and /metrics.
///
/// With nothing but --tls-dir it makes a CA and a certificate there and starts. The API server has to trust
/// that CA: --webhook-configuration keeps the caBundle in step.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where to listen; port 0 takes a free one, which the log names.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Folder that keeps the CA and the certificate, or holds those of somebody else.
    #[arg(long, value_name = "DIR", required_unless_present = "tls_secret", conflicts_with = "tls_secret")]
    tls_dir: Option<PathBuf>,
    /// Secret that keeps the CA, or holds the certificate of somebody else.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_secret)]
    tls_secret: Option<(String, String)>,
    /// A name or an address under which clients reach the webhook; may be given several times.
    #[arg(long = "dns-name", value_name = "NAME", default_values = ["localhost", "127.0.0.1"])]
    names: Vec<String>,
    /// The MutatingWebhookConfiguration whose caBundle is kept in step.
    #[arg(long, value_name = "NAME")]
    webhook_configuration: Option<String>,
    /// The ValidatingWebhookConfiguration of the webhook that tells what workloads' pods will meet; its caBundle
    /// is kept in step, and nobody waits for it.
    #[arg(long, value_name = "NAME")]
    validating_webhook_configuration: Option<String>,
    /// Obey the ArtifactPolicy objects of the cluster, by the labels of its namespaces.
    #[arg(long)]
    watch_policies: bool,
    /// Keep what tags stand for as ArtifactPin objects, so that all pods of one revision of a workload have the same.
    #[arg(long)]
    keep_pins: bool,
    /// Know the ArtifactSet and ClusterArtifactSet objects of the cluster, and keep in their status what they stand
    /// for. NAMESPACE has the pull secrets that cluster sets name.
    #[arg(long, value_name = "NAMESPACE")]
    sets: Option<String>,
    /// Ask registries in the name of the pull secrets that pods and their service accounts name, where the
    /// webhook has the right to read them.
    #[arg(long)]
    read_pull_secrets: bool,
    /// Secret that keeps the private key of the seal that volumes get; the ConfigMap of the same name has the public
    /// keys, for drivers. Both are made where they are missing [default: volumes get no seal, and no driver that
    /// needs one mounts them].
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_secret, conflicts_with = "seal_dir")]
    seal_secret: Option<(String, String)>,
    /// The same as a folder: seal.key, and public/ for drivers.
    #[arg(long, value_name = "DIR")]
    seal_dir: Option<PathBuf>,
    /// Seconds to answer on, not ready, after SIGTERM, so that clients go elsewhere first.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    lame_duck: u64,
    #[command(flatten)]
    registries: RegistryOptions,
    #[command(flatten)]
    policies: PolicyOptions,
}

fn parse_secret(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("write NAMESPACE/NAME".to_owned()),
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let hosts = arguments.registries.hosts()?;
    let metrics = Arc::new(Metrics::new());
    let stop = stopped_by_signal();
    let tasks = TaskTracker::new();
    let needs_cluster = arguments.tls_secret.is_some()
        || arguments.webhook_configuration.is_some()
        || arguments.validating_webhook_configuration.is_some()
        || arguments.watch_policies
        || arguments.read_pull_secrets
        || arguments.keep_pins
        || arguments.sets.is_some()
        || arguments.seal_secret.is_some();
    let cluster = if needs_cluster { Some(cluster().await?) } else { None };
    let policies = policies(&arguments, cluster.as_ref(), &stop, &tasks)?;
    let secrets: Box<dyn Secrets> = match cluster.as_ref().filter(|_| arguments.read_pull_secrets) {
        Some(client) => Box::new(ClusterSecrets::new(client.clone())),
        None => Box::new(NoSecrets),
    };
    let credentials = CredentialSources { secrets, administrator: arguments.registries.administrator()? };
    let sealer = sealer(&arguments, cluster.as_ref(), &stop, &tasks)?;
    let admission = admission(client(&hosts), &hosts, policies, credentials, &metrics).with_sealer(sealer);
    let pins =
        cluster.as_ref().filter(|_| arguments.keep_pins).map(|client| ClusterPins::new(client.clone()));
    let admission = match pins {
        Some(pins) => admission.with_pins(Arc::new(pins)),
        None => admission,
    };
    let admission = Arc::new(match cluster.as_ref().zip(arguments.sets.as_ref()) {
        Some((client, namespace)) => {
            let book = SetCatalog::new(Arc::new(ClusterSets::new(client.clone())));
            admission.with_sets(book.with_secrets(Arc::new(ClusterSecrets::new(client.clone())), namespace))
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

/// What makes the seals.
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
            tracing::warn!("volumes get no seal: neither --seal-secret nor --seal-dir is given");
            Ok(Sealer::none())
        }
    }
}

/// The policies, kept in step with their files and, where that is asked for, with the cluster's objects.
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

async fn cluster() -> Result<kube::Client, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("no way to the API server (in-cluster or KUBECONFIG): {error}"))
    };
    let mut config = kube::Config::infer().await.map_err(|error| failed(&error))?;
    // Who waits for an admission has seconds: a refusal is told with its words, where kube would ask for minutes.
    // Whoever can wait asks again by himself.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|error| failed(&error))
}

fn certificate_settings(arguments: &Arguments) -> Result<Settings, Failure> {
    let source = match (&arguments.tls_dir, &arguments.tls_secret) {
        (Some(folder), _) => Source::Folder(folder.clone()),
        (None, Some((namespace, name))) => {
            Source::Secret { namespace: namespace.clone(), name: name.clone() }
        }
        (None, None) => return Err(Failure::bad_input("either --tls-dir or --tls-secret is needed")),
    };
    let is_address = |name: &&String| name.parse::<IpAddr>().is_ok();
    let addresses = arguments.names.iter().filter_map(|name| name.parse().ok());
    let names = arguments.names.iter().filter(|name| !is_address(name)).cloned();
    let names = Names::new(names, addresses).map_err(Failure::bad_input)?;
    Ok(Settings::new(source, names)
        .webhook_configuration(arguments.webhook_configuration.clone())
        .validating_webhook_configuration(arguments.validating_webhook_configuration.clone()))
}
