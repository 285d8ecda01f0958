//! `CredentialProviderConfig`, the file that kubelet reads (kubernetes, kubelet config/v1, types.go).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use crate::credentials::duration;
use crate::credentials::match_image::{MatchImage, MatchImageError, shown_key};
use crate::display::Shown;

pub(super) const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";
const CONFIG_API_VERSION: &str = "kubelet.config.k8s.io/v1";
const CONFIG_KIND: &str = "CredentialProviderConfig";
pub(super) const LONGEST: usize = 1 << 20;

/// Why a configuration of providers cannot be used. Never quotes the values of `env`.
#[derive(Debug, thiserror::Error)]
pub enum ProviderConfigError {
    /// The file or the folder cannot be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The folder of the programs is none.
    #[error("{}: not a folder, and the programs of credential providers are looked for in it", .0.display())]
    NotAFolder(PathBuf),
    /// More than 1 MiB.
    #[error("a CredentialProviderConfig has at most 1 MiB")]
    TooLong,
    /// Not the YAML of a configuration, or with unknown keys; where, and nothing of what stands there.
    #[error("it is no {CONFIG_KIND} ({place}): see kubelet's reference for its fields")]
    Syntax {
        /// Line and column.
        place: String,
    },
    /// Another kind or version.
    #[error("it must have apiVersion {CONFIG_API_VERSION} and kind {CONFIG_KIND}")]
    Kind,
    /// Nothing in it.
    #[error("it names no provider")]
    Empty,
    /// Two have one name.
    #[error("provider \"{0}\" is there twice")]
    Twice(Shown),
    /// A name that is a path, or no name.
    #[error("\"{0}\" is not the name of a provider: letters, digits, and . _ - alone, and no folder")]
    Name(Shown),
    /// Another protocol than the one spoken here.
    #[error("provider {provider}: apiVersion must be {API_VERSION}")]
    ApiVersion {
        /// Which provider.
        provider: Shown,
    },
    /// A key of `matchImages` is wrong.
    #[error("provider {provider}: \"{key}\" in matchImages: {source}")]
    MatchImages {
        /// Which provider.
        provider: Shown,
        /// Which key.
        key: Shown,
        /// What is wrong with it.
        source: MatchImageError,
    },
    /// No image is named.
    #[error("provider {provider}: matchImages is empty, so it would never be asked")]
    NoImages {
        /// Which provider.
        provider: Shown,
    },
    /// No duration of Go.
    #[error("provider {provider}: defaultCacheDuration must be a duration of at least 0, as 12h or 5m30s")]
    CacheDuration {
        /// Which provider.
        provider: Shown,
    },
    /// Service account tokens are kubelet's to give.
    #[error(
        "provider {provider}: tokenAttributes is not supported here (no service account token is at hand): leave it \
         out, or use a provider that works without"
    )]
    TokenAttributes {
        /// Which provider.
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

/// One provider, checked.
pub(super) struct ProviderConfig {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) match_images: Vec<MatchImage>,
    pub(super) default_cache_duration: Duration,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, Zeroizing<String>)>,
}

/// Reads the configuration; YAML or JSON, which is YAML.
pub(super) fn parse(text: &str, folder: &Path) -> Result<Vec<ProviderConfig>, ProviderConfigError> {
    if text.len() > LONGEST {
        return Err(ProviderConfigError::TooLong);
    }
    // The message of the parser may repeat what stands there.
    let raw = serde_saphyr::from_str::<RawConfig>(text).map_err(|error| {
        let place = error.location().map(|at| format!("line {}, column {}", at.line(), at.column()));
        ProviderConfigError::Syntax { place: place.unwrap_or_else(|| "somewhere".into()) }
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
        providers.push(check(provider, folder)?);
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
    let duration = duration::parse(&raw.default_cache_duration)
        .filter(|_| !raw.default_cache_duration.starts_with('-'))
        .ok_or_else(|| ProviderConfigError::CacheDuration { provider: shown() })?;
    let match_images = raw.match_images.iter().map(|key| {
        let wrong =
            |source| ProviderConfigError::MatchImages { provider: shown(), key: shown_key(key), source };
        key.parse().map_err(wrong)
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
