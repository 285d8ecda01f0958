//! The progress of a pull, for progress bars and for the message in a pod's event.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::reference::PinnedReference;

/// A blob that a pull will download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    descriptor: Descriptor,
    name: String,
}

impl Planned {
    pub(crate) fn new(descriptor: Descriptor, name: String) -> Self {
        Self { descriptor, name }
    }

    /// Returns the descriptor of the blob.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns what it becomes: the path of a file or directory, or `layer`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Receives the progress of a pull. It is called from many tasks and must return at once.
pub trait Progress: Send + Sync {
    /// The pull will download these blobs. Content that is in the store already is not listed.
    fn planned(&self, blobs: &[Planned]);
    /// `bytes` more of a blob were received.
    fn received(&self, blob: &Digest, bytes: u64);
    /// `bytes` of a blob are on the disk already, from an earlier run or from another pull.
    fn found(&self, blob: &Digest, bytes: u64) {
        self.received(blob, bytes);
    }
    /// A blob is complete, verified and unpacked.
    fn finished(&self, blob: &Digest);
    /// Layers of these media types give no file, because they have no name.
    fn left_out(&self, _reference: &PinnedReference, _media_types: &[String]) {}
}

/// Ignores all progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn planned(&self, _: &[Planned]) {}
    fn received(&self, _: &Digest, _: u64) {}
    fn finished(&self, _: &Digest) {}
}

/// Counts the bytes of a pull.
#[derive(Debug)]
pub struct ProgressCounter {
    total: AtomicU64,
    done: AtomicU64,
    /// The part of `done` that was not downloaded by this pull.
    found: AtomicU64,
    started: Instant,
}

impl Default for ProgressCounter {
    fn default() -> Self {
        let (total, done, found) = Default::default();
        Self { total, done, found, started: Instant::now() }
    }
}

impl ProgressCounter {
    /// Returns the current progress.
    pub fn snapshot(&self) -> ProgressSnapshot {
        ProgressSnapshot {
            total: self.total.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            found: self.found.load(Ordering::Relaxed),
            elapsed: self.started.elapsed(),
        }
    }
}

impl Progress for ProgressCounter {
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

/// The progress of a pull at one moment. It is displayed as `1.2 GiB of 4.0 GiB (30 %), about 4 min left`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgressSnapshot {
    total: u64,
    done: u64,
    found: u64,
    elapsed: Duration,
}

impl ProgressSnapshot {
    /// Returns how many bytes are on the disk.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Returns how many bytes there will be at the end; 0 until the manifests are read.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns how many bytes this pull has downloaded: without what was on the disk already.
    pub fn downloaded(&self) -> u64 {
        self.done.saturating_sub(self.found)
    }

    /// Returns how long the pull has run.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    fn time_left(&self) -> Option<Duration> {
        let (rest, elapsed) = (self.total.saturating_sub(self.done), self.elapsed.as_millis());
        let downloaded = self.downloaded();
        if downloaded == 0 || elapsed < 1_000 {
            return None;
        }
        let left = u128::from(rest) * elapsed / u128::from(downloaded);
        Some(Duration::from_millis(u64::try_from(left).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for ProgressSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.total == 0 {
            return write!(f, "reading the manifest ({} s)", self.elapsed.as_secs());
        }
        // A range that was requested twice, or that two registries sent, counts once.
        let done = self.done.min(self.total);
        let percent = u128::from(done) * 100 / u128::from(self.total);
        write!(f, "{} of {} ({percent} %)", ByteSize(done), ByteSize(self.total))?;
        match self.time_left() {
            _ if self.done >= self.total => f.write_str(", unpacking"),
            Some(left) if left.as_secs() < 90 => write!(f, ", about {} s left", left.as_secs().max(1)),
            Some(left) => write!(f, ", about {} min left", left.as_secs().div_ceil(60)),
            None => Ok(()),
        }
    }
}

/// A number of bytes as people read it, such as `1.2 GiB` or `17 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
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
    #[case(0, 0, 3, "reading the manifest (3 s)")]
    #[case(4 << 30, 0, 60, "0 bytes of 4.0 GiB (0 %)")]
    #[case(4 << 30, 1 << 30, 60, "1.0 GiB of 4.0 GiB (25 %), about 3 min left")]
    #[case(4 << 20, 3 << 20, 60, "3.0 MiB of 4.0 MiB (75 %), about 20 s left")]
    #[case(2048, 1536, 0, "1.5 KiB of 2.0 KiB (75 %)")]
    #[case(100, 130, 5, "100 bytes of 100 bytes (100 %), unpacking")]
    #[case(100, 100, 5, "100 bytes of 100 bytes (100 %), unpacking")]
    fn displays_the_progress(
        #[case] total: u64,
        #[case] done: u64,
        #[case] seconds: u64,
        #[case] expected: &str,
    ) {
        let snapshot = ProgressSnapshot { total, done, found: 0, elapsed: Duration::from_secs(seconds) };
        assert_eq!(snapshot.to_string(), expected);
    }

    #[test]
    fn resumed_bytes_do_not_count_for_the_remaining_time() {
        let elapsed = Duration::from_secs(10);
        let snapshot = ProgressSnapshot { total: 100 << 20, done: 60 << 20, found: 50 << 20, elapsed };
        assert_eq!(snapshot.to_string(), "60.0 MiB of 100.0 MiB (60 %), about 40 s left");
    }
}
