//! Parses docker's configuration file, which pull secrets of both types and `config.json` contain.
//!
//! The format is docker's (docker/cli, cli/config/configfile/file.go and cli/config/types/authconfig.go; kubernetes
//! documents the secret types `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`). Entries are selected by
//! kubelet's rule ([`MatchImage`]). Unlike in kubelet, an invalid entry does not invalidate the others: it is ignored, and
//! [`DockerConfig::problems`] reports it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::display::Shown;
use crate::reference::RegistryHost;

use super::credential::{Credential, CredentialError};
use super::helper::{HelperName, HelperNameError};
use super::keyring::Keyring;
use super::match_image::{MatchImage, MatchImageError, is_same_host, redacted_key};

/// The maximum size in bytes, which is that of a Kubernetes Secret.
pub(super) const MAX_BYTES: usize = 1 << 20;
const MAX_ENTRIES: usize = 4096;
/// Decodes with and without `=` at the end, as kubelet does.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A parsed docker config. `Debug` shows keys and never secrets.
///
/// ```
/// use oras_csi_core::credentials::DockerConfig;
///
/// let config = DockerConfig::parse(br#"{"auths":{"ghcr.io":{"auth":"bWU6c2VjcmV0"}}}"#)?;
/// assert_eq!(config.credentials_for(&"ghcr.io".parse()?, "acme/model").len(), 1);
/// assert_eq!(config.credentials_for(&"quay.io".parse()?, "acme/model").len(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct DockerConfig {
    keyring: Keyring,
    helpers: Vec<(RegistryHost, Option<HelperName>)>,
    store: Option<HelperName>,
    problems: Vec<EntryProblem>,
}

