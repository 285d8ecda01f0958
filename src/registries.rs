//! How every command reaches registries: one configuration, one client.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use oras_csi_core::credentials::{Administrator, AdministratorSettings, ProviderFiles};
use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::{PinnedRecipe, Recipe};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::hosts::HostsConfig;
use oras_csi_core::registry::http::{HttpRegistry, Settings};
use oras_csi_core::registry::{Access, Keyring, Publisher, Registry};
use oras_csi_webhook::ResolverSettings;
use oras_csi_webhook::admit::Admission;
use oras_csi_webhook::credentials::CredentialSources;
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
    /// Credentials for registries, as docker keeps them: auths, credHelpers, credsStore. It is read again whenever
    /// it changes [default: none; render, explain and pull take the docker config of whoever runs them].
    #[arg(long, value_name = "FILE", env = "ORAS_CSI_DOCKER_CONFIG")]
    docker_config: Option<PathBuf>,
    /// Folder with docker-credential-NAME for credHelpers and credsStore [default: looked for on PATH].
    #[arg(long, value_name = "DIR")]
    credential_helper_dir: Option<PathBuf>,
    /// Kubelet's CredentialProviderConfig, whose programs give credentials for images.
    #[arg(long, value_name = "FILE", requires = "credential_provider_bin_dir")]
    credential_provider_config: Option<PathBuf>,
    /// Folder with the programs that it names.
    #[arg(long, value_name = "DIR", requires = "credential_provider_config")]
    credential_provider_bin_dir: Option<PathBuf>,
}

impl RegistryOptions {
    pub(crate) fn hosts(&self) -> Result<HostsConfig, Failure> {
        let usual = Some(Path::new(USUAL_FOLDER)).filter(|folder| folder.is_dir());
        HostsConfig::load(self.certs_dir.as_deref().or(usual)).map_err(Failure::bad_input)
    }

    /// What the administrator of a service gave, and nothing that lies around.
    pub(crate) fn administrator(&self) -> Result<Option<Administrator>, Failure> {
        self.credentials(self.docker_config.clone())
    }

    /// The same for a person at a prompt: their own docker config, where they name no other.
    pub(crate) fn own_credentials(&self) -> Result<Option<Administrator>, Failure> {
        self.credentials(self.docker_config.clone().or_else(own_docker_config))
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

/// Where docker keeps a person's credentials.
fn own_docker_config() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = folder("DOCKER_CONFIG").or_else(|| folder("HOME").map(|home| home.join(".docker")))?;
    Some(docker.join("config.json"))
}

/// How long a registry that limits requests may have somebody wait who is waited for: less than what the resolver
/// takes for silence. Whoever asked is told how long the registry wants.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The client for these registries, in nobody's name, for answers that somebody waits for.
pub(crate) fn client(hosts: &HostsConfig) -> Arc<HttpRegistry> {
    let settings = Settings::default().with_max_retry_wait(LONGEST_WAIT);
    Arc::new(HttpRegistry::new(hosts.clone(), settings))
}

/// The same for what takes its time, and comes to nothing if it gives up: pulls.
pub(crate) fn patient_client(hosts: &HostsConfig) -> Arc<HttpRegistry> {
    Arc::new(HttpRegistry::new(hosts.clone(), Settings::default()))
}

/// The same for whoever has these credentials.
pub(crate) fn access(registry: Arc<dyn Registry>, credentials: Option<Administrator>) -> Arc<Access> {
    Arc::new(Access::new(registry, Arc::new(Keyring::new(credentials))))
}

/// What a reference stands for now.
pub(crate) async fn digest_of(registry: &dyn Registry, reference: &Reference) -> Result<Digest, Failure> {
    match registry.resolve(reference).await {
        Ok(found) => Ok(found.digest().clone()),
        Err(error) => Err(Failure::from(error).at(format_args!("{reference} could not be resolved"))),
    }
}

/// A recipe with what its tags stand for now.
pub(crate) async fn pin(registry: &dyn Registry, recipe: &Recipe) -> Result<PinnedRecipe, Failure> {
    let mut digests = Vec::new();
    for reference in recipe.references() {
        digests.push(match reference.digest() {
            Some(digest) => digest.clone(),
            None => digest_of(registry, reference).await?,
        });
    }
    let mut digests = digests.into_iter();
    recipe.pin(|reference| {
        digests.next().ok_or_else(|| Failure::failed(format!("{reference} was not resolved")))
    })
}

/// Writes for whoever has these credentials.
pub(crate) fn publisher(registry: Arc<HttpRegistry>, credentials: Option<Administrator>) -> Publisher {
    Publisher::new(registry, Arc::new(Keyring::new(credentials)))
}

/// What the webhook admits pods with; `render` and `explain` use the very same.
pub(crate) fn admission(
    registry: Arc<dyn Registry>,
    hosts: &HostsConfig,
    policies: Arc<Policies>,
    credentials: CredentialSources,
    metrics: &Arc<Metrics>,
) -> Admission {
    let registries = Arc::new(hosts.clone());
    Admission::new(registry, registries, policies, ResolverSettings::default(), Arc::clone(metrics))
        .with_credentials(credentials)
}
