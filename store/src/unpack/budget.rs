//! The limits on entries, unpacked bytes and disk usage, which all layers of a volume share.
//!
//! Layers are unpacked in parallel, each on its own thread, and counted while they are unpacked. With limits for each
//! layer alone, a manifest with 4,096 layers could unpack to 4,096 times as much.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::UnpackError;
use crate::content::blob_reader::StreamFault;
use crate::disk::reservations::{PullNumber, Reservations};
use crate::disk::{Totals, Usage};
use crate::limits::Limits;

/// What has been used of the limits. Clones share the counters.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    used: Arc<Used>,
    reservations: Reservations,
    pull: PullNumber,
}

#[derive(Debug, Default)]
struct Used {
    entries: AtomicU64,
    /// The bytes of the uncompressed streams.
    bytes: AtomicU64,
    /// What the disk is charged for. What is deleted again still counts, because ext4 does not shrink directories.
    disk: AtomicU64,
}

/// The volume takes more of the disk than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskLimitExceeded {
    pub(crate) limit: u64,
}

impl Budget {
    /// Creates the limits of a volume, which is written to a disk with these reservations.
    pub(crate) fn new(reservations: &Reservations) -> Self {
        Self { used: Arc::default(), reservations: reservations.clone(), pull: reservations.number_pull() }
    }

    /// Returns the reservations on the disk.
    pub(super) fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// Counts a layer that an earlier pull unpacked. Without it, a pull that failed at the limit could continue
    /// behind it when it is repeated.
    pub fn charge(&self, totals: Totals, usage: Usage) {
        // In a tar archive each entry has a header, and its data is padded.
        const ENTRY: u64 = 1_024;
        add(&self.used.entries, totals.inodes);
        add(&self.used.bytes, totals.inodes.saturating_mul(ENTRY).saturating_add(totals.bytes));
        add(&self.used.disk, usage.bytes);
    }

    /// Returns what has been used: entries, bytes of streams, and bytes of the disk.
    pub(crate) fn used(&self) -> [u64; 3] {
        [&self.used.entries, &self.used.bytes, &self.used.disk].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Forgets what was used since [`Self::used`] returned `before`: the only layer of a volume is unpacked again.
    pub(crate) fn reset_to(&self, before: [u64; 3]) {
        let counters = [&self.used.entries, &self.used.bytes, &self.used.disk];
        for (counter, before) in counters.into_iter().zip(before) {
            counter.store(before, Ordering::Relaxed);
        }
    }

    /// Forgets bytes of the disk: files that are written again, into an image, and then deleted.
    pub(super) fn release_disk(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.disk.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Returns the order in which the pull of the volume began.
    pub(super) fn pull(&self) -> PullNumber {
        self.pull
    }

    /// Counts one entry.
    pub(super) fn count_entry(&self, limits: &Limits) -> Result<(), UnpackError> {
        if add(&self.used.entries, 1) > limits.entries() {
            return Err(UnpackError::TooManyEntries { limit: limits.entries() });
        }
        Ok(())
    }

    /// Counts `more` bytes of an uncompressed stream.
    pub(super) fn count_bytes(&self, more: u64, limits: &Limits) -> Result<(), StreamFault> {
        if add(&self.used.bytes, more) > limits.unpacked() {
            return Err(StreamFault::Unpacked { limit: limits.unpacked() });
        }
        Ok(())
    }

    /// Checks the size of all archives of a volume before they are downloaded. They are not larger than their content,
    /// except for bytes that only fill the disk.
    pub(crate) fn check_compressed(bytes: u64, limits: &Limits) -> Result<(), DiskLimitExceeded> {
        let limit = limits.unpacked();
        if bytes > limit { Err(DiskLimitExceeded { limit }) } else { Ok(()) }
    }

    /// Counts `more` bytes of the disk.
    pub(crate) fn count_disk(&self, more: u64, limits: &Limits) -> Result<(), DiskLimitExceeded> {
        let limit = limits.unpacked();
        if add(&self.used.disk, more) > limit { Err(DiskLimitExceeded { limit }) } else { Ok(()) }
    }
}

/// Adds to a counter, which saturates, and returns the sum.
fn add(counter: &AtomicU64, more: u64) -> u64 {
    let sum = counter.fetch_add(more, Ordering::Relaxed).saturating_add(more);
    if sum > u64::MAX / 2 {
        counter.store(u64::MAX / 2, Ordering::Relaxed);
    }
    sum
}
