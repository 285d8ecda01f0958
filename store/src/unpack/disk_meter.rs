//! Charges what a layer or a tree takes of the disk before it is written: against the limit of the volume and against
//! the free space.

use std::os::fd::OwnedFd;

use super::budget::{Budget, DiskLimitExceeded};
use crate::disk::{DiskError, DiskSpace, Usage};
use crate::limits::Limits;

/// Why something must not be written.
#[derive(Debug)]
pub(super) enum ChargeError {
    /// The volume would take more of the disk than the limit.
    Limit(DiskLimitExceeded),
    /// The disk would have less free space or fewer free inodes than the reserve.
    Disk(DiskError),
}

impl From<DiskLimitExceeded> for ChargeError {
    fn from(exceeded: DiskLimitExceeded) -> Self {
        Self::Limit(exceeded)
    }
}

impl From<DiskError> for ChargeError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// Charges the writes of one layer or tree.
pub(super) struct DiskMeter<'a> {
    disk: &'a OwnedFd,
    limits: &'a Limits,
    budget: &'a Budget,
    /// What was charged since the free space was measured.
    unmeasured: Usage,
    /// What can be charged before the free space is measured again.
    allowance: Usage,
    usage: Usage,
}

impl<'a> DiskMeter<'a> {
    /// After so many bytes or inodes, or half of what is free, the free space is measured again, because other programs
    /// write as well.
    const MAX_ALLOWANCE: Usage = Usage { bytes: 16 << 20, inodes: 1_024 };

    /// Charges writes to the file system of `disk`.
    pub(super) fn new(disk: &'a OwnedFd, limits: &'a Limits, budget: &'a Budget) -> Self {
        let (unmeasured, allowance, usage) = (Usage::default(), Usage::default(), Usage::default());
        Self { disk, limits, budget, unmeasured, allowance, usage }
    }

    /// Charges something that is about to be written.
    pub(super) fn charge(&mut self, usage: Usage) -> Result<(), ChargeError> {
        self.check(usage)?;
        self.usage = self.usage.plus(usage);
        Ok(())
    }

    /// Charges the line of an entry in the list of checksums, which is written when the layer or tree is complete. The
    /// size of the list is recorded then.
    pub(super) fn charge_checksum(&mut self, path_length: usize) -> Result<(), ChargeError> {
        const LINE: u64 = 80;
        self.check(Usage { bytes: LINE.saturating_add(path_length as u64), inodes: 0 })
    }

    /// Checks the free space again while a large file is written. Its bytes were charged before.
    pub(super) fn wrote(&mut self, bytes: u64) -> Result<(), ChargeError> {
        self.measure(Usage { bytes, inodes: 0 }, Usage::default())
    }

    /// Records that something was deleted again.
    pub(super) fn refund(&mut self, usage: Usage) {
        self.usage = self.usage.minus(usage);
    }

    /// Adds the usage of a part that was charged by another meter of the same volume.
    pub(super) fn adopt(&mut self, usage: Usage) {
        self.usage = self.usage.plus(usage);
    }

    /// Returns what the layer or tree takes of the disk.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    fn check(&mut self, usage: Usage) -> Result<(), ChargeError> {
        self.budget.count_disk(usage.bytes, self.limits)?;
        self.measure(usage, usage)
    }

    /// Measures the free space if enough was written since the last time. It must have space for `wanted`.
    fn measure(&mut self, more: Usage, wanted: Usage) -> Result<(), ChargeError> {
        self.unmeasured = self.unmeasured.plus(more);
        if self.unmeasured.bytes <= self.allowance.bytes && self.unmeasured.inodes <= self.allowance.inodes {
            return Ok(());
        }
        let space = DiskSpace::measure(self.disk)?;
        space.check(wanted, self.limits)?;
        let left = space.above_reserve(self.limits).minus(wanted);
        self.allowance = Usage {
            bytes: (left.bytes / 2).min(Self::MAX_ALLOWANCE.bytes),
            inodes: (left.inodes / 2).min(Self::MAX_ALLOWANCE.inodes),
        };
        self.unmeasured = Usage::default();
        Ok(())
    }
}
