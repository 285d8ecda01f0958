//! The controller service that csi-sanity needs and the driver does not have.
//!
//! oras-csi is a node-only driver: volumes are made by admission, not by a controller. Some node specs of
//! csi-sanity still ask a controller for a volume first. [`FixedVolumes`] answers them with the attributes of a
//! volume that the registry beside the test really has. A few more want both services behind one socket:
//! [`Relay`] is that socket, and hands every Node call to the driver as it came.

use std::collections::HashMap;
use std::path::Path;

use oras_csi_driver::proto::csi;
use oras_csi_driver::proto::csi::controller_server::{Controller, ControllerServer};
use oras_csi_driver::proto::csi::identity_server::{Identity, IdentityServer};
use oras_csi_driver::proto::csi::node_client::NodeClient;
use oras_csi_driver::proto::csi::node_server::{Node, NodeServer};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// Creates volumes with these attributes, and records their names.
#[derive(Debug)]
pub struct FixedVolumes {
    attributes: HashMap<String, String>,
    made: std::sync::Mutex<HashMap<String, i64>>,
}

impl FixedVolumes {
    /// Serves controller and identity on a Unix socket until the runtime ends.
    pub fn serve(attributes: HashMap<String, String>, socket: &Path) {
        let controller = ControllerServer::new(Self { attributes, made: std::sync::Mutex::default() });
        let router = tonic::transport::Server::builder().add_service(IdentityServer::new(ControllerIdentity));
        tokio::spawn(router.add_service(controller).serve_with_incoming(listen(socket)));
    }
}

fn listen(socket: &Path) -> UnixListenerStream {
    UnixListenerStream::new(tokio::net::UnixListener::bind(socket).expect("a socket"))
}

/// The identity of a plugin that has a controller.
#[derive(Debug)]
struct ControllerIdentity;

