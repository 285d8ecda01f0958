//! Kubelet's plugin registration, in the same process: no sidecar.
//!
//! Kubelet watches a folder, dials each socket that appears in it, asks `GetInfo`, dials the endpoint
//! named there, asks `NodeGetInfo`, and tells the result. A socket that disappears is a driver that is
//! gone, so this one appears after the CSI socket and disappears before it.

mod authority;

use std::path::PathBuf;

use oras_csi_core::display::Shown;
use oras_csi_core::keys::DRIVER;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

pub(crate) use self::authority::Repaired;
use crate::proto::registration::registration_server::Registration;
use crate::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// The version of CSI that kubelet is told; it knows this one only.
const VERSION: &str = "1.0.0";

/// Answers kubelet, and passes on that it refused.
pub(crate) struct RegistrationService {
    endpoint: PathBuf,
    refused: mpsc::Sender<Shown>,
}

impl RegistrationService {
    pub(crate) fn new(endpoint: PathBuf, refused: mpsc::Sender<Shown>) -> Self {
        Self { endpoint, refused }
    }
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: vec![VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let told = request.into_inner();
        if told.plugin_registered {
            tracing::info!("kubelet has registered the driver");
        } else {
            let _ = self.refused.try_send(Shown::new(&told.error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
