//! Kubelet's part: the calls that it makes over the driver's socket.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use oras_csi_driver::proto::csi;
use oras_csi_driver::proto::csi::node_client::NodeClient;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

/// A client of the driver's socket, with kubelet's folder of pods.
#[derive(Debug)]
pub(crate) struct Kubelet {
    node: NodeClient<Channel>,
    pods: PathBuf,
}

impl Kubelet {
    /// Reports whether the driver listens.
    pub(crate) async fn can_connect(socket: &Path) -> bool {
        tokio::net::UnixStream::connect(socket).await.is_ok()
    }

    pub(crate) fn new(socket: &Path, folder: &Path) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))
            .context("cannot connect to the driver")?;
        Ok(Self { node: NodeClient::new(endpoint.connect_lazy()), pods: folder.join("pods") })
    }

    /// Returns the path where kubelet mounts the volume of a pod.
    pub(crate) fn target(&self, pod: &str, volume: &Value) -> PathBuf {
        let volume = volume["name"].as_str().unwrap_or_default();
        self.pods.join(pod).join("volumes/kubernetes.io~csi").join(volume).join("mount")
    }

    /// Calls NodePublishVolume for an inline volume of an admitted pod.
    pub(crate) async fn publish(&mut self, pod: &str, volume: &Value, namespace: &str) -> anyhow::Result<()> {
        let target = self.target(pod, volume);
        let parent = target.parent().unwrap_or(&self.pods);
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        let attributes = volume["csi"]["volumeAttributes"].as_object().into_iter().flatten();
        let mut context: HashMap<String, String> = attributes
            .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect();
        for (key, value) in [
            ("pod.name", pod),
            ("pod.namespace", namespace),
            ("pod.uid", pod),
            ("serviceAccount.name", "default"),
            ("ephemeral", "true"),
        ] {
            context.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
        }
        let request = csi::NodePublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: target.display().to_string(),
            volume_capability: Some(csi::VolumeCapability {
                access_type: Some(csi::volume_capability::AccessType::Mount(
                    csi::volume_capability::MountVolume::default(),
                )),
                access_mode: Some(csi::volume_capability::AccessMode {
                    mode: csi::volume_capability::access_mode::Mode::SingleNodeWriter.into(),
                }),
            }),
            readonly: true,
            volume_context: context,
            ..csi::NodePublishVolumeRequest::default()
        };
        let answer = self.node.node_publish_volume(request).await;
        answer.map(|_| ()).map_err(|status| anyhow!("the driver answered: {}", status.message()))
    }

    /// Calls NodeUnpublishVolume.
    pub(crate) async fn unpublish(&mut self, pod: &str, volume: &Value) -> anyhow::Result<()> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: self.target(pod, volume).display().to_string(),
        };
        let answer = self.node.node_unpublish_volume(request).await;
        answer.map(|_| ()).map_err(|status| anyhow!("the driver answered: {}", status.message()))
    }
}
