//! Flags for registries and their credentials: hosts.toml files, docker config, credential providers.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Args;
use oras_csi_core::credentials::{Administrator, AdministratorSettings, DockerConfig, ProviderFiles};
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
        let docker_config = self.docker_config.clone().or_else(user_docker_config);
        if let Some(file) = &docker_config {
            check_docker_config(file, self.docker_config.is_some())?;
        }
        self.credentials(docker_config)
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

/// Fails if a docker config cannot be used. A command that went on without it would say that the registry requires
/// credentials. A service does go on, because the file may be corrected while it runs. Without `must_exist`, a file that
/// does not exist is no error.
fn check_docker_config(file: &Path, must_exist: bool) -> Result<(), Failure> {
    let shown = file.display();
    // Reading a pipe or a device could block without end.
    let is_special = std::fs::metadata(file).is_ok_and(|found| !found.is_file());
    let read = if is_special { Err(std::io::Error::other("it is not a file")) } else { std::fs::read(file) };
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => return Ok(()),
        Err(error) => {
            return Err(Failure::bad_input(format!(
                "cannot read the docker config {shown}: {error}. Set a file that exists and can be read"
            )));
        }
    };
    DockerConfig::parse(&bytes).map(drop).map_err(|error| {
        Failure::bad_input(format!(
            "cannot use the docker config {shown}: {error}. Correct it, or log in again"
        ))
    })
}

/// Returns the path of the user's docker config, by docker's rules.
fn user_docker_config() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = folder("DOCKER_CONFIG").or_else(|| folder("HOME").map(|home| home.join(".docker")))?;
    Some(docker.join("config.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit_status::ExitStatus;

    #[test]
    fn a_docker_config_that_cannot_be_used_is_bad_input() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let (broken, good) = (folder.path().join("broken.json"), folder.path().join("good.json"));
        let missing = folder.path().join("missing.json");
        std::fs::write(&broken, "{")?;
        std::fs::write(&good, "{\"auths\":{}}")?;
        for (file, must_exist, words) in [
            (&good, true, ""),
            (&missing, false, ""),
            (&missing, true, "cannot read the docker config"),
            (&broken, false, "Correct it, or log in again"),
            (&folder.path().to_owned(), true, "it is not a file"),
        ] {
            match check_docker_config(file, must_exist) {
                Ok(()) => assert_eq!(words, ""),
                Err(failure) => {
                    assert_eq!(failure.status(), ExitStatus::BadInput);
                    assert!(!words.is_empty() && failure.to_string().contains(words), "{failure}");
                }
            }
        }
        Ok(())
    }
}
