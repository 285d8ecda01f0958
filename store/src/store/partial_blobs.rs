//! Partially downloaded blobs, which survive a crash so that the download can resume. Archives are not kept here: see
//! [`crate::content::spool`].
//!
//! ```text
//! STORE/partial/
//! ├── ALGORITHM-HEX-HOST         the received bytes, at their offsets; HOST is a hash of the registry's name (0600)
//! └── ALGORITHM-HEX-HOST.whole   the journal: a line for each range that was written, append-only
//! ```
//!
//! **One file for each registry.** The bytes of a blob can be verified only when it is complete. So bytes
//! from different registries are never mixed: a registry that sends wrong bytes, or stalls, affects only its
//! own download.
//!
//! **The journal** starts with `oras-csi partial 1 SIZE BOOT`. A line `w START END` follows the `write` of
//! these bytes. It is valid until the machine reboots, because the kernel keeps the writes of a killed
//! process. A line `s START END` follows their `fdatasync` and is always valid. An incomplete or unknown line
//! is ignored. So after a crash at any instruction the journal lists fewer bytes than were written, never
//! more.
//!
//! **Locks.** The writer holds a `flock` on the file, so that [`Store::delete_partials`] does not delete it.
//! The journal does not replace verification: all bytes are hashed before the blob is committed.

mod recent_chunks;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::reference::PinnedReference;
use rustix::fs::{FlockOperation, Mode, OFlags};

use self::recent_chunks::RecentChunks;
use super::Store;
use crate::content::blob_sink::{BlobSink, Next};
use crate::disk::folders::make_private_folder;
use crate::disk::ranges::Ranges;
use crate::disk::reservations::Reservation;
use crate::disk::{DiskError, Usage, boot_id};

const JOURNAL_SUFFIX: &str = ".whole";
const HEADER: &str = "oras-csi partial 1";
/// How many written bytes can be missing from the journal. They are lost when the process is killed.
const JOURNAL_EVERY_BYTES: u64 = 1 << 20;
/// How many written bytes can be unsynced. They are lost in a power cut.
const SYNC_EVERY_BYTES: u64 = 64 << 20;
/// The size of one read of bytes that are no longer buffered in memory.
const READ_BYTES: usize = 256 << 10;
/// After this time without progress a partial blob is deleted.
const STALE_AFTER: Duration = Duration::from_hours(24);

/// A blob that is being downloaded. One task writes, and one reader follows it.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    journal: PathBuf,
    size: u64,
    file: File,
    is_persistent: bool,
    space: Arc<Reservation>,
    resumed: u64,
    state: Mutex<State>,
    /// Wakes the reader after bytes were written, and the writer after the reader has read.
    changed: Condvar,
    /// Wakes the thread that syncs the file, only when a sync is due.
    sync_due: Condvar,
}

#[derive(Debug)]
struct State {
    written: Ranges,
    unjournaled: Ranges,
    unsynced: u64,
    log: Option<File>,
    is_closed: bool,
    /// Where the reader continues.
    read_to: u64,
    /// Whether a thread waits. A notification is a system call, also if no thread waits.
    is_reader_waiting: bool,
    is_writer_waiting: bool,
    recent: RecentChunks,
}

impl Store {
    fn partials(&self) -> PathBuf {
        self.layout.partial()
    }

    fn partial_path(&self, digest: &Digest, repository: &PinnedReference) -> PathBuf {
        let source = Digest::sha256_of(repository.name().as_bytes());
        let name = format!("{}-{}-{}", digest.algorithm().name(), digest.hex(), &source.hex()[..16]);
        self.partials().join(name)
    }

    /// Returns how many bytes on the disk a partial download of this blob from the repository already uses.
    pub(crate) fn allocated_bytes(&self, blob: &Descriptor, repository: &PinnedReference) -> u64 {
        let found = std::fs::symlink_metadata(self.partial_path(blob.digest(), repository));
        found.map_or(0, |found| found.blocks().saturating_mul(512).min(blob.size()))
    }

