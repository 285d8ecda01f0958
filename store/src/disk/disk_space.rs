//! Used and free space of a file system.

use std::os::fd::AsFd;

use super::error::DiskError;
use super::usage::Usage;
use crate::limits::{Limits, Percent, Reserve};

/// The used and free bytes and inodes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskSpace {
    bytes: Share,
    /// `None` if the file system does not limit inodes, as btrfs.
    inodes: Option<Share>,
}

/// The used and free part of a resource. As in `df`, blocks reserved for root count as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    used: u64,
    free: u64,
}

impl Share {
    fn total(self) -> u64 {
        self.used.saturating_add(self.free)
    }

    fn is_above(self, mark: Percent) -> bool {
        mark.is_exceeded_by(self.used, u128::from(self.used) + u128::from(self.free))
    }

    /// Returns how much must be free to use `wanted` more without using the reserve.
    fn needed(self, wanted: u64, reserve: Reserve) -> u64 {
        wanted.saturating_add(reserve.of(self.total()))
    }
}

/// What a file system can run out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Bytes,
    Inodes,
}

impl DiskSpace {
    pub(crate) fn measure(fd: impl AsFd) -> Result<Self, DiskError> {
        let found = rustix::fs::fstatvfs(fd)
            .map_err(|errno| DiskError::new("measure the free space of", "the store", errno))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let used = bytes(found.f_blocks.saturating_sub(found.f_bfree));
        // Some file systems allocate inodes on demand and report 0 of 0.
        let used_inodes = found.f_files.saturating_sub(found.f_ffree);
        Ok(Self::new((used, bytes(found.f_bavail)), (used_inodes, found.f_favail)))
    }

    /// Returns the space with these pairs of (used, free) bytes and inodes. A file system with 0 of 0 inodes does not
    /// limit them.
    pub(crate) fn new(bytes: (u64, u64), inodes: (u64, u64)) -> Self {
        let share = |(used, free)| Share { used, free };
        Self { bytes: share(bytes), inodes: Some(share(inodes)).filter(|share| share.total() > 0) }
    }

    /// Reports whether the used share of bytes or inodes is above `mark`.
    pub(crate) fn is_above(self, mark: Percent) -> bool {
        self.bytes.is_above(mark) || self.inodes.is_some_and(|inodes| inodes.is_above(mark))
    }

    /// Returns how many bytes an unprivileged process can still write.
    pub(crate) fn free(self) -> u64 {
        self.bytes.free
    }

    /// Returns the size of the file system: what is used and what an unprivileged process can still write.
    pub(crate) fn capacity(self) -> u64 {
        self.bytes.total()
    }

    /// Returns how many inodes an unprivileged process can still use; `None` if they are not limited.
    pub(crate) fn free_inodes(self) -> Option<u64> {
        self.inodes.map(|inodes| inodes.free)
    }

    /// Reports whether this much is free. Inodes that are not limited are free.
    pub(crate) fn has_free(self, wanted: Usage) -> bool {
        self.bytes.free >= wanted.bytes && self.inodes.is_none_or(|inodes| inodes.free >= wanted.inodes)
    }

    /// Returns the resource of which the smaller share is free.
    pub(crate) fn scarcer(self) -> Resource {
        let product = |free: u64, total: u64| u128::from(free) * u128::from(total);
        match self.inodes {
            Some(inodes)
                if product(inodes.free, self.bytes.total()) < product(self.bytes.free, inodes.total()) =>
            {
                Resource::Inodes
            }
            _ => Resource::Bytes,
        }
    }

    /// Returns the space if `reserved` were used already.
    pub(crate) fn without(self, reserved: Usage) -> Self {
        let use_up = |share: Share, more: u64| {
            let more = more.min(share.free);
            Share { used: share.used.saturating_add(more), free: share.free - more }
        };
        Self {
            bytes: use_up(self.bytes, reserved.bytes),
            inodes: self.inodes.map(|inodes| use_up(inodes, reserved.inodes)),
        }
    }

