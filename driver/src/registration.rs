//! Registers the driver with kubelet, in the same process and without a sidecar.
//!
//! Kubelet watches a folder and connects to each socket that appears in it. It calls `GetInfo`, connects to the endpoint
//! in the answer, calls `NodeGetInfo`, and reports the result. When the socket disappears, kubelet deregisters the
//! driver. So this socket is created after the CSI socket and removed before it.

mod authority;

use std::path::PathBuf;

use oras_csi_core::display::Shown;
use oras_csi_core::keys::DRIVER;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status};

pub(crate) use self::authority::ValidAuthority;
use crate::proto::registration::registration_server::Registration;
use crate::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// The version of CSI in the answer to kubelet, which supports only this one.
const VERSION: &str = "1.0.0";

/// Answers kubelet, and forwards its verdict to the server.
pub(crate) struct RegistrationService {
    endpoint: PathBuf,
    registered: watch::Sender<u64>,
    rejected: mpsc::Sender<Shown>,
}

impl RegistrationService {
    /// Creates the service. `registered` counts the registrations.
    pub(crate) fn new(
        endpoint: PathBuf,
        registered: watch::Sender<u64>,
        rejected: mpsc::Sender<Shown>,
    ) -> Self {
        Self { endpoint, registered, rejected }
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
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("kubelet registered the driver");
            self.registered.send_modify(|count| *count += 1);
        } else {
            let _ = self.rejected.try_send(Shown::new(&status.error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
