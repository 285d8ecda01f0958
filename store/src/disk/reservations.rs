//! Disk space that running work will use.
//!
//! Pulls run at the same time and each checks the free space before it writes. Without a record of what the others are
//! about to write, all of them would count the same free space, and together they would use the reserve. So each takes a
//! [`Reservation`] first: free is what the file system has free without the reservations of others. What was written is
//! *spent*, because the file system counts it from then on.
//!
//! The size of an archive's files is not known in advance, so pulls that unpack reserve a piece at a time. When several of
//! them meet on a disk that is too small for all, the one that began first waits and the others fail and free their space
//! ([`Reservations::block`]). Otherwise all could fail at the same moment, each time they are repeated.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk_space::DiskSpace;
use super::error::DiskError;
use super::usage::Usage;
use crate::limits::Limits;

/// The sum of all reservations on one disk. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reservations {
    sum: Arc<Mutex<Usage>>,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    /// The pulls that wait for space, by the order in which they began, with the number of their archives.
    blocked: BTreeMap<PullNumber, usize>,
}

/// The order in which a pull began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PullNumber(u64);

/// An archive of a pull that waits for space.
#[derive(Debug)]
pub(crate) struct Blocked {
    all: Reservations,
    pull: PullNumber,
}

/// Reserved space. Dropping it releases what was not spent.
#[derive(Debug)]
pub(crate) struct Reservation {
    all: Reservations,
    left: Mutex<Usage>,
}

fn get<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reservations {
    /// Returns what is reserved and not spent.
    pub(crate) fn outstanding(&self) -> Usage {
        *get(&self.sum)
    }

    /// Returns the number of a pull that begins.
    pub(crate) fn number_pull(&self) -> PullNumber {
        let mut queue = get(&self.queue);
        queue.next += 1;
        PullNumber(queue.next)
    }

    /// Records that a pull waits for space until the result is dropped.
    pub(crate) fn block(&self, pull: PullNumber) -> Blocked {
        *get(&self.queue).blocked.entry(pull).or_default() += 1;
        Blocked { all: self.clone(), pull }
    }

    /// Reserves `wanted`, if that leaves the reserves of `limits` on the file system of `disk`.
    pub(crate) fn reserve(
        &self,
        disk: impl AsFd,
        limits: &Limits,
        wanted: Usage,
    ) -> Result<Reservation, DiskError> {
        self.reserve_ahead(disk, limits, wanted, Usage::default())
    }

    /// Reserves `wanted`, and up to `ahead` more: at most half of what is left then.
    pub(crate) fn reserve_ahead(
        &self,
        disk: impl AsFd,
        limits: &Limits,
        wanted: Usage,
        ahead: Usage,
    ) -> Result<Reservation, DiskError> {
        // Measured under the lock, so that no other reservation is made in between.
        let mut all = get(&self.sum);
        let space = DiskSpace::measure(disk)?.without(*all);
        space.check(wanted, limits)?;
        let left = space.above_reserve(limits).minus(wanted);
        let reserved = wanted.plus(Usage {
            bytes: ahead.bytes.min(left.bytes / 2),
            inodes: ahead.inodes.min(left.inodes / 2),
        });
        *all = all.plus(reserved);
        Ok(Reservation { all: self.clone(), left: Mutex::new(reserved) })
    }
}

impl Blocked {
    /// Reports whether waiting can help: this pull began first of those that wait, and others have reserved space that
    /// they may free.
    pub(crate) fn should_wait(&self) -> bool {
        let is_first =
            get(&self.all.queue).blocked.first_key_value().is_some_and(|(first, _)| *first == self.pull);
        is_first && self.all.outstanding() != Usage::default()
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let mut queue = get(&self.all.queue);
        if let Some(count) = queue.blocked.get_mut(&self.pull) {
            *count -= 1;
            if *count == 0 {
                queue.blocked.remove(&self.pull);
            }
        }
    }
}

impl Reservation {
    /// Returns a reservation of nothing.
    pub(crate) fn none() -> Self {
        Self { all: Reservations::default(), left: Mutex::default() }
    }

    /// Reports whether this much is left.
    pub(crate) fn covers(&self, wanted: Usage) -> bool {
        let left = get(&self.left);
        left.bytes >= wanted.bytes && left.inodes >= wanted.inodes
    }

    /// Releases what was written: the file system counts it now. More than was reserved has no effect.
    pub(crate) fn spend(&self, written: Usage) {
        self.release(&mut get(&self.left), written);
    }