    /// Starts to download a blob, or resumes an earlier download. Waits while another writer has the file. The space for
    /// the bytes that are missing was reserved as `space`.
    pub(crate) fn partial(
        &self,
        blob: &Descriptor,
        repository: &PinnedReference,
        space: Arc<Reservation>,
    ) -> Result<Partial, DiskError> {
        make_private_folder(&self.partials())?;
        self.delete_stale_partials();
        let (path, size) = (self.partial_path(blob.digest(), repository), blob.size());
        let journal = with_suffix(&path, JOURNAL_SUFFIX);
        let file = open_locked(&path)?;
        let found = file.metadata().map_err(|error| DiskError::new("inspect", &path, error))?;
        let boot = boot_id();
        let mut written =
            if self.is_persistent { read_journal(&journal, size, &boot) } else { Ranges::default() };
        if written.iter().any(|range| range.end > found.len()) {
            tracing::warn!(path = %path.display(), "a partially downloaded blob is shorter than its journal says; its download starts again from the beginning");
            written = Ranges::default();
        }
        // Space is not allocated in advance, because the size in a manifest is an untrusted claim.
        let log = self
            .is_persistent
            .then(|| start_journal(&journal, size, &boot, &written, &self.tmp_path()))
            .transpose()?;
        let resumed = written.bytes();
        let recent = RecentChunks::default();
        let state = State {
            written,
            unjournaled: Ranges::default(),
            unsynced: 0,
            log,
            is_closed: false,
            read_to: 0,
            is_reader_waiting: false,
            is_writer_waiting: false,
            recent,
        };
        let (state, changed, sync_due) = (Mutex::new(state), Condvar::new(), Condvar::new());
        Ok(Partial {
            path,
            journal,
            size,
            file,
            is_persistent: self.is_persistent,
            space,
            resumed,
            state,
            changed,
            sync_due,
        })
    }

    /// Commits it as the blob `digest`. The caller has verified every byte.
    pub(crate) fn commit_partial(&self, partial: &Partial, digest: &Digest) -> Result<(), DiskError> {
        let path = self.layout.blob(digest);
        rustix::fs::fchmod(&partial.file, Mode::RUSR | Mode::RGRP | Mode::ROTH)
            .map_err(|errno| DiskError::new("set the mode of", &path, errno))?;
        self.label(&partial.path)?;
        // A download of the same blob from another registry may have finished first and deleted this one.
        match std::fs::rename(&partial.path, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => {}
            renamed => renamed.map_err(|error| DiskError::new("commit", &path, error))?,
        }
        let _ = std::fs::remove_file(&partial.journal);
        Ok(())
    }

    /// Deletes partial blobs without progress for a day.
    pub(crate) fn delete_stale_partials(&self) {
        self.delete_partials(STALE_AFTER);
    }

    /// Deletes partial blobs without progress for `age`, and journals without a blob.
    pub(crate) fn delete_partials(&self, age: Duration) {
        let Ok(entries) = std::fs::read_dir(self.partials()) else { return };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let is_journal = path.to_string_lossy().ends_with(JOURNAL_SUFFIX);
            let data = if is_journal { path.with_extension("") } else { path.clone() };
            if is_journal && data.exists() {
                continue;
            }
            let newest = [&path, &with_suffix(&path, JOURNAL_SUFFIX)]
                .into_iter()
                .filter_map(|path| modified(path))
                .max();
            if newest.is_some_and(|newest| newest.elapsed().is_ok_and(|since| since < age)) {
                continue;
            }
            let Ok(file) = File::open(&path) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            tracing::info!(path = %path.display(), "deleted a partially downloaded blob without recent progress");
            let _ = std::fs::remove_file(&path);
            if !is_journal {
                let _ = std::fs::remove_file(with_suffix(&path, JOURNAL_SUFFIX));
            }
        }
    }
}

