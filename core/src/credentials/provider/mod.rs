//! kubelet's credential providers: programs that are asked for the credential of an image.
//!
//! The protocol is kubelet's (KEP-2133; kubernetes, pkg/credentialprovider/plugin/plugin.go, and
//! k8s.io/kubelet/pkg/apis/credentialprovider/v1): a `CredentialProviderRequest` on stdin, a
//! `CredentialProviderResponse` on stdout, which says by what its answer may be remembered and how long. Nodes that
//! pull from ECR, ACR or Artifact Registry have such programs and their configuration already.

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
use crate::reference::RegistryHost;

use super::credential::{Credential, CredentialError};
use super::duration;
use super::helper::Times;
use super::keyring::{Keyring, without_duplicates};
use super::match_image::{MatchImage, MatchImageError, shown_key};
use super::memory::Memory;
use super::process::{Finished, ProcessError, Program, run};

pub use self::config::ProviderConfigError;
use self::config::{API_VERSION, ProviderConfig};

/// Why a provider gave no credential. Never says what the provider wrote.
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
    #[error("{0}; what it says may be secret and is not shown")]
    Exit(String),
    #[error("its answer is not a CredentialProviderResponse of {API_VERSION}")]
    Answer,
    #[error("its answer's cacheKeyType is none of Image, Registry and Global")]
    CacheKeyType,
    #[error("its answer's cacheDuration is not a duration, as 5m or 0s")]
    CacheDuration,
    #[error("its answer has the key \"{0}\": {1}")]
    Key(Shown, MatchImageError),
    #[error("its answer for \"{0}\": {1}")]
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

/// By what an answer is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum CacheKey {
    Image(String),
    Registry(String),
    Global,
}

type Answer = Result<Arc<Keyring>, Arc<ProviderError>>;

/// The providers of a configuration, in its order.
#[derive(Clone)]
pub struct Providers(Vec<Arc<Provider>>);

struct Provider {
    config: ProviderConfig,
    times: Times,
    answers: Memory<CacheKey, Arc<Keyring>>,
    /// One question an image at a time; failures stay for a moment.
    questions: Memory<String, Answer>,
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|provider| &provider.config.name)).finish()
    }
}

impl Providers {
    /// Reads the configuration `file`; the programs are in `folder`. Read once, as kubelet does.
    pub fn read(file: &Path, folder: &Path) -> Result<Self, ProviderConfigError> {
        let cannot = |source| ProviderConfigError::Read { path: file.to_owned(), source };
        let mut text = String::new();
        let opened = std::fs::File::open(file).map_err(cannot)?;
        opened.take(config::LONGEST as u64 + 1).read_to_string(&mut text).map_err(cannot)?;
        if !folder.is_dir() {
            return Err(ProviderConfigError::NotAFolder(folder.to_owned()));
        }
        Self::parse(&text, folder)
    }

    /// The same from a text.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, ProviderConfigError> {
        Self::with_times(text, folder, Times::default())
    }

    pub(super) fn with_times(text: &str, folder: &Path, times: Times) -> Result<Self, ProviderConfigError> {
        let providers = config::parse(text, folder)?.into_iter().map(|config| {
            let (answers, questions) = (Memory::new(), Memory::new());
            Arc::new(Provider { config, times, answers, questions })
        });
        Ok(Self(providers.collect()))
    }

    /// What the providers that are for this repository say, in the order of the configuration, and those of
    /// them that failed.
    pub async fn credentials_for(
        &self,
        registry: &RegistryHost,
        repository: &str,
    ) -> (Vec<Credential>, Vec<Arc<ProviderError>>) {
        let asked = self.0.iter().filter(|provider| provider.is_for(registry, repository));
        let answers = join_all(asked.map(|provider| provider.get(registry, repository))).await;
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
    fn is_for(&self, registry: &RegistryHost, repository: &str) -> bool {
        self.config.match_images.iter().any(|key| key.matches(registry, repository))
    }

    async fn get(self: &Arc<Self>, registry: &RegistryHost, repository: &str) -> Answer {
        let (registry, image) = (registry.to_string(), format!("{registry}/{repository}"));
        if let Some(keyring) = self.known(&registry, &image).await {
            return Ok(keyring);
        }
        let (this, key) = (Arc::clone(self), image.clone());
        let ask = async move {
            // Another question may have been answered since.
            if let Some(keyring) = this.known(&registry, &image).await {
                return (Ok(keyring), Duration::ZERO);
            }
            match this.ask(&registry, &image).await {
                Ok(keyring) => (Ok(keyring), Duration::ZERO),
                Err(failure) => {
                    let error = Arc::new(this.error(&image, failure));
                    tracing::warn!(%error, "a credential provider is passed over");
                    (Err(error), this.times.failed)
                }
            }
        };
        let interrupted = || Arc::new(self.error(&key, Failure::Interrupted));
        self.questions.get_or_ask(key.clone(), ask).await.unwrap_or_else(|| Err(interrupted()))
    }

    fn error(&self, image: &str, failure: Failure) -> ProviderError {
        ProviderError { provider: self.config.name.as_str().into(), image: image.into(), failure }
    }

    /// kubelet's `getCachedCredentials`: the image before its registry before all.
    async fn known(&self, registry: &str, image: &str) -> Option<Arc<Keyring>> {
        let keys =
            [CacheKey::Image(image.to_owned()), CacheKey::Registry(registry.to_owned()), CacheKey::Global];
        for key in &keys {
            if let Some(keyring) = self.answers.get(key).await {
                return Some(keyring);
            }
        }
        None
    }

    async fn ask(&self, registry: &str, image: &str) -> Result<Arc<Keyring>, Failure> {
        let request = Request { kind: "CredentialProviderRequest", api_version: API_VERSION, image };
        let request = serde_json::to_vec(&request).map_err(|_| Failure::Answer)?;
        let asked = Program {
            path: &self.config.program,
            args: &self.config.args,
            env: &self.config.env,
            input: &request,
            timeout: self.times.timeout,
        };
        let Finished { status, output } = run(asked).await?;
        if !status.success() {
            return Err(Failure::Exit(status.to_string()));
        }
        // serde's own message may repeat a value.
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
        let life = match &response.cache_duration {
            Some(text) => duration::parse(text).ok_or(Failure::CacheDuration)?,
            None => self.config.default_cache_duration,
        };
        let keyring = Arc::new(keyring(response.auth.unwrap_or_default())?);
        self.answers.keep(key, Arc::clone(&keyring), life).await;
        Ok(keyring)
    }
}

fn keyring(auth: BTreeMap<String, Auth>) -> Result<Keyring, Failure> {
    let mut entries = Vec::new();
    for (key, Auth { username, password }) in auth {
        let parsed: MatchImage = key.parse().map_err(|error| Failure::Key(shown_key(&key), error))?;
        // kubelet takes both empty for a credential; it says no more than anonymous does.
        if username.is_empty() && password.is_empty() {
            continue;
        }
        let credential = Credential::basic(username, password);
        entries.push((parsed, credential.map_err(|error| Failure::Credential(shown_key(&key), error))?));
    }
    Ok(Keyring::new(entries))
}
