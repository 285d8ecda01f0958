//! Used and free space of a file system.

use std::os::fd::AsFd;

use super::error::DiskError;
use crate::limits::{Percent, Reserve};

/// The used and free bytes and inodes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskSpace {
    bytes: Share,
    inodes: Share,
}

/// The used and free part of a resource. As in `df`, blocks reserved for root count as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    used: u64,
    free: u64,
}

impl Share {
    fn is_above(self, mark: Percent) -> bool {
        mark.is_exceeded_by(self.used, u128::from(self.used) + u128::from(self.free))
    }
}

impl DiskSpace {
    pub(crate) fn measure(fd: impl AsFd) -> Result<Self, DiskError> {
        let found = rustix::fs::fstatvfs(fd)
            .map_err(|errno| DiskError::new("measure the free space of", "the store", errno))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let used = bytes(found.f_blocks.saturating_sub(found.f_bfree));
        let inodes = found.f_files.saturating_sub(found.f_ffree);
        Ok(Self::new((used, bytes(found.f_bavail)), (inodes, found.f_favail)))
    }

    /// Returns the space with these pairs of (used, free) bytes and inodes.
    pub(crate) fn new(bytes: (u64, u64), inodes: (u64, u64)) -> Self {
        let share = |(used, free)| Share { used, free };
        Self { bytes: share(bytes), inodes: share(inodes) }
    }

    /// Reports whether the used share of bytes or inodes is above `mark`.
    pub(crate) fn is_above(self, mark: Percent) -> bool {
        self.bytes.is_above(mark) || self.inodes.is_above(mark)
    }

    fn total(self) -> u64 {
        self.bytes.used.saturating_add(self.bytes.free)
    }

    /// Returns how many bytes an unprivileged process can still write.
    pub(crate) fn free(self) -> u64 {
        self.bytes.free
    }

    /// Checks that `wanted` more bytes can be written without using the reserve.
    pub(crate) fn check(self, wanted: u64, reserve: Reserve) -> Result<(), DiskError> {
        if self.free() < self.needed(wanted, reserve) { Err(self.shortage(wanted, reserve)) } else { Ok(()) }
    }

    /// Returns the error for `wanted` bytes that do not fit.
    pub(crate) fn shortage(self, wanted: u64, reserve: Reserve) -> DiskError {
        DiskError::TooSmall { wanted, free: self.free(), reserve: reserve.of(self.total()) }
    }

    /// Returns how many bytes must be free to write `wanted` bytes.
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
    #[case::leaves_the_reserve(Reserve::percent(percent("10")), 400, true)]
    #[case::leaves_less_than_the_reserve(Reserve::percent(percent("10")), 401, false)]
    #[case::no_reserve(Reserve::percent(percent("0")), 500, true)]
    #[case::more_than_is_free(Reserve::percent(percent("0")), 501, false)]
    #[case::reserves_everything(Reserve::percent(percent("100")), 1, false)]
    #[case::bytes(Reserve::bytes(100), 400, true)]
    #[case::bytes_and_one(Reserve::bytes(100), 401, false)]
    #[case::on_a_large_disk(Reserve::percent(percent("10")).at_most(50), 450, true)]
    #[case::on_a_large_disk_and_one(Reserve::percent(percent("10")).at_most(50), 451, false)]
    #[case::on_a_small_disk(Reserve::percent(percent("10")).at_most(1 << 28), 400, true)]
    fn checks_that_a_write_leaves_the_reserve(
        #[case] reserve: Reserve,
        #[case] wanted: u64,
        #[case] fits: bool,
    ) {
        let space = DiskSpace::new((500, 500), (0, 0));
        assert_eq!(space.check(wanted, reserve).is_ok(), fits);
        assert_eq!(space.needed(wanted, reserve) <= space.free(), fits);
    }

    #[test]
    fn numbers_do_not_overflow() {
        let space = DiskSpace::new((u64::MAX, u64::MAX - 1), (0, 0));
        assert!(space.check(u64::MAX, Reserve::bytes(u64::MAX)).is_err());
        assert!(space.check(1, Reserve::percent(percent("50"))).is_ok());
    }
}
