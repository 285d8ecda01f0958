//! Before something that is there becomes part of a new tree it is compared with what it was: once a process, since
//! that takes as long as reading it does. What this process unpacked itself is not compared again.
//!
//! A tree that is there already is looked at, not read (see [`Store::tree`]): a warm publish must not take longer
//! the more is in it.

use super::Store;
use crate::content::verify::{Verdict, verify_blob, verify_layer};
use crate::disk::{DiskError, Unpaced};
use crate::layout::Item;

impl Store {
    /// Whether a blob or a layer is what it was. If it is not, it is quarantined.
    pub(crate) fn is_intact(&self, item: &Item) -> Result<bool, DiskError> {
        if !self.is_persistent || self.verified.contains(item, self.durability.refusals()) {
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

    /// Records that an item is what was written.
    pub(super) fn mark_verified(&self, item: Item) {
        self.verified.insert(item, self.durability.refusals());
    }
}
