//! The driver as it is installed, and kubelet's side of its socket.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_driver::proto::csi::node_client::NodeClient;
use oras_csi_driver::proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode};
use oras_csi_driver::proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability};
use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::Running;
use tonic::Status;
use tonic::transport::Endpoint;

pub(crate) struct Node {
    folder: tempfile::TempDir,
    driver: Running,
    socket: PathBuf,
}

impl Node {
    /// `None` where this user cannot mount.
    pub(crate) fn start(certs: &Path, flags: &[&str]) -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
        if !status.lines().any(|line| line.starts_with("Uid:\t0\t")) {
            assert!(std::env::var("CI").is_err(), "the driver mounts, which needs root");
            eprintln!("SKIPPED: what the driver does, which mounts and needs root");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let kubelet = folder.path().join("kubelet");
        let mut driver = Running::start(
            Command::new(oras_csi())
                .arg("driver")
                .arg("--node-id=hostile")
                .arg(format!("--kubelet-dir={}", kubelet.display()))
                .arg(format!("--store={}", folder.path().join("store").display()))
                .arg(format!("--certs-dir={}", certs.display()))
                .args(flags),
            "driver",
            folder.path(),
        );
        let socket = kubelet.join("plugins/csi.oras.land/csi.sock");
        driver.wait_until("listening", Duration::from_secs(30), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        Some(Self { folder, driver, socket })
    }

    /// Where a volume is to appear: kubelet makes the folder above it.
    pub(crate) fn target(&self, name: &str) -> PathBuf {
        let name: String = name.chars().map(|char| if char.is_alphanumeric() { char } else { '-' }).collect();
        let parent = self.folder.path().join("kubelet/pods").join(name);
        std::fs::create_dir_all(&parent).expect("makes");
        parent.join("mount")
    }

    async fn client(&self) -> NodeClient<tonic::transport::Channel> {
        let endpoint =
            Endpoint::from_shared(format!("unix://{}", self.socket.display())).expect("an address");
        NodeClient::new(endpoint.connect().await.expect("it listens"))
    }

    pub(crate) async fn publish(&self, volume: &str, target: &Path, digest: &Digest) -> Result<(), Status> {
        let reference = Reference::parse("kind-registry:5000/hostile").expect("a reference");
        let step = Step::Add(Layer::new(reference.pin(digest.clone())));
        let recipe = PinnedRecipe::new(vec![step]).expect("a recipe");
        let canonical = CanonicalVolume::new(None, recipe).expect("it fits");
        let ours = canonical.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value));
        let kubelets = [("csi.storage.k8s.io/pod.namespace".to_owned(), "hostile".to_owned())];
        let request = NodePublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: target.to_str().expect("UTF-8").to_owned(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode { mode: access_mode::Mode::SingleNodeWriter.into() }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            volume_context: ours.chain(kubelets).collect::<HashMap<_, _>>(),
            ..Default::default()
        };
        self.client().await.node_publish_volume(request).await.map(|_| ())
    }

    pub(crate) async fn unpublish(&self, volume: &str, target: &Path) {
        let target_path = target.to_str().expect("UTF-8").to_owned();
        let request = NodeUnpublishVolumeRequest { volume_id: volume.to_owned(), target_path };
        self.client().await.node_unpublish_volume(request).await.expect("it is there");
    }

    /// Nothing unfinished stays in the store. Who gave up a download clears away in a thread of its own.
    pub(crate) async fn left_nothing(&self) -> Result<(), String> {
        let tmp = self.folder.path().join("store/tmp");
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let left = std::fs::read_dir(&tmp).expect("a folder").count();
            if left == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("{left} unfinished things are left in the store"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The most resident memory that the driver had, in MiB.
    pub(crate) fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.driver.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is there");
        line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number") / 1024
    }
}
