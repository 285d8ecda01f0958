//! How far a pull is: for a progress bar, and for the words in a pod's event.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::Descriptor;

/// A blob that a pull is going to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    descriptor: Descriptor,
    name: String,
}

impl Planned {
    pub(crate) fn new(descriptor: Descriptor, name: String) -> Self {
        Self { descriptor, name }
    }

    /// The blob.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// What it becomes: the path of a file or directory, or `layer`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Hears how far a pull is. Called from many tasks; must return at once.
pub trait Progress: Send + Sync {
    /// What will be fetched; what is in the store already is not among it.
    fn planned(&self, blobs: &[Planned]);
    /// `bytes` more of a blob have come.
    fn received(&self, blob: &Digest, bytes: u64);
    /// `bytes` of a blob are there already, from an earlier run or from somebody else.
    fn found(&self, blob: &Digest, bytes: u64) {
        self.received(blob, bytes);
    }
    /// A blob is whole, verified and unpacked.
    fn finished(&self, blob: &Digest);
}

/// For whom nothing needs to be said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn planned(&self, _: &[Planned]) {}
    fn received(&self, _: &Digest, _: u64) {}
    fn finished(&self, _: &Digest) {}
}

/// Counts, for a sentence.
#[derive(Debug)]
pub struct Meter {
    total: AtomicU64,
    done: AtomicU64,
    /// Of these, what did not have to come.
    found: AtomicU64,
    begun: Instant,
}

impl Default for Meter {
    fn default() -> Self {
        let (total, done, found) = Default::default();
        Self { total, done, found, begun: Instant::now() }
    }
}

impl Meter {
    /// How far it is now.
    pub fn read(&self) -> Reading {
        Reading {
            total: self.total.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            found: self.found.load(Ordering::Relaxed),
            elapsed: self.begun.elapsed(),
        }
    }
}

impl Progress for Meter {
    fn planned(&self, blobs: &[Planned]) {
        let total = blobs.iter().map(|blob| blob.descriptor.size()).fold(0, u64::saturating_add);
        self.total.store(total, Ordering::Relaxed);
    }

    fn received(&self, _: &Digest, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn found(&self, _: &Digest, bytes: u64) {
        self.found.fetch_add(bytes, Ordering::Relaxed);
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn finished(&self, _: &Digest) {}
}

/// How far a pull is; prints as `1.2 GiB of 4.0 GiB (30 %), about 4 min left`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    total: u64,
    done: u64,
    found: u64,
    elapsed: Duration,
}

impl Reading {
    /// Bytes that are there.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Bytes that will have come at the end; 0 while nobody knows.
    pub fn total(&self) -> u64 {
        self.total
    }

    fn left(&self) -> Option<Duration> {
        let (rest, elapsed) = (self.total.saturating_sub(self.done), self.elapsed.as_millis());
        let came = self.done.saturating_sub(self.found);
        if came == 0 || elapsed < 1_000 {
            return None;
        }
        let left = u128::from(rest) * elapsed / u128::from(came);
        Some(Duration::from_millis(u64::try_from(left).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.total == 0 {
            return write!(f, "the manifest is being read, since {} s", self.elapsed.as_secs());
        }
        // A part that is asked for again, or that came from two registries, counts once.
        let done = self.done.min(self.total);
        let percent = u128::from(done) * 100 / u128::from(self.total);
        write!(f, "{} of {} ({percent} %)", Bytes(done), Bytes(self.total))?;
        match self.left() {
            _ if self.done >= self.total => f.write_str(", being unpacked"),
            Some(left) if left.as_secs() < 90 => write!(f, ", about {} s left", left.as_secs().max(1)),
            Some(left) => write!(f, ", about {} min left", left.as_secs().div_ceil(60)),
            None => Ok(()),
        }
    }
}

struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >> shift > 0 {
                let tenths = (u128::from(self.0) * 10) >> shift;
                return write!(f, "{}.{} {unit}", tenths / 10, tenths % 10);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, 0, 3, "the manifest is being read, since 3 s")]
    #[case(4 << 30, 0, 60, "0 bytes of 4.0 GiB (0 %)")]
    #[case(4 << 30, 1 << 30, 60, "1.0 GiB of 4.0 GiB (25 %), about 3 min left")]
    #[case(4 << 20, 3 << 20, 60, "3.0 MiB of 4.0 MiB (75 %), about 20 s left")]
    #[case(2048, 1536, 0, "1.5 KiB of 2.0 KiB (75 %)")]
    #[case(100, 130, 5, "100 bytes of 100 bytes (100 %), being unpacked")]
    #[case(100, 100, 5, "100 bytes of 100 bytes (100 %), being unpacked")]
    fn reads(#[case] total: u64, #[case] done: u64, #[case] seconds: u64, #[case] words: &str) {
        let reading = Reading { total, done, found: 0, elapsed: Duration::from_secs(seconds) };
        assert_eq!(reading.to_string(), words);
    }

    #[test]
    fn what_was_there_says_nothing_of_how_fast_the_rest_comes() {
        let elapsed = Duration::from_secs(10);
        let reading = Reading { total: 100 << 20, done: 60 << 20, found: 50 << 20, elapsed };
        assert_eq!(reading.to_string(), "60.0 MiB of 100.0 MiB (60 %), about 40 s left");
    }
}
