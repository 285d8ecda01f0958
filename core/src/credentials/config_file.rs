//! The administrator's docker configuration as a file, which may change at any time.
//!
//! Read for every question, and parsed where its content has changed: kubelet swaps a mounted Secret by a symlink,
//! which no watch on a file sees.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::display::Shown;

use super::docker_config::{DockerConfig, DockerConfigError, LONGEST};

/// Why the file as it is now is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFileError {
    /// It cannot be read.
    #[error("the docker configuration {} cannot be read: {problem}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        problem: Shown,
    },
    /// It is none.
    #[error("the docker configuration {} cannot be used: {source}", .path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: DockerConfigError,
    },
}

/// What the file last said.
#[derive(Debug, Default)]
struct Known {
    /// Of the content that was looked at last; none while there is no file.
    hash: Option<[u8; 32]>,
    good: Arc<DockerConfig>,
    error: Option<ConfigFileError>,
}

/// A path, and the last good configuration that was there.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    known: Mutex<Known>,
}

impl ConfigFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, known: Mutex::default() }
    }

    /// The configuration of now, or the last good one and what is wrong with that of now. A file that is not
    /// there holds nothing: who takes it away takes back what it said.
    pub(super) async fn current(self: &Arc<Self>) -> (Arc<DockerConfig>, Option<ConfigFileError>) {
        let this = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || read(&this.path)).await;
        let read = read.unwrap_or_else(|error| Err(io::Error::other(error.to_string())));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(Some(bytes)) => self.take(&mut known, &bytes),
            Ok(None) => *known = Known::default(),
            Err(error) => {
                known.hash = None;
                let problem = Shown::new(&error.to_string());
                Self::fail(&mut known, ConfigFileError::Read { path: self.path.clone(), problem });
            }
        }
        (Arc::clone(&known.good), known.error.clone())
    }

    fn take(&self, known: &mut Known, bytes: &[u8]) {
        let hash: [u8; 32] = Sha256::digest(bytes).into();
        if known.hash == Some(hash) {
            return;
        }
        match DockerConfig::parse(bytes) {
            Ok(config) => {
                let file = self.path.display();
                for problem in config.problems() {
                    tracing::warn!(%file, %problem, "in the docker configuration");
                }
                tracing::info!(%file, entries = config.entries(), "docker configuration read");
                known.error = None;
                known.good = Arc::new(config);
            }
            Err(source) => {
                Self::fail(known, ConfigFileError::Parse { path: self.path.clone(), source });
            }
        }
        known.hash = Some(hash);
    }

    /// Says it once, until something else is wrong.
    fn fail(known: &mut Known, error: ConfigFileError) {
        if known.error.as_ref() != Some(&error) {
            tracing::warn!(%error, "the last good docker configuration stays in use");
        }
        known.error = Some(error);
    }
}

/// The content, at most one byte longer than it may be; `None` where there is no file.
fn read(path: &Path) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Anything but a file (a pipe, a device) could keep whoever reads it waiting.
    if !found.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}
