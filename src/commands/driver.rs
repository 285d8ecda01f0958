//! `oras-csi driver`: the CSI driver of a node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use oras_csi_driver::metrics::Metrics;
use oras_csi_driver::preload::ClusterSets;
use oras_csi_driver::publish::Seals;
use oras_csi_driver::settings::Settings;
use oras_csi_driver::{OwnPod, PodEvents, StartupTaint};
use oras_csi_traces::{Decides, Exporter, ExporterError};

use crate::api_client::{self, RetryPolicy};
use crate::exit_status::{ExitStatus, Failure};
use crate::logging::LogOptions;
use crate::options::limits::LimitOptions;
use crate::options::registry::RegistryOptions;
use crate::options::storage::StorageOptions;
use crate::options::traces::TraceOptions;
use crate::registry_client::observed_transfer_client;
use crate::runtime::{cancelled_by_signal, raise_file_limit};

/// Run the CSI driver of a node.
///
/// The driver serves the Identity and Node services over a Unix socket and registers itself with kubelet. It mounts
/// canonical volumes read-only, and pulls the artifacts that its store does not hold.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each flag is one")]
pub(crate) struct Arguments {
    /// Name of this node.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_id: String,
    /// Kubelet's folder. The driver's sockets and the mounts of volumes are below it. In a container it must have the
    /// same path as on the node, with mount propagation Bidirectional.
    #[arg(long, value_name = "DIR", default_value = Settings::KUBELET_DIR)]
    kubelet_dir: PathBuf,
    /// Folder of the store, which caches blobs, layers and trees.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/oras-csi")]
    store: PathBuf,
    /// Folder with the webhook's public keys, one KEYID.pem each. The driver mounts only volumes with a valid seal of
    /// one of these keys for the pod's namespace [default: stand-alone mode, which mounts any canonical volume for any
    /// pod].
    #[arg(long, value_name = "DIR")]
    seal_keys: Option<PathBuf>,
    /// Preload ClusterArtifactSets that select this node, report their state in the node's NodeArtifacts object, and
    /// read the pull secrets of sets from --namespace. Connects to the API server with the pod's service account or
    /// KUBECONFIG [default: no connection to the API server, except for --startup-taint and --pod-events].
    #[arg(long, requires = "namespace")]
    cluster_sets: bool,
    /// Remove the taint oras.land/agent-not-ready from the Node object of this node when kubelet has registered the driver,
    /// and during ten minutes after that. Connects to the API server as --cluster-sets does.
    #[arg(long)]
    startup_taint: bool,
    /// Write events about the volumes of a pod (Pulling, Pulled, Mounted, RateLimited), as kubectl describe pod shows them, at
    /// most five a second. Connects to the API server as --cluster-sets does.
    #[arg(long)]
    pod_events: bool,
    /// Namespace that the driver runs in.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    namespace: Option<String>,
    /// Pod that the driver runs in. With it and --namespace, the driver unmounts volumes of deleted pods that kubelet can
    /// no longer unpublish, because their vol_data.json was lost. It asks kubelet for its pods at the socket
    /// pod-resources/kubelet.sock in --kubelet-dir [default: such volumes stay mounted].
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pod_name: Option<String>,
    /// Seconds that a publish waits for a pull. Then it fails with the progress of the pull, the pull continues in the
    /// background, and kubelet retries. Kubelet's own timeout is two minutes.
    #[arg(long, value_name = "SECONDS", default_value_t = Settings::PUBLISH_WAIT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=115))]
    publish_wait: u64,
    /// Seconds that a pull permission stays valid while its registry is unreachable. It never covers content that the
    /// registry has not allowed before, and a restart of the driver ends it. Values below 600 have no effect: a pull
    /// permission is checked again after ten minutes at the earliest.
    #[arg(long, value_name = "SECONDS", default_value_t = Settings::AUTHORIZATION_GRACE.as_secs(), value_parser = clap::value_parser!(u64).range(..=2_592_000))]
    rights_grace: u64,
    /// Unpack every archive into files. Otherwise volumes of many small files are EROFS images, if the kernel can mount
    /// these from a file (Linux 6.12 or later).
    #[arg(long)]
    no_images: bool,
    /// Serve /metrics and /healthz at this address over plain HTTP [default: disabled].
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Serve only /healthz at this address over plain HTTP. Clients of --metrics-listen cannot use up its connections
    /// [default: disabled].
    #[arg(long, value_name = "ADDRESS:PORT")]
    health_listen: Option<SocketAddr>,
    #[command(flatten)]
    limits: LimitOptions,
    #[command(flatten)]
    storage: StorageOptions,
    #[command(flatten)]
    log: LogOptions,
    #[command(flatten)]
    traces: TraceOptions,
    #[command(flatten)]
    registries: RegistryOptions,
}

