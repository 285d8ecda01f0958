//! The compressed bytes of an archive on their way from the network to the unpacking.
//!
//! ```text
//! writer ─┬─ in order ─────► memory, at most 1 MiB ─┐
//!         └─ ahead of it ──► a file without a name ─┴─► unpacking
//! ```
//!
//! An archive is written to the disk once, as its files. Its own bytes are kept in memory until they are unpacked. Only
//! ranges that arrive before the bytes in front of them go to a file, whose blocks are freed as soon as they were read.
//! The network is then slower than the unpacking, so the disk has time for them.
//!
//! Bytes that were unpacked are gone, so an archive cannot be resumed by another process: after `kill -9` it is downloaded
//! again. Within the process it is: see `pull::parked`. docs/decisions/archives-are-written-once.md has the reasons.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use rustix::fs::FallocateFlags;

use super::blob_sink::{BlobSink, Next};
use crate::disk::ranges::Ranges;
use crate::disk::reservations::Reservation;
use crate::disk::{DiskError, Usage};

/// The maximum number of bytes in memory.
const MAX_BYTES: usize = 1 << 20;
/// The maximum number of pieces in memory: a registry can send single bytes, and each piece keeps its network buffer.
const MAX_PIECES: usize = 64;
/// No range further ahead is requested while this much is in the file.
const MAX_AHEAD: u64 = 128 << 20;
/// The size of one read from the file.
const READ_BYTES: usize = 256 << 10;
/// How much is read from the file before its blocks are freed.
const FREE_EVERY_BYTES: u64 = 8 << 20;

/// An archive that is being downloaded. One thread writes, and one reader follows it.
#[derive(Debug)]
pub(crate) struct Spool {
    size: u64,
    /// The path where the file is created. It is unlinked at once.
    path: PathBuf,
    file: OnceLock<File>,
    state: Mutex<State>,
    /// Wakes the reader after bytes arrived, and the writer after memory was freed.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The promised disk space for the bytes that have not arrived.
    space: Arc<Reservation>,
    received: Ranges,
    /// Where the reader continues.
    next: u64,
    /// Pieces by their offset. Each is contiguous with what the reader gets before it.
    memory: BTreeMap<u64, Bytes>,
    bytes_in_memory: usize,
    on_disk: Ranges,
    /// From where the blocks of the file were not freed yet.
    freed_to: u64,
    is_closed: bool,
    /// Whether a thread waits. A notification is a system call, also if no thread waits.
    is_reader_waiting: bool,
    is_writer_waiting: bool,
}

impl Spool {
    /// Creates a spool for a blob of `size` bytes. If it needs a file, it creates it at `path`, where nothing is.
    pub(crate) fn new(size: u64, path: PathBuf, space: Arc<Reservation>) -> Self {
        let state = State {
            space,
            received: Ranges::default(),
            next: 0,
            memory: BTreeMap::new(),
            bytes_in_memory: 0,
            on_disk: Ranges::default(),
            freed_to: 0,
            is_closed: false,
            is_reader_waiting: false,
            is_writer_waiting: false,
        };
        Self { size, path, file: OnceLock::new(), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Returns how many bytes have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.state().received.bytes()
    }

    /// Continues for another pull, which has reserved `space` for all bytes of the blob.
    pub(crate) fn resume(&self, space: Arc<Reservation>) {
        let mut state = self.state();
        space.spend(bytes(state.received.bytes()));
        state.space = space;
    }

    /// Releases the promised space, because no pull downloads the rest at the moment.
    pub(crate) fn release_space(&self) {
        self.state().space = Arc::new(Reservation::none());
    }

    /// Ends the download: the reader gets no more bytes.
    pub(crate) fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_all();
    }

    /// Reserves the space of all bytes that arrived, because the blob is downloaded again with the same reservation.
    pub(crate) fn reserve_again(&self) {
        let state = self.state();
        state.space.restore(bytes(state.received.bytes()));
    }

