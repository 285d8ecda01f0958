//! The settings of the driver, as the administrator chooses them on the command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oras_csi_core::credentials::Administrator;
use oras_csi_core::keys::DRIVER;
use oras_csi_store::gc::Watermarks;
use oras_csi_store::scrub::Schedule;
use oras_csi_store::{Limits, SelinuxLabel};

use crate::kubelet_pods::OwnPod;
use crate::metrics::Metrics;
use crate::pod_events::PodEvents;
use crate::preload::ClusterSets;
use crate::publish::{AuthorizationGrace, PublishWait, Seals};
use crate::startup_taint::StartupTaint;

/// The settings of the driver of one node.
#[derive(Clone, Debug)]
pub struct Settings {
    node_id: String,
    store: PathBuf,
    socket: PathBuf,
    registration: Option<PathBuf>,
    limits: Limits,
    publish_wait: PublishWait,
    authorization_grace: AuthorizationGrace,
    metrics: Option<SocketAddr>,
    counters: Metrics,
    health: Option<SocketAddr>,
    administrator: Option<Administrator>,
    seals: Seals,
    watermarks: Watermarks,
    scrubbing: Schedule,
    cluster_sets: Option<ClusterSets>,
    selinux_label: Option<SelinuxLabel>,
    has_images: bool,
    kubelet_dir: PathBuf,
    own_pod: Option<OwnPod>,
    startup_taint: Option<StartupTaint>,
    pod_events: Option<PodEvents>,
}

impl Settings {
    /// Kubelet's folder, unless kubelet has another `--root-dir`.
    pub const KUBELET_DIR: &'static str = "/var/lib/kubelet";
    /// How long a publish waits for a pull by default: a little less than kubelet's timeout of two minutes.
    pub const PUBLISH_WAIT: Duration = Duration::from_secs(110);
    /// How long a pull permission stays valid by default while its registry is unreachable.
    pub const AUTHORIZATION_GRACE: Duration = Duration::from_hours(1);

