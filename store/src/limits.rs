//! Limits on what a registry can make a node download, unpack and store.

mod percent;
mod reserve;

use std::time::Duration;

pub use self::percent::{Percent, PercentError};
pub use self::reserve::Reserve;

/// Limits on what is unpacked. Each has its own message when it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    layers: usize,
    entries: u64,
    path: usize,
    depth: usize,
    unpacked: u64,
    zstd_window_log: u32,
    reserve: Reserve,
    streams: usize,
    streams_per_artifact: usize,
    slow_after: Duration,
    least_after: Duration,
    minimum_age: Duration,
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
            reserve: Reserve::percent(Percent::A_TENTH).at_most(256 << 20),
            streams: 8,
            streams_per_artifact: 4,
            slow_after: Duration::from_secs(10),
            least_after: Duration::from_mins(2),
            minimum_age: Duration::from_mins(2),
        }
    }
}

impl Limits {
    /// How many layers a manifest may have: 4,096, which is also the most that is ever read.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// How many entries all layers of a volume may hold together, and its tree: 1,000,000.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The longest path within a tree, in bytes: 4,096.
    pub fn path(&self) -> usize {
        self.path
    }

    /// How many directories deep a path may go: 256.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// How many bytes all layers of a volume may unpack to together, and its tree may have: 100 GiB.
    pub fn unpacked(&self) -> u64 {
        self.unpacked
    }

    /// The largest zstd window, as its logarithm: 27, which is 128 MiB.
    pub fn zstd_window_log(&self) -> u32 {
        self.zstd_window_log
    }

    /// How much of the disk stays free whatever is asked for: a tenth, and no more than 256 MiB.
    pub fn reserve(&self) -> Reserve {
        self.reserve
    }

    /// How many blobs are read from registries at once, on the whole node: 8, of one host half of them. As many
    /// again may be read slowly.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// How many blobs of one volume are read at once: 4.
    pub fn streams_per_artifact(&self) -> usize {
        self.streams_per_artifact
    }

    /// How long a blob that comes with less than 64 KiB a second may keep others waiting: 10 s.
    pub fn slow_after(&self) -> Duration {
        self.slow_after
    }

    /// How long a blob may come with less than 4 KiB a second: two minutes.
    pub fn least_after(&self) -> Duration {
        self.least_after
    }

    /// What was used within this time is not collected for a pull that finds no room: two minutes.
    pub fn minimum_age(&self) -> Duration {
        self.minimum_age
    }

    /// The same limits with another age at which something may be collected.
    #[must_use]
    pub fn with_minimum_age(mut self, age: Duration) -> Self {
        self.minimum_age = age;
        self
    }

    /// The same limits with another patience: until a slow blob makes way, and until it is given up.
    #[must_use]
    pub fn with_patience(mut self, slow_after: Duration, least_after: Duration) -> Self {
        (self.slow_after, self.least_after) = (slow_after, least_after);
        self
    }

    /// The same limits with another number of layers.
    #[must_use]
    pub fn with_layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// The same limits with another longest path.
    #[must_use]
    pub fn with_path(mut self, bytes: usize) -> Self {
        self.path = bytes;
        self
    }

    /// The same limits with another largest zstd window, as its logarithm.
    #[must_use]
    pub fn with_zstd_window_log(mut self, log: u32) -> Self {
        self.zstd_window_log = log;
        self
    }

    /// The same limits with another number of entries.
    #[must_use]
    pub fn with_entries(mut self, entries: u64) -> Self {
        self.entries = entries;
        self
    }

    /// The same limits with another number of directories within each other.
    #[must_use]
    pub fn with_depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// The same limits with another size that a volume may unpack to.
    #[must_use]
    pub fn with_unpacked(mut self, bytes: u64) -> Self {
        self.unpacked = bytes;
        self
    }

    /// The same limits with another reserve of free space.
    #[must_use]
    pub fn with_reserve(mut self, reserve: Reserve) -> Self {
        self.reserve = reserve;
        self
    }

    /// The same limits with another number of blobs read at once on the node; at least one.
    #[must_use]
    pub fn with_streams(mut self, streams: usize) -> Self {
        self.streams = streams.max(1);
        self
    }
}
