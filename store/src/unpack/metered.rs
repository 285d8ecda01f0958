//! Counts the uncompressed bytes of a layer while they are read.

use std::io::{self, BufRead, Read};

use oras_csi_core::digest::{Algorithm, Digest, Hasher};

use super::budget::Budget;
use crate::content::blob_reader::StreamFault;
use crate::limits::Limits;

/// The uncompressed stream of a layer. It is checked against the limit, and hashed if a digest is needed.
pub(super) struct MeteredReader<'a, R> {
    input: R,
    limits: &'a Limits,
    budget: &'a Budget,
    hasher: Option<Hasher>,
    consumed: u64,
    counted: u64,
}

impl<'a, R: BufRead> MeteredReader<'a, R> {
    /// Reads from `input`.
    pub(super) fn new(
        input: R,
        limits: &'a Limits,
        budget: &'a Budget,
        algorithm: Option<Algorithm>,
    ) -> Self {
        let hasher = algorithm.map(Hasher::new);
        Self { input, limits, budget, hasher, consumed: 0, counted: 0 }
    }

    /// Returns the digest of the bytes that were consumed, if one is needed.
    pub(super) fn finish(&mut self) -> Option<Digest> {
        self.hasher.take().map(Hasher::finish)
    }

    fn check(&mut self) -> Result<(), StreamFault> {
        self.budget.count_bytes(self.consumed - self.counted, self.limits)?;
        self.counted = self.consumed;
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