    /// Waits for the next bytes and returns some of them. Supports one reader. Blocks, so it must not be called from async
    /// code.
    pub(crate) fn next(&self) -> Result<Next, DiskError> {
        let mut state = self.state();
        loop {
            let at = state.next;
            if at >= self.size {
                return Ok(Next::Bytes(Bytes::new()));
            }
            if let Some(piece) = state.memory.remove(&at) {
                state.bytes_in_memory -= piece.len();
                state.next += piece.len() as u64;
                self.wake(state.is_writer_waiting);
                return Ok(Next::Bytes(piece));
            }
            let end = state.on_disk.end_from(at);
            if end > at {
                return self.read_from_file(state, at..end).map(Next::Bytes);
            }
            if state.is_closed {
                return Ok(Next::Closed);
            }
            state.is_reader_waiting = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.is_reader_waiting = false;
        }
    }

    /// Wakes the other side, if it waits.
    fn wake(&self, is_waiting: bool) {
        if is_waiting {
            self.changed.notify_all();
        }
    }

    /// Reads the first bytes of a range that is in the file.
    fn read_from_file(
        &self,
        mut state: MutexGuard<'_, State>,
        range: Range<u64>,
    ) -> Result<Bytes, DiskError> {
        let length = READ_BYTES.min(usize::try_from(range.end - range.start).unwrap_or(READ_BYTES));
        state.next += length as u64;
        let free = (state.next - state.freed_to >= FREE_EVERY_BYTES || state.next == range.end)
            .then(|| std::mem::replace(&mut state.freed_to, range.start + length as u64));
        // The writer waits while the reader is far behind.
        self.wake(state.is_writer_waiting);
        drop(state);
        let mut piece = BytesMut::zeroed(length);
        let file = self.file()?;
        file.read_exact_at(&mut piece, range.start).map_err(|error| self.error("read", error))?;
        if let Some(from) = free {
            // Where the file system cannot do it, the space is freed with the file.
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(file, flags, from, range.start + length as u64 - from);
        }
        Ok(piece.freeze())
    }

    /// Keeps bytes that have not arrived before.
    fn keep(&self, range: &Range<u64>, piece: Bytes) -> Result<(), DiskError> {
        let mut state = self.state();
        loop {
            if state.is_closed {
                return Ok(());
            }
            if range.start != state.received.end_from(state.next) {
                break;
            }
            let is_full = state.bytes_in_memory + piece.len() > MAX_BYTES || state.memory.len() >= MAX_PIECES;
            // All pieces in memory are in order, so the reader frees memory without any other bytes.
            if is_full && !state.memory.is_empty() {
                state.is_writer_waiting = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.is_writer_waiting = false;
                continue;
            }
            state.space.spend(bytes(piece.len() as u64));
            state.received.add(range);
            state.bytes_in_memory += piece.len();
            state.memory.insert(range.start, piece);
            self.wake(state.is_reader_waiting);
            return Ok(());
        }
        drop(state);
        self.file()?.write_all_at(&piece, range.start).map_err(|error| self.error("write", error))?;
        let mut state = self.state();
        state.space.spend(bytes(piece.len() as u64));
        state.received.add(range);
        state.on_disk.add(range);
        self.wake(state.is_reader_waiting);
        Ok(())
    }