impl Partial {
    /// Returns how many bytes an earlier run had written.
    pub(crate) fn resumed(&self) -> u64 {
        self.resumed
    }

    /// Ends writing in this run, and wakes the reader.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.write_journal(&self.journal);
        state.is_closed = true;
        drop(state);
        self.changed.notify_all();
        self.sync_due.notify_all();
    }

    /// Waits for the bytes at `at` and returns some of them. Supports one reader, which only moves forward.
    /// Blocks, so it must not be called from async code.
    pub(crate) fn next(&self, at: u64) -> Result<Next, DiskError> {
        if at >= self.size {
            return Ok(Next::Bytes(Bytes::new()));
        }
        let mut state = self.state();
        state.read_to = at;
        if state.is_writer_waiting {
            self.changed.notify_all();
        }
        let end = loop {
            match state.written.end_from(at) {
                end if end > at => break end,
                _ if state.is_closed => return Ok(Next::Closed),
                _ => {
                    state.is_reader_waiting = true;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.is_reader_waiting = false;
                }
            }
        };
        if let Some(piece) = state.recent.take(at) {
            return Ok(Next::Bytes(piece));
        }
        drop(state);
        let length = READ_BYTES.min(usize::try_from(end - at).unwrap_or(READ_BYTES));
        let mut piece = BytesMut::zeroed(length);
        self.file.read_exact_at(&mut piece, at).map_err(|error| DiskError::new("read", &self.path, error))?;
        Ok(Next::Bytes(piece.freeze()))
    }

    /// Deletes the partial blob and its journal. Reserves the space of its bytes, because the blob can be downloaded again
    /// from the start with the same reservation.
    pub(crate) fn discard_and_reserve(&self) {
        self.space.restore(Usage { bytes: self.state().written.bytes(), inodes: 0 });
        self.discard();
    }

    /// Deletes the partial blob and its journal.
    pub(crate) fn discard(&self) {
        let _ = std::fs::remove_file(&self.journal);
        let _ = std::fs::remove_file(&self.path);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlobSink for Partial {
    fn missing(&self) -> Vec<Range<u64>> {
        self.state().written.missing(0..self.size)
    }

    fn write(&self, offset: u64, bytes: Bytes) -> Result<(), DiskError> {
        let written = self.file.write_all_at(&bytes, offset);
        written.map_err(|error| DiskError::new("write", &self.path, error))?;
        self.space.spend(Usage { bytes: bytes.len() as u64, inodes: 0 });
        let range = offset..offset + bytes.len() as u64;
        let mut state = self.state();
        // A chunk ahead of missing bytes would only displace those that the reader needs next.
        let is_in_order = state.written.end_from(state.read_to) == offset;
        // A reader that is a little behind gets the bytes from memory. Without the pause it would fall further behind, and
        // read all of them from the file again.
        while is_in_order && state.must_wait_for_reader(bytes.len()) {
            state.is_writer_waiting = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.is_writer_waiting = false;
        }
        state.written.add(&range);
        state.unjournaled.add(&range);
        state.unsynced += bytes.len() as u64;
        if is_in_order {
            state.recent.push(offset, bytes);
        }
        if state.unjournaled.bytes() >= JOURNAL_EVERY_BYTES {
            state.write_journal(&self.journal);
        }
        let is_due = state.unsynced >= SYNC_EVERY_BYTES || state.written.bytes() == self.size;
        let must_wake = state.is_reader_waiting;
        drop(state);
        if must_wake {
            self.changed.notify_all();
        }
        if is_due {
            self.sync_due.notify_all();
        }
        Ok(())
    }

    fn is_far_ahead(&self) -> bool {
        false
    }

    fn sync_at_intervals(&self) {
        if !self.is_persistent {
            return;
        }
        loop {
            let mut state = self.state();
            while state.unsynced < SYNC_EVERY_BYTES && !state.is_closed && state.written.bytes() < self.size {
                state = self.sync_due.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            // A complete blob needs no sync, because its digest is verified again before it is used.
            if state.unsynced < SYNC_EVERY_BYTES || state.written.bytes() == self.size {
                return;
            }
            let written = state.written.clone();
            state.unsynced = 0;
            drop(state);
            if let Err(error) = self.file.sync_data() {
                tracing::warn!(path = %self.path.display(), %error, "cannot sync a partially downloaded blob; a power cut would lose the bytes received since the last sync");
                return;
            }
            self.state().log_lines(&self.journal, 's', &written);
        }
    }
}

impl State {
    /// Reports whether there is no room for so many bytes in memory, and the reader makes room without any others.
    fn must_wait_for_reader(&self, length: usize) -> bool {
        !self.is_closed
            && self.recent.oldest_if_full(length).is_some_and(|oldest| {
                oldest.end > self.read_to && self.written.end_from(self.read_to) >= oldest.end
            })
    }

    fn write_journal(&mut self, path: &Path) {
        let unjournaled = std::mem::take(&mut self.unjournaled);
        self.log_lines(path, 'w', &unjournaled);
    }

    fn log_lines(&mut self, path: &Path, kind: char, ranges: &Ranges) {
        let Some(log) = &mut self.log else { return };
        if let Err(error) = log.write_all(lines(kind, ranges).as_bytes()) {
            tracing::warn!(path = %path.display(), %error, "cannot write the journal of a partially downloaded blob; after a crash its download resumes from an earlier point");
            self.log = None;
        }
    }
}

fn lines(kind: char, ranges: &Ranges) -> String {
    let mut text = String::new();
    for Range { start, end } in ranges.iter() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{kind} {start} {end}");
    }
    text
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    std::fs::symlink_metadata(path).ok()?.modified().ok()
}

fn open_locked(path: &Path) -> Result<File, DiskError> {
    loop {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let file = options.custom_flags(flags).open(path);
        let file = file.map_err(|error| DiskError::new("open", path, error))?;
        let locked = rustix::fs::flock(&file, FlockOperation::LockExclusive);
        locked.map_err(|errno| DiskError::new("lock", path, errno))?;
        // The file may have been deleted between `open` and `flock`.
        let links = file.metadata().map_err(|error| DiskError::new("inspect", path, error))?.nlink();
        if links > 0 {
            return Ok(file);
        }
    }
}

/// Returns the ranges that a journal lists for a blob of this size on this boot. Ignores what cannot be
/// parsed.
fn read_journal(path: &Path, size: u64, boot: &str) -> Ranges {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.split_inclusive('\n').map(|line| line.strip_suffix('\n'));
    let header = lines.next().flatten().and_then(|line| line.strip_prefix(HEADER));
    let mut ranges = Ranges::default();
    let Some((found, of)) = header.and_then(|rest| rest.trim_start().split_once(' ')) else { return ranges };
    if found.parse() != Ok(size) {
        return ranges;
    }
    for line in lines.flatten() {
        let mut words = line.split(' ');
        let (Some(kind), Some(start), Some(end), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let (Ok(start), Ok(end)) = (start.parse::<u64>(), end.parse::<u64>()) else { continue };
        if (kind == "s" || (kind == "w" && of == boot)) && start < end && end <= size {
            ranges.add(&(start..end));
        }
    }
    ranges
}

/// Replaces the journal with a compact one, and opens it for appending.
fn start_journal(
    path: &Path,
    size: u64,
    boot: &str,
    written: &Ranges,
    unfinished: &Path,
) -> Result<File, DiskError> {
    // The ranges come from `w` or `s` lines. They are written as `w`, the weaker of the two.
    let text = format!("{HEADER} {size} {boot}\n{}", lines('w', written));
    let written = std::fs::write(unfinished, text).and_then(|()| std::fs::rename(unfinished, path));
    written.map_err(|error| DiskError::new("write", path, error))?;
    File::options().append(true).open(path).map_err(|error| DiskError::new("open", path, error))
}

#[cfg(test)]
mod tests;
