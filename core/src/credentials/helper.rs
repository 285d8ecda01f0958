//! Runs docker's credential helpers, the programs `docker-credential-NAME`.
//!
//! The protocol is docker's (docker/docker-credential-helpers, client/client.go and credentials/error.go). A helper is run
//! with the argument `get` and the server's address on stdin. It writes `{"ServerURL":…,"Username":…,"Secret":…}`. If it
//! has no credential, it fails with a fixed message. The user name `<token>` marks the secret as an identity token
//! (docker/cli, cli/config/credentials/native_store.go).

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::display::Shown;
use crate::reference::RegistryHost;

use super::credential::{Credential, CredentialError};
use super::credential_cache::CredentialCache;
use super::process::{Finished, ProcessError, Program, run};

const NOT_FOUND: &[u8] = b"credentials not found in native keychain";
const TOKEN: &str = "<token>";
/// The server address that docker uses for Docker Hub (docker/cli, `registry.IndexServer`).
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// The NAME of `docker-credential-NAME`: `[a-z0-9._-]`, at most 64 characters, and not a path.
///
/// ```
/// use oras_csi_core::credentials::HelperName;
///
/// assert!("ecr-login".parse::<HelperName>().is_ok());
/// assert!("../bin/sh".parse::<HelperName>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HelperName(String);

/// The error for an invalid helper name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a valid credential helper name: use at most 64 of a-z 0-9 . _ - as in ecr-login")]
pub struct HelperNameError(Shown);

impl FromStr for HelperName {
    type Err = HelperNameError;

    fn from_str(text: &str) -> Result<Self, HelperNameError> {
        let known = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
        };
        if (1..=64).contains(&text.len()) && text.bytes().all(known) {
            Ok(Self(text.to_owned()))
        } else {
            Err(HelperNameError(text.into()))
        }
    }
}

impl HelperName {
    fn program(&self) -> String {
        format!("docker-credential-{}", self.0)
    }
}

impl fmt::Display for HelperName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a helper returned no credential. The message never contains the output of the helper.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    /// The program does not exist.
    #[error(
        "credential helper {name} failed: there is no program docker-credential-{name} in {place}: install it there, or remove the helper from the docker config"
    )]
    Missing {
        /// The helper.
        name: HelperName,
        /// Where it was searched.
        place: Shown,
    },
    /// The program did not run to its end.
    #[error("credential helper {name} failed for {server}: {source}")]
    Process {
        /// The helper.
        name: HelperName,
        /// The server address.
        server: Shown,
        /// What went wrong.
        source: ProcessError,
    },
    /// The program failed.
    #[error(
        "credential helper {name} failed for {server} ({status}). Its output may be secret and is not shown. To see it, \
         run: echo {server} | docker-credential-{name} get"
    )]
    Exit {
        /// The helper.
        name: HelperName,
        /// The server address.
        server: Shown,
        /// Its exit status or signal.
        status: String,
    },
    /// The output is not a valid answer.
    #[error("credential helper {name} failed for {server}: its answer is not the JSON of a credential")]
    Answer {
        /// The helper.
        name: HelperName,
        /// The server address.
        server: Shown,
    },
    /// The credential in the answer is invalid.
    #[error("credential helper {name} failed for {server}: {source}")]
    Credential {
        /// The helper.
        name: HelperName,
        /// The server address.
        server: Shown,
        /// What is wrong with it.
        source: CredentialError,
    },
    /// The task that ran the program was aborted.
    #[error("credential helper {name} was interrupted")]
    Interrupted {
        /// The helper.
        name: HelperName,
    },
}

/// The time limit of a program, and how long its results are cached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) timeout: Duration,
    pub(super) success_lifetime: Duration,
    pub(super) failure_lifetime: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let [timeout, success_lifetime, failure_lifetime] = [10, 60, 5].map(Duration::from_secs);
        Self { timeout, success_lifetime, failure_lifetime }
    }
}

type Answer = Result<Option<Credential>, Arc<HelperError>>;

/// Runs credential helpers. Answers are cached for a minute, and failures for five seconds.
#[derive(Clone)]
pub struct Helpers {
    folder: Option<PathBuf>,
    timing: Timing,
    cache: CredentialCache<(HelperName, String), Answer>,
}