    fn file(&self) -> Result<&File, DiskError> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = File::options().read(true).write(true).create_new(true).open(&self.path);
        let file = file.map_err(|error| self.error("create", error))?;
        std::fs::remove_file(&self.path).map_err(|error| self.error("unlink", error))?;
        // Only the writer creates it. The reader asks for it after something was written.
        Ok(self.file.get_or_init(|| file))
    }

    fn error(&self, step: &'static str, error: std::io::Error) -> DiskError {
        DiskError::new(step, &self.path, error)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlobSink for Spool {
    fn missing(&self) -> Vec<Range<u64>> {
        self.state().received.missing(0..self.size)
    }

    fn write(&self, offset: u64, mut piece: Bytes) -> Result<(), DiskError> {
        let end = offset + piece.len() as u64;
        // Bytes arrive again if the registry serves no ranges after some of them.
        let missing = self.state().received.missing(offset..end);
        let mut at = offset;
        for range in missing {
            // Both lengths are within the piece.
            let skipped = usize::try_from(range.start - at).unwrap_or(piece.len());
            let length = usize::try_from(range.end - range.start).unwrap_or(piece.len());
            let _ = piece.split_to(skipped);
            let part = piece.split_to(length);
            at = range.end;
            self.keep(&range, part)?;
        }
        Ok(())
    }

    fn is_far_ahead(&self) -> bool {
        let state = self.state();
        state.on_disk.bytes_from(state.next) >= MAX_AHEAD
    }
}

fn bytes(bytes: u64) -> Usage {
    Usage { bytes, inodes: 0 }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn spool(folder: &tempfile::TempDir, size: u64) -> Arc<Spool> {
        Arc::new(Spool::new(size, folder.path().join("spool"), Arc::new(Reservation::none())))
    }

    /// The byte at this offset.
    fn byte(at: u64) -> u8 {
        u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap()
    }

    fn piece(range: Range<u64>) -> Bytes {
        range.map(byte).collect()
    }

    /// Reads to the end in a thread.
    fn reader(spool: &Arc<Spool>) -> std::thread::JoinHandle<(u64, bool)> {
        let spool = spool.clone();
        std::thread::spawn(move || {
            let mut at = 0;
            loop {
                match spool.next().unwrap() {
                    Next::Closed => return (at, false),
                    Next::Bytes(piece) if piece.is_empty() => return (at, true),
                    Next::Bytes(piece) => {
                        assert!(piece.iter().zip(at..).all(|(found, at)| *found == byte(at)), "at {at}");
                        at += piece.len() as u64;
                    }
                }
            }
        })
    }

    #[test]
    fn bytes_in_order_are_never_written_to_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(&folder, 8 * MIB);
        let reading = reader(&spool);
        for at in (0..8 * MIB).step_by(64 << 10) {
            spool.write(at, piece(at..at + (64 << 10))).unwrap();
        }
        assert_eq!(reading.join().unwrap(), (8 * MIB, true));
        assert!(spool.file.get().is_none());
        assert!(spool.missing().is_empty());
    }

    #[test]
    fn a_range_ahead_of_the_reader_waits_in_a_file_and_its_blocks_are_freed() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(&folder, 32 * MIB);
        for at in (16 * MIB..32 * MIB).step_by(1 << 20) {
            spool.write(at, piece(at..at + MIB)).unwrap();
        }
        assert_eq!(spool.missing().first(), Some(&(0..16 * MIB)));
        let file = spool.file.get().unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0, "nothing is left after a crash");
        assert!(file.metadata().unwrap().blocks() * 512 >= 16 * MIB);
        let reading = reader(&spool);
        for at in (0..16 * MIB).step_by(1 << 19) {
            spool.write(at, piece(at..at + (1 << 19))).unwrap();
        }
        assert_eq!(reading.join().unwrap(), (32 * MIB, true));
        assert!(file.metadata().unwrap().blocks() * 512 <= MIB, "{}", file.metadata().unwrap().blocks());
    }

    #[test]
    fn a_writer_that_is_faster_than_the_reader_waits() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(&folder, 4 * MIB);
        let writing = std::thread::spawn({
            let spool = spool.clone();
            move || {
                for at in 0..4 {
                    spool.write(at * MIB, piece(at * MIB..(at + 1) * MIB)).unwrap();
                }
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!writing.is_finished());
        assert!(spool.state().bytes_in_memory <= MAX_BYTES);
        assert_eq!(reader(&spool).join().unwrap(), (4 * MIB, true));
        writing.join().unwrap();
    }

    #[test]
    fn bytes_that_arrive_twice_are_kept_once() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(&folder, 1_000);
        for range in [500..600, 100..200, 550..700, 0..1_000] {
            spool.write(range.start, piece(range)).unwrap();
        }
        assert_eq!(spool.received(), 1_000);
        assert_eq!(reader(&spool).join().unwrap(), (1_000, true));
    }

    #[test]
    fn a_closed_spool_gives_what_it_has_and_then_ends() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(&folder, 1_000);
        spool.write(0, piece(0..300)).unwrap();
        spool.close();
        assert_eq!(reader(&spool).join().unwrap(), (300, false));
        // What a worker still has is dropped, and blocks no thread.
        spool.write(300, piece(300..1_000)).unwrap();
    }

    #[test]
    fn too_much_ahead_is_reported_until_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(&folder, 200 * MIB);
        let far = Bytes::from(vec![0; 1 << 20]);
        for at in 1..=128 {
            assert!(!spool.is_far_ahead());
            spool.write(at * MIB, far.clone()).unwrap();
        }
        assert!(spool.is_far_ahead());
        spool.write(0, far).unwrap();
        for _ in 0..10 {
            spool.next().unwrap();
        }
        assert!(!spool.is_far_ahead());
    }
}
