//! Docker's configuration file, as pull secrets of both types and `config.json` hold it.
//!
//! The format is docker's (docker/cli, cli/config/configfile/file.go and cli/config/types/authconfig.go; kubernetes
//! documents the two secret types `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`). Which entry is
//! for what is kubelet's rule ([`MatchImage`]). Unlike kubelet, one entry that cannot be read does not take the
//! others with it: it is left out, and [`DockerConfig::problems`] says so.

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
use super::match_image::{MatchImage, MatchImageError, is_same_host, shown_key};

/// A Kubernetes Secret has no more.
pub(super) const LONGEST: usize = 1 << 20;
const MOST_ENTRIES: usize = 4096;
/// Decodes with `=` at the end and without, as kubelet does.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A configuration that was read. `Debug` shows keys, never secrets.
#[derive(Clone, Debug, Default)]
pub struct DockerConfig {
    keyring: Keyring,
    helpers: Vec<(RegistryHost, Option<HelperName>)>,
    store: Option<HelperName>,
    problems: Vec<EntryProblem>,
}

/// Why a text is no docker configuration at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    /// More than 1 MiB.
    #[error("a docker configuration has at most 1 MiB")]
    TooLong,
    /// More entries than anybody needs.
    #[error("a docker configuration has at most {MOST_ENTRIES} entries, and this one has {0}")]
    TooMany(usize),
    /// Not a JSON object; where it breaks, and nothing of what stands there.
    #[error("it is no JSON object of a docker configuration (line {line}, column {column})")]
    Json {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// One of the known keys holds something else.
    #[error("\"{0}\" is not what docker writes there")]
    Key(&'static str),
}

/// An entry that is left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the entry \"{key}\" is left out: {problem}")]
pub struct EntryProblem {
    key: Shown,
    problem: EntryError,
}

impl EntryProblem {
    /// What is wrong.
    pub fn error(&self) -> &EntryError {
        &self.problem
    }
}

/// Why an entry is left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Its key names no registry.
    #[error(transparent)]
    Key(#[from] MatchImageError),
    /// Docker's `credHelpers` go by the host alone.
    #[error("a helper is for one host, with neither path nor wildcard")]
    HelperKey,
    /// Its helper has no name that one may have.
    #[error(transparent)]
    Helper(#[from] HelperNameError),
    /// A field is not a text, or the entry not an object.
    #[error("it is not an object of texts, as docker writes it")]
    Shape,
    /// `auth` does not decode.
    #[error("its \"auth\" is not base64 of USER:PASSWORD")]
    Auth,
    /// What it holds cannot be sent.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

/// Which helper docker would ask for a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelperChoice<'a> {
    /// The one of `credHelpers`.
    Host(&'a HelperName),
    /// The one of `credsStore`.
    Store(&'a HelperName),
    /// None: nothing is configured, or `credHelpers` has an empty name, or none that is one.
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
    /// Reads `config.json` (`.dockerconfigjson`), or the older `.dockercfg`, which is the map of entries alone.
    pub fn parse(bytes: &[u8]) -> Result<Self, DockerConfigError> {
        if bytes.len() > LONGEST {
            return Err(DockerConfigError::TooLong);
        }
        // serde's own message may repeat a value.
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
                Err(error) => config.leave_out("credsStore", EntryError::Helper(error)),
            }
        }
        Ok(config)
    }

    /// What the file itself holds for a repository, the most specific key first, none twice; no helper is run.
    #[must_use]
    pub fn credentials_for(&self, registry: &RegistryHost, repository: &str) -> Vec<Credential> {
        self.keyring.lookup(registry, repository)
    }

    /// The helper for a registry, as docker chooses it (docker/cli, `getConfiguredCredentialStore`): that of
    /// `credHelpers`, also where it is none, before that of `credsStore`.
    ///
    /// For the administrator's file only: what a user writes into a Secret runs no program.
    #[must_use]
    pub fn helper_for(&self, registry: &RegistryHost) -> HelperChoice<'_> {
        let own = self.helpers.iter().find(|(host, _)| is_same_host(host, registry));
        match (own, &self.store) {
            (Some((_, Some(name))), _) => HelperChoice::Host(name),
            (None, Some(name)) => HelperChoice::Store(name),
            _ => HelperChoice::None,
        }
    }

    /// The entries that are left out, for a warning.
    #[must_use]
    pub fn problems(&self) -> &[EntryProblem] {
        &self.problems
    }

    /// How many entries hold a credential.
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
                Err(error) => self.leave_out(key, error),
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
                    self.leave_out(key, error);
                }
                (Err(error), _) => self.leave_out(key, error),
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, key: &str, problem: EntryError) {
        self.problems.push(EntryProblem { key: shown_key(key), problem });
    }
}

fn check_count(entries: &Object<'_>) -> Result<(), DockerConfigError> {
    if entries.len() > MOST_ENTRIES { Err(DockerConfigError::TooMany(entries.len())) } else { Ok(()) }
}

fn object<'a>(top: &Object<'a>, key: &'static str) -> Result<Object<'a>, DockerConfigError> {
    let Some(raw) = top.get(key) else { return Ok(Object::new()) };
    let raw: &'a RawValue = raw;
    let entries = serde_json::from_str::<Option<Object<'a>>>(raw.get());
    Ok(entries.map_err(|_| DockerConfigError::Key(key))?.unwrap_or_default())
}

/// Whether it is an entry of `.dockercfg`, and not some setting of `config.json`.
fn has_credential(raw: &RawValue) -> bool {
    let entry = serde_json::from_str::<RawEntry>(raw.get());
    entry.is_ok_and(|RawEntry { auth, username, identitytoken, registrytoken, .. }| {
        [auth, username, identitytoken, registrytoken].iter().any(Option::is_some)
    })
}

/// As docker: a registry token before an identity token before `auth` before `username` and `password`. None
/// where nothing is written, which is what docker leaves beside a `credsStore`.
fn credential(raw: &RawValue) -> Result<Option<Credential>, EntryError> {
    let entry = serde_json::from_str::<Option<RawEntry>>(raw.get()).map_err(|_| EntryError::Shape)?;
    let Some(RawEntry { auth, username, password, identitytoken, registrytoken }) = entry else {
        return Ok(None);
    };
    let written = |text: Option<Zeroizing<String>>| text.filter(|text| !text.is_empty());
    if let Some(token) = written(registrytoken) {
        return Ok(Some(Credential::registry_token(token)?));
    }
    if let Some(token) = written(identitytoken) {
        return Ok(Some(Credential::refresh_token(token)?));
    }
    if let Some(auth) = written(auth) {
        let (username, password) = decode(&auth).ok_or(EntryError::Auth)?;
        return Ok(Some(Credential::basic(username, password)?));
    }
    match (written(username), written(password)) {
        (None, None) => Ok(None),
        (username, password) => {
            Ok(Some(Credential::basic(username.unwrap_or_default(), password.unwrap_or_default())?))
        }
    }
}

/// docker/cli, `decodeAuth`: line breaks inside are skipped (as Go's decoder does), a password ends before NULs.
fn decode(auth: &str) -> Option<(Zeroizing<String>, Zeroizing<String>)> {
    let mut text = Zeroizing::new(String::with_capacity(auth.len()));
    text.extend(auth.chars().filter(|character| !matches!(character, '\r' | '\n')));
    let mut decoded = Zeroizing::new(Vec::with_capacity(text.len()));
    BASE64.decode_vec(text.as_bytes(), &mut decoded).ok()?;
    let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    let password = password.trim_matches('\0');
    Some((Zeroizing::new(username.to_owned()), Zeroizing::new(password.to_owned())))
}
