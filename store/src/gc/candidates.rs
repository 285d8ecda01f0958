//! Selects the items that can be deleted, and their order. It uses only the inventory, the GC roots and the
//! leases.

use std::collections::HashMap;
use std::time::SystemTime;

use oras_csi_core::digest::Digest;

use super::roots::Roots;
use crate::content::description::TreeDescription;
use crate::content::inventory::Inventory;
use crate::disk::{DiskError, Usage};
use crate::layout::{Item, LayerKey, TreeKey};
use crate::state::leases::Leases;

/// Names an item that can be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deletable {
    Tree(TreeKey),
    Layer(LayerKey),
    Blob(Digest),
    /// A file in `partial`, by its name, with the blob that it is a part of.
    Partial(String, Option<Item>),
}

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    what: Deletable,
    used: SystemTime,
    usage: Usage,
    parts: Vec<Item>,
}

/// The number of trees that need a blob or a layer, and what the disk is charged for it.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    needed_by: usize,
    usage: Usage,
}

/// The items that can be deleted, the least recently used last.
pub(super) struct Candidates {
    queue: Vec<Candidate>,
    parts: HashMap<Item, Part>,
}

impl Candidates {
    pub(super) fn select(inventory: &Inventory, roots: &Roots, leases: &Leases, oldest: SystemTime) -> Self {
        let mut parts: HashMap<Item, Part> = HashMap::new();
        let blobs = inventory.blobs.iter().map(|blob| (Item::Blob(blob.digest.clone()), blob.usage()));
        let layers = inventory.layers.iter().map(|layer| (Item::Layer(layer.key.clone()), layer.usage));
        parts.extend(blobs.chain(layers).map(|(item, usage)| (item, Part { needed_by: 0, usage })));
        let mut queue = Vec::new();
        for tree in &inventory.trees {
            let mut own: Vec<Item> = tree.description.iter().flat_map(TreeDescription::parts).collect();
            own.sort_unstable();
            own.dedup();
            for part in &own {
                if let Some(part) = parts.get_mut(part) {
                    part.needed_by += 1;
                }
            }
            if !roots.contains(&tree.key)
                && tree.last_used <= oldest
                && !leases.is_taken(&Item::Tree(tree.key.clone()))
            {
                let what = Deletable::Tree(tree.key.clone());
                queue.push(Candidate { what, used: tree.last_used, usage: tree.own_usage(), parts: own });
            }
        }
        let is_unneeded =
            |item: &Item| parts.get(item).is_some_and(|part| part.needed_by == 0) && !leases.is_taken(item);
        let without_tree = |what, used, usage| Candidate { what, used, usage, parts: Vec::new() };
        for blob in inventory.blobs.iter().filter(|blob| blob.used <= oldest) {
            if is_unneeded(&Item::Blob(blob.digest.clone())) {
                queue.push(without_tree(Deletable::Blob(blob.digest.clone()), blob.used, blob.usage()));
            }
        }
        for layer in inventory.layers.iter().filter(|layer| layer.used <= oldest) {
            let item = Item::Layer(layer.key.clone());
            if is_unneeded(&item) {
                queue.push(without_tree(Deletable::Layer(layer.key.clone()), layer.used, layer.usage));
            }
        }
        for partial in inventory.partial.iter().filter(|partial| partial.used <= oldest) {
            let item = digest_of(&partial.name).map(Item::Blob);
            if !item.as_ref().is_some_and(|item| leases.is_taken(item)) {
                queue.push(without_tree(
                    Deletable::Partial(partial.name.clone(), item),
                    partial.used,
                    partial.usage,
                ));
            }
        }
        queue.sort_by_key(|candidate| std::cmp::Reverse(candidate.used));
        Self { queue, parts }
    }

    /// Returns what deleting all candidates would free.
    pub(super) fn usage(&self) -> Usage {
        let mut needed_by: HashMap<&Item, usize> = HashMap::new();
        for part in self.queue.iter().flat_map(|candidate| &candidate.parts) {
            *needed_by.entry(part).or_default() += 1;
        }
        let with_trees = needed_by.into_iter().filter_map(|(item, count)| {
            self.parts.get(item).filter(|part| part.needed_by == count).map(|part| part.usage)
        });
        with_trees.chain(self.queue.iter().map(|candidate| candidate.usage)).sum()
    }

    /// Removes and returns the least recently used candidate.
    pub(super) fn pop(&mut self) -> Option<Candidate> {
        self.queue.pop()
    }

    /// Deletes a candidate, and the parts that only it needs, with `remove`, which reports whether it deleted
    /// the item. Returns what was freed.
    pub(super) fn delete(
        &mut self,
        candidate: &Candidate,
        mut remove: impl FnMut(&Deletable) -> Result<bool, DiskError>,
    ) -> Result<Usage, DiskError> {
        if !remove(&candidate.what)? {
            return Ok(Usage::default());
        }
        let mut freed = candidate.usage;
        for item in &candidate.parts {
            let Some(part) = self.parts.get_mut(item) else { continue };
            part.needed_by = part.needed_by.saturating_sub(1);
            let usage = part.usage;
            let what = match item {
                _ if part.needed_by > 0 => continue,
                Item::Blob(digest) => Deletable::Blob(digest.clone()),
                Item::Layer(name) => Deletable::Layer(name.clone()),
                Item::Tree(_) => continue,
            };
            if remove(&what)? {
                freed = freed.plus(usage);
            }
        }
        Ok(freed)
    }
}

/// Parses the digest of a blob from the name of a file in `partial`: `sha256-HEX-HOST`, or its journal (see
/// `store::partial_blobs`).
fn digest_of(name: &str) -> Option<Digest> {
    let (algorithm, rest) = name.split_once('-')?;
    let (hex, _) = rest.split_once('-')?;
    format!("{algorithm}:{hex}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_digest_from_the_name_of_a_partial_blob() {
        let digest = Digest::sha256_of(b"x");
        for ending in ["0123456789abcdef", "0123456789abcdef.note"] {
            let name = format!("sha256-{}-{ending}", digest.hex());
            assert_eq!(digest_of(&name).as_ref(), Some(&digest), "{name}");
        }
        assert_eq!(digest_of("7"), None);
    }
}
