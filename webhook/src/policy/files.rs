//! Policies in files, for the command line and for a webhook without Kubernetes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oras_csi_kube_support::repeated_failure::RepeatedFailure;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::entry::{Entry, EntryError};
use super::policies::{ManifestNamespaceError, ManifestNamespaces, Policies};
use crate::manifest::{StreamError, flatten, read_stream};

/// How often the files are read again.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The size of the largest file that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Why the policies in files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// A file or folder cannot be opened.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is too large for policies.
    #[error("cannot read {}: it is larger than {MAX_BYTES} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is not YAML.
    #[error("{}: {source}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// The error of the parser.
        source: StreamError,
    },
    /// The file or folder holds no object, which is surely not intended.
    #[error("{}: there is no ArtifactPolicy and no Namespace in it", path.display())]
    Nothing {
        /// The file or folder.
        path: PathBuf,
    },
    /// A document is not a policy.
    #[error("{}: document {number} {source}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// The number of the document, counted from 1.
        number: usize,
        /// Why it is not a policy.
        source: EntryError,
    },
    /// A namespace cannot be used.
    #[error("{}: document {number}: {source}", path.display())]
    Namespace {
        /// The file.
        path: PathBuf,
        /// The number of the document, counted from 1.
        number: usize,
        /// Why it cannot be used.
        source: ManifestNamespaceError,
    },
    /// Two policies have one name.
    #[error("{}: document {number} is a second ArtifactPolicy {name}: give it another name", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The number of the document, counted from 1.
        number: usize,
        /// The name.
        name: String,
    },
}

/// The contents of files: policies, and the labels of namespaces.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The policies.
    pub policies: Vec<Entry>,
    /// The namespaces.
    pub namespaces: ManifestNamespaces,
}

/// Reads the `ArtifactPolicy` and `Namespace` objects in files, and in the `.yaml`, `.yml` and `.json` files of
/// folders in the order of their names.
pub fn load(paths: &[PathBuf]) -> Result<Loaded, PolicyFileError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut namespaces = ManifestNamespaces::default();
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
    let mut file = std::fs::File::open(path).map_err(cannot)?.take(MAX_BYTES + 1);
    if file.read_to_string(&mut text).map_err(cannot)? as u64 > MAX_BYTES {
        return Err(PolicyFileError::TooLong { path: path.to_owned() });
    }
    let stream =
        read_stream(&text).map_err(|source| PolicyFileError::Yaml { path: path.to_owned(), source })?;
    Ok(stream.documents.into_iter().flat_map(flatten).collect())
}

/// Where the labels of namespaces come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelsFrom {
    /// From the files themselves.
    Files,
    /// From the cluster.
    Cluster,
}

/// Reads the files again every few seconds until `shutdown`. If they cannot be read, the last valid policies stay in
/// force, and the log reports the failure once.
pub async fn reload_files(
    paths: Vec<PathBuf>,
    policies: Arc<Policies>,
    labels: LabelsFrom,
    shutdown: CancellationToken,
) {
    let mut last = RepeatedFailure::default();
    loop {
        if shutdown.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await.is_none() {
            return;
        }
        let read = {
            let paths = paths.clone();
            tokio::task::spawn_blocking(move || load(&paths)).await
        };
        let failure = match read {
            Ok(Ok(loaded)) => {
                if labels == LabelsFrom::Files {
                    policies.set_namespaces(loaded.namespaces);
                }
                policies.set_files(loaded.policies);
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        match failure {
            Some(error) if last.is_new(&error) => {
                tracing::error!(
                    error,
                    "cannot read the policy files; the policies that were read last stay in force"
                );
            }
            None if last.clear() => tracing::info!("the policy files can be read again"),
            _ => {}
        }
    }
}
