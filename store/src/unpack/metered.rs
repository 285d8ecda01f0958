//! Counts the uncompressed bytes of a layer while they are read.

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;

use oras_csi_core::digest::{Algorithm, Digest, Hasher};

use super::budget::Budget;
use crate::content::blob_reader::StreamFault;
use crate::disk::DiskSpace;
use crate::limits::Limits;

/// The uncompressed stream of a layer: counted against the limit and the free space, hashed if asked for.
pub(super) struct Metered<'a, R> {
    input: R,
    limits: &'a Limits,
    budget: &'a Budget,
    disk: &'a OwnedFd,
    hasher: Option<Hasher>,
    seen: u64,
    counted: u64,
    next_look: u64,
}

impl<'a, R: BufRead> Metered<'a, R> {
    const LOOK_EVERY: u64 = 64 << 20;

    /// Watches `input`, whose content lands on the file system of `disk`.
    pub(super) fn new(
        input: R,
        limits: &'a Limits,
        budget: &'a Budget,
        disk: &'a OwnedFd,
        algorithm: Option<Algorithm>,
    ) -> Self {
        let hasher = algorithm.map(Hasher::new);
        Self { input, limits, budget, disk, hasher, seen: 0, counted: 0, next_look: Self::LOOK_EVERY }
    }

    /// The digest of everything that was consumed, if one was asked for.
    pub(super) fn finish(&mut self) -> Option<Digest> {
        self.hasher.take().map(Hasher::finish)
    }

    fn check(&mut self) -> Result<(), StreamFault> {
        self.budget.bytes(self.seen - self.counted, self.limits)?;
        self.counted = self.seen;
        if self.seen >= self.next_look {
            self.next_look = self.seen + Self::LOOK_EVERY;
            let (space, reserve) = (DiskSpace::measure(self.disk)?, self.limits.reserve());
            if space.check(0, reserve).is_err() {
                return Err(space.shortage(Self::LOOK_EVERY, reserve).into());
            }
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Metered<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let count = piece.len().min(into.len());
        into[..count].copy_from_slice(&piece[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Metered<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.check().map_err(io::Error::other)?;
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if let Some(hasher) = &mut self.hasher
            && let Ok(piece) = self.input.fill_buf()
        {
            // What is consumed is what the buffer holds: filling it again reads nothing.
            hasher.update(&piece[..count.min(piece.len())]);
        }
        self.input.consume(count);
        self.seen += count as u64;
    }
}
