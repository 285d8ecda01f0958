//! What an administrator can set, and the limits on what a registry may make us do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oras_csi_core::credentials::Administrator;
use oras_csi_core::keys::DRIVER;

use crate::collect::{Percent, Watermarks};
use crate::preload::ClusterSets;
use crate::publish::Seals;
use crate::scrub::Schedule;
use crate::store::Reserve;

/// Limits on what is unpacked. Each has its own message when it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    layers: usize,
    entries: u64,
    path: usize,
    depth: usize,
    unpacked: u64,
    zstd_window_log: u32,
    reserve: Reserve,
    streams: usize,
    streams_per_artifact: usize,
    slow_after: Duration,
    least_after: Duration,
    minimum_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 4_096,
            entries: 1_000_000,
            path: 4_096,
            depth: 256,
            unpacked: 100 << 30,
            zstd_window_log: 27,
            reserve: Reserve::percent(Percent::A_TENTH).at_most(256 << 20),
            streams: 8,
            streams_per_artifact: 4,
            slow_after: Duration::from_secs(10),
            least_after: Duration::from_mins(2),
            minimum_age: Duration::from_mins(2),
        }
    }
}

impl Limits {
    /// How many layers a manifest may have: 4,096, which is also the most that is ever read.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// How many entries all layers of a volume may hold together, and its tree: 1,000,000.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The longest path within a tree, in bytes: 4,096.
    pub fn path(&self) -> usize {
        self.path
    }

    /// How many directories deep a path may go: 256.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// How many bytes all layers of a volume may unpack to together, and its tree may have: 100 GiB.
    pub fn unpacked(&self) -> u64 {
        self.unpacked
    }

    /// The largest zstd window, as its logarithm: 27, which is 128 MiB.
    pub fn zstd_window_log(&self) -> u32 {
        self.zstd_window_log
    }

    /// How much of the disk stays free whatever is asked for: a tenth, and no more than 256 MiB.
    pub fn reserve(&self) -> Reserve {
        self.reserve
    }

    /// How many blobs are read from registries at once, on the whole node: 8, of one host half of them. As many
    /// again may be read slowly.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// How many blobs of one volume are read at once: 4.
    pub fn streams_per_artifact(&self) -> usize {
        self.streams_per_artifact
    }

    /// How long a blob that comes with less than 64 KiB a second may keep others waiting: 10 s.
    pub fn slow_after(&self) -> Duration {
        self.slow_after
    }

    /// How long a blob may come with less than 4 KiB a second: two minutes.
    pub fn least_after(&self) -> Duration {
        self.least_after
    }

    /// What was used within this time is not collected for a pull that finds no room: two minutes.
    pub fn minimum_age(&self) -> Duration {
        self.minimum_age
    }

    /// The same limits with another age at which something may be collected.
    #[must_use]
    pub fn with_minimum_age(mut self, age: Duration) -> Self {
        self.minimum_age = age;
        self
    }

    /// The same limits with another patience: until a slow blob makes way, and until it is given up.
    #[must_use]
    pub fn with_patience(mut self, slow_after: Duration, least_after: Duration) -> Self {
        (self.slow_after, self.least_after) = (slow_after, least_after);
        self
    }

    /// The same limits with another number of layers.
    #[must_use]
    pub fn with_layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// The same limits with another longest path.
    #[must_use]
    pub fn with_path(mut self, bytes: usize) -> Self {
        self.path = bytes;
        self
    }

    /// The same limits with another largest zstd window, as its logarithm.
    #[must_use]
    pub fn with_zstd_window_log(mut self, log: u32) -> Self {
        self.zstd_window_log = log;
        self
    }

    /// The same limits with another number of entries.
    #[must_use]
    pub fn with_entries(mut self, entries: u64) -> Self {
        self.entries = entries;
        self
    }

    /// The same limits with another number of directories within each other.
    #[must_use]
    pub fn with_depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// The same limits with another size that a volume may unpack to.
    #[must_use]
    pub fn with_unpacked(mut self, bytes: u64) -> Self {
        self.unpacked = bytes;
        self
    }

    /// The same limits with another reserve of free space.
    #[must_use]
    pub fn with_reserve(mut self, reserve: Reserve) -> Self {
        self.reserve = reserve;
        self
    }

    /// The same limits with another number of blobs read at once on the node; at least one.
    #[must_use]
    pub fn with_streams(mut self, streams: usize) -> Self {
        self.streams = streams.max(1);
        self
    }
}

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
        self.limits = self.limits.with_minimum_age(watermarks.age());
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
