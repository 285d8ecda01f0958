//! Charges what a layer or a tree takes of the disk before it is written: against the limit of the volume and against
//! the free space.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::budget::{Budget, DiskLimitExceeded};
use crate::disk::reservations::Reservation;
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

/// How long a pull waits for other pulls to free space, and how often it looks.
const MAX_WAIT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

fn bytes(bytes: u64) -> Usage {
    Usage { bytes, inodes: 0 }
}

/// Charges the writes of one layer or tree. Entries are written one after the other: when the next one is charged, the
/// one before is on the disk, except for the data of a file, which is reported while it is written.
pub(super) struct DiskMeter<'a> {
    disk: &'a OwnedFd,
    limits: &'a Limits,
    budget: &'a Budget,
    reserved: Reservation,
    /// What was charged, and is written when the next entry is charged. Without the data of a file.
    pending: Usage,
    /// The data of the file that is being written.
    data: u64,
    /// How many bytes were written since the free space was checked.
    unchecked: u64,
    usage: Usage,
}

impl<'a> DiskMeter<'a> {
    /// How much space is reserved at a time, beyond what is written next.
    const AHEAD: Usage = Usage { bytes: 16 << 20, inodes: 1_024 };

    /// Charges writes to the file system of `disk`.
    pub(super) fn new(disk: &'a OwnedFd, limits: &'a Limits, budget: &'a Budget) -> Self {
        let (pending, usage) = (Usage::default(), Usage::default());
        Self { disk, limits, budget, reserved: Reservation::none(), pending, data: 0, unchecked: 0, usage }
    }

    /// Charges something that is about to be written.
    pub(super) fn charge(&mut self, usage: Usage) -> Result<(), ChargeError> {
        self.charge_file(usage, 0)
    }

    /// Charges a file of which [`Self::wrote`] reports the bytes: `usage` includes its `size`.
    pub(super) fn charge_file(&mut self, usage: Usage, size: u64) -> Result<(), ChargeError> {
        self.reserved.spend(bytes(self.data).plus(self.pending));
        (self.pending, self.data) = (Usage::default(), 0);
        self.reserve(usage)?;
        (self.pending, self.data) = (usage.minus(bytes(size)), size);
        self.usage = self.usage.plus(usage);
        Ok(())
    }

    /// Charges the line of an entry in the list of checksums, which is written when the layer or tree is complete. The
    /// size of the list is recorded then.
    pub(super) fn charge_checksum(&mut self, path_length: usize) -> Result<(), ChargeError> {
        const LINE: u64 = 80;
        let line = bytes(LINE.saturating_add(path_length as u64));
        self.reserve(line)?;
        self.pending = self.pending.plus(line);
        Ok(())
    }

    /// Records that bytes of a file were written. Other programs write to the disk as well, so the free space is checked
    /// again in a large file.
    pub(super) fn wrote(&mut self, written: u64) -> Result<(), ChargeError> {
        self.reserved.spend(bytes(written));
        self.data = self.data.saturating_sub(written);
        self.unchecked += written;
        if self.unchecked > Self::AHEAD.bytes {
            self.unchecked = 0;
            DiskSpace::measure(self.disk)?.check(Usage::default(), self.limits)?;
        }
        Ok(())
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

    /// Counts what is about to be written, and reserves space for it and for what is pending.
    fn reserve(&mut self, usage: Usage) -> Result<(), ChargeError> {
        self.budget.count_disk(usage.bytes, self.limits)?;
        let wanted = bytes(self.data).plus(self.pending).plus(usage);
        if !self.reserved.covers(wanted) {
            self.reserved = Reservation::none();
            self.reserved = self.reserve_more(wanted)?;
        }
        Ok(())
    }

    /// Reserves space. Waits for up to ten seconds if other pulls may free some.
    fn reserve_more(&self, wanted: Usage) -> Result<Reservation, DiskError> {
        let reservations = self.budget.reservations();
        let (began, mut blocked) = (Instant::now(), None);
        loop {
            match reservations.reserve_ahead(self.disk, self.limits, wanted, Self::AHEAD) {
                Err(error) if error.is_full() => {
                    let blocked = blocked.get_or_insert_with(|| reservations.block(self.budget.pull()));
                    if !blocked.should_wait() || began.elapsed() > MAX_WAIT {
                        return Err(error);
                    }
                    std::thread::sleep(RETRY_INTERVAL);
                }
                reserved => return reserved,
            }
        }
    }
}