/// Why a text is not a docker config.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    /// It is larger than 1 MiB.
    #[error("the docker config is larger than 1 MiB, the limit")]
    TooLong,
    /// It has too many entries.
    #[error("the docker config has {0} entries; the maximum is {MAX_ENTRIES}")]
    TooMany(usize),
    /// It is not a JSON object. The message has the position and not the text there.
    #[error("it is not the JSON object of a docker config (error at line {line}, column {column})")]
    Json {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// A known key has a value of another type.
    #[error("the value of \"{0}\" does not have the type that docker writes")]
    Key(&'static str),
}

/// An entry that is ignored, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the entry \"{key}\" is ignored: {problem}")]
pub struct EntryProblem {
    key: Shown,
    problem: EntryError,
}

impl EntryProblem {
    /// Returns what is wrong with the entry.
    pub fn error(&self) -> &EntryError {
        &self.problem
    }
}

/// Why an entry is ignored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Its key does not name a registry.
    #[error(transparent)]
    Key(#[from] MatchImageError),
    /// A key of docker's `credHelpers` must be a host.
    #[error("the key of a credential helper must be one host, without a path or a wildcard")]
    HelperKey,
    /// The name of its helper is invalid.
    #[error(transparent)]
    Helper(#[from] HelperNameError),
    /// The entry is not an object of strings.
    #[error("it is not an object with string values")]
    Shape,
    /// `auth` cannot be decoded.
    #[error("its \"auth\" is not base64 of USER:PASSWORD")]
    Auth,
    /// Its credential is invalid.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

/// The credential helper that docker selects for a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelperChoice<'a> {
    /// A helper of `credHelpers`.
    Host(&'a HelperName),
    /// The helper of `credsStore`.
    Store(&'a HelperName),
    /// No helper: none is configured, or the name in `credHelpers` is empty or invalid.
    None,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(default)]
    auth: Option<Zeroizing<String>>,
    #[serde(default)]
    username: Option<Zeroizing<String>>,
    #[serde(default)]
    password: Option<Zeroizing<String>>,
    #[serde(default)]
    identitytoken: Option<Zeroizing<String>>,
    #[serde(default)]
    registrytoken: Option<Zeroizing<String>>,
}

type Object<'a> = BTreeMap<String, &'a RawValue>;

impl DockerConfig {
    /// Parses `config.json` (`.dockerconfigjson`), or the older `.dockercfg`, which is only the map of entries.
    pub fn parse(bytes: &[u8]) -> Result<Self, DockerConfigError> {
        if bytes.len() > MAX_BYTES {
            return Err(DockerConfigError::TooLong);
        }
        // The message of serde may repeat a value.
        let top = serde_json::from_slice::<Object<'_>>(bytes)
            .map_err(|error| DockerConfigError::Json { line: error.line(), column: error.column() })?;
        let known = ["auths", "credHelpers", "credsStore"];
        if !known.iter().any(|key| top.contains_key(*key)) && top.values().any(|raw| has_credential(raw)) {
            let mut config = Self::default();
            config.add_entries(&top)?;
            return Ok(config);
        }
        let mut config = Self::default();
        config.add_entries(&object(&top, "auths")?)?;
        config.add_helpers(&object(&top, "credHelpers")?)?;
        if let Some(raw) = top.get("credsStore") {
            let name = serde_json::from_str::<Option<String>>(raw.get())
                .map_err(|_| DockerConfigError::Key("credsStore"))?;
            match name.filter(|name| !name.is_empty()).map(|name| name.parse()).transpose() {
                Ok(name) => config.store = name,
                Err(error) => config.report("credsStore", EntryError::Helper(error)),
            }
        }
        Ok(config)
    }

    /// Returns the credentials in the file for a repository, the most specific key first and without duplicates. No helper
    /// is run.
    #[must_use]
    pub fn credentials_for(&self, registry: &RegistryHost, repository: &str) -> Vec<Credential> {
        self.keyring.lookup(registry, repository)
    }

    /// Returns the helper for a registry, as docker selects it (docker/cli, `getConfiguredCredentialStore`): `credHelpers`
    /// comes before `credsStore`, also if the name there is empty.
    ///
    /// Use it only for the administrator's file: a user's Secret must not run programs.
    #[must_use]
    pub fn helper_for(&self, registry: &RegistryHost) -> HelperChoice<'_> {
        let own = self.helpers.iter().find(|(host, _)| is_same_host(host, registry));
        match (own, &self.store) {
            (Some((_, Some(name))), _) => HelperChoice::Host(name),
            (None, Some(name)) => HelperChoice::Store(name),
            _ => HelperChoice::None,
        }
    }

    /// Returns the ignored entries, for a warning.
    #[must_use]
    pub fn problems(&self) -> &[EntryProblem] {
        &self.problems
    }

    /// Returns the number of entries with a credential.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.keyring.len()
    }

    fn add_entries(&mut self, entries: &Object<'_>) -> Result<(), DockerConfigError> {
        check_count(entries)?;
        let mut found = Vec::new();
        for (key, raw) in entries {
            match key.parse().map_err(EntryError::Key).and_then(|key| Ok((key, credential(raw)?))) {
                Ok((key, Some(credential))) => found.push((key, credential)),
                Ok((_, None)) => {}
                Err(error) => self.report(key, error),
            }
        }
        self.keyring = Keyring::new(found);
        Ok(())
    }

    fn add_helpers(&mut self, helpers: &Object<'_>) -> Result<(), DockerConfigError> {
        check_count(helpers)?;
        for (key, raw) in helpers {
            let host = key.parse::<MatchImage>().map_err(EntryError::Key);
            let host = host.and_then(|key| key.registry().cloned().ok_or(EntryError::HelperKey));
            let name = serde_json::from_str::<String>(raw.get()).map_err(|_| EntryError::Shape);
            let name = name.and_then(|name| {
                if name.is_empty() { Ok(None) } else { name.parse().map(Some).map_err(EntryError::Helper) }
            });
            match (host, name) {
                (Ok(host), Ok(name)) => self.helpers.push((host, name)),
                (Ok(host), Err(error)) => {
                    self.helpers.push((host, None));
                    self.report(key, error);
                }
                (Err(error), _) => self.report(key, error),
            }
        }
        Ok(())
    }

    fn report(&mut self, key: &str, problem: EntryError) {
        self.problems.push(EntryProblem { key: redacted_key(key), problem });
    }
}

fn check_count(entries: &Object<'_>) -> Result<(), DockerConfigError> {
    if entries.len() > MAX_ENTRIES { Err(DockerConfigError::TooMany(entries.len())) } else { Ok(()) }
}

fn object<'a>(top: &Object<'a>, key: &'static str) -> Result<Object<'a>, DockerConfigError> {
    let Some(raw) = top.get(key) else { return Ok(Object::new()) };
    let raw: &'a RawValue = raw;
    let entries = serde_json::from_str::<Option<Object<'a>>>(raw.get());
    Ok(entries.map_err(|_| DockerConfigError::Key(key))?.unwrap_or_default())
}

/// Reports whether a value is an entry of `.dockercfg` and not a setting of `config.json`.
fn has_credential(raw: &RawValue) -> bool {
    let entry = serde_json::from_str::<RawEntry>(raw.get());
    entry.is_ok_and(|RawEntry { auth, username, identitytoken, registrytoken, .. }| {
        [auth, username, identitytoken, registrytoken].iter().any(Option::is_some)
    })
}

/// Parses an entry. As in docker, a registry token comes before an identity token, before `auth`, before `username` and
/// `password`. Returns `None` for an empty entry, which docker writes if there is a `credsStore`.
fn credential(raw: &RawValue) -> Result<Option<Credential>, EntryError> {
    let entry = serde_json::from_str::<Option<RawEntry>>(raw.get()).map_err(|_| EntryError::Shape)?;
    let Some(RawEntry { auth, username, password, identitytoken, registrytoken }) = entry else {
        return Ok(None);
    };
    let non_empty = |text: Option<Zeroizing<String>>| text.filter(|text| !text.is_empty());
    if let Some(token) = non_empty(registrytoken) {
        return Ok(Some(Credential::registry_token(token)?));
    }
    if let Some(token) = non_empty(identitytoken) {
        return Ok(Some(Credential::refresh_token(token)?));
    }
    if let Some(auth) = non_empty(auth) {
        let (username, password) = decode(&auth).ok_or(EntryError::Auth)?;
        return Ok(Some(Credential::basic(username, password)?));
    }
    match (non_empty(username), non_empty(password)) {
        (None, None) => Ok(None),
        (username, password) => {
            Ok(Some(Credential::basic(username.unwrap_or_default(), password.unwrap_or_default())?))
        }
    }
}

/// Decodes `auth` as docker/cli's `decodeAuth` does: line breaks are skipped, as in Go's decoder, and NULs at the end of
/// the password are removed.
fn decode(auth: &str) -> Option<(Zeroizing<String>, Zeroizing<String>)> {
    let mut text = Zeroizing::new(String::with_capacity(auth.len()));
    text.extend(auth.chars().filter(|character| !matches!(character, '\r' | '\n')));
    let mut decoded = Zeroizing::new(Vec::with_capacity(text.len()));
    BASE64.decode_vec(text.as_bytes(), &mut decoded).ok()?;
    let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    let password = password.trim_matches('\0');
    Some((Zeroizing::new(username.to_owned()), Zeroizing::new(password.to_owned())))
}
