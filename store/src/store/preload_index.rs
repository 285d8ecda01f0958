//! Which trees cluster sets want on this node: `preload.json`, a root of collections.
//!
//! It is written before a tree is fetched ahead, and again when its set goes. So what a set wants is kept also right
//! after a start, while nobody can say which sets there are. It is synced: unlike a mount, a set is still there after a
//! power cut. One that cannot be understood (the disk was damaged, or a newer version wrote it) counts as none:
//! then trees that nobody uses are collected as others are, and fetched again.
//!
//! An older driver does not know the file and leaves it alone; it collects what nobody uses, wanted or not.

use std::io::{self, Write as _};
use std::path::Path;

use oras_csi_core::recipe::PinnedRecipe;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::disk::DiskError;
use crate::layout::{Layout, TreeKey};

/// What one set wants.
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
    /// The set `set` wants the tree `key` of this recipe, which its status calls `id`.
    pub fn new(set: &str, id: &str, recipe: &PinnedRecipe, key: &TreeKey) -> Self {
        Self {
            set: set.to_owned(),
            id: id.to_owned(),
            tree: key.to_string(),
            recipe: recipe.to_json().to_owned(),
        }
    }

    /// The name of the cluster set.
    pub fn set(&self) -> &str {
        &self.set
    }

    /// The id of the recipe.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The tree; `None` if the file was written by something else.
    pub fn tree(&self) -> Option<TreeKey> {
        TreeKey::parse(&self.tree)
    }

    /// The recipe, likewise.
    pub fn recipe(&self) -> Option<PinnedRecipe> {
        PinnedRecipe::from_json(&self.recipe).ok()
    }
}

/// What sets want of a store, whoever has it open.
pub fn read_preload_index(layout: &Layout) -> Result<Vec<PreloadEntry>, DiskError> {
    let path = layout.preload_index();
    match std::fs::read(&path) {
        Ok(text) => Ok(serde_json::from_slice::<File>(&text).map_or_else(
            |error| {
                tracing::warn!(path = %path.display(), %error, "it is not known what cluster sets want on this node until they are read");
                Vec::new()
            },
            |file| file.sets,
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(DiskError::new("read", path, error)),
    }
}

impl Store {
    /// Writes down what sets want from now on, if that is something else than before.
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
    fn what_is_wanted_is_read_back_and_what_a_crash_leaves_is_not() {
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
        // Killed between any two steps: the old file is there, and something in tmp that the next start takes away.
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
