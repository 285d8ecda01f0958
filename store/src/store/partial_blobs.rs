//! Blobs on their way, which a crash does not undo.
//!
//! ```text
//! STORE/partial/
//! ├── ALGORITHM-HEX-HOST         bytes, each at its place; HOST is a hash of the registry's name (0600)
//! └── ALGORITHM-HEX-HOST.whole   which ranges were written: a line each, only ever added to
//! ```
//!
//! **Per host.** Until a blob is whole nobody knows whether its bytes are right. So what one registry gave is never
//! mixed with what another gives: a registry that lies, or stalls, spoils its own download and no other.
//!
//! **The note** begins with `oras-csi partial 1 SIZE BOOT`. A line `w START END` follows the `write` of these bytes
//! and counts as long as the machine has not been started anew, since a killed process leaves what it wrote to the
//! kernel. A line `s START END` follows their `fdatasync` and counts always. A line without its end, or that says
//! something else, counts for nothing: after a crash at any instruction less is kept, never more.
//!
//! **Locks.** Whoever writes has the file under `flock`, so that [`Store::forget_partials`] leaves it alone. That what
//! is kept has been verified never follows from a note: all bytes are hashed before a blob gets its name.

mod ranges;
mod recent_chunks;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::reference::RegistryHost;
use rustix::fs::{FlockOperation, Mode, OFlags};

use self::ranges::Ranges;
use self::recent_chunks::RecentChunks;
use super::Store;
use crate::disk::folders::make_private_folder;
use crate::disk::{DiskError, boot_id};

const NOTE: &str = ".whole";
const HEADER: &str = "oras-csi partial 1";
/// How many bytes may have come that no note speaks of: what a kill costs.
const NOTE_EVERY: u64 = 1 << 20;
/// How many bytes may have come that are not on the disk yet: what a power cut costs.
const SYNC_EVERY: u64 = 64 << 20;
/// How much is read at once of what was written a while ago.
const READ: usize = 64 << 10;
/// What nobody went on with for so long is removed.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(24);

/// A blob on its way. One task writes; others read along behind.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    note: PathBuf,
    size: u64,
    file: File,
    is_persistent: bool,
    resumed: u64,
    state: Mutex<State>,
    /// For whoever reads along.
    grown: Condvar,
    /// For whoever brings it to the disk: a piece is not worth waking up for.
    due: Condvar,
}

#[derive(Debug)]
struct State {
    whole: Ranges,
    unnoted: Ranges,
    unsynced: u64,
    log: Option<File>,
    is_closed: bool,
    recent: RecentChunks,
}

/// What a reader finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Some bytes; none at the end of the blob.
    Bytes(Bytes),
    /// Nobody writes any more.
    Closed,
}

impl Store {
    fn partials(&self) -> PathBuf {
        self.layout.partial()
    }

    fn partial_path(&self, digest: &Digest, host: &RegistryHost) -> PathBuf {
        let of_host = Digest::sha256_of(host.to_string().as_bytes());
        let name = format!("{}-{}-{}", digest.algorithm().name(), digest.hex(), &of_host.hex()[..16]);
        self.partials().join(name)
    }

    /// How many bytes of the disk are taken already for a blob that is on its way from `host`.
    pub(crate) fn taken_for(&self, blob: &Descriptor, host: &RegistryHost) -> u64 {
        let found = std::fs::symlink_metadata(self.partial_path(blob.digest(), host));
        found.map_or(0, |found| found.blocks().saturating_mul(512).min(blob.size()))
    }

