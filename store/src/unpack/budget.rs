//! What the layers of one volume may unpack to, together.
//!
//! Layers are unpacked beside each other, each by a thread of its own; what they hold counts as it comes. Limits of
//! each alone would let a manifest of four thousand layers have four thousand times as much.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::UnpackError;
use crate::content::blob_reader::StreamFault;
use crate::disk::Totals;
use crate::limits::Limits;

/// What was taken of the limits so far; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<Spent>);

#[derive(Debug, Default)]
struct Spent {
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Budget {
    /// Counts a layer that was unpacked before: a pull that failed at the limit does not begin anew behind it.
    pub fn charge(&self, totals: Totals) {
        // In a tar each entry has a header as well, and its data is filled up.
        const ENTRY: u64 = 1_024;
        add(&self.0.entries, totals.inodes);
        add(&self.0.bytes, totals.inodes.saturating_mul(ENTRY).saturating_add(totals.bytes));
    }

    /// Counts one more entry.
    pub(super) fn entry(&self, limits: &Limits) -> Result<(), UnpackError> {
        if add(&self.0.entries, 1) > limits.entries() {
            return Err(UnpackError::TooManyEntries { limit: limits.entries() });
        }
        Ok(())
    }

    /// Counts `more` bytes.
    pub(super) fn bytes(&self, more: u64, limits: &Limits) -> Result<(), StreamFault> {
        if add(&self.0.bytes, more) > limits.unpacked() {
            return Err(StreamFault::Unpacked { limit: limits.unpacked() });
        }
        Ok(())
    }
}

/// The sum; near the end of the numbers it stays there.
fn add(counter: &AtomicU64, more: u64) -> u64 {
    let sum = counter.fetch_add(more, Ordering::Relaxed).saturating_add(more);
    if sum > u64::MAX / 2 {
        counter.store(u64::MAX / 2, Ordering::Relaxed);
    }
    sum
}
