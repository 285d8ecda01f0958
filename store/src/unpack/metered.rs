//! Counts the uncompressed bytes of a layer while they are read.

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;

use oras_csi_core::digest::{Algorithm, Digest, Hasher};

use super::budget::Budget;
use crate::content::blob_reader::StreamFault;
use crate::disk::DiskSpace;
use crate::limits::Limits;

/// The uncompressed stream of a layer. It is checked against the limit and the free disk space, and hashed if a
/// digest is needed.
pub(super) struct MeteredReader<'a, R> {
    input: R,
    limits: &'a Limits,
    budget: &'a Budget,
    disk: &'a OwnedFd,
    hasher: Option<Hasher>,
    consumed: u64,
    counted: u64,
    next_check: u64,
}

impl<'a, R: BufRead> MeteredReader<'a, R> {
    const CHECK_EVERY: u64 = 64 << 20;

    /// Reads from `input`. The content is written to the file system of `disk`.
    pub(super) fn new(
        input: R,
        limits: &'a Limits,
        budget: &'a Budget,
        disk: &'a OwnedFd,
        algorithm: Option<Algorithm>,
    ) -> Self {
        let hasher = algorithm.map(Hasher::new);
        Self { input, limits, budget, disk, hasher, consumed: 0, counted: 0, next_check: Self::CHECK_EVERY }
    }

    /// Returns the digest of the bytes that were consumed, if one is needed.
    pub(super) fn finish(&mut self) -> Option<Digest> {
        self.hasher.take().map(Hasher::finish)
    }

    fn check(&mut self) -> Result<(), StreamFault> {
        self.budget.count_bytes(self.consumed - self.counted, self.limits)?;
        self.counted = self.consumed;
        if self.consumed >= self.next_check {
            self.next_check = self.consumed + Self::CHECK_EVERY;
            let (space, reserve) = (DiskSpace::measure(self.disk)?, self.limits.reserve());
            if space.check(0, reserve).is_err() {
                return Err(space.shortage(Self::CHECK_EVERY, reserve).into());
            }
        }
        Ok(())
    }
}

impl<R: BufRead> Read for MeteredReader<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let count = piece.len().min(into.len());
        into[..count].copy_from_slice(&piece[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for MeteredReader<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.check().map_err(io::Error::other)?;
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if let Some(hasher) = &mut self.hasher
            && let Ok(piece) = self.input.fill_buf()
        {
            // The consumed bytes are still in the buffer, so filling it again reads nothing.
            hasher.update(&piece[..count.min(piece.len())]);
        }
        self.input.consume(count);
        self.consumed += count as u64;
    }
}