    /// Checks that `wanted` more can be written without using the reserves.
    pub(crate) fn check(self, wanted: Usage, limits: &Limits) -> Result<(), DiskError> {
        let (reserve, inode_reserve) = (limits.reserve(), limits.inode_reserve());
        if self.bytes.free < self.bytes.needed(wanted.bytes, reserve) {
            let reserve = reserve.of(self.bytes.total());
            return Err(DiskError::TooSmall { wanted: wanted.bytes, free: self.bytes.free, reserve });
        }
        if let Some(inodes) = self.inodes
            && inodes.free < inodes.needed(wanted.inodes, inode_reserve)
        {
            let reserve = inode_reserve.of(inodes.total());
            return Err(DiskError::TooFewInodes { wanted: wanted.inodes, free: inodes.free, reserve });
        }
        Ok(())
    }

    /// Returns what is free above the reserves.
    pub(crate) fn above_reserve(self, limits: &Limits) -> Usage {
        let above = |share: Share, reserve: Reserve| share.free.saturating_sub(reserve.of(share.total()));
        Usage {
            bytes: above(self.bytes, limits.reserve()),
            inodes: self.inodes.map_or(u64::MAX, |inodes| above(inodes, limits.inode_reserve())),
        }
    }

    /// Returns how much must be free to write `wanted` more.
    pub(crate) fn needed(self, wanted: Usage, limits: &Limits) -> Usage {
        Usage {
            bytes: self.bytes.needed(wanted.bytes, limits.reserve()),
            inodes: self.inodes.map_or(0, |inodes| inodes.needed(wanted.inodes, limits.inode_reserve())),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn percent(text: &str) -> Percent {
        text.parse().unwrap()
    }

    fn bytes(bytes: u64) -> Usage {
        Usage { bytes, inodes: 0 }
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
        let limits = Limits::default().with_reserve(reserve);
        assert_eq!(space.check(bytes(wanted), &limits).is_ok(), fits);
        assert_eq!(space.has_free(space.needed(bytes(wanted), &limits)), fits);

        // The same for inodes.
        let space = DiskSpace::new((0, 1 << 40), (500, 500));
        let limits = Limits::default().with_inode_reserve(reserve);
        let wanted = Usage { bytes: 0, inodes: wanted };
        assert_eq!(space.check(wanted, &limits).is_ok(), fits);
        assert_eq!(space.has_free(space.needed(wanted, &limits)), fits);
        let unlimited = DiskSpace::new((0, 1 << 40), (0, 0));
        assert!(unlimited.check(wanted, &limits).is_ok(), "a file system without a limit on inodes");
        assert!(unlimited.has_free(unlimited.needed(wanted, &limits)));
    }

    #[test]
    fn each_shortage_names_its_option() {
        let limits = Limits::default();
        let wanted = Usage { bytes: 1, inodes: 1 };
        for (space, words) in [
            (DiskSpace::new((100, 0), (0, 0)), "--keep-free)"),
            (DiskSpace::new((0, 1 << 40), (100, 0)), "--keep-free-inodes)"),
        ] {
            let error = space.check(wanted, &limits).unwrap_err();
            assert!(error.is_full() && error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn the_scarcer_resource_is_freed() {
        for (space, scarcer) in [
            (DiskSpace::new((90, 10), (50, 50)), Resource::Bytes),
            (DiskSpace::new((50, 50), (90, 10)), Resource::Inodes),
            (DiskSpace::new((100, 0), (0, 0)), Resource::Bytes),
        ] {
            assert_eq!(space.scarcer(), scarcer, "{space:?}");
        }
    }

    #[test]
    fn numbers_do_not_overflow() {
        let space = DiskSpace::new((u64::MAX, u64::MAX - 1), (0, 0));
        let limits = |reserve| Limits::default().with_reserve(reserve);
        assert!(space.check(bytes(u64::MAX), &limits(Reserve::bytes(u64::MAX))).is_err());
        assert!(space.check(bytes(1), &limits(Reserve::percent(percent("50")))).is_ok());
    }
}
