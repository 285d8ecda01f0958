//! The administrator's credentials in one order: the credential helper of the host, the docker config, its `credsStore`,
//! then kubelet's credential providers.

use std::path::PathBuf;
use std::sync::Arc;

use crate::reference::RegistryHost;

use super::config_file::{ConfigFile, ConfigFileError};
use super::credential::Credential;
use super::docker_config::{DockerConfig, HelperChoice};
use super::helper::{HelperError, HelperName, Helpers};
use super::keyring::without_duplicates;
use super::provider::{ProviderConfigError, ProviderError, Providers};

/// The places where the administrator keeps credentials. No other place is searched.
#[derive(Clone, Debug, Default)]
pub struct AdministratorSettings {
    /// A docker `config.json`. It may be missing, and may be created or changed later.
    pub docker_config: Option<PathBuf>,
    /// The folder of `docker-credential-NAME`. Without it, `PATH` is searched.
    pub helper_folder: Option<PathBuf>,
    /// The files of kubelet's credential providers.
    pub providers: Option<ProviderFiles>,
}

/// The values of kubelet's `--image-credential-provider-config` and `--image-credential-provider-bin-dir`.
#[derive(Clone, Debug)]
pub struct ProviderFiles {
    /// The `CredentialProviderConfig`.
    pub config: PathBuf,
    /// The folder with the programs that it names.
    pub folder: PathBuf,
}

/// Looks up the administrator's credentials for a repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Administrator {
    file: Option<Arc<ConfigFile>>,
    helpers: Helpers,
    providers: Option<Providers>,
}

/// Credentials in the order in which to try them, and the lookups that failed.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The credentials, without duplicates and without anonymous.
    pub credentials: Vec<Credential>,
    /// The failed lookups. Credentials may be missing because of them. The messages contain no secrets.
    pub problems: Vec<Problem>,
}

/// A failed lookup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The docker config is broken. The last valid one was used.
    #[error(transparent)]
    File(#[from] ConfigFileError),
    /// A credential helper failed.
    #[error(transparent)]
    Helper(#[from] Arc<HelperError>),
    /// A credential provider failed.
    #[error(transparent)]
    Provider(#[from] Arc<ProviderError>),
}

impl Administrator {
    /// Reads the configuration of the credential providers. Everything else is read at each lookup. Blocks, so call it
    /// before serving.
    pub fn new(settings: AdministratorSettings) -> Result<Self, ProviderConfigError> {
        let AdministratorSettings { docker_config, helper_folder, providers } = settings;
        let providers = providers.map(|files| Providers::read(&files.config, &files.folder)).transpose()?;
        let file = docker_config.map(|path| Arc::new(ConfigFile::new(path)));
        Ok(Self { file, helpers: Helpers::new(helper_folder), providers })
    }

    /// Returns the credentials for a repository, in the order in which to try them.
    pub async fn credentials_for(&self, registry: &RegistryHost, repository: &str) -> Vec<Credential> {
        self.lookup(registry, repository).await.credentials
    }

    /// Returns the credentials for a repository and the failed lookups. A failure only omits its own credentials; the
    /// others may still be accepted.
    pub async fn lookup(&self, registry: &RegistryHost, repository: &str) -> Found {
        let (config, broken) = match &self.file {
            Some(file) => file.current().await,
            None => (Arc::new(DockerConfig::default()), None),
        };
        let mut problems = broken.map(Problem::File).into_iter().collect::<Vec<_>>();
        // As in docker: `credHelpers` applies to its hosts, and `credsStore` to all other hosts.
        let (helper, is_store) = match config.helper_for(registry) {
            HelperChoice::Host(name) => (Some(name), false),
            HelperChoice::Store(name) => (Some(name), true),
            HelperChoice::None => (None, false),
        };
        let (from_helper, from_providers) =
            tokio::join!(self.run_helper(helper, registry), self.run_providers(registry, repository));
        let from_helper = from_helper.unwrap_or_else(|error| {
            problems.push(Problem::Helper(error));
            None
        });
        let (from_providers, failed) = from_providers;
        problems.extend(failed.into_iter().map(Problem::Provider));
        let from_config = config.credentials_for(registry, repository);
        let (first, third) = if is_store { (None, from_helper) } else { (from_helper, None) };
        let credentials =
            without_duplicates(first.into_iter().chain(from_config).chain(third).chain(from_providers));
        Found { credentials, problems }
    }

    async fn run_helper(
        &self,
        name: Option<&HelperName>,
        registry: &RegistryHost,
    ) -> Result<Option<Credential>, Arc<HelperError>> {
        match name {
            Some(name) => self.helpers.get(name, registry).await,
            None => Ok(None),
        }
    }

    async fn run_providers(
        &self,
        registry: &RegistryHost,
        repository: &str,
    ) -> (Vec<Credential>, Vec<Arc<ProviderError>>) {
        match &self.providers {
            Some(providers) => providers.credentials_for(registry, repository).await,
            None => (Vec::new(), Vec::new()),
        }
    }
}
