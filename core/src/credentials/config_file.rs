//! The administrator's docker config file, which may change at any time.
//!
//! The file is read for every lookup and parsed if its content has changed. kubelet updates a mounted Secret by replacing
//! a symlink, which a watch on the file does not notice.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::display::Shown;

use super::docker_config::{DockerConfig, DockerConfigError, MAX_BYTES};

/// Why the current content of the file is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFileError {
    /// The file cannot be read.
    #[error("the docker config {} cannot be read: {problem}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        problem: Shown,
    },
    /// The file is not a docker config.
    #[error("the docker config {} cannot be used: {source}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DockerConfigError,
    },
}

/// The state of the last read.
#[derive(Debug, Default)]
struct LastRead {
    /// The hash of the content that was read last, or `None` if there is no file.
    hash: Option<[u8; 32]>,
    last_good: Arc<DockerConfig>,
    error: Option<ConfigFileError>,
}

/// A docker config file and its last valid content.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    last_read: Mutex<LastRead>,
}

impl ConfigFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, last_read: Mutex::default() }
    }

    /// Returns the current configuration. If it is broken, returns the last valid one with the error. A missing file is an
    /// empty configuration, so deleting the file revokes its credentials.
    pub(super) async fn current(self: &Arc<Self>) -> (Arc<DockerConfig>, Option<ConfigFileError>) {
        let this = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || read(&this.path)).await;
        let read = read.unwrap_or_else(|error| Err(io::Error::other(error.to_string())));
        let mut last_read = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(Some(bytes)) => self.update(&mut last_read, &bytes),
            Ok(None) => *last_read = LastRead::default(),
            Err(error) => {
                last_read.hash = None;
                let problem = Shown::new(&error.to_string());
                Self::record_error(
                    &mut last_read,
                    ConfigFileError::Read { path: self.path.clone(), problem },
                );
            }
        }
        (Arc::clone(&last_read.last_good), last_read.error.clone())
    }

    fn update(&self, last_read: &mut LastRead, bytes: &[u8]) {
        let hash: [u8; 32] = Sha256::digest(bytes).into();
        if last_read.hash == Some(hash) {
            return;
        }
        match DockerConfig::parse(bytes) {
            Ok(config) => {
                let file = self.path.display();
                for problem in config.problems() {
                    tracing::warn!(%file, %problem, "ignoring an invalid entry of the docker config");
                }
                tracing::info!(%file, entries = config.entries(), "read the docker config");
                last_read.error = None;
                last_read.last_good = Arc::new(config);
            }
            Err(source) => {
                Self::record_error(last_read, ConfigFileError::Parse { path: self.path.clone(), source });
            }
        }
        last_read.hash = Some(hash);
    }

    /// Stores the error and logs it, unless it is the same as before.
    fn record_error(last_read: &mut LastRead, error: ConfigFileError) {
        if last_read.error.as_ref() != Some(&error) {
            tracing::warn!(%error, "cannot use the docker config; the last valid one stays in use");
        }
        last_read.error = Some(error);
    }
}

/// Reads the file, at most one byte more than the limit. Returns `None` if it does not exist.
fn read(path: &Path) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Reading a pipe or a device could block without end.
    if !found.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}
