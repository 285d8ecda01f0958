//! Quarantine for damaged items. A damaged tree can be mounted, so it is renamed and stays until it is
//! unmounted.

use std::collections::BTreeSet;

use oras_csi_core::digest::Algorithm;

use super::Store;
use crate::content::description::{self, TreeDescription};
use crate::content::inventory::Inventory;
use crate::disk::folders::move_to_free_name;
use crate::disk::{DiskError, Usage};
use crate::layout::{Item, TREE, TreeKey, quarantined_tree};
use crate::state::node_record::{Damage, now};

impl Store {
    /// Quarantines a damaged item, and every tree that shares its files.
    ///
    /// Pods that have one of these trees mounted keep it. The next publish builds the tree again.
    pub(crate) fn quarantine(&self, item: &Item, found: &str) -> Result<(), DiskError> {
        self.verified.remove(item, self.durability.sync_failures());
        // First the item, so that no new tree can use it, and then the trees that use it.
        self.move_to_quarantine(item)?;
        let mut trees = BTreeSet::new();
        match item {
            Item::Tree(key) => {
                trees.insert(key.clone());
            }
            part => {
                for tree in Inventory::read(&self.layout)?.trees() {
                    if tree.description.as_ref().is_some_and(|description| description.shares(part)) {
                        self.move_to_quarantine(&Item::Tree(tree.key.clone()))?;
                        trees.insert(tree.key.clone());
                    }
                }
            }
        }
        let volumes = match &self.roots {
            Some(roots) => roots.volumes_using(&self.layout, &trees)?,
            None => Vec::new(),
        };
        tracing::error!(
            what = %item, found, trees = trees.len(), ?volumes,
            "an item is damaged on the disk: it is quarantined and downloaded again for the next pod; pods that have it mounted keep it until they end"
        );
        self.observer.damaged(item);
        let trees = trees.iter().map(ToString::to_string).collect();
        let damage = Damage { at: now(), what: item.to_string(), found: found.to_owned(), trees, volumes };
        self.update_node_record(|record| record.damage.push(damage));
        Ok(())
    }

    fn move_to_quarantine(&self, item: &Item) -> Result<(), DiskError> {
        let (from, name) = match item {
            Item::Tree(key) => (self.layout.tree(key), key.to_string()),
            Item::Layer(key) => (self.layout.layer(key), format!("layer-{key}")),
            Item::Blob(digest) => {
                let prefix = match digest.algorithm() {
                    Algorithm::Sha256 => "sha256",
                    Algorithm::Sha512 => "sha512",
                };
                (self.layout.blob(digest), format!("{prefix}-{}", digest.hex()))
            }
        };
        self.leases.remove_damaged(item, || move_to_free_name(&from, &self.layout.quarantine(), &name))?;
        self.durability.clear_sync_error(item);
        Ok(())
    }
}

impl Store {
    /// Returns what the disk is charged for a quarantined tree with its blobs and layers, for the statistics of
    /// volumes that still use it.
    pub fn quarantined_usage(&self, key: &TreeKey) -> Option<Usage> {
        let listed = std::fs::read_dir(self.layout.quarantine()).ok()?;
        let mut of_tree = listed
            .flatten()
            .filter(|entry| entry.file_name().to_str().and_then(quarantined_tree).as_ref() == Some(key));
        of_tree.find_map(|entry| {
            let text = std::fs::read(entry.path().join(TREE)).ok()?;
            description::parse::<TreeDescription>(&text).map(|description| description.usage().with_parts)
        })
    }
}
