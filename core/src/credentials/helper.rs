//! Docker's credential helpers: programs named `docker-credential-NAME`.
//!
//! The protocol is docker's (docker/docker-credential-helpers, client/client.go and credentials/error.go): with
//! the argument `get` and the server's address on stdin, a helper writes `{"ServerURL":…,"Username":…,"Secret":…}`,
//! or fails and writes one known sentence where it has nothing. The user name `<token>` says that the secret is an
//! identity token (docker/cli, cli/config/credentials/native_store.go).

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
use super::memory::Memory;
use super::process::{Finished, ProcessError, Program, run};

const NOT_FOUND: &[u8] = b"credentials not found in native keychain";
const TOKEN: &str = "<token>";
/// What docker calls Docker Hub when it asks a helper (docker/cli, `registry.IndexServer`).
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// The NAME of `docker-credential-NAME`: `[a-z0-9._-]`, at most 64 characters. No path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HelperName(String);

/// A NAME that no helper has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the name of a credential helper: at most 64 of a-z 0-9 . _ -, as ecr-login")]
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

/// Why a helper gave no answer. Never says what the helper wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    /// There is no such program.
    #[error("credential helper {name} failed: there is no program docker-credential-{name} in {place}")]
    Missing {
        /// Which helper.
        name: HelperName,
        /// Where it was looked for.
        place: Shown,
    },
    /// It could not be run to its end.
    #[error("credential helper {name} failed for {server}: {source}")]
    Process {
        /// Which helper.
        name: HelperName,
        /// What it was asked for.
        server: Shown,
        /// What happened.
        source: ProcessError,
    },
    /// It says that it failed.
    #[error(
        "credential helper {name} failed for {server} ({status}); what it says may be secret and is not shown: \
         echo {server} | docker-credential-{name} get"
    )]
    Exit {
        /// Which helper.
        name: HelperName,
        /// What it was asked for.
        server: Shown,
        /// Its exit status or signal.
        status: String,
    },
    /// What it wrote is no answer.
    #[error("credential helper {name} failed for {server}: its answer is not the JSON of a credential")]
    Answer {
        /// Which helper.
        name: HelperName,
        /// What it was asked for.
        server: Shown,
    },
    /// Its answer cannot be sent to a registry.
    #[error("credential helper {name} failed for {server}: {source}")]
    Credential {
        /// Which helper.
        name: HelperName,
        /// What it was asked for.
        server: Shown,
        /// What is wrong with it.
        source: CredentialError,
    },
    /// The task that asked it was ended.
    #[error("credential helper {name} was interrupted")]
    Interrupted {
        /// Which helper.
        name: HelperName,
    },
}

/// How long a program may take, and how long its answer and its failure are remembered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) timeout: Duration,
    pub(super) found: Duration,
    pub(super) failed: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let [timeout, found, failed] = [10, 60, 5].map(Duration::from_secs);
        Self { timeout, found, failed }
    }
}

type Answer = Result<Option<Credential>, Arc<HelperError>>;

/// Runs helpers, and remembers for a minute what they said, for five seconds that they failed.
#[derive(Clone)]
pub struct Helpers {
    folder: Option<PathBuf>,
    times: Times,
    memory: Memory<(HelperName, String), Answer>,
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
    /// Helpers of one folder and no other, or, without one, of the absolute folders of `PATH`.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self::with_times(folder, Times::default())
    }

    pub(super) fn with_times(folder: Option<PathBuf>, times: Times) -> Self {
        Self { folder, times, memory: Memory::new() }
    }

    /// What a helper has for a registry; `None` where it has nothing.
    pub async fn get(&self, name: &HelperName, registry: &RegistryHost) -> Answer {
        let server = server_address(registry);
        let (this, key) = (self.clone(), (name.clone(), server.clone()));
        let (asked, times) = (name.clone(), self.times);
        let ask = async move {
            let answer = this.ask(&asked, &server).await.map_err(Arc::new);
            if let Err(error) = &answer {
                tracing::warn!(%error, "a credential helper is passed over");
            }
            let life = if answer.is_ok() { times.found } else { times.failed };
            (answer, life)
        };
        let interrupted = || HelperError::Interrupted { name: name.clone() };
        self.memory.get_or_ask(key, ask).await.unwrap_or_else(|| Err(Arc::new(interrupted())))
    }

    async fn ask(&self, name: &HelperName, server: &str) -> Result<Option<Credential>, HelperError> {
        let program = self.find(name)?;
        let shown = || Shown::new(server);
        let asked = Program {
            path: &program,
            args: &["get".to_owned()],
            env: &[],
            input: server.as_bytes(),
            timeout: self.times.timeout,
        };
        let Finished { status, output } = run(asked).await.map_err(|source| HelperError::Process {
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
        // serde's own message may repeat a value.
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
        let wrong = |source| HelperError::Credential { name: name.clone(), server: shown(), source };
        credential.map(Some).map_err(wrong)
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

/// The first program of that name in the folders of `PATH`. Relative ones, which would mean whatever folder this
/// process happens to be in, are passed over.
pub(super) fn find_on(path: &OsStr, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// What docker would call the registry.
pub(super) fn server_address(registry: &RegistryHost) -> String {
    if registry.is_docker_hub() { DOCKER_HUB.to_owned() } else { registry.to_string() }
}
