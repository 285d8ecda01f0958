//! Runs kubelet's credential providers, programs that return the credential for an image.
//!
//! The protocol is kubelet's (KEP-2133; kubernetes, pkg/credentialprovider/plugin/plugin.go, and
//! k8s.io/kubelet/pkg/apis/credentialprovider/v1). A provider gets a `CredentialProviderRequest` on stdin and writes a
//! `CredentialProviderResponse` to stdout, which says under which key and for how long it may be cached. Nodes that pull
//! from ECR, ACR or Artifact Registry already have such programs and their configuration.

mod config;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::display::Shown;
use crate::go_duration;
use crate::reference::RegistryHost;

use super::credential::{Credential, CredentialError};
use super::credential_cache::CredentialCache;
use super::helper::Timing;
use super::keyring::{Keyring, without_duplicates};
use super::match_image::{MatchImage, MatchImageError, redacted_key};
use super::process::{Finished, ProcessError, Program, run};

pub use self::config::ProviderConfigError;
use self::config::{API_VERSION, ProviderConfig};

/// Why a provider returned no credential. The message never contains the output of the provider.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("credential provider {provider} failed for {image}: {failure}")]
pub struct ProviderError {
    provider: Shown,
    image: Shown,
    failure: Failure,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("{0}. Its output may be secret and is not shown")]
    Exit(String),
    #[error("its answer is not a CredentialProviderResponse of {API_VERSION}")]
    Answer,
    #[error("the cacheKeyType of its answer must be Image, Registry or Global")]
    CacheKeyType,
    #[error("the cacheDuration of its answer must be a duration, such as 5m or 0s")]
    CacheDuration,
    #[error("the key \"{0}\" of its answer is invalid: {1}")]
    Key(Shown, MatchImageError),
    #[error("the credential for \"{0}\" in its answer is invalid: {1}")]
    Credential(Shown, CredentialError),
    #[error("it was interrupted")]
    Interrupted,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'static str,
    api_version: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    api_version: String,
    #[serde(default)]
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: Zeroizing<String>,
    #[serde(default)]
    password: Zeroizing<String>,
}

/// The key under which an answer is cached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum CacheKey {
    Image(String),
    Registry(String),
    Global,
}

type Answer = Result<Arc<Keyring>, Arc<ProviderError>>;

/// The credential providers of a configuration, in its order.
#[derive(Clone)]
pub struct Providers(Vec<Arc<Provider>>);

struct Provider {
    config: ProviderConfig,
    timing: Timing,
    answers: CredentialCache<CacheKey, Arc<Keyring>>,
    /// Shares concurrent lookups of one image, and caches failures for a short time.
    lookups: CredentialCache<String, Answer>,
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|provider| &provider.config.name)).finish()
    }
}

impl Providers {
    /// Reads the configuration `file` once, as kubelet does. The programs are in `folder`.
    pub fn read(file: &Path, folder: &Path) -> Result<Self, ProviderConfigError> {
        let unreadable = |source| ProviderConfigError::Read { path: file.to_owned(), source };
        let mut text = String::new();
        let opened = std::fs::File::open(file).map_err(unreadable)?;
        opened.take(config::MAX_BYTES as u64 + 1).read_to_string(&mut text).map_err(unreadable)?;
        if !folder.is_dir() {
            return Err(ProviderConfigError::NotAFolder(folder.to_owned()));
        }
        Self::parse(&text, folder)
    }

    /// Parses a configuration. The programs are in `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, ProviderConfigError> {
        Self::with_timing(text, folder, Timing::default())
    }

    pub(super) fn with_timing(
        text: &str,
        folder: &Path,
        timing: Timing,
    ) -> Result<Self, ProviderConfigError> {
        let providers = config::parse(text, folder)?.into_iter().map(|config| {
            let (answers, lookups) = (CredentialCache::new(), CredentialCache::new());
            Arc::new(Provider { config, timing, answers, lookups })
        });
        Ok(Self(providers.collect()))
    }

    /// Returns the credentials of all providers for a repository, in the order of the configuration, and the providers
    /// that failed.
    pub async fn credentials_for(
        &self,
        registry: &RegistryHost,
        repository: &str,
    ) -> (Vec<Credential>, Vec<Arc<ProviderError>>) {
        let matching = self.0.iter().filter(|provider| provider.matches(registry, repository));
        let answers = join_all(matching.map(|provider| provider.get(registry, repository))).await;
        let (mut credentials, mut failed) = (Vec::new(), Vec::new());
        for answer in answers {
            match answer {
                Ok(keyring) => credentials.extend(keyring.lookup(registry, repository)),
                Err(error) => failed.push(error),
            }
        }
        (without_duplicates(credentials), failed)
    }
}

