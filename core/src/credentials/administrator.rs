//! What the administrator gave, all of it in one order: the helper of a host, the docker configuration, its
//! `credsStore`, then kubelet's credential providers.

use std::path::PathBuf;
use std::sync::Arc;

use crate::reference::RegistryHost;

use super::config_file::{ConfigFile, ConfigFileError};
use super::credential::Credential;
use super::docker_config::{DockerConfig, HelperChoice};
use super::helper::{HelperError, HelperName, Helpers};
use super::keyring::without_duplicates;
use super::provider::{ProviderConfigError, ProviderError, Providers};

/// Where the administrator keeps credentials. Nothing is looked for elsewhere.
#[derive(Clone, Debug, Default)]
pub struct AdministratorSettings {
    /// A docker `config.json`; it may be absent, and may come and change later.
    pub docker_config: Option<PathBuf>,
    /// The folder of `docker-credential-NAME`; without it they are looked for on `PATH`.
    pub helper_folder: Option<PathBuf>,
    /// kubelet's credential providers.
    pub providers: Option<ProviderFiles>,
}

/// What kubelet has as `--image-credential-provider-config` and `--image-credential-provider-bin-dir`.
#[derive(Clone, Debug)]
pub struct ProviderFiles {
    /// The `CredentialProviderConfig`.
    pub config: PathBuf,
    /// The folder of the programs that it names.
    pub folder: PathBuf,
}

/// Gives the administrator's credentials for a repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Administrator {
    file: Option<Arc<ConfigFile>>,
    helpers: Helpers,
    providers: Option<Providers>,
}

/// Credentials in the order in which to try them, and what could not be asked.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// None twice; anonymous is not among them.
    pub credentials: Vec<Credential>,
    /// What failed, in words that are safe to print: a credential may be missing because of it.
    pub problems: Vec<Problem>,
}

/// Something of the administrator's that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The docker configuration; the last good one was used.
    #[error(transparent)]
    File(#[from] ConfigFileError),
    /// A helper.
    #[error(transparent)]
    Helper(#[from] Arc<HelperError>),
    /// A provider.
    #[error(transparent)]
    Provider(#[from] Arc<ProviderError>),
}

impl Administrator {
    /// Reads the configuration of the providers; everything else is read when it is asked for.
    pub fn new(settings: AdministratorSettings) -> Result<Self, ProviderConfigError> {
        let AdministratorSettings { docker_config, helper_folder, providers } = settings;
        let providers = providers.map(|files| Providers::read(&files.config, &files.folder)).transpose()?;
        let file = docker_config.map(|path| Arc::new(ConfigFile::new(path)));
        Ok(Self { file, helpers: Helpers::new(helper_folder), providers })
    }

    /// The credentials for a repository, in the order in which to try them.
    pub async fn credentials_for(&self, registry: &RegistryHost, repository: &str) -> Vec<Credential> {
        self.lookup(registry, repository).await.credentials
    }

    /// The same, with what failed on the way. A failure takes away only what it would have given: anonymous
    /// and the other credentials may still do.
    pub async fn lookup(&self, registry: &RegistryHost, repository: &str) -> Found {
        let (config, broken) = match &self.file {
            Some(file) => file.current().await,
            None => (Arc::new(DockerConfig::default()), None),
        };
        let mut problems = broken.map(Problem::File).into_iter().collect::<Vec<_>>();
        // docker: a host of credHelpers has that helper, and credsStore is for the others.
        let (helper, is_store) = match config.helper_for(registry) {
            HelperChoice::Host(name) => (Some(name), false),
            HelperChoice::Store(name) => (Some(name), true),
            HelperChoice::None => (None, false),
        };
        let (from_helper, from_providers) =
            tokio::join!(self.ask_helper(helper, registry), self.ask_providers(registry, repository));
        let from_helper = from_helper.unwrap_or_else(|error| {
            problems.push(Problem::Helper(error));
            None
        });
        let (from_providers, failed) = from_providers;
        problems.extend(failed.into_iter().map(Problem::Provider));
        let own = config.credentials_for(registry, repository);
        let (first, third) = if is_store { (None, from_helper) } else { (from_helper, None) };
        let credentials = without_duplicates(first.into_iter().chain(own).chain(third).chain(from_providers));
        Found { credentials, problems }
    }

    async fn ask_helper(
        &self,
        name: Option<&HelperName>,
        registry: &RegistryHost,
    ) -> Result<Option<Credential>, Arc<HelperError>> {
        match name {
            Some(name) => self.helpers.get(name, registry).await,
            None => Ok(None),
        }
    }

    async fn ask_providers(
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
