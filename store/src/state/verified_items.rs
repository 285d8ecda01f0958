//! The blobs and layers that this process has verified since it started.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::layout::Item;

/// Records the items that this process has verified or created.
#[derive(Debug, Default)]
pub(crate) struct VerifiedItems(Mutex<Verified>);

#[derive(Debug, Default)]
struct Verified {
    /// The number of failed syncs before these items were verified.
    sync_failures: u64,
    items: HashSet<Item>,
}

impl VerifiedItems {
    pub(crate) fn contains(&self, item: &Item, sync_failures: u64) -> bool {
        self.since(sync_failures).items.contains(item)
    }

    pub(crate) fn insert(&self, item: Item, sync_failures: u64) {
        self.since(sync_failures).items.insert(item);
    }

    pub(crate) fn remove(&self, item: &Item, sync_failures: u64) {
        self.since(sync_failures).items.remove(item);
    }

    /// Returns the items verified since the last failed sync, because after a failed sync any data may be
    /// lost.
    fn since(&self, sync_failures: u64) -> MutexGuard<'_, Verified> {
        let mut verified = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.sync_failures != sync_failures {
            *verified = Verified { sync_failures, items: HashSet::new() };
        }
        verified
    }
}
