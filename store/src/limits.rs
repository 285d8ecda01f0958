//! Limits on what a registry can make a node download, unpack and store (docs/design.md, "Limits").

mod percent;
mod reserve;

use std::time::Duration;

use oras_csi_core::entry_path::PathLimits;

pub use self::percent::{Percent, PercentError};
pub use self::reserve::Reserve;

/// Limits on downloaded and unpacked content. Each has its own error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    layers: usize,
    entries: u64,
    path: usize,
    depth: usize,
    unpacked: u64,
    zstd_window_log: u32,
    reserve: Reserve,
    inode_reserve: Reserve,
    download_slots: usize,
    download_slots_per_artifact: usize,
    slow_after: Duration,
    stalled_after: Duration,
    minimum_age: Duration,
}

impl From<&Limits> for PathLimits {
    fn from(limits: &Limits) -> Self {
        Self { bytes: limits.path, depth: limits.depth }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 4_096,
            entries: 1_000_000,
            path: 4_096,
            depth: 256,
            unpacked: 100 << 30,
            zstd_window_log: 27,
            reserve: Reserve::percent(Percent::TENTH).at_most(256 << 20),
            inode_reserve: Reserve::percent(Percent::TWENTIETH).at_most(10_000),
            download_slots: 8,
            download_slots_per_artifact: 4,
            slow_after: Duration::from_secs(10),
            stalled_after: Duration::from_mins(2),
            minimum_age: Duration::from_mins(2),
        }
    }
}

impl Limits {
    /// Returns the maximum number of layers in a manifest: 4,096, which is also the most that is ever read.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Returns the maximum number of entries in all layers of a volume together, and in its tree: 1,000,000.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns the maximum length of a path in a tree, in bytes: 4,096.
    pub fn path(&self) -> usize {
        self.path
    }

    /// Returns the maximum number of nested directories in a path: 256.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Returns the maximum size of a volume: the unpacked size of all its layers together, and what the disk is
    /// charged for its layers, blobs and tree together, in bytes: 100 GiB.
    pub fn unpacked(&self) -> u64 {
        self.unpacked
    }

    /// Returns the maximum zstd window, as a base-2 logarithm: 27, which is 128 MiB.
    pub fn zstd_window_log(&self) -> u32 {
        self.zstd_window_log
    }

    /// Returns the part of the disk that always stays free: a tenth, and no more than 256 MiB.
    pub fn reserve(&self) -> Reserve {
        self.reserve
    }

    /// Returns the inodes that always stay free: a twentieth, and no more than 10,000.
    pub fn inode_reserve(&self) -> Reserve {
        self.inode_reserve
    }

    /// Returns the number of download slots of the node, one for each blob that is downloaded: 8, and half of
    /// them for one host. The same number again is available for slow downloads, and half of it for small blobs.
    pub fn download_slots(&self) -> usize {
        self.download_slots
    }

    /// Returns the number of download slots that one volume can use: 4.
    pub fn download_slots_per_artifact(&self) -> usize {
        self.download_slots_per_artifact
    }

    /// Returns after which time a download below 64 KiB per second counts as slow and frees its slot: 10 s.
    pub fn slow_after(&self) -> Duration {
        self.slow_after
    }

    /// Returns after which time a download below 4 KiB per second fails as stalled: two minutes.
    pub fn stalled_after(&self) -> Duration {
        self.stalled_after
    }

    /// Returns the minimum age of items that are deleted for a pull when the disk is full: two minutes since
    /// last use.
    pub fn minimum_age(&self) -> Duration {
        self.minimum_age
    }

    /// Sets the minimum age of items that are deleted when the disk is full.
    #[must_use]
    pub fn with_minimum_age(mut self, age: Duration) -> Self {
        self.minimum_age = age;
        self
    }

    /// Sets after which time a slow download frees its slot, and after which time a stalled download fails.
    #[must_use]
    pub fn with_slow_download_times(mut self, slow_after: Duration, stalled_after: Duration) -> Self {
        (self.slow_after, self.stalled_after) = (slow_after, stalled_after);
        self
    }

    /// Sets the maximum number of layers.
    #[must_use]
    pub fn with_layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// Sets the maximum length of a path.
    #[must_use]
    pub fn with_path(mut self, bytes: usize) -> Self {
        self.path = bytes;
        self
    }

    /// Sets the maximum zstd window, as a base-2 logarithm.
    #[must_use]
    pub fn with_zstd_window_log(mut self, log: u32) -> Self {
        self.zstd_window_log = log;
        self
    }

    /// Sets the maximum number of entries.
    #[must_use]
    pub fn with_entries(mut self, entries: u64) -> Self {
        self.entries = entries;
        self
    }

    /// Sets the maximum number of nested directories.
    #[must_use]
    pub fn with_depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// Sets the maximum unpacked size of a volume.
    #[must_use]
    pub fn with_unpacked(mut self, bytes: u64) -> Self {
        self.unpacked = bytes;
        self
    }

    /// Sets the reserve of free space.
    #[must_use]
    pub fn with_reserve(mut self, reserve: Reserve) -> Self {
        self.reserve = reserve;
        self
    }

    /// Sets the reserve of free inodes.
    #[must_use]
    pub fn with_inode_reserve(mut self, reserve: Reserve) -> Self {
        self.inode_reserve = reserve;
        self
    }

    /// Sets the number of download slots of the node; at least one.
    #[must_use]
    pub fn with_download_slots(mut self, download_slots: usize) -> Self {
        self.download_slots = download_slots.max(1);
        self
    }
}
