//! Records which volumes are published: one file for each, in the `volumes` folder of the store.
//!
//! A record is written before the volume is mounted and removed after it is unmounted. So at each point a crash can
//! leave a record without a mount, but never a mount without a record. The next publish of a record without a mount
//! mounts it, and the next unpublish removes the record.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_store::{DiskError, Store, TreeKey};
use serde::{Deserialize, Serialize};

use crate::mount::Target;

/// One published volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    volume: String,
    target: PathBuf,
    tree: String,
    id: String,
    namespace: String,
    /// The name of the pod, so that kubelet can be asked whether it still has the pod. Earlier versions did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    /// The recipe, so that a damaged tree can be pulled again before a pod requests it. Format 1 did not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipe: Option<String>,
}

impl Record {
    /// Creates a record of the volume `volume` (kubelet's handle) with this tree at `target`.
    pub fn new(volume: &str, target: &Target, tree: &TreeKey, id: &str, namespace: &str) -> Self {
        Self {
            volume: volume.to_owned(),
            target: target.path().to_owned(),
            tree: tree.to_string(),
            id: id.to_owned(),
            namespace: namespace.to_owned(),
            pod: None,
            recipe: None,
        }
    }

    /// Adds the name of the pod, if it is known.
    #[must_use]
    pub fn with_pod(mut self, pod: Option<&str>) -> Self {
        self.pod = pod.map(str::to_owned);
        self
    }

    /// Adds the recipe.
    #[must_use]
    pub fn with_recipe(mut self, recipe: &PinnedRecipe) -> Self {
        self.recipe = Some(recipe.to_json().to_owned());
        self
    }

    /// Returns the volume's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the namespace of the pod.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the name of the pod, if the record has one.
    pub fn pod(&self) -> Option<&str> {
        self.pod.as_deref()
    }

    /// Returns the recipe, if the record has one.
    pub fn recipe(&self) -> Option<PinnedRecipe> {
        PinnedRecipe::from_json(self.recipe.as_ref()?).ok()
    }

    /// Returns kubelet's handle.
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// Returns the path at which the volume is mounted.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Returns the tree; `None` if the record is malformed.
    pub fn tree(&self) -> Option<TreeKey> {
        TreeKey::parse(&self.tree)
    }
}

/// The folder of records. Each target has at most one record.
#[derive(Clone, Debug)]
pub struct Records {
    store: Arc<Store>,
}

impl Records {
    /// Opens the records of a store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn path(&self, target: &Target) -> PathBuf {
        let name = Digest::sha256_of(target.path().as_os_str().as_encoded_bytes());
        self.store.layout().volumes().join(format!("{}.json", name.hex()))
    }

    /// Returns the record of a target. A malformed file counts as none: mountinfo shows what is mounted, and an
    /// unpublish needs no record.
    pub fn get(&self, target: &Target) -> Result<Option<Record>, DiskError> {
        Ok(read(&self.path(target))?.filter(|record| record.target == target.path()))
    }

    /// Writes the record of a target, and replaces an earlier one.
    pub fn put(&self, target: &Target, record: &Record) -> Result<(), DiskError> {
        let (path, unfinished) = (self.path(target), self.store.tmp_path());
        let text = serde_json::to_vec(record).map_err(|error| DiskError::new("describe", &path, error))?;
        std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, &path)).map_err(
            |error| {
                let _ = std::fs::remove_file(&unfinished);
                DiskError::new("write", &path, error)
            },
        )
    }

    /// Removes the record of a target. A missing record is not an error.
    pub fn remove(&self, target: &Target) -> Result<(), DiskError> {
        let path = self.path(target);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DiskError::new("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    /// Returns all records, and removes malformed files.
    pub fn all(&self) -> Result<Vec<Record>, DiskError> {
        let folder = self.store.layout().volumes();
        let failed = |error| DiskError::new("list", &folder, error);
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if let Some(record) = read(&path)? {
                records.push(record);
            } else {
                tracing::warn!(path = %path.display(), "the record of a volume is malformed, probably after a power failure; removing it");
                let _ = std::fs::remove_file(&path);
            }
        }
        Ok(records)
    }
}

/// Reads all records in a folder, without a lock on the store. A record that a power failure truncated is skipped,
/// because its mount ended then. A record that the disk cannot read is an error, because its tree may be mounted.
pub fn read_all(folder: &Path) -> Result<Vec<Record>, DiskError> {
    let failed = |error| DiskError::new("list", folder, error);
    let mut records = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        records.extend(read(&entry.map_err(failed)?.path())?);
    }
    Ok(records)
}

fn read(path: &Path) -> Result<Option<Record>, DiskError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DiskError::new("read", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use oras_csi_store::Limits;

    use super::*;

    #[test]
    fn writes_reads_and_removes_records() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path(), Limits::default()).unwrap());
        let records = Records::new(store.clone());
        let target = Target::parse("/pods/a/mount").unwrap();
        let tree = TreeKey::parse(&"ab".repeat(32)).unwrap();
        assert_eq!(records.get(&target).unwrap(), None);
        records.remove(&target).unwrap();

        let record = Record::new("csi-1", &target, &tree, "java-app-1", "default");
        records.put(&target, &record).unwrap();
        assert_eq!(records.get(&target).unwrap(), Some(record.clone()));
        assert_eq!(record.tree(), Some(tree));
        assert_eq!(records.all().unwrap(), std::slice::from_ref(&record));

        // A power failure can leave an empty file.
        std::fs::write(store.layout().volumes().join("torn.json"), "").unwrap();
        assert_eq!(records.all().unwrap(), [record]);
        assert!(!store.layout().volumes().join("torn.json").exists());

        records.remove(&target).unwrap();
        assert_eq!(records.all().unwrap(), []);
    }
}
