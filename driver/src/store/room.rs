//! How much room the disk has, and how much of it stays free whatever is asked for.

use std::os::fd::AsFd;

use super::DiskError;
use crate::collect::Percent;

/// What stays free on the file system of the store: other programs of the node live on it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    percent: Percent,
    most: u64,
}

impl Reserve {
    /// Such a part of the file system.
    pub fn percent(percent: Percent) -> Self {
        Self { percent, most: u64::MAX }
    }

    /// So many bytes.
    pub fn bytes(bytes: u64) -> Self {
        Self { percent: Percent::ALL, most: bytes }
    }

    /// No more than so many bytes of it.
    #[must_use]
    pub fn at_most(self, bytes: u64) -> Self {
        Self { most: self.most.min(bytes), ..self }
    }

    fn of(self, room: Room) -> u64 {
        self.percent.of(room.used.saturating_add(room.free)).min(self.most)
    }
}

/// A file system as `df` reckons: what only root may take counts as taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    used: u64,
    free: u64,
}

impl Room {
    pub(crate) fn of(fd: impl AsFd) -> Result<Self, DiskError> {
        let found = rustix::fs::fstatvfs(fd)
            .map_err(|errno| DiskError::new("look at the free space of", "the store", errno))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let used = bytes(found.f_blocks.saturating_sub(found.f_bfree));
        Ok(Self { used, free: bytes(found.f_bavail) })
    }

    /// How many bytes a process without privileges could still write.
    pub(crate) fn free(self) -> u64 {
        self.free
    }

    /// Fails where `wanted` more bytes would leave less than the reserve.
    pub(crate) fn check(self, wanted: u64, reserve: Reserve) -> Result<(), DiskError> {
        if self.free < self.needed(wanted, reserve) { Err(self.lacks(wanted, reserve)) } else { Ok(()) }
    }

    /// What is said where there is no room for `wanted` more bytes.
    pub(crate) fn lacks(self, wanted: u64, reserve: Reserve) -> DiskError {
        DiskError::TooSmall { wanted, free: self.free, reserve: reserve.of(self) }
    }

    /// How much has to be free for `wanted` bytes.
    pub(crate) fn needed(self, wanted: u64, reserve: Reserve) -> u64 {
        wanted.saturating_add(reserve.of(self))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn percent(text: &str) -> Percent {
        text.parse().unwrap()
    }

    #[rstest]
    #[case::tenth_is_left(Reserve::percent(percent("10")), 400, true)]
    #[case::less_is_left(Reserve::percent(percent("10")), 401, false)]
    #[case::nothing_need_be_left(Reserve::percent(percent("0")), 500, true)]
    #[case::more_than_there_is(Reserve::percent(percent("0")), 501, false)]
    #[case::never_full(Reserve::percent(percent("100")), 1, false)]
    #[case::bytes(Reserve::bytes(100), 400, true)]
    #[case::bytes_and_one(Reserve::bytes(100), 401, false)]
    #[case::on_a_large_disk(Reserve::percent(percent("10")).at_most(50), 450, true)]
    #[case::on_a_large_disk_and_one(Reserve::percent(percent("10")).at_most(50), 451, false)]
    #[case::on_a_small_disk(Reserve::percent(percent("10")).at_most(1 << 28), 400, true)]
    fn what_may_be_written(#[case] reserve: Reserve, #[case] wanted: u64, #[case] may: bool) {
        let room = Room { used: 500, free: 500 };
        assert_eq!(room.check(wanted, reserve).is_ok(), may);
        assert_eq!(room.needed(wanted, reserve) <= room.free(), may);
    }

    #[test]
    fn numbers_do_not_overflow() {
        let room = Room { used: u64::MAX, free: u64::MAX - 1 };
        assert!(room.check(u64::MAX, Reserve::bytes(u64::MAX)).is_err());
        assert!(room.check(1, Reserve::percent(percent("50"))).is_ok());
    }
}
