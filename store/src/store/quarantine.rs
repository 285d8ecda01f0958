//! Setting aside what is damaged: it may be mounted, so it is renamed and stays until nothing mounts it.

use std::collections::BTreeSet;
use std::path::Path;

use oras_csi_core::digest::Algorithm;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::inventory::Inventory;
use super::layout::TREE;
use super::lease::Item;
use super::state::{Damage, now};
use super::tree::{TreeNote, parse_note};
use super::{DiskError, Store, TreeKey};
use crate::records;
use crate::unpack::Totals;

impl Store {
    /// Takes a damaged thing out of sight, with every tree that is made of it: they share its bytes.
    ///
    /// Pods that have one of them mounted keep it; whoever asks next gets one that is made again.
    pub(crate) fn set_aside(&self, item: &Item, found: &str) -> Result<(), DiskError> {
        self.distrust(item);
        // First the part, so that no tree is made of it any more; then the trees that were.
        self.move_aside(item)?;
        let mut trees = BTreeSet::new();
        match item {
            Item::Tree(key) => {
                trees.insert(key.clone());
            }
            part => {
                for tree in Inventory::read(&self.layout)?.trees() {
                    if tree.made.as_ref().is_some_and(|made| made.has(part)) {
                        self.move_aside(&Item::Tree(tree.key.clone()))?;
                        trees.insert(tree.key.clone());
                    }
                }
            }
        }
        let volumes = records::read_all(&self.layout.volumes())?;
        let volumes = volumes.iter().filter(|record| record.tree().is_some_and(|key| trees.contains(&key)));
        let volumes: Vec<String> = volumes.map(|record| record.volume().to_owned()).collect();
        tracing::error!(
            what = %item, found, trees = trees.len(), ?volumes,
            "damaged on the disk: set aside, and fetched again for whoever asks next; pods that have it mounted keep it until they end"
        );
        self.metrics().damaged(item);
        let trees = trees.iter().map(ToString::to_string).collect();
        let damage = Damage { at: now(), what: item.to_string(), found: found.to_owned(), trees, volumes };
        self.note_down(|record| record.damage.push(damage));
        Ok(())
    }

    fn move_aside(&self, item: &Item) -> Result<(), DiskError> {
        let (from, name) = match item {
            Item::Tree(key) => (self.layout.tree(key), key.to_string()),
            Item::Layer(name) => (self.layout.layer(name), format!("layer-{name}")),
            Item::Blob(digest) => {
                let prefix = match digest.algorithm() {
                    Algorithm::Sha256 => "sha256",
                    Algorithm::Sha512 => "sha512",
                };
                (self.layout.blob(digest), format!("{prefix}-{}", digest.hex()))
            }
        };
        self.leases.take_damaged(item, || move_to_free_name(&from, &self.layout.set_aside(), &name))?;
        self.unsynced.forget(item);
        Ok(())
    }
}

/// Moves `from` to `NAME.0`, `NAME.1`, … in `folder`. What is gone is aside already.
pub(super) fn move_to_free_name(from: &Path, folder: &Path, name: &str) -> Result<(), DiskError> {
    for number in 0..10_000 {
        let to = folder.join(format!("{name}.{number}"));
        match rustix::fs::renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(DiskError::new("set aside", from, errno)),
        }
    }
    Err(DiskError::new("set aside", from, Errno::EXIST))
}

/// The tree that something with this name in `set-aside` was.
pub(crate) fn tree_of_name(name: &str) -> Option<TreeKey> {
    TreeKey::parse(name.split_once('.')?.0)
}

impl Store {
    /// How much is in a tree that was set aside: its volumes are still told of.
    pub(crate) fn totals_aside(&self, key: &TreeKey) -> Option<Totals> {
        let listed = std::fs::read_dir(self.layout.set_aside()).ok()?;
        let mut of_tree = listed
            .flatten()
            .filter(|entry| entry.file_name().to_str().and_then(tree_of_name).as_ref() == Some(key));
        of_tree.find_map(|entry| {
            let text = std::fs::read(entry.path().join(TREE)).ok()?;
            parse_note::<TreeNote>(&text).map(|note| note.totals())
        })
    }
}
