//! What was written last, for a reader that keeps up: it need not be read again.

use std::collections::VecDeque;

use bytes::Bytes;

/// How much of it is held.
const MOST: usize = 1 << 20;
/// In how many pieces: a registry may send them byte by byte, and each is looked at.
const MOST_PIECES: usize = 64;

/// Pieces and their places, the latest last.
#[derive(Debug, Default)]
pub(super) struct RecentChunks {
    pieces: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl RecentChunks {
    /// Holds a piece; the oldest make room for it.
    pub(super) fn push(&mut self, at: u64, piece: Bytes) {
        self.bytes += piece.len();
        self.pieces.push_back((at, piece));
        while self.bytes > MOST || self.pieces.len() > MOST_PIECES {
            self.pop();
        }
    }

    /// What is held of the bytes from `at` on. The reader does not come back to what lies before.
    pub(super) fn take(&mut self, at: u64) -> Option<Bytes> {
        while self.pieces.front().is_some_and(|(start, piece)| start + piece.len() as u64 <= at) {
            self.pop();
        }
        let found =
            self.pieces.iter().find(|(start, piece)| (*start..start + piece.len() as u64).contains(&at));
        found.map(|(start, piece)| {
            // It is within the piece, so that its place there is a usize.
            piece.slice(usize::try_from(at - start).unwrap_or(piece.len())..)
        })
    }

    fn pop(&mut self) {
        if let Some((_, piece)) = self.pieces.pop_front() {
            self.bytes -= piece.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_keeps_up_finds_all_and_one_that_does_not_finds_less() {
        let mut recent = RecentChunks::default();
        assert_eq!(recent.take(0), None);
        recent.push(0, Bytes::from_static(b"abc"));
        recent.push(100, Bytes::from_static(b"xyz"));
        recent.push(3, Bytes::from_static(b"def"));
        assert_eq!(recent.take(1).unwrap(), "bc");
        assert_eq!(recent.take(3).unwrap(), "def");
        assert_eq!(recent.take(6), None);
        assert_eq!(recent.take(101).unwrap(), "yz");
        let piece = MOST / 4;
        for at in 0..6 {
            recent.push((at * piece) as u64, Bytes::from(vec![0; piece]));
        }
        assert!(recent.bytes <= MOST && recent.pieces.len() == 4);
        assert_eq!(recent.take(piece as u64), None);
        assert_eq!(recent.take((2 * piece + 1) as u64).unwrap().len(), piece - 1);
        recent.take((6 * piece) as u64);
        assert_eq!((recent.bytes, recent.pieces.len()), (0, 0));
    }

    #[test]
    fn small_pieces_are_few() {
        let mut recent = RecentChunks::default();
        for at in 0..1_000 {
            recent.push(at, Bytes::from_static(b"x"));
        }
        assert_eq!(recent.pieces.len(), MOST_PIECES);
        assert_eq!((recent.take(0), recent.take(999).unwrap().len()), (None, 1));
    }
}
