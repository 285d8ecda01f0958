//! Parses `CredentialProviderConfig`, kubelet's configuration file (kubernetes, kubelet config/v1, types.go).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use crate::credentials::match_image::{MatchImage, MatchImageError, redacted_key};
use crate::display::Shown;
use crate::go_duration;

pub(super) const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";
const CONFIG_API_VERSION: &str = "kubelet.config.k8s.io/v1";
const CONFIG_KIND: &str = "CredentialProviderConfig";
/// The maximum size of the file in bytes.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// Why the configuration cannot be used. The message never contains the values of `env`.
#[derive(Debug, thiserror::Error)]
pub enum ProviderConfigError {
    /// The file cannot be read.
    #[error("cannot read the CredentialProviderConfig {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The folder of the programs does not exist.
    #[error("{}: not a folder. Set the folder with the programs of the credential providers", .0.display())]
    NotAFolder(PathBuf),
    /// The file is larger than 1 MiB.
    #[error("the {CONFIG_KIND} is larger than 1 MiB, the limit")]
    TooLong,
    /// The file is not valid YAML or has unknown keys. The message has the position and not the text there.
    #[error(
        "the file is not a valid {CONFIG_KIND} (error at {place}): see kubelet's reference for the fields"
    )]
    Syntax {
        /// The line and the column.
        place: String,
    },
    /// The kind or the version is wrong.
    #[error("the file must have apiVersion {CONFIG_API_VERSION} and kind {CONFIG_KIND}")]
    Kind,
    /// There is no provider.
    #[error("the file names no provider: add one to `providers`")]
    Empty,
    /// Two providers have the same name.
    #[error("provider \"{0}\" is there twice: remove one of them")]
    Twice(Shown),
    /// The name is empty, too long or a path.
    #[error("\"{0}\" is not the name of a provider: use only letters, digits and . _ -")]
    Name(Shown),
    /// The protocol version is not supported.
    #[error("provider {provider}: apiVersion must be {API_VERSION}")]
    ApiVersion {
        /// The provider.
        provider: Shown,
    },
    /// A key of `matchImages` is invalid.
    #[error("provider {provider}: \"{key}\" in matchImages: {source}")]
    MatchImages {
        /// The provider.
        provider: Shown,
        /// The key.
        key: Shown,
        /// What is wrong with it.
        source: MatchImageError,
    },
    /// `matchImages` is empty.
    #[error("provider {provider}: matchImages is empty, so the provider would never be used: add an image")]
    NoImages {
        /// The provider.
        provider: Shown,
    },
    /// `defaultCacheDuration` is not a duration.
    #[error(
        "provider {provider}: defaultCacheDuration must be a duration of at least 0, such as 12h or 5m30s"
    )]
    CacheDuration {
        /// The provider.
        provider: Shown,
    },
    /// The provider needs a service account token, which only kubelet has.
    #[error(
        "provider {provider}: tokenAttributes is not supported, because only kubelet has the pod's service account token: \
         add a provider without tokenAttributes for these images, or name a Secret in the pod"
    )]
    TokenAttributes {
        /// The provider.
        provider: Shown,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawConfig {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Option<Vec<RawProvider>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawProvider {
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    #[serde(default)]
    default_cache_duration: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<RawVariable>,
    #[serde(default)]
    token_attributes: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVariable {
    name: String,
    #[serde(default)]
    value: Zeroizing<String>,
}

/// A checked provider.
pub(super) struct ProviderConfig {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) match_images: Vec<MatchImage>,
    pub(super) default_cache_duration: Duration,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, Zeroizing<String>)>,
}

/// Parses the configuration from YAML or JSON.
pub(super) fn parse(text: &str, folder: &Path) -> Result<Vec<ProviderConfig>, ProviderConfigError> {
    if text.len() > MAX_BYTES {
        return Err(ProviderConfigError::TooLong);
    }
    // The message of the parser may repeat a value.
    let raw = serde_saphyr::from_str::<RawConfig>(text).map_err(|error| {
        let place = error.location().map(|at| format!("line {}, column {}", at.line(), at.column()));
        ProviderConfigError::Syntax { place: place.unwrap_or_else(|| "an unknown position".into()) }
    })?;
    if raw.api_version != CONFIG_API_VERSION || raw.kind != CONFIG_KIND {
        return Err(ProviderConfigError::Kind);
    }
    let raw = raw.providers.unwrap_or_default();
    if raw.is_empty() {
        return Err(ProviderConfigError::Empty);
    }
    let mut names = HashSet::new();
    let mut providers = Vec::new();
    for provider in raw {
        if !names.insert(provider.name.clone()) {
            return Err(ProviderConfigError::Twice(provider.name.as_str().into()));
        }
        match check(provider, folder) {
            // On nodes, the file is kubelet's, and kubelet can run this provider. The others must work without it.
            Err(error @ ProviderConfigError::TokenAttributes { .. }) => {
                tracing::warn!(%error, "a credential provider is not used; the others are");
            }
            checked => providers.push(checked?),
        }
    }
    Ok(providers)
}

fn check(raw: RawProvider, folder: &Path) -> Result<ProviderConfig, ProviderConfigError> {
    let shown = || Shown::new(&raw.name);
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_folder = matches!(raw.name.as_str(), "" | "." | "..");
    if is_folder || raw.name.len() > 255 || !raw.name.bytes().all(known) {
        return Err(ProviderConfigError::Name(shown()));
    }
    if raw.token_attributes.is_some() {
        return Err(ProviderConfigError::TokenAttributes { provider: shown() });
    }
    if raw.api_version != API_VERSION {
        return Err(ProviderConfigError::ApiVersion { provider: shown() });
    }
    if raw.match_images.is_empty() {
        return Err(ProviderConfigError::NoImages { provider: shown() });
    }
    let duration = go_duration::parse(&raw.default_cache_duration)
        .filter(|_| !raw.default_cache_duration.starts_with('-'))
        .ok_or_else(|| ProviderConfigError::CacheDuration { provider: shown() })?;
    let match_images = raw.match_images.iter().map(|key| {
        let invalid =
            |source| ProviderConfigError::MatchImages { provider: shown(), key: redacted_key(key), source };
        key.parse().map_err(invalid)
    });
    Ok(ProviderConfig {
        program: folder.join(&raw.name),
        match_images: match_images.collect::<Result<_, _>>()?,
        default_cache_duration: duration,
        args: raw.args,
        env: raw.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
        name: raw.name,
    })
}
