//! What may go, in which order: pure, from what there is and what must stay.

use std::collections::HashMap;
use std::time::SystemTime;

use oras_csi_core::digest::Digest;

use super::roots::Roots;
use crate::content::description::TreeDescription;
use crate::content::inventory::Inventory;
use crate::disk::DiskError;
use crate::layout::{Item, LayerKey, TreeKey};
use crate::state::leases::Leases;

/// Something that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Tree(TreeKey),
    Layer(LayerKey),
    Blob(Digest),
    /// A blob that came in part, under its file's name.
    Partial(String, Option<Item>),
}

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    what: What,
    used: SystemTime,
    bytes: u64,
    parts: Vec<Item>,
}

/// How often a part is needed, and how much goes with it.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    needed: usize,
    bytes: u64,
}

/// All that may go, the least recently used last.
pub(super) struct Candidates {
    waiting: Vec<Candidate>,
    parts: HashMap<Item, Part>,
}

impl Candidates {
    pub(super) fn of(inventory: &Inventory, roots: &Roots, leases: &Leases, oldest: SystemTime) -> Self {
        let mut parts: HashMap<Item, Part> = HashMap::new();
        let blobs = inventory.blobs.iter().map(|blob| (Item::Blob(blob.digest.clone()), blob.size));
        let layers = inventory
            .layers
            .iter()
            .map(|layer| (Item::Layer(layer.key.clone()), layer.totals.map_or(0, |totals| totals.bytes)));
        parts.extend(blobs.chain(layers).map(|(item, bytes)| (item, Part { needed: 0, bytes })));
        let mut waiting = Vec::new();
        for tree in &inventory.trees {
            let mut own: Vec<Item> = tree.made.iter().flat_map(TreeDescription::parts).collect();
            own.sort_unstable();
            own.dedup();
            for part in &own {
                if let Some(part) = parts.get_mut(part) {
                    part.needed += 1;
                }
            }
            if !roots.contains(&tree.key)
                && tree.used <= oldest
                && !leases.is_taken(&Item::Tree(tree.key.clone()))
            {
                let what = What::Tree(tree.key.clone());
                waiting.push(Candidate { what, used: tree.used, bytes: 0, parts: own });
            }
        }
        let is_loose =
            |item: &Item| parts.get(item).is_some_and(|part| part.needed == 0) && !leases.is_taken(item);
        let loose = |what, used, bytes| Candidate { what, used, bytes, parts: Vec::new() };
        for blob in inventory.blobs.iter().filter(|blob| blob.used <= oldest) {
            if is_loose(&Item::Blob(blob.digest.clone())) {
                waiting.push(loose(What::Blob(blob.digest.clone()), blob.used, blob.size));
            }
        }
        for layer in inventory.layers.iter().filter(|layer| layer.used <= oldest) {
            let item = Item::Layer(layer.key.clone());
            if is_loose(&item) {
                waiting.push(loose(What::Layer(layer.key.clone()), layer.used, parts[&item].bytes));
            }
        }
        for partial in inventory.partial.iter().filter(|partial| partial.used <= oldest) {
            let item = digest_of(&partial.name).map(Item::Blob);
            if !item.as_ref().is_some_and(|item| leases.is_taken(item)) {
                waiting.push(loose(What::Partial(partial.name.clone(), item), partial.used, partial.size));
            }
        }
        waiting.sort_by_key(|candidate| std::cmp::Reverse(candidate.used));
        Self { waiting, parts }
    }

    /// How many bytes would go with all of them.
    pub(super) fn bytes(&self) -> u64 {
        let mut needed: HashMap<&Item, usize> = HashMap::new();
        for part in self.waiting.iter().flat_map(|candidate| &candidate.parts) {
            *needed.entry(part).or_default() += 1;
        }
        let with_trees = needed.into_iter().filter_map(|(item, count)| {
            self.parts.get(item).filter(|part| part.needed == count).map(|part| part.bytes)
        });
        with_trees.chain(self.waiting.iter().map(|candidate| candidate.bytes)).fold(0, u64::saturating_add)
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<Candidate> {
        self.waiting.pop()
    }

    /// Removes it and what only it needed by `remove`, which says whether something went; says how many bytes did.
    pub(super) fn take(
        &mut self,
        candidate: &Candidate,
        mut remove: impl FnMut(&What) -> Result<bool, DiskError>,
    ) -> Result<u64, DiskError> {
        if !remove(&candidate.what)? {
            return Ok(0);
        }
        let mut freed = candidate.bytes;
        for item in &candidate.parts {
            let Some(part) = self.parts.get_mut(item) else { continue };
            part.needed = part.needed.saturating_sub(1);
            let bytes = part.bytes;
            let what = match item {
                _ if part.needed > 0 => continue,
                Item::Blob(digest) => What::Blob(digest.clone()),
                Item::Layer(name) => What::Layer(name.clone()),
                Item::Tree(_) => continue,
            };
            if remove(&what)? {
                freed = freed.saturating_add(bytes);
            }
        }
        Ok(freed)
    }
}

/// The digest of the blob that a file in `partial` is a part of: `sha256-HEX-HOST`, or its note (see
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
    fn partial_blobs_are_named_by_their_digest() {
        let digest = Digest::sha256_of(b"x");
        for ending in ["0123456789abcdef", "0123456789abcdef.note"] {
            let name = format!("sha256-{}-{ending}", digest.hex());
            assert_eq!(digest_of(&name).as_ref(), Some(&digest), "{name}");
        }
        assert_eq!(digest_of("7"), None);
    }
}
