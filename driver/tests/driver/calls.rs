//! Starts a driver in a temporary folder, and makes the calls of kubelet.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_driver::proto::csi::node_client::NodeClient;
use oras_csi_driver::proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode};
use oras_csi_driver::proto::csi::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
};
use oras_csi_driver::{RunError, Settings, bind};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::registry::{Artifact, FakeRegistry, add, recipe};

pub async fn connect(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap()
}

/// A driver that runs in this process.
pub struct Running {
    pub folder: Arc<TempDir>,
    pub registry: Arc<FakeRegistry>,
    pub node: NodeClient<Channel>,
    pub socket: PathBuf,
    pub registration: PathBuf,
    pub metrics: SocketAddr,
    pub health: Option<SocketAddr>,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), RunError>>,
}

impl Running {
    pub async fn start() -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), FakeRegistry::new(), Duration::from_secs(20))
            .await
    }

    pub async fn start_in(folder: Arc<TempDir>, registry: Arc<FakeRegistry>, wait: Duration) -> Self {
        Self::start_with(folder, registry, |settings| settings.with_publish_wait(wait)).await
    }

    /// Starts a driver with settings that `change` returns.
    pub async fn start_with(
        folder: Arc<TempDir>,
        registry: Arc<FakeRegistry>,
        change: impl FnOnce(Settings) -> Settings,
    ) -> Self {
        let settings = change(settings(folder.path()).with_publish_wait(Duration::from_secs(20)));
        let bound = bind(settings, registry.clone()).await.unwrap();
        let socket = bound.socket().to_owned();
        let registration = bound.registration().unwrap().to_owned();
        let metrics = bound.metrics_address().unwrap();
        let health = bound.health_address();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(bound.serve(stop.clone()));
        let node = NodeClient::new(connect(&socket).await);
        Self { folder, registry, node, socket, registration, metrics, health, stop, serving }
    }

    pub async fn stop(self) -> Result<(), RunError> {
        self.stop.cancel();
        drop(self.node);
        self.serving.await.unwrap()
    }

    pub async fn ended(self) -> Result<(), RunError> {
        self.serving.await.unwrap()
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Returns the target path of a volume, and creates its parent as kubelet does.
    pub fn target(&self, name: &str) -> PathBuf {
        let parent = self.folder.path().join("kubelet/pods").join(name);
        std::fs::create_dir_all(&parent).unwrap();
        parent.join("mount")
    }

    pub fn artifact(&self, text: &[u8]) -> Digest {
        Artifact::new(&self.registry).file("app.jar", text).directory("conf", &[("a.yaml", b"yaml")]).push()
    }

    pub async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.node.clone().node_publish_volume(request).await.map(|_| ())
    }

    pub async fn unpublish(&self, volume: &str, target: &Path) -> Result<(), Status> {
        unpublish(&self.node, volume, target).await
    }

    /// Returns the bytes and inodes of a volume.
    pub async fn stats(&self, volume: &str, path: &str) -> Result<(i64, i64), Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.to_owned(),
            volume_path: path.to_owned(),
            ..Default::default()
        };
        let usage = self.node.clone().node_get_volume_stats(request).await?.into_inner().usage;
        Ok((usage[0].used, usage[1].used))
    }

    /// Returns the metrics as Prometheus reads them.
    pub async fn metrics_text(&self) -> String {
        self.http("/metrics").await
    }

    /// Returns the answer of the metrics server to a GET request, with headers.
    pub async fn http(&self, path: &str) -> String {
        get(self.metrics, path).await
    }

    /// Returns the names in a folder of the store.
    pub fn names(&self, folder: &str) -> Vec<String> {
        names(&self.store().join(folder))
    }

    pub fn records(&self) -> usize {
        std::fs::read_dir(self.store().join("volumes")).unwrap().count()
    }
}

/// Returns the answer to a GET request, with headers.
pub async fn get(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

pub fn names(folder: &Path) -> Vec<String> {
    let listed = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until a condition is true, long enough for a loaded machine.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < Duration::from_mins(1), "not in a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn settings(folder: &Path) -> Settings {
    Settings::new("node-1", &folder.join("kubelet"), folder.join("store"))
        .with_metrics(Some("127.0.0.1:0".parse().unwrap()))
}

pub async fn unpublish(node: &NodeClient<Channel>, volume: &str, target: &Path) -> Result<(), Status> {
    let request = NodeUnpublishVolumeRequest {
        volume_id: volume.to_owned(),
        target_path: target.to_str().unwrap().to_owned(),
    };
    node.clone().node_unpublish_volume(request).await.map(|_| ())
}

/// Returns the request of kubelet for an inline volume with this artifact.
pub fn request(volume: &str, target: &Path, digest: &Digest) -> NodePublishVolumeRequest {
    request_for(volume, target, recipe([add(digest)]))
}

pub fn request_for(volume: &str, target: &Path, recipe: PinnedRecipe) -> NodePublishVolumeRequest {
    let canonical = CanonicalVolume::new(Some("java-app"), recipe).unwrap();
    let ours = canonical.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value));
    let kubelets = [
        ("csi.storage.k8s.io/pod.name", "pod-1"),
        ("csi.storage.k8s.io/pod.namespace", "default"),
        ("csi.storage.k8s.io/pod.uid", "c0ffee"),
        ("csi.storage.k8s.io/serviceAccount.name", "default"),
        ("csi.storage.k8s.io/ephemeral", "true"),
    ];
    let kubelets = kubelets.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    NodePublishVolumeRequest {
        volume_id: volume.to_owned(),
        target_path: target.to_str().unwrap().to_owned(),
        volume_capability: Some(VolumeCapability {
            access_mode: Some(AccessMode { mode: access_mode::Mode::SingleNodeWriter.into() }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }),
        readonly: false,
        volume_context: ours.chain(kubelets).collect::<HashMap<_, _>>(),
        ..Default::default()
    }
}

/// Returns the flags of each mount at `path`, from mountinfo.
pub fn mounts(path: &Path) -> Vec<String> {
    let text = std::fs::read("/proc/self/mountinfo").unwrap();
    oras_csi_driver::mountinfo::all(&text)
        .filter(|entry| entry.point() == path)
        .map(|entry| entry.options().to_owned())
        .collect()
}