    /// Reserves what was written and is deleted now. The caller writes it again.
    pub(crate) fn restore(&self, deleted: Usage) {
        let mut left = get(&self.left);
        *left = left.plus(deleted);
        let mut all = get(&self.all.sum);
        *all = all.plus(deleted);
    }

    /// Moves a part of it into a reservation of its own.
    pub(crate) fn split(&self, part: Usage) -> Self {
        let mut left = get(&self.left);
        let part = left.at_most(part);
        *left = left.minus(part);
        Self { all: self.all.clone(), left: Mutex::new(part) }
    }

    fn release(&self, left: &mut Usage, part: Usage) {
        let part = left.at_most(part);
        *left = left.minus(part);
        let mut all = get(&self.all.sum);
        *all = all.minus(part);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let left = *get(&self.left);
        self.spend(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Reserve;

    fn usage(bytes: u64, inodes: u64) -> Usage {
        Usage { bytes, inodes }
    }

    #[test]
    fn what_is_reserved_is_not_free_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let disk = std::fs::File::open(folder.path()).unwrap();
        let all = Reservations::default();
        let free = DiskSpace::measure(&disk).unwrap().free();
        // Other programs write to the same disk, so the numbers are far apart.
        let limits = Limits::default().with_reserve(Reserve::bytes(free / 4));
        let half = all.reserve(&disk, &limits, usage(free / 2, 1)).unwrap();
        let error = all.reserve(&disk, &limits, usage(free / 2, 1)).unwrap_err();
        assert!(error.is_full(), "{error}");
        let part = half.split(usage(free / 4, 0));
        assert_eq!(all.outstanding(), usage(free / 4 * 2 + free % 2, 1).at_most(usage(free / 2, 1)));
        assert!(part.covers(usage(free / 4, 0)) && !part.covers(usage(free / 4 + 1, 0)));
        // Written by the one, and failed by the other.
        part.spend(usage(free, 0));
        assert!(all.reserve(&disk, &limits, usage(free / 3, 0)).is_ok());
        drop((part, half));
        assert_eq!(all.outstanding(), Usage::default());
        assert!(all.reserve(&disk, &limits, usage(free / 2, 1)).is_ok());
    }

    #[test]
    fn what_was_written_and_deleted_is_reserved_again() {
        let folder = tempfile::tempdir().unwrap();
        let disk = std::fs::File::open(folder.path()).unwrap();
        let all = Reservations::default();
        let limits = Limits::default().with_reserve(Reserve::bytes(0));
        let blob = all.reserve(&disk, &limits, usage(1_000, 1)).unwrap();
        blob.spend(usage(900, 1));
        assert_eq!(all.outstanding(), usage(100, 0));
        blob.restore(usage(900, 0));
        assert_eq!(all.outstanding(), usage(1_000, 0));
        assert!(blob.covers(usage(1_000, 0)));
        drop(blob);
        assert_eq!(all.outstanding(), Usage::default());
    }

    #[test]
    fn the_pull_that_began_first_waits() {
        let all = Reservations::default();
        let (first, second) = (all.number_pull(), all.number_pull());
        let younger = all.block(second);
        assert!(!younger.should_wait(), "nothing is reserved, so nothing becomes free");
        let folder = tempfile::tempdir().unwrap();
        let disk = std::fs::File::open(folder.path()).unwrap();
        let _other =
            all.reserve(&disk, &Limits::default().with_reserve(Reserve::bytes(0)), usage(1, 0)).unwrap();
        assert!(younger.should_wait());
        let older = (all.block(first), all.block(first));
        assert!(older.0.should_wait() && older.1.should_wait() && !younger.should_wait());
        drop(older.0);
        assert!(!younger.should_wait());
        drop(older.1);
        assert!(younger.should_wait());
    }

    #[test]
    fn more_is_reserved_ahead_while_there_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let disk = std::fs::File::open(folder.path()).unwrap();
        let free = DiskSpace::measure(&disk).unwrap().free();
        let limits = Limits::default().with_reserve(Reserve::bytes(0));
        let all = Reservations::default();
        let one = all.reserve_ahead(&disk, &limits, usage(1_000, 1), usage(16 << 20, 10)).unwrap();
        assert_eq!(all.outstanding().bytes, 1_000 + (16 << 20));
        drop(one);
        let greedy = all.reserve_ahead(&disk, &limits, usage(1_000, 1), usage(u64::MAX, 10)).unwrap();
        assert!(all.outstanding().bytes < free / 4 * 3, "half of what is left");
        drop(greedy);
        assert_eq!(all.outstanding(), Usage::default());
        assert!(Reservation::none().covers(Usage::default()));
    }
}
