//! Policies in files: for the command line, and for a webhook without Kubernetes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::book::{Policies, StatedError, StatedNamespaces};
use super::entry::{Entry, EntryError};
use crate::manifest::{StreamError, flatten, read_stream};

/// How often files are read again.
const POLL: Duration = Duration::from_secs(5);
/// The largest file, in bytes.
const LONGEST: u64 = 4 << 20;

/// Why policies cannot be read from files.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// A file or folder that cannot be opened.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Longer than any policy.
    #[error("{} is longer than {LONGEST} bytes", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
    },
    /// No YAML.
    #[error("{}: {source}", path.display())]
    Yaml {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: StreamError,
    },
    /// Nothing in it: who names it means something by it.
    #[error("{}: no ArtifactPolicy in it, nor a Namespace", path.display())]
    Nothing {
        /// Which.
        path: PathBuf,
    },
    /// A document that is no policy.
    #[error("{}: document {number} {source}", path.display())]
    Document {
        /// Which.
        path: PathBuf,
        /// Which of its documents, counted from 1.
        number: usize,
        /// What is wrong with it.
        source: EntryError,
    },
    /// A namespace that cannot be taken in.
    #[error("{}: document {number}: {source}", path.display())]
    Namespace {
        /// Which.
        path: PathBuf,
        /// Which of its documents, counted from 1.
        number: usize,
        /// What is wrong with it.
        source: StatedError,
    },
    /// Two policies of one name.
    #[error("{}: document {number} is a second ArtifactPolicy {name}: give it another name", path.display())]
    Twice {
        /// Which.
        path: PathBuf,
        /// Which of its documents, counted from 1.
        number: usize,
        /// The name.
        name: String,
    },
}

/// What files say: policies, and the labels of namespaces.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The policies.
    pub policies: Vec<Entry>,
    /// The namespaces.
    pub namespaces: StatedNamespaces,
}

/// Reads the `ArtifactPolicy` and `Namespace` objects of files, and of the `.yaml`, `.yml` and `.json` files of
/// folders, in the order of their names.
pub fn load(paths: &[PathBuf]) -> Result<Loaded, PolicyFileError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut namespaces = StatedNamespaces::default();
    let mut names = BTreeSet::new();
    for path in paths {
        let mut is_empty = true;
        for file in files_of(path)? {
            for (number, document) in (1..).zip(documents(&file)?) {
                if document.is_null() {
                    continue;
                }
                is_empty = false;
                let is_namespace = namespaces
                    .take(&document)
                    .map_err(|source| PolicyFileError::Namespace { path: file.clone(), number, source })?;
                if is_namespace {
                    continue;
                }
                let entry = Entry::from_manifest(&document).map_err(|source| PolicyFileError::Document {
                    path: file.clone(),
                    number,
                    source,
                })?;
                if !names.insert(entry.name().to_owned()) {
                    let name = entry.name().to_owned();
                    return Err(PolicyFileError::Twice { path: file, number, name });
                }
                entries.push(entry);
            }
        }
        if is_empty {
            return Err(PolicyFileError::Nothing { path: path.clone() });
        }
    }
    Ok(Loaded { policies: entries, namespaces })
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>, PolicyFileError> {
    let cannot = |source| PolicyFileError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(cannot)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(cannot)? {
        let file = entry.map_err(cannot)?.path();
        let is_hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_yaml =
            file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml" || ending == "json");
        if is_yaml && !is_hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn documents(path: &Path) -> Result<Vec<Value>, PolicyFileError> {
    use std::io::Read as _;
    let cannot = |source| PolicyFileError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let mut file = std::fs::File::open(path).map_err(cannot)?.take(LONGEST + 1);
    if file.read_to_string(&mut text).map_err(cannot)? as u64 > LONGEST {
        return Err(PolicyFileError::TooLong { path: path.to_owned() });
    }
    let stream =
        read_stream(&text).map_err(|source| PolicyFileError::Yaml { path: path.to_owned(), source })?;
    Ok(stream.documents.into_iter().flat_map(flatten).collect())
}

/// Where labels of namespaces come from, while files are read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelsFrom {
    /// From the files themselves.
    Files,
    /// From the cluster.
    Cluster,
}

/// Reads the files again every few seconds until `shutdown`. Those that cannot be read change nothing: the last
/// good policies stay, and the log says so once.
pub async fn keep(
    paths: Vec<PathBuf>,
    policies: Arc<Policies>,
    labels: LabelsFrom,
    shutdown: CancellationToken,
) {
    let mut last = String::new();
    loop {
        if shutdown.run_until_cancelled(tokio::time::sleep(POLL)).await.is_none() {
            return;
        }
        let read = {
            let paths = paths.clone();
            tokio::task::spawn_blocking(move || load(&paths)).await
        };
        let outcome = match read {
            Ok(Ok(loaded)) => {
                if labels == LabelsFrom::Files {
                    policies.set_namespaces(loaded.namespaces);
                }
                policies.set_files(loaded.policies);
                String::new()
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if outcome != last {
            if outcome.is_empty() {
                tracing::info!("policy files can be read again");
            } else {
                tracing::error!(error = outcome, "policy files cannot be read, those in force stay");
            }
            last = outcome;
        }
    }
}
