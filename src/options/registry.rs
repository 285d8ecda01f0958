//! Flags for registries and their credentials: hosts.toml files, docker config, credential providers.

use std::path::{Path, PathBuf};

use clap::Args;
use oras_csi_core::credentials::{Administrator, AdministratorSettings, ProviderFiles};
use oras_csi_core::registry::hosts::HostsConfig;

use crate::exit_status::Failure;

/// The folder that is used without `--certs-dir`, if it exists.
const DEFAULT_CERTS_DIR: &str = "/etc/oras-csi/certs.d";

/// How registries are reached, in containerd's `certs.d` format, and with which credentials.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Registries and credentials")]
pub(crate) struct RegistryOptions {
    /// Folder with HOST_PORT_/hosts.toml for each registry that needs one, in containerd's format: server, mirrors,
    /// CA, client certificates, plain HTTP [default: /etc/oras-csi/certs.d, if it exists].
    #[arg(long, value_name = "DIR", env = "ORAS_CSI_CERTS_DIR")]
    certs_dir: Option<PathBuf>,
    /// Docker config file with registry credentials: auths, credHelpers, credsStore. It is read again when it changes
    /// [default: none for webhook and driver; the docker config of the current user for other subcommands].
    #[arg(long, value_name = "FILE", env = "ORAS_CSI_DOCKER_CONFIG")]
    docker_config: Option<PathBuf>,
    /// Folder with the docker-credential-NAME programs of credHelpers and credsStore [default: PATH].
    #[arg(long, value_name = "DIR")]
    credential_helper_dir: Option<PathBuf>,
    /// Kubelet's CredentialProviderConfig file. Its plugins supply credentials for registries.
    #[arg(long, value_name = "FILE", requires = "credential_provider_bin_dir")]
    credential_provider_config: Option<PathBuf>,
    /// Folder with the plugins that --credential-provider-config names.
    #[arg(long, value_name = "DIR", requires = "credential_provider_config")]
    credential_provider_bin_dir: Option<PathBuf>,
}

impl RegistryOptions {
    /// Loads the registry configuration.
    pub(crate) fn hosts(&self) -> Result<HostsConfig, Failure> {
        let default = Some(Path::new(DEFAULT_CERTS_DIR)).filter(|folder| folder.is_dir());
        HostsConfig::load(self.certs_dir.as_deref().or(default)).map_err(Failure::bad_input)
    }

    /// Returns the credentials of a service: those that the flags name, and never the docker config of the user that
    /// the service runs as.
    pub(crate) fn service_credentials(&self) -> Result<Option<Administrator>, Failure> {
        self.credentials(self.docker_config.clone())
    }

    /// Returns the credentials of an interactive command: those that the flags name, or the user's docker config.
    pub(crate) fn user_credentials(&self) -> Result<Option<Administrator>, Failure> {
        self.credentials(self.docker_config.clone().or_else(user_docker_config))
    }

    fn credentials(&self, docker_config: Option<PathBuf>) -> Result<Option<Administrator>, Failure> {
        let providers = self.credential_provider_config.clone().zip(self.credential_provider_bin_dir.clone());
        let providers = providers.map(|(config, folder)| ProviderFiles { config, folder });
        if docker_config.is_none() && providers.is_none() {
            return Ok(None);
        }
        let helper_folder = self.credential_helper_dir.clone();
        let settings = AdministratorSettings { docker_config, helper_folder, providers };
        Administrator::new(settings).map(Some).map_err(Failure::bad_input)
    }
}

/// Returns the path of the user's docker config, by docker's rules.
fn user_docker_config() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = folder("DOCKER_CONFIG").or_else(|| folder("HOME").map(|home| home.join(".docker")))?;
    Some(docker.join("config.json"))
}