impl fmt::Debug for Helpers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helpers").field("folder", &self.folder).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawAnswer {
    #[serde(default)]
    username: Zeroizing<String>,
    #[serde(default)]
    secret: Zeroizing<String>,
}

impl Helpers {
    /// Uses the helpers in `folder`, or without one, those in the absolute folders of `PATH`.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self::with_timing(folder, Timing::default())
    }

    pub(super) fn with_timing(folder: Option<PathBuf>, timing: Timing) -> Self {
        Self { folder, timing, cache: CredentialCache::new() }
    }

    /// Returns the credential of a helper for a registry, or `None` if it has none.
    pub async fn get(&self, name: &HelperName, registry: &RegistryHost) -> Answer {
        let server = server_address(registry);
        let (this, key) = (self.clone(), (name.clone(), server.clone()));
        let (helper, timing) = (name.clone(), self.timing);
        let lookup = async move {
            let answer = this.run_helper(&helper, &server).await.map_err(Arc::new);
            if let Err(error) = &answer {
                tracing::warn!(%error, "a credential helper failed; continuing without it");
            }
            let lifetime = if answer.is_ok() { timing.success_lifetime } else { timing.failure_lifetime };
            (answer, lifetime)
        };
        let interrupted = || HelperError::Interrupted { name: name.clone() };
        self.cache.get_or_insert_with(key, lookup).await.unwrap_or_else(|| Err(Arc::new(interrupted())))
    }

    async fn run_helper(&self, name: &HelperName, server: &str) -> Result<Option<Credential>, HelperError> {
        let path = find_blocking(self.clone(), name.clone()).await?;
        let shown = || Shown::new(server);
        let program = Program {
            path: &path,
            args: &["get".to_owned()],
            env: &[],
            input: server.as_bytes(),
            timeout: self.timing.timeout,
        };
        let Finished { status, output } = run(program).await.map_err(|source| HelperError::Process {
            name: name.clone(),
            server: shown(),
            source,
        })?;
        if !status.success() {
            if output.trim_ascii() == NOT_FOUND {
                return Ok(None);
            }
            let (name, status) = (name.clone(), status.to_string());
            return Err(HelperError::Exit { name, server: shown(), status });
        }
        // The message of serde may repeat a value.
        let answer = serde_json::from_slice::<RawAnswer>(&output)
            .map_err(|_| HelperError::Answer { name: name.clone(), server: shown() })?;
        let RawAnswer { username, secret } = answer;
        if secret.is_empty() {
            return Ok(None);
        }
        let credential = if username.as_str() == TOKEN {
            Credential::refresh_token(secret)
        } else {
            Credential::basic(username, secret)
        };
        let invalid = |source| HelperError::Credential { name: name.clone(), server: shown(), source };
        credential.map(Some).map_err(invalid)
    }

    fn find(&self, name: &HelperName) -> Result<PathBuf, HelperError> {
        let program = name.program();
        let (found, place) = match &self.folder {
            Some(folder) => {
                let found = Some(folder.join(program)).filter(|path| is_program(path));
                (found, Shown::new(&folder.display().to_string()))
            }
            None => (find_on(&std::env::var_os("PATH").unwrap_or_default(), &program), "PATH".into()),
        };
        found.ok_or_else(|| HelperError::Missing { name: name.clone(), place })
    }
}

/// Searches the file system on a blocking thread.
async fn find_blocking(helpers: Helpers, name: HelperName) -> Result<PathBuf, HelperError> {
    let interrupted = HelperError::Interrupted { name: name.clone() };
    tokio::task::spawn_blocking(move || helpers.find(&name)).await.unwrap_or(Err(interrupted))
}

/// Returns the first program of that name in the folders of `PATH`. Relative folders are skipped, because they depend on
/// the working directory.
pub(super) fn find_on(path: &OsStr, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Returns the server address that docker passes to a helper.
pub(super) fn server_address(registry: &RegistryHost) -> String {
    if registry.is_docker_hub() { DOCKER_HUB.to_owned() } else { registry.to_string() }
}
