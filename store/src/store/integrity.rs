//! Verifies stored blobs and layers before they become part of a new tree.
//!
//! Each item is verified once for each process, since that requires reading it. Layers that this process
//! unpacked are not verified again.
//!
//! An existing tree is checked without reading its files (see [`Store::tree`]), because the time of a warm
//! publish must not depend on the tree's size.

use super::Store;
use crate::content::verify::{Verdict, verify_blob, verify_layer};
use crate::disk::{DiskError, Unpaced};
use crate::layout::Item;

impl Store {
    /// Verifies a blob or a layer, and quarantines it if it is damaged. Reports whether it can be used.
    pub(crate) fn is_intact(&self, item: &Item) -> Result<bool, DiskError> {
        if !self.is_persistent || self.verified.contains(item, self.durability.sync_failures()) {
            return Ok(true);
        }
        let verdict = match item {
            Item::Blob(digest) => verify_blob(&self.layout, digest, &mut Unpaced),
            Item::Layer(key) => verify_layer(&self.layout, key, &mut Unpaced)?,
            Item::Tree(_) => Verdict::Good,
        };
        match verdict {
            Verdict::Good | Verdict::NoChecksums => {
                self.mark_verified(item.clone());
                Ok(true)
            }
            Verdict::Damaged(found) => {
                self.quarantine(item, &found)?;
                Ok(false)
            }
            Verdict::Gone | Verdict::Stopped => Ok(false),
        }
    }

    /// Records that an item is verified.
    pub(super) fn mark_verified(&self, item: Item) {
        self.verified.insert(item, self.durability.sync_failures());
    }
}