    /// Begins a blob, or goes on where an earlier run ended. Waits for whoever still writes to it.
    pub(crate) fn partial(&self, blob: &Descriptor, host: &RegistryHost) -> Result<Partial, DiskError> {
        make_private_folder(&self.partials())?;
        self.forget_stale_partials();
        let (path, size) = (self.partial_path(blob.digest(), host), blob.size());
        let note = with_suffix(&path, NOTE);
        let file = open_locked(&path)?;
        let failed = |step, error: io::Error| DiskError::new(step, &path, error);
        let found = file.metadata().map_err(|error| failed("look at", error))?;
        self.check_free_space(size.saturating_sub(found.blocks().saturating_mul(512).min(size)))?;
        let boot = boot_id();
        let mut whole = if self.is_persistent { read_note(&note, size, &boot) } else { Ranges::default() };
        if whole.iter().any(|range| range.end > found.len()) {
            tracing::warn!(path = %path.display(), "a blob on its way is shorter than its note says; it begins anew");
            whole = Ranges::default();
        }
        // Its place is taken as it comes: what a manifest says of a size costs whoever says it as many bytes.
        let log = self
            .is_persistent
            .then(|| begin_note(&note, size, &boot, &whole, &self.tmp_path()))
            .transpose()?;
        let resumed = whole.bytes();
        let recent = RecentChunks::default();
        let state = State { whole, unnoted: Ranges::default(), unsynced: 0, log, is_closed: false, recent };
        let (state, grown, due) = (Mutex::new(state), Condvar::new(), Condvar::new());
        Ok(Partial { path, note, size, file, is_persistent: self.is_persistent, resumed, state, grown, due })
    }

    /// Makes it the blob; every byte of it was verified.
    pub(crate) fn commit_partial(&self, partial: &Partial, digest: &Digest) -> Result<(), DiskError> {
        let path = self.layout.blob(digest);
        rustix::fs::fchmod(&partial.file, Mode::RUSR | Mode::RGRP | Mode::ROTH)
            .map_err(|errno| DiskError::new("set the mode of", &path, errno))?;
        // A download of the same from elsewhere may have been faster, and cleared this one away.
        match std::fs::rename(&partial.path, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => {}
            renamed => renamed.map_err(|error| DiskError::new("keep", &path, error))?,
        }
        let _ = std::fs::remove_file(&partial.note);
        Ok(())
    }

    /// Removes what nobody has gone on with for a day.
    pub(crate) fn forget_stale_partials(&self) {
        self.forget_partials(FORGOTTEN_AFTER);
    }

    /// Removes what nobody has gone on with for `age`, and notes without bytes.
    pub(crate) fn forget_partials(&self, age: Duration) {
        let Ok(entries) = std::fs::read_dir(self.partials()) else { return };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let is_note = path.to_string_lossy().ends_with(NOTE);
            let data = if is_note { path.with_extension("") } else { path.clone() };
            if is_note && data.exists() {
                continue;
            }
            let newest =
                [&path, &with_suffix(&path, NOTE)].into_iter().filter_map(|path| modified(path)).max();
            if newest.is_some_and(|newest| newest.elapsed().is_ok_and(|since| since < age)) {
                continue;
            }
            let Ok(file) = File::open(&path) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            tracing::info!(path = %path.display(), "a blob that nobody went on with is removed");
            let _ = std::fs::remove_file(&path);
            if !is_note {
                let _ = std::fs::remove_file(with_suffix(&path, NOTE));
            }
        }
    }
}

impl Partial {
    /// How many bytes an earlier run left.
    pub(crate) fn resumed(&self) -> u64 {
        self.resumed
    }

    /// What has yet to come.
    pub(crate) fn missing(&self) -> Vec<Range<u64>> {
        self.state().whole.missing(self.size)
    }

    /// Writes bytes to their place.
    pub(crate) fn write(&self, offset: u64, bytes: Bytes) -> Result<(), DiskError> {
        let written = self.file.write_all_at(&bytes, offset);
        written.map_err(|error| DiskError::new("write", &self.path, error))?;
        let range = offset..offset + bytes.len() as u64;
        let mut state = self.state();
        state.whole.add(&range);
        state.unnoted.add(&range);
        state.unsynced += bytes.len() as u64;
        state.recent.push(offset, bytes);
        if state.unnoted.bytes() >= NOTE_EVERY {
            state.note(&self.note);
        }
        let is_due = state.unsynced >= SYNC_EVERY || state.whole.bytes() == self.size;
        drop(state);
        self.grown.notify_all();
        if is_due {
            self.due.notify_all();
        }
        Ok(())
    }

