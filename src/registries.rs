//! How every command reaches registries: one configuration, one client.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use oras_csi_core::registry::Registry;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::registry::http::{HttpRegistry, Settings};
use oras_csi_webhook::ResolverSettings;
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::metrics::Metrics;
use oras_csi_webhook::policy::Policies;

use crate::failure::Failure;

/// Used where it is there and no other folder is named.
const USUAL_FOLDER: &str = "/etc/oras-csi/certs.d";

/// Where registries are, in containerd's `certs.d` format.
#[derive(Clone, Debug, Args)]
pub(crate) struct RegistryOptions {
    /// Folder with HOST_PORT_/hosts.toml for each registry that needs one, as containerd reads it: server,
    /// mirrors, CA, plain http [default: /etc/oras-csi/certs.d where it is there].
    #[arg(long, value_name = "DIR", env = "ORAS_CSI_CERTS_DIR")]
    certs_dir: Option<PathBuf>,
}

impl RegistryOptions {
    pub(crate) fn hosts(&self) -> Result<HostsConfig, Failure> {
        let usual = Some(Path::new(USUAL_FOLDER)).filter(|folder| folder.is_dir());
        HostsConfig::load(self.certs_dir.as_deref().or(usual)).map_err(Failure::bad_input)
    }
}

/// The client for these registries.
pub(crate) fn client(hosts: &HostsConfig) -> Arc<HttpRegistry> {
    Arc::new(HttpRegistry::new(hosts.clone(), Settings::default()))
}

/// What the webhook admits pods with; `render` and `explain` use the very same.
pub(crate) fn admission(
    registry: Arc<dyn Registry>,
    hosts: &HostsConfig,
    policies: Arc<Policies>,
    metrics: &Arc<Metrics>,
) -> Admission {
    let registries = Arc::new(hosts.clone());
    Admission::new(registry, registries, policies, ResolverSettings::default(), Arc::clone(metrics))
}