#[tonic::async_trait]
impl Identity for ControllerIdentity {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Answer<csi::GetPluginInfoResponse> {
        let name = "controller.csi.oras.land".to_owned();
        Ok(Response::new(csi::GetPluginInfoResponse {
            name,
            vendor_version: "test".to_owned(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Answer<csi::GetPluginCapabilitiesResponse> {
        let kind = csi::plugin_capability::Type::Service(csi::plugin_capability::Service {
            r#type: csi::plugin_capability::service::Type::ControllerService.into(),
        });
        let capabilities = vec![csi::PluginCapability { r#type: Some(kind) }];
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Answer<csi::ProbeResponse> {
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}

/// One socket with a controller of the test's and the Node service of a driver.
#[derive(Debug)]
pub struct Relay(NodeClient<Channel>);

impl Relay {
    /// Serves on `socket` until the runtime ends; Node calls go to the driver at `driver`.
    pub fn serve(attributes: HashMap<String, String>, socket: &Path, driver: &Path) {
        let endpoint = Endpoint::from_shared(format!("unix:{}", driver.display())).expect("an address");
        let node = NodeServer::new(Self(NodeClient::new(endpoint.connect_lazy())));
        let controller = FixedVolumes { attributes, made: std::sync::Mutex::default() };
        let router = tonic::transport::Server::builder().add_service(IdentityServer::new(ControllerIdentity));
        let router = router.add_service(node).add_service(ControllerServer::new(controller));
        tokio::spawn(router.serve_with_incoming(listen(socket)));
    }
}

fn required(field: &str, value: &str) -> Result<(), Status> {
    if value.is_empty() { Err(Status::invalid_argument(format!("no {field}"))) } else { Ok(()) }
}

#[tonic::async_trait]
impl Controller for FixedVolumes {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Answer<csi::CreateVolumeResponse> {
        let request = request.into_inner();
        required("name", &request.name)?;
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("no capabilities"));
        }
        let size = request.capacity_range.map_or(0, |range| range.required_bytes);
        let mut made = self.made.lock().expect("no thread panicked");
        if *made.entry(request.name.clone()).or_insert(size) != size {
            return Err(Status::already_exists("the same name with another size"));
        }
        let volume = csi::Volume {
            volume_id: request.name,
            capacity_bytes: size,
            volume_context: self.attributes.clone(),
            ..csi::Volume::default()
        };
        Ok(Response::new(csi::CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Answer<csi::DeleteVolumeResponse> {
        let id = request.into_inner().volume_id;
        required("volume id", &id)?;
        self.made.lock().expect("no thread panicked").remove(&id);
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<csi::ValidateVolumeCapabilitiesResponse> {
        let request = request.into_inner();
        required("volume id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("no capabilities"));
        }
        if !self.made.lock().expect("no thread panicked").contains_key(&request.volume_id) {
            return Err(Status::not_found("no such volume"));
        }
        let confirmed = csi::validate_volume_capabilities_response::Confirmed {
            volume_capabilities: request.volume_capabilities,
            ..csi::validate_volume_capabilities_response::Confirmed::default()
        };
        Ok(Response::new(csi::ValidateVolumeCapabilitiesResponse {
            confirmed: Some(confirmed),
            message: String::new(),
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Answer<csi::ControllerGetCapabilitiesResponse> {
        let kind = csi::controller_service_capability::Type::Rpc(csi::controller_service_capability::Rpc {
            r#type: csi::controller_service_capability::rpc::Type::CreateDeleteVolume.into(),
        });
        let capabilities = vec![csi::ControllerServiceCapability { r#type: Some(kind) }];
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Answer<csi::ControllerPublishVolumeResponse> {
        Err(Status::unimplemented("ControllerPublishVolume"))
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Answer<csi::ControllerUnpublishVolumeResponse> {
        Err(Status::unimplemented("ControllerUnpublishVolume"))
    }

    async fn list_volumes(&self, _: Request<csi::ListVolumesRequest>) -> Answer<csi::ListVolumesResponse> {
        Err(Status::unimplemented("ListVolumes"))
    }

    async fn controller_list_volume_health(
        &self,
        _: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Answer<csi::ControllerListVolumeHealthResponse> {
        Err(Status::unimplemented("ControllerListVolumeHealth"))
    }

    async fn controller_get_volume_health(
        &self,
        _: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Answer<csi::ControllerGetVolumeHealthResponse> {
        Err(Status::unimplemented("ControllerGetVolumeHealth"))
    }

    async fn get_capacity(&self, _: Request<csi::GetCapacityRequest>) -> Answer<csi::GetCapacityResponse> {
        Err(Status::unimplemented("GetCapacity"))
    }

    async fn create_snapshot(
        &self,
        _: Request<csi::CreateSnapshotRequest>,
    ) -> Answer<csi::CreateSnapshotResponse> {
        Err(Status::unimplemented("CreateSnapshot"))
    }

    async fn delete_snapshot(
        &self,
        _: Request<csi::DeleteSnapshotRequest>,
    ) -> Answer<csi::DeleteSnapshotResponse> {
        Err(Status::unimplemented("DeleteSnapshot"))
    }

    async fn list_snapshots(
        &self,
        _: Request<csi::ListSnapshotsRequest>,
    ) -> Answer<csi::ListSnapshotsResponse> {
        Err(Status::unimplemented("ListSnapshots"))
    }

    async fn get_snapshot(&self, _: Request<csi::GetSnapshotRequest>) -> Answer<csi::GetSnapshotResponse> {
        Err(Status::unimplemented("GetSnapshot"))
    }

    async fn controller_expand_volume(
        &self,
        _: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Answer<csi::ControllerExpandVolumeResponse> {
        Err(Status::unimplemented("ControllerExpandVolume"))
    }

    async fn controller_get_volume(
        &self,
        _: Request<csi::ControllerGetVolumeRequest>,
    ) -> Answer<csi::ControllerGetVolumeResponse> {
        Err(Status::unimplemented("ControllerGetVolume"))
    }

    async fn controller_modify_volume(
        &self,
        _: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Answer<csi::ControllerModifyVolumeResponse> {
        Err(Status::unimplemented("ControllerModifyVolume"))
    }
}

#[tonic::async_trait]
impl Node for Relay {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Answer<csi::NodeStageVolumeResponse> {
        self.0.clone().node_stage_volume(request.into_inner()).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Answer<csi::NodeUnstageVolumeResponse> {
        self.0.clone().node_unstage_volume(request.into_inner()).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Answer<csi::NodePublishVolumeResponse> {
        self.0.clone().node_publish_volume(request.into_inner()).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        self.0.clone().node_unpublish_volume(request.into_inner()).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Answer<csi::NodeGetVolumeStatsResponse> {
        self.0.clone().node_get_volume_stats(request.into_inner()).await
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Answer<csi::NodeGetVolumeHealthResponse> {
        self.0.clone().node_get_volume_health(request.into_inner()).await
    }

    async fn node_get_storage_health(
        &self,
        request: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Answer<csi::NodeGetStorageHealthResponse> {
        self.0.clone().node_get_storage_health(request.into_inner()).await
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Answer<csi::NodeExpandVolumeResponse> {
        self.0.clone().node_expand_volume(request.into_inner()).await
    }

    async fn node_get_capabilities(
        &self,
        request: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Answer<csi::NodeGetCapabilitiesResponse> {
        self.0.clone().node_get_capabilities(request.into_inner()).await
    }

    async fn node_get_info(
        &self,
        request: Request<csi::NodeGetInfoRequest>,
    ) -> Answer<csi::NodeGetInfoResponse> {
        self.0.clone().node_get_info(request.into_inner()).await
    }
}