    /// Nothing more is written by this run; readers come to an end.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.note(&self.note);
        state.is_closed = true;
        drop(state);
        self.grown.notify_all();
        self.due.notify_all();
    }

    /// Waits for the bytes at `at` and gives some of them. For one reader, which goes forward. Not to be called from
    /// async code.
    pub(crate) fn next(&self, at: u64) -> Result<Next, DiskError> {
        if at >= self.size {
            return Ok(Next::Bytes(Bytes::new()));
        }
        let mut state = self.state();
        let end = loop {
            match state.whole.end_from(at) {
                end if end > at => break end,
                _ if state.is_closed => return Ok(Next::Closed),
                _ => state = self.grown.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        if let Some(piece) = state.recent.take(at) {
            return Ok(Next::Bytes(piece));
        }
        drop(state);
        let length = READ.min(usize::try_from(end - at).unwrap_or(READ));
        let mut piece = BytesMut::zeroed(length);
        self.file.read_exact_at(&mut piece, at).map_err(|error| DiskError::new("read", &self.path, error))?;
        Ok(Next::Bytes(piece.freeze()))
    }

    /// Brings to the disk what is written, a step behind, until nothing more is.
    pub(crate) fn sync_behind(&self) {
        if !self.is_persistent {
            return;
        }
        loop {
            let mut state = self.state();
            while state.unsynced < SYNC_EVERY && !state.is_closed && state.whole.bytes() < self.size {
                state = self.due.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            // One that is whole needs no sync: its bytes are compared with its name before they are used.
            if state.unsynced < SYNC_EVERY || state.whole.bytes() == self.size {
                return;
            }
            let written = state.whole.clone();
            state.unsynced = 0;
            drop(state);
            if let Err(error) = self.file.sync_data() {
                tracing::warn!(path = %self.path.display(), %error, "a blob on its way cannot be synced");
                return;
            }
            self.state().log_lines(&self.note, 's', &written);
        }
    }

    /// Removes it: it is of no use any more.
    pub(crate) fn discard(&self) {
        let _ = std::fs::remove_file(&self.note);
        let _ = std::fs::remove_file(&self.path);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, path: &Path) {
        let unnoted = std::mem::take(&mut self.unnoted);
        self.log_lines(path, 'w', &unnoted);
    }

    fn log_lines(&mut self, path: &Path, kind: char, ranges: &Ranges) {
        let Some(log) = &mut self.log else { return };
        if let Err(error) = log.write_all(lines(kind, ranges).as_bytes()) {
            tracing::warn!(path = %path.display(), %error, "how far a blob is cannot be noted; a crash would cost more");
            self.log = None;
        }
    }
}

fn lines(kind: char, ranges: &Ranges) -> String {
    let mut text = String::new();
    for Range { start, end } in ranges.iter() {
        // Writing to a string does not fail.
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
        // Between the two it may have been removed.
        let links = file.metadata().map_err(|error| DiskError::new("look at", path, error))?.nlink();
        if links > 0 {
            return Ok(file);
        }
    }
}

/// What a note says of a blob of this size, on this start of the machine. What cannot be read says nothing.
fn read_note(path: &Path, size: u64, boot: &str) -> Ranges {
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

/// Writes a short note in the place of the one that is there, and opens it for more.
fn begin_note(
    path: &Path,
    size: u64,
    boot: &str,
    whole: &Ranges,
    unfinished: &Path,
) -> Result<File, DiskError> {
    // What counts now counted by this boot's word, or by the disk's: the weaker of the two is said again.
    let text = format!("{HEADER} {size} {boot}\n{}", lines('w', whole));
    let written = std::fs::write(unfinished, text).and_then(|()| std::fs::rename(unfinished, path));
    written.map_err(|error| DiskError::new("write", path, error))?;
    File::options().append(true).open(path).map_err(|error| DiskError::new("open", path, error))
}

#[cfg(test)]
mod tests;
