//! The driver as a process, and kubelet's side of its socket: the messages of the CSI specification (csi.proto, v1.13)
//! with the fields that kubelet sends to a node.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::content::{self, Packing};
use crate::registry::{NAME, Registry};
use crate::tools;

/// A driver in stand-alone mode, in which no volume needs a seal.
#[derive(Debug)]
pub(crate) struct Driver {
    child: Child,
    folder: PathBuf,
    channel: Channel,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PublishRequest {
    #[prost(string, tag = "1")]
    volume_id: String,
    #[prost(string, tag = "4")]
    target_path: String,
    #[prost(message, optional, tag = "5")]
    volume_capability: Option<VolumeCapability>,
    #[prost(map = "string, string", tag = "8")]
    volume_context: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct VolumeCapability {
    #[prost(message, optional, tag = "2")]
    mount: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    access_mode: Option<AccessMode>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AccessMode {
    /// 1 is `SINGLE_NODE_WRITER`, which kubelet sends for every inline volume.
    #[prost(int32, tag = "1")]
    mode: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UnpublishRequest {
    #[prost(string, tag = "1")]
    volume_id: String,
    #[prost(string, tag = "2")]
    target_path: String,
}

/// A message without fields, or whose fields do not matter.
#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

/// The content of a volume: its attributes.
#[derive(Clone, Debug)]
pub(crate) struct Volume(HashMap<String, String>);

/// Pushes an archive, packed with gzip, whose entries `add` writes. Returns the volume that has its files.
pub(crate) fn push_archive(
    registry: &Registry,
    repository: &str,
    add: impl FnOnce(&mut content::Archive<'_>) -> Result<()>,
) -> Result<Volume> {
    let folder = tempfile::Builder::new().prefix("b-").tempdir()?;
    let file = folder.path().join("archive");
    let diff = content::write_archive(&file, Packing::Gzip, add)?;
    let pushed = registry.push_archive(repository, &file, Packing::Gzip, &diff)?;
    Ok(Volume::of(&pushed.repository, &pushed.digest))
}

impl Volume {
    /// The files of artifacts: each is a repository of the registry, a digest and the path in the volume.
    pub(crate) fn new(artifacts: &[(String, String, Option<String>)]) -> Self {
        let step = |(repository, digest, path): &(String, String, Option<String>)| {
            let path = path.as_ref().map(|path| format!(r#","path":"{path}""#)).unwrap_or_default();
            format!(r#"{{"add":"{NAME}/{repository}@{digest}"{path}}}"#)
        };
        let recipe = format!("[{}]", artifacts.iter().map(step).collect::<Vec<_>>().join(","));
        // docs/design.md, "Canonical volume": the id ends in the first 32 digits of the recipe's hash.
        let hash = hex(&Sha256::digest(&recipe));
        let attributes =
            [("csi.oras.land/id", format!("bench-{}", &hash[..32])), ("csi.oras.land/recipe", recipe)];
        Self(attributes.map(|(key, value)| (key.to_owned(), value)).into())
    }

    /// All files of one artifact.
    pub(crate) fn of(repository: &str, digest: &str) -> Self {
        Self::new(&[(repository.to_owned(), digest.to_owned(), None)])
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

impl Driver {
    /// Starts one whose store and mounts are in a new folder below `disk`.
    pub(crate) async fn start(disk: &Path, name: &str, certs: &Path) -> Result<Self> {
        Self::start_with(disk, name, certs, &[]).await
    }

    /// Starts one with more options.
    pub(crate) async fn start_with(disk: &Path, name: &str, certs: &Path, options: &[&str]) -> Result<Self> {
        let folder = disk.join(name);
        std::fs::create_dir_all(&folder)?;
        let log = File::options().create(true).append(true).open(folder.join("driver.log"))?;
        let at = |option: &str, name: &str| format!("--{option}={}", folder.join(name).display());
        let mut command = Command::new(tools::ours()?);
        command.args(["driver", "--node-id=node1", "--keep-free=0"]);
        command.args([at("kubelet-dir", "k"), at("store", "store")]);
        command.arg(format!("--certs-dir={}", certs.display())).args(tools::unlimited()).args(options);
        command.env_remove("KUBECONFIG").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("cannot start the driver")?;
        let socket = folder.join("k/plugins/csi.oras.land/csi.sock");
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if child.try_wait()?.is_some() || begun.elapsed() > Duration::from_mins(1) {
                let log = std::fs::read_to_string(folder.join("driver.log")).unwrap_or_default();
                let _ = child.kill();
                bail!("the driver does not listen:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect().await;
        Ok(Self { child, folder, channel: channel.context("cannot connect to the driver")? })
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where a pod's volume is mounted; makes the folder above it, as kubelet does.
    pub(crate) fn target(&self, pod: &str) -> Result<PathBuf> {
        let parent = self.folder.join(format!("k/pods/{pod}/volumes/kubernetes.io~csi/v"));
        std::fs::create_dir_all(&parent)?;
        Ok(parent.join("mount"))
    }

    /// Publishes a volume for a pod, and calls again while the driver downloads it, as kubelet does. Returns the time.
    pub(crate) async fn publish(&self, pod: &str, volume: &Volume) -> Result<Duration> {
        let kubelets =
            [("pod.namespace", "team"), ("pod.uid", pod), ("pod.name", pod), ("ephemeral", "true")]
                .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value.to_owned()));
        let request = PublishRequest {
            volume_id: format!("csi-{pod}"),
            target_path: self.target(pod)?.display().to_string(),
            volume_capability: Some(VolumeCapability {
                mount: Some(Empty {}),
                access_mode: Some(AccessMode { mode: 1 }),
            }),
            volume_context: volume.0.clone().into_iter().chain(kubelets).collect(),
        };
        let begun = Instant::now();
        loop {
            match self.call("NodePublishVolume", request.clone()).await {
                Err(status) if status.code() == Code::Aborted => {}
                answer => {
                    answer.with_context(|| format!("cannot publish the volume of {pod}"))?;
                    return Ok(begun.elapsed());
                }
            }
        }
    }

    /// Unpublishes a pod's volume. Returns the time.
    pub(crate) async fn unpublish(&self, pod: &str) -> Result<Duration> {
        let target_path = self.target(pod)?.display().to_string();
        let request = UnpublishRequest { volume_id: format!("csi-{pod}"), target_path };
        let begun = Instant::now();
        self.call("NodeUnpublishVolume", request).await.with_context(|| format!("cannot unpublish {pod}"))?;
        Ok(begun.elapsed())
    }

    /// Makes a call that does nothing. Returns the time.
    pub(crate) async fn probe(&self) -> Result<Duration> {
        let begun = Instant::now();
        self.call("NodeGetInfo", Empty {}).await.context("cannot call NodeGetInfo")?;
        Ok(begun.elapsed())
    }

    async fn call(&self, method: &str, message: impl prost::Message + 'static) -> Result<(), tonic::Status> {
        let path = PathAndQuery::try_from(format!("/csi.v1.Node/{method}"))
            .map_err(|error| tonic::Status::internal(error.to_string()))?;
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| tonic::Status::internal(error.to_string()))?;
        let codec = ProstCodec::<_, Empty>::default();
        client.unary(Request::new(message), path, codec).await.map(|_| ())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let paths = mounts.lines().filter_map(|line| line.split(' ').nth(4).map(Path::new));
        let ours: Vec<_> = paths.filter(|path| path.starts_with(&self.folder)).collect();
        for path in ours.iter().rev() {
            let _ = rustix::mount::unmount(*path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
