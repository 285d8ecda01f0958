//! The controller endpoint that csi-sanity needs where the driver has none.
//!
//! oras-csi is a node-only driver: volumes are made by admission, not by a controller. Some node specs of
//! csi-sanity still ask a controller for a volume first. This one answers them with the attributes of a
//! volume that the registry beside the test really has.

use std::collections::HashMap;
use std::path::Path;

use oras_csi_driver::proto::csi;
use oras_csi_driver::proto::csi::controller_server::{Controller, ControllerServer};
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// Gives out volumes with these attributes, and remembers their names.
#[derive(Debug)]
pub struct FixedVolumes {
    attributes: HashMap<String, String>,
    made: std::sync::Mutex<HashMap<String, i64>>,
}

impl FixedVolumes {
    /// Serves on a Unix socket until the runtime ends.
    pub fn serve(attributes: HashMap<String, String>, socket: &Path) {
        let listener = tokio::net::UnixListener::bind(socket).expect("a socket");
        let stream = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let controller = ControllerServer::new(Self { attributes, made: std::sync::Mutex::default() });
        tokio::spawn(tonic::transport::Server::builder().add_service(controller).serve_with_incoming(stream));
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
