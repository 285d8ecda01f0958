//! Kubelet's part in the tour: the calls that it makes over the driver's socket.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oras_csi_driver::proto::csi;
use oras_csi_driver::proto::csi::node_client::NodeClient;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use crate::exit_status::Failure;

/// What a kubelet has of a driver: its socket.
#[derive(Debug)]
pub(super) struct Kubelet {
    node: NodeClient<Channel>,
    pods: PathBuf,
}

impl Kubelet {
    /// Whether the driver listens.
    pub(super) async fn finds(socket: &Path) -> bool {
        tokio::net::UnixStream::connect(socket).await.is_ok()
    }

    pub(super) fn new(socket: &Path, folder: &Path) -> Result<Self, Failure> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))
            .map_err(|error| Failure::failed(format!("no way to the driver: {error}")))?;
        Ok(Self { node: NodeClient::new(endpoint.connect_lazy()), pods: folder.join("pods") })
    }

    /// Where the volume of a pod is mounted, as kubelet lays its folder out.
    pub(super) fn target(&self, pod: &str, volume: &Value) -> PathBuf {
        let volume = volume["name"].as_str().unwrap_or_default();
        self.pods.join(pod).join("volumes/kubernetes.io~csi").join(volume).join("mount")
    }

    /// NodePublishVolume for an inline volume of an admitted pod.
    pub(super) async fn publish(
        &mut self,
        pod: &str,
        volume: &Value,
        namespace: &str,
    ) -> Result<(), Failure> {
        let target = self.target(pod, volume);
        let parent = target.parent().unwrap_or(&self.pods);
        std::fs::create_dir_all(parent)
            .map_err(|error| Failure::failed(format!("cannot make {}: {error}", parent.display())))?;
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
        answer
            .map(|_| ())
            .map_err(|status| Failure::failed(format!("the driver answered: {}", status.message())))
    }

    /// NodeUnpublishVolume.
    pub(super) async fn unpublish(&mut self, pod: &str, volume: &Value) -> Result<(), Failure> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: self.target(pod, volume).display().to_string(),
        };
        let answer = self.node.node_unpublish_volume(request).await;
        answer
            .map(|_| ())
            .map_err(|status| Failure::failed(format!("the driver answered: {}", status.message())))
    }
}
