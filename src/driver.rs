//! `oras-csi driver`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use oras_csi_driver::preload::ClusterSets;
use oras_csi_driver::publish::Seals;
use oras_csi_driver::settings::Settings;

use crate::failure::{Failure, Status};
use crate::limits::LimitOptions;
use crate::registries::{RegistryOptions, patient_client};
use crate::runtime::stopped_by_signal;
use crate::storage::StorageOptions;

/// Serves the CSI driver of a node: Identity and Node over a Unix socket, registered with kubelet.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The name of this node.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_id: String,
    /// Kubelet's folder: the sockets go below it, and volumes are mounted below it. In a container it must
    /// have the same path as on the node, with mount propagation Bidirectional.
    #[arg(long, value_name = "DIR", default_value = Settings::KUBELET_DIR)]
    kubelet_dir: PathBuf,
    /// Folder that keeps what was fetched.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/oras-csi")]
    store: PathBuf,
    /// Folder with the public keys of the webhook, KEYID.pem each: only volumes are mounted that bear a seal of one
    /// of them for the namespace of their pod [default: stand-alone, any canonical volume is mounted for any pod].
    #[arg(long, value_name = "DIR")]
    seal_keys: Option<PathBuf>,
    /// Fetch ahead what the ClusterArtifactSets of the cluster want on this node, tell in its NodeArtifacts how that
    /// stands, and read the pull secrets of sets: from --namespace, by the configuration of the pod or KUBECONFIG
    /// [default: Kubernetes is asked nothing].
    #[arg(long, requires = "namespace")]
    cluster_sets: bool,
    /// The driver's own namespace.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    namespace: Option<String>,
    /// How long a publish waits for a pull before it answers how far that is, and kubelet asks again. Kubelet waits two
    /// minutes.
    #[arg(long, value_name = "SECONDS", default_value_t = Settings::PUBLISH_WAIT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=115))]
    publish_wait: u64,
    /// How long a pod may still have what a registry let it have, while that registry cannot be asked. Nobody is given
    /// what he was never let have, and nothing of this survives a start of the driver. Below ten minutes it changes
    /// nothing: for so long an answer is not asked for again.
    #[arg(long, value_name = "SECONDS", default_value_t = Settings::RIGHTS_GRACE.as_secs(), value_parser = clap::value_parser!(u64).range(..=2_592_000))]
    rights_grace: u64,
    /// Where to serve /metrics and /healthz over plain http [default: nowhere].
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    limits: LimitOptions,
    #[command(flatten)]
    storage: StorageOptions,
    #[command(flatten)]
    registries: RegistryOptions,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let hosts = arguments.registries.hosts()?;
    let seals = arguments.seal_keys.map_or(Seals::NotNeeded, Seals::Needed);
    if seals == Seals::NotNeeded {
        tracing::warn!("stand-alone: without --seal-keys any canonical volume is mounted for any pod");
    }
    let cluster_sets = cluster_sets(arguments.cluster_sets, arguments.namespace).await?;
    let settings = Settings::new(arguments.node_id, &arguments.kubelet_dir, arguments.store)
        .with_metrics(arguments.metrics_listen)
        .with_seals(seals)
        .with_publish_wait(Duration::from_secs(arguments.publish_wait))
        .with_limits(arguments.limits.limits().with_reserve(arguments.storage.reserve()))
        .with_rights_grace(Duration::from_secs(arguments.rights_grace))
        .with_watermarks(arguments.storage.watermarks()?)
        .with_scrubbing(arguments.storage.scrubbing()?)
        .with_administrator(arguments.registries.administrator()?)
        .with_cluster_sets(cluster_sets);
    let stop = stopped_by_signal();
    oras_csi_driver::run(settings, patient_client(&hosts), stop)
        .await
        .map_err(|error| Failure::new(Status::from(error.class()), error))
}

/// Whom to ask for cluster sets; nobody is asked yet.
async fn cluster_sets(wanted: bool, namespace: Option<String>) -> Result<Option<ClusterSets>, Failure> {
    let Some(namespace) = namespace.filter(|_| wanted) else { return Ok(None) };
    let failed = |error: &dyn std::fmt::Display| {
        Failure::bad_input(format!(
            "--cluster-sets: no way to the API server (in-cluster or KUBECONFIG): {error}"
        ))
    };
    let mut config = kube::Config::infer().await.map_err(|error| failed(&error))?;
    // A pod that waits hears of a refusal with its words; whoever can wait asks again by himself.
    config.default_retry = false;
    let client = kube::Client::try_from(config).map_err(|error| failed(&error))?;
    Ok(Some(ClusterSets::new(client, namespace)))
}
