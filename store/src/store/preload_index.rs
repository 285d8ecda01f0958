//! The preload index, `preload.json`: the trees that cluster sets preload on this node. These trees are GC
//! roots.
//!
//! The driver writes the index before it preloads a tree, and again when the set is deleted. So preloaded
//! trees stay also after a restart, while the driver does not yet know the sets. The file is synced, because
//! a set still exists after a power cut, unlike a mount. An unreadable file (the disk was damaged, or a newer
//! version wrote it) counts as empty: then unused trees can be garbage-collected, and are preloaded again.
//!
//! An older driver ignores the file, and can delete preloaded trees that no volume uses. See docs/design.md,
//! "Preloading".

use std::io::{self, Write as _};
use std::path::Path;

use oras_csi_core::recipe::PinnedRecipe;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::disk::DiskError;
use crate::layout::{Layout, TreeKey};

/// A tree that one cluster set preloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreloadEntry {
    set: String,
    id: String,
    tree: String,
    recipe: String,
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    sets: Vec<PreloadEntry>,
}

impl PreloadEntry {
    /// Returns the entry for the tree `key` of `recipe`. `id` is the id of the recipe in the status of the
    /// set.
    pub fn new(set: &str, id: &str, recipe: &PinnedRecipe, key: &TreeKey) -> Self {
        Self {
            set: set.to_owned(),
            id: id.to_owned(),
            tree: key.to_string(),
            recipe: recipe.to_json().to_owned(),
        }
    }

    /// Returns the name of the cluster set.
    pub fn set(&self) -> &str {
        &self.set
    }

    /// Returns the id of the recipe.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the key of the tree; `None` if the file has an invalid one.
    pub fn tree(&self) -> Option<TreeKey> {
        TreeKey::parse(&self.tree)
    }

    /// Returns the recipe; `None` if the file has an invalid one.
    pub fn recipe(&self) -> Option<PinnedRecipe> {
        PinnedRecipe::from_json(&self.recipe).ok()
    }
}

/// Reads the preload index. Does not need the store's lock.
pub fn read_preload_index(layout: &Layout) -> Result<Vec<PreloadEntry>, DiskError> {
    let path = layout.preload_index();
    match std::fs::read(&path) {
        Ok(text) => Ok(serde_json::from_slice::<File>(&text).map_or_else(
            |error| {
                tracing::warn!(path = %path.display(), %error, "cannot parse the preload index; preloaded trees are not protected from garbage collection until the cluster sets are read");
                Vec::new()
            },
            |file| file.sets,
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(DiskError::new("read", path, error)),
    }
}

impl Store {
    /// Replaces the preload index, if it changes.
    pub fn write_preload_index(&self, wanted: &[PreloadEntry]) -> Result<(), DiskError> {
        let path = self.layout.preload_index();
        if read_preload_index(&self.layout).is_ok_and(|before| before == wanted) {
            return Ok(());
        }
        let unfinished = self.tmp_path();
        self.write_preload_file(&unfinished, wanted, &path).map_err(|error| {
            let _ = std::fs::remove_file(&unfinished);
            DiskError::new("write", &path, error)
        })
    }

    fn write_preload_file(&self, unfinished: &Path, wanted: &[PreloadEntry], path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&File { sets: wanted.to_vec() })?;
        let mut file = std::fs::File::create(unfinished)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(unfinished, path)?;
        rustix::fs::fsync(&self.root).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use oras_csi_core::digest::Digest;
    use oras_csi_core::recipe::{Layer, Step};

    use super::*;
    use crate::limits::Limits;

    #[test]
    fn reads_the_index_back_and_ignores_unfinished_files_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Limits::default()).unwrap();
        let layout = store.layout().clone();
        assert_eq!(read_preload_index(&layout).unwrap(), []);
        let reference = format!("kind-registry:5000/a@{}", Digest::sha256_of(b"a")).parse().unwrap();
        let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(reference))]).unwrap();
        let key = TreeKey::parse(&"ab".repeat(32)).unwrap();
        let wanted = PreloadEntry::new("models", "models-1", &recipe, &key);
        assert_eq!((wanted.tree(), wanted.recipe()), (Some(key), Some(recipe)));
        store.write_preload_index(std::slice::from_ref(&wanted)).unwrap();
        assert_eq!(read_preload_index(&layout).unwrap(), std::slice::from_ref(&wanted));
        drop(store);
        // A kill at any step leaves the previous file, and an unfinished file in tmp that the next start
        // deletes.
        for left in ["", "{\"sets\": [", "{\"sets\": []}"] {
            std::fs::write(folder.path().join("tmp/7"), left).unwrap();
            let store = Store::open(folder.path(), Limits::default()).unwrap();
            assert_eq!(read_preload_index(&layout).unwrap(), std::slice::from_ref(&wanted));
            assert_eq!(std::fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
            drop(store);
        }
        let store = Store::open(folder.path(), Limits::default()).unwrap();
        std::fs::write(layout.preload_index(), "{").unwrap();
        assert_eq!(read_preload_index(&layout).unwrap(), []);
        store.write_preload_index(std::slice::from_ref(&wanted)).unwrap();
        store.write_preload_index(&[]).unwrap();
        assert_eq!(read_preload_index(&layout).unwrap(), []);
    }
}
