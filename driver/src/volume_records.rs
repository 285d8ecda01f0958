//! Which volumes are published: one file each, in the store's `volumes` folder.
//!
//! A record is written before its mount is made and removed after its mount is gone. So between any two
//! steps a record says more than there is, never less: a tree that is mounted is always named by one,
//! and what is named and not mounted is mounted by the next publish, or forgotten by the next unpublish.

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
    /// What is in it, so that a tree that was damaged can be fetched again before anybody asks. Format 1 had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipe: Option<String>,
}

impl Record {
    /// The volume `volume` (kubelet's handle) with this tree at `target`.
    pub fn new(volume: &str, target: &Target, tree: &TreeKey, id: &str, namespace: &str) -> Self {
        Self {
            volume: volume.to_owned(),
            target: target.path().to_owned(),
            tree: tree.to_string(),
            id: id.to_owned(),
            namespace: namespace.to_owned(),
            recipe: None,
        }
    }

    /// The same with what is in it.
    #[must_use]
    pub fn with_recipe(mut self, recipe: &PinnedRecipe) -> Self {
        self.recipe = Some(recipe.to_json().to_owned());
        self
    }

    /// The volume's safe id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The namespace of its pod.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What is in it, where that was written down.
    pub fn recipe(&self) -> Option<PinnedRecipe> {
        PinnedRecipe::from_json(self.recipe.as_ref()?).ok()
    }

    /// Kubelet's handle.
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// Where it is mounted.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Which tree; `None` if the file was written by something else.
    pub fn tree(&self) -> Option<TreeKey> {
        TreeKey::parse(&self.tree)
    }
}

/// The folder of records. A target has at most one.
#[derive(Clone, Debug)]
pub struct Records {
    store: Arc<Store>,
}

impl Records {
    /// The records of this store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn path(&self, target: &Target) -> PathBuf {
        let name = Digest::sha256_of(target.path().as_os_str().as_encoded_bytes());
        self.store.layout().volumes().join(format!("{}.json", name.hex()))
    }

    /// The volume at a target, if one was recorded. A file that cannot be read counts as none: what is
    /// mounted is told by mountinfo, and an unpublish needs no record.
    pub fn get(&self, target: &Target) -> Result<Option<Record>, DiskError> {
        Ok(read(&self.path(target))?.filter(|record| record.target == target.path()))
    }

    /// Writes the record of a target over the one there is.
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

    /// Forgets a target; one that was not recorded is no error.
    pub fn remove(&self, target: &Target) -> Result<(), DiskError> {
        let path = self.path(target);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DiskError::new("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    /// All of them; files that cannot be read are removed.
    pub fn all(&self) -> Result<Vec<Record>, DiskError> {
        let folder = self.store.layout().volumes();
        let failed = |error| DiskError::new("list", &folder, error);
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if let Some(record) = read(&path)? {
                records.push(record);
            } else {
                tracing::warn!(path = %path.display(), "a volume's record cannot be read (a power cut?); it is forgotten");
                let _ = std::fs::remove_file(&path);
            }
        }
        Ok(records)
    }
}

/// All records of a folder that can be read, whoever has the store. One that was torn by a power cut has no mount
/// any more; one that the disk does not give is an error: it may name a tree that is mounted.
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
    fn records_come_and_go() {
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

        // What a power cut may leave.
        std::fs::write(store.layout().volumes().join("torn.json"), "").unwrap();
        assert_eq!(records.all().unwrap(), [record]);
        assert!(!store.layout().volumes().join("torn.json").exists());

        records.remove(&target).unwrap();
        assert_eq!(records.all().unwrap(), []);
    }
}
