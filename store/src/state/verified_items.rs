//! Which stored blobs and layers this process has verified since it started.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::layout::Item;

/// The items that this process verified or made itself.
#[derive(Debug, Default)]
pub(crate) struct VerifiedItems(Mutex<Verified>);

#[derive(Debug, Default)]
struct Verified {
    /// How often the disk had refused a sync before.
    refusals: u64,
    items: HashSet<Item>,
}

impl VerifiedItems {
    pub(crate) fn contains(&self, item: &Item, refusals: u64) -> bool {
        self.since(refusals).items.contains(item)
    }

    pub(crate) fn insert(&self, item: Item, refusals: u64) {
        self.since(refusals).items.insert(item);
    }

    pub(crate) fn remove(&self, item: &Item, refusals: u64) {
        self.since(refusals).items.remove(item);
    }

    /// What was verified since the disk last refused a sync: a refusal means that anything may be lost.
    fn since(&self, refusals: u64) -> MutexGuard<'_, Verified> {
        let mut verified = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.refusals != refusals {
            *verified = Verified { refusals, items: HashSet::new() };
        }
        verified
    }
}
