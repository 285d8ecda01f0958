//! What the file system of the store is charged for an item: blocks and inodes.
//!
//! The numbers are computed and not read from the disk, so that they are known before something is written and are
//! the same on every node. They are an upper bound for ext4 with blocks of 4 KiB, apart from the blocks of extent
//! trees (below 1 percent):
//!
//! | what | charge |
//! |---|---|
//! | a file, a directory, a symbolic link | an inode, and at least one block; a file its size in whole blocks |
//! | each name in a directory | twice the size of its entry, because the blocks of a large directory are half full |
//! | a hard link | only its name; a copy, where the file has no links left, is a file |
//!
//! The limit on unpacked content, garbage collection, metrics and volume statistics use these numbers.

use super::totals::Totals;

/// The size of a block of the file system.
pub(crate) const BLOCK: u64 = 4_096;

/// Bytes in whole blocks, and inodes, that the file system of the store is charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// The bytes.
    pub bytes: u64,
    /// The inodes.
    pub inodes: u64,
}

impl Usage {
    /// Returns the charge of a file of this size. Its name is charged separately.
    pub(crate) fn file(size: u64) -> Self {
        Self { bytes: size.div_ceil(BLOCK).max(1).saturating_mul(BLOCK), inodes: 1 }
    }

    /// Returns the charge of a blob of this size, its name, and the file with its provenance.
    pub(crate) fn blob(size: u64) -> Self {
        const NAME: usize = 64;
        let name = Self::name(NAME);
        Self::file(size).plus(name).plus(Self::file(0)).plus(name)
    }

    /// Returns the charge of an empty directory. Its name, and each name in it, are charged separately.
    pub(crate) fn directory() -> Self {
        Self::file(0)
    }

    /// Returns the charge of a symbolic link. ext4 stores a target below 60 bytes in the inode, and a longer one in a
    /// block.
    pub(crate) fn symlink() -> Self {
        Self::file(0)
    }

    /// Returns the charge of a name of this length in a directory. An ext4 entry has 8 bytes before the name and is
    /// padded to a multiple of 4.
    pub(crate) fn name(length: usize) -> Self {
        const ENTRY: u64 = 12;
        Self { bytes: (length as u64).saturating_add(ENTRY).saturating_mul(2), inodes: 0 }
    }

    /// Returns an estimate for content whose record has no usage, because an earlier version wrote it: each entry has
    /// at most one block that is not full.
    pub(crate) fn estimate(totals: Totals) -> Self {
        let blocks = totals.inodes.saturating_mul(BLOCK);
        Self { bytes: totals.bytes.saturating_add(blocks), inodes: totals.inodes }
    }

    /// Returns the sum.
    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }

    /// Returns the smaller number of each.
    #[must_use]
    pub(crate) fn at_most(self, other: Self) -> Self {
        Self { bytes: self.bytes.min(other.bytes), inodes: self.inodes.min(other.inodes) }
    }

    /// Returns the difference; zero where `other` is larger.
    #[must_use]
    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            inodes: self.inodes.saturating_sub(other.inodes),
        }
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::plus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_inode_is_charged_at_least_a_block() {
        for (size, blocks) in [(0, 1), (1, 1), (4_096, 1), (4_097, 2), (u64::MAX, u64::MAX / BLOCK)] {
            let charged = Usage::file(size);
            assert_eq!((charged.bytes / BLOCK, charged.inodes), (blocks, 1), "{size}");
        }
        // 15 names of 255 bytes fill a block, and a block can be half full.
        assert!(Usage::name(255).bytes * 15 / 2 >= BLOCK * 95 / 100);
    }
}
