//! The used and the free space of a file system.

use std::os::fd::AsFd;

use super::error::DiskError;
use crate::limits::{Percent, Reserve};

/// How full a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskSpace {
    bytes: Share,
    inodes: Share,
}

/// What is taken of something, and what is left: as `df` reckons, what only root may take counts as taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    used: u64,
    free: u64,
}

impl Share {
    fn is_above(self, mark: Percent) -> bool {
        mark.is_passed_by(self.used, u128::from(self.used) + u128::from(self.free))
    }
}

impl DiskSpace {
    pub(crate) fn measure(fd: impl AsFd) -> Result<Self, DiskError> {
        let found = rustix::fs::fstatvfs(fd)
            .map_err(|errno| DiskError::new("look at the free space of", "the store", errno))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let used = bytes(found.f_blocks.saturating_sub(found.f_bfree));
        let inodes = found.f_files.saturating_sub(found.f_ffree);
        Ok(Self::new((used, bytes(found.f_bavail)), (inodes, found.f_favail)))
    }

    /// Bytes and inodes, of each what is used and what is free.
    pub(crate) fn new(bytes: (u64, u64), inodes: (u64, u64)) -> Self {
        let share = |(used, free)| Share { used, free };
        Self { bytes: share(bytes), inodes: share(inodes) }
    }

    /// Whether more of its bytes, or of its inodes, is used than this.
    pub(crate) fn is_above(self, mark: Percent) -> bool {
        self.bytes.is_above(mark) || self.inodes.is_above(mark)
    }

    fn total(self) -> u64 {
        self.bytes.used.saturating_add(self.bytes.free)
    }

    /// How many bytes a process without privileges could still write.
    pub(crate) fn free(self) -> u64 {
        self.bytes.free
    }

    /// Fails where `wanted` more bytes would leave less than the reserve.
    pub(crate) fn check(self, wanted: u64, reserve: Reserve) -> Result<(), DiskError> {
        if self.free() < self.needed(wanted, reserve) { Err(self.shortage(wanted, reserve)) } else { Ok(()) }
    }

    /// What is said where there is no room for `wanted` more bytes.
    pub(crate) fn shortage(self, wanted: u64, reserve: Reserve) -> DiskError {
        DiskError::TooSmall { wanted, free: self.free(), reserve: reserve.of(self.total()) }
    }

    /// How much has to be free for `wanted` bytes.
    pub(crate) fn needed(self, wanted: u64, reserve: Reserve) -> u64 {
        wanted.saturating_add(reserve.of(self.total()))
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
        let space = DiskSpace::new((500, 500), (0, 0));
        assert_eq!(space.check(wanted, reserve).is_ok(), may);
        assert_eq!(space.needed(wanted, reserve) <= space.free(), may);
    }

    #[test]
    fn numbers_do_not_overflow() {
        let space = DiskSpace::new((u64::MAX, u64::MAX - 1), (0, 0));
        assert!(space.check(u64::MAX, Reserve::bytes(u64::MAX)).is_err());
        assert!(space.check(1, Reserve::percent(percent("50"))).is_ok());
    }
}
