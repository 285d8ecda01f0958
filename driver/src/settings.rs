//! The settings of the driver that an administrator can change.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oras_csi_core::credentials::Administrator;
use oras_csi_core::keys::DRIVER;
use oras_csi_store::Limits;
use oras_csi_store::gc::Watermarks;
use oras_csi_store::scrub::Schedule;

use crate::preload::ClusterSets;
use crate::publish::Seals;

/// How the driver runs on a node.
#[derive(Clone, Debug)]
pub struct Settings {
    node_id: String,
    store: PathBuf,
    socket: PathBuf,
    registration: Option<PathBuf>,
    limits: Limits,
    publish_wait: Duration,
    rights_grace: Duration,
    metrics: Option<SocketAddr>,
    administrator: Option<Administrator>,
    seals: Seals,
    watermarks: Watermarks,
    scrubbing: Schedule,
    cluster_sets: Option<ClusterSets>,
}

impl Settings {
    /// Where kubelet keeps its things unless it was told otherwise.
    pub const KUBELET_DIR: &'static str = "/var/lib/kubelet";
    /// How long a publish waits for a pull: a little less than the two minutes that kubelet waits.
    pub const PUBLISH_WAIT: Duration = Duration::from_secs(110);
    /// How long a right counts that was confirmed, while its registry cannot be asked.
    pub const RIGHTS_GRACE: Duration = Duration::from_hours(1);

    /// The defaults for the node `node_id` with kubelet's folder and the folder of the store.
    ///
    /// `kubelet_dir` must have the same path in the driver's container as on the node, since kubelet
    /// sends paths below it.
    pub fn new(node_id: impl Into<String>, kubelet_dir: &Path, store: impl Into<PathBuf>) -> Self {
        Self {
            node_id: node_id.into(),
            store: store.into(),
            socket: kubelet_dir.join("plugins").join(DRIVER).join("csi.sock"),
            registration: Some(kubelet_dir.join("plugins_registry").join(format!("{DRIVER}-reg.sock"))),
            limits: Limits::default(),
            publish_wait: Self::PUBLISH_WAIT,
            rights_grace: Self::RIGHTS_GRACE,
            metrics: None,
            administrator: None,
            seals: Seals::NotNeeded,
            watermarks: Watermarks::default(),
            scrubbing: Schedule::default(),
            cluster_sets: None,
        }
    }

    /// Another path for the CSI socket.
    #[must_use]
    pub fn with_socket(mut self, socket: impl Into<PathBuf>) -> Self {
        self.socket = socket.into();
        self
    }

    /// Another path for the registration socket, or none: then kubelet does not find the driver by itself.
    #[must_use]
    pub fn with_registration(mut self, registration: Option<PathBuf>) -> Self {
        self.registration = registration;
        self
    }

    /// Other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Another time that a publish waits for a pull before it answers how far it is.
    #[must_use]
    pub fn with_publish_wait(mut self, wait: Duration) -> Self {
        self.publish_wait = wait;
        self
    }

    /// Another time for which a right counts that a registry confirmed and cannot be asked for now. Zero: only what is
    /// remembered anyway, for ten minutes.
    #[must_use]
    pub fn with_rights_grace(mut self, grace: Duration) -> Self {
        self.rights_grace = grace;
        self
    }

    /// Serves `/metrics` and `/healthz` over plain HTTP at this address.
    #[must_use]
    pub fn with_metrics(mut self, listen: Option<SocketAddr>) -> Self {
        self.metrics = listen;
        self
    }

    /// Asks registries in the name of what the administrator gave, where a volume's own secret does not do.
    #[must_use]
    pub fn with_administrator(mut self, administrator: Option<Administrator>) -> Self {
        self.administrator = administrator;
        self
    }

    /// Which volumes are mounted: any canonical one, unless this says that a seal is needed.
    #[must_use]
    pub fn with_seals(mut self, seals: Seals) -> Self {
        self.seals = seals;
        self
    }

    /// When what nobody uses is taken away.
    #[must_use]
    pub fn with_watermarks(mut self, watermarks: Watermarks) -> Self {
        self.watermarks = watermarks;
        self.limits = self.limits.with_minimum_age(watermarks.minimum_age());
        self
    }

    /// When everything at rest is compared with what it was.
    #[must_use]
    pub fn with_scrubbing(mut self, scrubbing: Schedule) -> Self {
        self.scrubbing = scrubbing;
        self
    }

    /// Fetches ahead what the cluster's sets want on this node, and reads their pull secrets. Without it the driver asks
    /// Kubernetes nothing.
    #[must_use]
    pub fn with_cluster_sets(mut self, cluster_sets: Option<ClusterSets>) -> Self {
        self.cluster_sets = cluster_sets;
        self
    }

    /// How it hears of cluster sets, if it does.
    pub fn cluster_sets(&self) -> Option<&ClusterSets> {
        self.cluster_sets.as_ref()
    }

    /// When what nobody uses is taken away.
    pub fn watermarks(&self) -> &Watermarks {
        &self.watermarks
    }

    /// When everything at rest is compared with what it was.
    pub fn scrubbing(&self) -> &Schedule {
        &self.scrubbing
    }

    /// The name of this node.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// The folder of the store.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The CSI socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The registration socket, where there is to be one.
    pub fn registration(&self) -> Option<&Path> {
        self.registration.as_deref()
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How long a publish waits for a pull.
    pub fn publish_wait(&self) -> Duration {
        self.publish_wait
    }

    /// How long a right counts that cannot be asked for.
    pub fn rights_grace(&self) -> Duration {
        self.rights_grace
    }

    /// The administrator's credentials.
    pub fn administrator(&self) -> Option<&Administrator> {
        self.administrator.as_ref()
    }

    /// Which volumes are mounted.
    pub fn seals(&self) -> &Seals {
        &self.seals
    }

    /// Where metrics are served.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }
}