impl Provider {
    fn matches(&self, registry: &RegistryHost, repository: &str) -> bool {
        self.config.match_images.iter().any(|key| key.matches(registry, repository))
    }

    async fn get(self: &Arc<Self>, registry: &RegistryHost, repository: &str) -> Answer {
        let (registry, image) = (registry.to_string(), format!("{registry}/{repository}"));
        if let Some(keyring) = self.cached(&registry, &image).await {
            return Ok(keyring);
        }
        let (this, key) = (Arc::clone(self), image.clone());
        let lookup = async move {
            // Another lookup may have completed in the meantime.
            if let Some(keyring) = this.cached(&registry, &image).await {
                return (Ok(keyring), Duration::ZERO);
            }
            match this.run_provider(&registry, &image).await {
                Ok(keyring) => (Ok(keyring), Duration::ZERO),
                Err(failure) => {
                    let error = Arc::new(this.error(&image, failure));
                    tracing::warn!(%error, "a credential provider failed; continuing without it");
                    (Err(error), this.timing.failure_lifetime)
                }
            }
        };
        let interrupted = || Arc::new(self.error(&key, Failure::Interrupted));
        self.lookups.get_or_insert_with(key.clone(), lookup).await.unwrap_or_else(|| Err(interrupted()))
    }

    fn error(&self, image: &str, failure: Failure) -> ProviderError {
        ProviderError { provider: self.config.name.as_str().into(), image: image.into(), failure }
    }

    /// Searches the cache in the order of kubelet's `getCachedCredentials`: the image, its registry, all registries.
    async fn cached(&self, registry: &str, image: &str) -> Option<Arc<Keyring>> {
        let keys =
            [CacheKey::Image(image.to_owned()), CacheKey::Registry(registry.to_owned()), CacheKey::Global];
        for key in &keys {
            if let Some(keyring) = self.answers.get(key).await {
                return Some(keyring);
            }
        }
        None
    }

    async fn run_provider(&self, registry: &str, image: &str) -> Result<Arc<Keyring>, Failure> {
        let request = Request { kind: "CredentialProviderRequest", api_version: API_VERSION, image };
        let request = serde_json::to_vec(&request).map_err(|_| Failure::Answer)?;
        let program = Program {
            path: &self.config.program,
            args: &self.config.args,
            env: &self.config.env,
            input: &request,
            timeout: self.timing.timeout,
        };
        let Finished { status, output } = run(program).await?;
        if !status.success() {
            return Err(Failure::Exit(status.to_string()));
        }
        // The message of serde may repeat a value.
        let response = serde_json::from_slice::<Response>(&output).map_err(|_| Failure::Answer)?;
        if response.api_version != API_VERSION || response.kind != "CredentialProviderResponse" {
            return Err(Failure::Answer);
        }
        let key = match response.cache_key_type.as_str() {
            "Image" => CacheKey::Image(image.to_owned()),
            "Registry" => CacheKey::Registry(registry.to_owned()),
            "Global" => CacheKey::Global,
            _ => return Err(Failure::CacheKeyType),
        };
        let lifetime = match &response.cache_duration {
            Some(text) => go_duration::parse(text).ok_or(Failure::CacheDuration)?,
            None => self.config.default_cache_duration,
        };
        let keyring = Arc::new(keyring(response.auth.unwrap_or_default())?);
        self.answers.insert(key, Arc::clone(&keyring), lifetime).await;
        Ok(keyring)
    }
}

fn keyring(auth: BTreeMap<String, Auth>) -> Result<Keyring, Failure> {
    let mut entries = Vec::new();
    for (key, Auth { username, password }) in auth {
        let parsed: MatchImage = key.parse().map_err(|error| Failure::Key(redacted_key(&key), error))?;
        // For kubelet, two empty values are a credential. They mean the same as anonymous.
        if username.is_empty() && password.is_empty() {
            continue;
        }
        let credential = Credential::basic(username, password);
        entries.push((parsed, credential.map_err(|error| Failure::Credential(redacted_key(&key), error))?));
    }
    Ok(Keyring::new(entries))
}