    /// Returns the defaults for the node `node_id`, kubelet's folder and the folder of the store.
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
            publish_wait: PublishWait(Self::PUBLISH_WAIT),
            authorization_grace: AuthorizationGrace(Self::AUTHORIZATION_GRACE),
            metrics: None,
            counters: Metrics::default(),
            health: None,
            administrator: None,
            seals: Seals::NotNeeded,
            watermarks: Watermarks::default(),
            scrubbing: Schedule::default(),
            cluster_sets: None,
            selinux_label: None,
            has_images: true,
            kubelet_dir: kubelet_dir.to_owned(),
            own_pod: None,
            startup_taint: None,
            pod_events: None,
        }
    }

    /// Sets the path of the CSI socket.
    #[must_use]
    pub fn with_socket(mut self, socket: impl Into<PathBuf>) -> Self {
        self.socket = socket.into();
        self
    }

    /// Sets the path of the registration socket. Without one, kubelet does not find the driver by itself.
    #[must_use]
    pub fn with_registration(mut self, registration: Option<PathBuf>) -> Self {
        self.registration = registration;
        self
    }

    /// Sets the limits of the store and of pulls.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the SELinux label of the store. Without one, the store gets the label that containers can read where the
    /// files of the node have labels.
    #[must_use]
    pub fn with_selinux_label(mut self, label: Option<SelinuxLabel>) -> Self {
        self.selinux_label = label;
        self
    }

    /// Sets whether archives with many small files become EROFS images, if the kernel can mount them.
    #[must_use]
    pub fn with_images(mut self, has_images: bool) -> Self {
        self.has_images = has_images;
        self
    }

    /// Reports whether archives with many small files may become EROFS images.
    pub(crate) fn has_images(&self) -> bool {
        self.has_images
    }

    /// Returns the SELinux label of the store, if one was set.
    pub fn selinux_label(&self) -> Option<&SelinuxLabel> {
        self.selinux_label.as_ref()
    }

    /// Sets how long a publish waits for a pull before it reports the progress.
    #[must_use]
    pub fn with_publish_wait(mut self, wait: Duration) -> Self {
        self.publish_wait = PublishWait(wait);
        self
    }

    /// Sets how long a pull permission stays valid while its registry is unreachable. A value below ten minutes has no
    /// effect, because a permission is cached that long.
    #[must_use]
    pub fn with_authorization_grace(mut self, grace: Duration) -> Self {
        self.authorization_grace = AuthorizationGrace(grace);
        self
    }

    /// Serves `/metrics` and `/healthz` over plain HTTP at this address.
    #[must_use]
    pub fn with_metrics(mut self, listen: Option<SocketAddr>) -> Self {
        self.metrics = listen;
        self
    }

    /// Sets the metrics that the driver counts in, for example those that the client of registries counts in as well.
    #[must_use]
    pub fn with_counters(mut self, counters: Metrics) -> Self {
        self.counters = counters;
        self
    }

    /// Serves `/healthz` over plain HTTP at this address, apart from the metrics: clients of the metrics cannot use up its
    /// connections.
    #[must_use]
    pub fn with_health(mut self, listen: Option<SocketAddr>) -> Self {
        self.health = listen;
        self
    }

    /// Sets the administrator's credentials, which are tried after the volume's own Secret.
    #[must_use]
    pub fn with_administrator(mut self, administrator: Option<Administrator>) -> Self {
        self.administrator = administrator;
        self
    }

    /// Sets which volumes are mounted. By default, any canonical volume.
    #[must_use]
    pub fn with_seals(mut self, seals: Seals) -> Self {
        self.seals = seals;
        self
    }

    /// Sets when garbage collection deletes unused content.
    #[must_use]
    pub fn with_watermarks(mut self, watermarks: Watermarks) -> Self {
        self.watermarks = watermarks;
        self.limits = self.limits.with_minimum_age(watermarks.minimum_age());
        self
    }

    /// Sets when the scrubber verifies the store.
    #[must_use]
    pub fn with_scrubbing(mut self, scrubbing: Schedule) -> Self {
        self.scrubbing = scrubbing;
        self
    }

    /// Preloads the cluster sets that select this node, and reads their pull secrets. Without cluster sets and without a
    /// startup taint, the driver does not connect to the API server.
    #[must_use]
    pub fn with_cluster_sets(mut self, cluster_sets: Option<ClusterSets>) -> Self {
        self.cluster_sets = cluster_sets;
        self
    }

    /// Sets the pod that the driver runs in. With it, the driver asks kubelet which pods it has, and unmounts volumes that
    /// kubelet can no longer unpublish.
    #[must_use]
    pub fn with_own_pod(mut self, own_pod: Option<OwnPod>) -> Self {
        self.own_pod = own_pod;
        self
    }

    /// Returns the pod that the driver runs in, if it is known.
    pub fn own_pod(&self) -> Option<&OwnPod> {
        self.own_pod.as_ref()
    }

    /// Removes the startup taint of the node when kubelet has registered the driver.
    #[must_use]
    pub fn with_startup_taint(mut self, startup_taint: Option<StartupTaint>) -> Self {
        self.startup_taint = startup_taint;
        self
    }

    /// Writes events about the volumes of pods.
    #[must_use]
    pub fn with_pod_events(mut self, pod_events: Option<PodEvents>) -> Self {
        self.pod_events = pod_events;
        self
    }

    /// Returns the connection for events of pods, if the driver writes them.
    pub fn pod_events(&self) -> Option<&PodEvents> {
        self.pod_events.as_ref()
    }

    /// Returns the connection for the removal of the startup taint, if the driver removes it.
    pub fn startup_taint(&self) -> Option<&StartupTaint> {
        self.startup_taint.as_ref()
    }

    /// Returns kubelet's folder.
    pub fn kubelet_dir(&self) -> &Path {
        &self.kubelet_dir
    }

    /// Returns the connection for cluster sets, if they are preloaded.
    pub fn cluster_sets(&self) -> Option<&ClusterSets> {
        self.cluster_sets.as_ref()
    }

    /// Returns when garbage collection deletes unused content.
    pub fn watermarks(&self) -> &Watermarks {
        &self.watermarks
    }

    /// Returns when the scrubber verifies the store.
    pub fn scrubbing(&self) -> &Schedule {
        &self.scrubbing
    }

    /// Returns the name of this node.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// Returns the folder of the store.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Returns the path of the CSI socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the path of the registration socket, if there is one.
    pub fn registration(&self) -> Option<&Path> {
        self.registration.as_deref()
    }

    /// Returns the limits of the store and of pulls.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns how long a publish waits for a pull.
    pub fn publish_wait(&self) -> PublishWait {
        self.publish_wait
    }

    /// Returns how long a pull permission stays valid while its registry is unreachable.
    pub fn authorization_grace(&self) -> AuthorizationGrace {
        self.authorization_grace
    }

    /// Returns the administrator's credentials.
    pub fn administrator(&self) -> Option<&Administrator> {
        self.administrator.as_ref()
    }

    /// Returns which volumes are mounted.
    pub fn seals(&self) -> &Seals {
        &self.seals
    }

    /// Returns the address of `/healthz` alone.
    pub fn health(&self) -> Option<SocketAddr> {
        self.health
    }

    /// Returns the metrics that the driver counts in.
    pub(crate) fn counters(&self) -> &Metrics {
        &self.counters
    }

    /// Returns the address of the metrics.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }
}
