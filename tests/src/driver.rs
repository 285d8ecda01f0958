//! The driver as a process, and kubelet's side of its socket.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_driver::proto::csi::node_client::NodeClient;
use oras_csi_driver::proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode};
use oras_csi_driver::proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability};
use serde_json::Value;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::parts::oras_csi;
use crate::process::{Running, free_port, http_get};

/// A driver in stand-alone mode, in which no volume needs a seal, with its own kubelet folder and store.
#[derive(Debug)]
pub struct Driver {
    binary: PathBuf,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    kubeconfig: Option<PathBuf>,
    metrics: u16,
    running: Option<Running>,
}

/// Returns and prints the reason why a test that mounts cannot run; `None` if it can.
pub fn cannot_mount() -> Option<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    if status.lines().any(|line| line.starts_with("Uid:\t0\t")) {
        return None;
    }
    let why = "SKIPPED: the driver mounts, which needs root";
    assert!(std::env::var("CI").is_err(), "{why}");
    eprintln!("{why}");
    Some(why)
}

impl Driver {
    /// Starts one with a `certs.d` folder and more arguments.
    pub fn start(certs: &Path, arguments: &[&str]) -> Self {
        Self::start_in_cluster(certs, arguments, None)
    }

    /// Starts a driver of another build.
    pub fn start_binary(binary: &Path, certs: &Path, arguments: &[&str]) -> Self {
        Self::start_from(binary.to_owned(), certs, arguments, None)
    }

    /// Starts a driver with the permissions of a kubeconfig.
    pub fn start_in_cluster(certs: &Path, arguments: &[&str], kubeconfig: Option<&Path>) -> Self {
        Self::start_from(oras_csi(), certs, arguments, kubeconfig)
    }

    fn start_from(binary: PathBuf, certs: &Path, arguments: &[&str], kubeconfig: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let metrics = free_port();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let own = [
            "driver".to_owned(),
            "--node-id=node1".to_owned(),
            format!("--kubelet-dir={}", at("kubelet")),
            format!("--store={}", at("store")),
            format!("--certs-dir={}", certs.display()),
            format!("--metrics-listen=127.0.0.1:{metrics}"),
        ];
        let names_node = arguments.iter().any(|argument| argument.starts_with("--node-id="));
        let own = own.into_iter().filter(|argument| !names_node || !argument.starts_with("--node-id="));
        let arguments = own.chain(arguments.iter().map(|&one| one.to_owned())).collect();
        let mut driver = Self {
            binary,
            folder,
            arguments,
            kubeconfig: kubeconfig.map(Path::to_owned),
            metrics,
            running: None,
        };
        driver.start_again();
        driver
    }

    /// Starts it again, with the store that it had.
    pub fn start_again(&mut self) {
        let mut running = self.spawn();
        let socket = self.socket();
        running.wait_until("listening", Duration::from_mins(1), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        self.running = Some(running);
    }

    /// Ends it as kubelet does, and starts another build with its store and its volumes.
    pub fn replace(&mut self, binary: &Path) {
        self.terminate();
        binary.clone_into(&mut self.binary);
        self.start_again();
    }

    /// Ends it, starts another build, which must end by itself, and returns what that has printed.
    pub fn refusal(&mut self, binary: &Path) -> String {
        self.terminate();
        binary.clone_into(&mut self.binary);
        let before = self.log().len();
        let status = self.spawn().wait_until_ended(Duration::from_mins(1));
        assert!(!status.success(), "it must refuse: {}", self.log());
        self.log().split_off(before)
    }

    fn spawn(&self) -> Running {
        let mut command = Command::new(&self.binary);
        match &self.kubeconfig {
            Some(path) => command.env("KUBECONFIG", path),
            None => command.env_remove("KUBECONFIG"),
        };
        Running::start(command.args(&self.arguments), "driver", self.folder.path())
    }

    fn terminate(&mut self) {
        if let Some(running) = self.running.take() {
            running.terminate();
        }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill();
        }
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.running.as_ref().expect("it runs").id()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("kubelet/plugins/csi.oras.land/csi.sock")
    }

    /// The folder of its store.
    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Returns all that it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("driver.log")).unwrap_or_default()
    }

    /// Returns the address of its metrics.
    pub fn metrics_address(&self) -> String {
        format!("127.0.0.1:{}", self.metrics)
    }

    /// Returns what it answers at `/metrics`.
    pub fn metrics(&self) -> String {
        get(&self.metrics_address(), "/metrics")
    }

    /// Returns the sum of all series of a metric, or 0.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{'))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Returns the target path of a pod's volume, and creates the folder above it.
    pub fn target(&self, pod: &str) -> PathBuf {
        let parent = self.folder.path().join(format!("kubelet/pods/{pod}/volumes/kubernetes.io~csi/v"));
        std::fs::create_dir_all(&parent).expect("a folder");
        parent.join("mount")
    }

    /// Publishes a recipe for a pod, as kubelet does for an inline volume.
    pub async fn publish(
        &self,
        pod: &str,
        recipe: &PinnedRecipe,
        secret: Option<&Value>,
    ) -> Result<(), Status> {
        let volume = CanonicalVolume::new(None, recipe.clone()).expect("it fits");
        self.publish_volume(pod, &volume, secret).await
    }

    /// Publishes a volume for a pod of the namespace `team`.
    pub async fn publish_volume(
        &self,
        pod: &str,
        volume: &CanonicalVolume,
        secret: Option<&Value>,
    ) -> Result<(), Status> {
        let ours = volume.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value));
        self.publish_attributes(pod, "team", ours.collect(), secret).await
    }

    /// Publishes the volume attributes of a pod of a namespace, which may have been written by another build.
    pub async fn publish_attributes(
        &self,
        pod: &str,
        namespace: &str,
        ours: HashMap<String, String>,
        secret: Option<&Value>,
    ) -> Result<(), Status> {
        let kubelets =
            [("pod.namespace", namespace), ("pod.uid", pod), ("pod.name", pod), ("ephemeral", "true")]
                .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value.to_owned()));
        let secrets = secret.map(|config| (".dockerconfigjson".to_owned(), config.to_string()));
        let request = NodePublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: self.target(pod).display().to_string(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode { mode: access_mode::Mode::SingleNodeWriter.into() }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            volume_context: ours.into_iter().chain(kubelets).collect::<HashMap<_, _>>(),
            secrets: secrets.into_iter().collect(),
            ..NodePublishVolumeRequest::default()
        };
        self.node().await.node_publish_volume(request).await.map(|_| ())
    }

    /// Unpublishes a pod's volume.
    pub async fn unpublish(&self, pod: &str) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: self.target(pod).display().to_string(),
        };
        self.node().await.node_unpublish_volume(request).await.map(|_| ())
    }

    async fn node(&self) -> NodeClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket().display()));
        NodeClient::new(endpoint.expect("an address").connect().await.expect("it listens"))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.kill();
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let ours = self.folder.path().display().to_string();
        let paths: Vec<_> = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        for path in paths.iter().rev().filter(|path| path.starts_with(&ours)) {
            let _ = Command::new("umount").arg(path).status();
        }
    }
}

fn get(host: &str, path: &str) -> String {
    let stream = std::net::TcpStream::connect(host).expect("it listens");
    http_get(stream, host, path)
}
