//! A buffer of recently written chunks, so that a reader that keeps up does not read them from the disk.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

/// The maximum number of buffered bytes.
const MAX_BYTES: usize = 2 << 20;
/// The maximum number of chunks. Lookups scan all chunks, and a registry can send single bytes.
const MAX_CHUNKS: usize = 64;

/// Chunks with their offsets, the latest last.
#[derive(Debug, Default)]
pub(super) struct RecentChunks {
    chunks: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl RecentChunks {
    /// Adds a chunk, and drops the oldest ones above the limits.
    pub(super) fn push(&mut self, at: u64, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push_back((at, chunk));
        while self.bytes > MAX_BYTES || self.chunks.len() > MAX_CHUNKS {
            self.pop();
        }
    }

    /// Returns the range of the oldest chunk if it would be dropped for a chunk of this length.
    pub(super) fn oldest_if_full(&self, length: usize) -> Option<Range<u64>> {
        let is_full = self.bytes + length > MAX_BYTES || self.chunks.len() >= MAX_CHUNKS;
        let (start, oldest) = self.chunks.front().filter(|_| is_full)?;
        Some(*start..start + oldest.len() as u64)
    }

    /// Returns buffered bytes that start at `at`. Drops chunks before `at`, because the reader only moves
    /// forward.
    pub(super) fn take(&mut self, at: u64) -> Option<Bytes> {
        while self.chunks.front().is_some_and(|(start, chunk)| start + chunk.len() as u64 <= at) {
            self.pop();
        }
        let found =
            self.chunks.iter().find(|(start, chunk)| (*start..start + chunk.len() as u64).contains(&at));
        found.map(|(start, chunk)| {
            // The offset is inside the chunk, so it fits into a usize.
            chunk.slice(usize::try_from(at - start).unwrap_or(chunk.len())..)
        })
    }

    fn pop(&mut self) {
        if let Some((_, chunk)) = self.chunks.pop_front() {
            self.bytes -= chunk.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_recent_chunks_and_drops_older_ones() {
        let mut recent = RecentChunks::default();
        assert_eq!(recent.take(0), None);
        recent.push(0, Bytes::from_static(b"abc"));
        recent.push(100, Bytes::from_static(b"xyz"));
        recent.push(3, Bytes::from_static(b"def"));
        assert_eq!(recent.take(1).unwrap(), "bc");
        assert_eq!(recent.take(3).unwrap(), "def");
        assert_eq!(recent.take(6), None);
        assert_eq!(recent.take(101).unwrap(), "yz");
        let chunk = MAX_BYTES / 4;
        for at in 0..6 {
            recent.push((at * chunk) as u64, Bytes::from(vec![0; chunk]));
        }
        assert!(recent.bytes <= MAX_BYTES && recent.chunks.len() == 4);
        assert_eq!(recent.take(chunk as u64), None);
        assert_eq!(recent.take((2 * chunk + 1) as u64).unwrap().len(), chunk - 1);
        recent.take((6 * chunk) as u64);
        assert_eq!((recent.bytes, recent.chunks.len()), (0, 0));
    }

    #[test]
    fn limits_the_number_of_small_chunks() {
        let mut recent = RecentChunks::default();
        for at in 0..1_000 {
            recent.push(at, Bytes::from_static(b"x"));
        }
        assert_eq!(recent.chunks.len(), MAX_CHUNKS);
        assert_eq!((recent.take(0), recent.take(999).unwrap().len()), (None, 1));
    }
}