impl Arguments {
    /// Returns the options for the log.
    pub(crate) fn log(&self) -> &LogOptions {
        &self.log
    }

    /// Makes the exporter of traces, if traces are wanted.
    pub(crate) fn traces(&self) -> Result<Option<Exporter>, ExporterError> {
        self.traces.exporter(
            "oras-csi-driver",
            [("k8s.node.name", self.node_id.clone())],
            Decides::TheBeginning,
        )
    }
}

const EXAMPLES: &str = "\
Examples:
  # On a node of a cluster, as the Helm chart runs it
  oras-csi driver --node-id \"$NODE_NAME\" --seal-keys /etc/oras-csi/seal-keys \\
    --cluster-sets --namespace oras-csi-system \
    --metrics-listen 0.0.0.0:9809 --health-listen 127.0.0.1:9810

  # Stand-alone, in a scratch directory: mounts any canonical volume, and does not need Kubernetes
  oras-csi driver --node-id test --kubelet-dir /tmp/kubelet --store /tmp/store

  # Keep the store below 50 GiB, and verify it every day
  oras-csi driver --node-id \"$NODE_NAME\" --store-max-bytes 50Gi --scrub-interval 24";

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    raise_file_limit();
    let hosts = arguments.registries.hosts()?;
    let seals = arguments.seal_keys.map_or(Seals::NotNeeded, Seals::Needed);
    if seals == Seals::NotNeeded {
        tracing::warn!(
            "stand-alone mode: without --seal-keys the driver mounts any canonical volume for any pod, without a seal"
        );
    }
    let own_pod = arguments.namespace.clone().zip(arguments.pod_name);
    let own_pod = own_pod.map(|(namespace, name)| OwnPod::new(namespace, name));
    let cluster_sets = match arguments.namespace.filter(|_| arguments.cluster_sets) {
        Some(namespace) => Some(ClusterSets::new(connect("--cluster-sets").await?, namespace)),
        None => None,
    };
    let startup_taint = if arguments.startup_taint {
        Some(StartupTaint::new(connect("--startup-taint").await?))
    } else {
        None
    };
    let pod_events =
        if arguments.pod_events { Some(PodEvents::new(connect("--pod-events").await?)) } else { None };
    let metrics = Metrics::default();
    let settings = Settings::new(arguments.node_id, &arguments.kubelet_dir, arguments.store)
        .with_metrics(arguments.metrics_listen)
        .with_counters(metrics.clone())
        .with_health(arguments.health_listen)
        .with_seals(seals)
        .with_publish_wait(Duration::from_secs(arguments.publish_wait))
        .with_limits(
            arguments
                .limits
                .limits()
                .with_reserve(arguments.storage.reserve())
                .with_inode_reserve(arguments.storage.inode_reserve()),
        )
        .with_authorization_grace(Duration::from_secs(arguments.rights_grace))
        .with_images(!arguments.no_images)
        .with_selinux_label(arguments.storage.selinux_label())
        .with_watermarks(arguments.storage.watermarks()?)
        .with_scrubbing(arguments.storage.scrub_schedule()?)
        .with_administrator(arguments.registries.service_credentials()?)
        .with_cluster_sets(cluster_sets)
        .with_startup_taint(startup_taint)
        .with_pod_events(pod_events)
        .with_own_pod(own_pod);
    let stop = cancelled_by_signal();
    let registry = observed_transfer_client(&hosts, metrics.registry_requests());
    oras_csi_driver::run(settings, registry, stop)
        .await
        .map_err(|error| Failure::new(ExitStatus::from(error.class()), error))
}

/// Configures the client that an option needs. It sends no request yet, so the driver starts while the API server is down.
async fn connect(option: &'static str) -> Result<kube::Client, Failure> {
    let client = api_client::connect(RetryPolicy::Never).await;
    client.map_err(|failure| Failure::bad_input(failure).at(option))
}
