//! Blobs: files that are named by the digest of their content.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oras_csi_core::digest::{Algorithm, Digest};
use oras_csi_core::manifest::Descriptor;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::Store;
use crate::content::blob_reader::{BlobReader, StreamFault};
use crate::disk::reservations::Reservation;
use crate::disk::{DiskError, Usage};
use crate::layout::Item;

/// The minimum size of a blob whose space is allocated before the first byte is written.
const PREALLOCATE: u64 = 1 << 20;

impl Store {
    /// Opens the folder with the blobs of one digest algorithm.
    pub(crate) fn open_blobs(&self, algorithm: Algorithm) -> Result<OwnedFd, DiskError> {
        let path = self.layout.blobs(algorithm);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| DiskError::new("open", path, errno))
    }

    /// Reports whether the store has the blob. A file of another size does not count: either the disk is
    /// damaged, or the manifest states a wrong size. The blob is downloaded again, and replaces the file if
    /// its digest is right.
    pub fn has_blob(&self, blob: &Descriptor) -> Result<bool, DiskError> {
        let path = self.layout.blob(blob.digest());
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() && found.len() == blob.size() => Ok(true),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(DiskError::new("inspect", path, error)),
        }
    }

    /// Reads a blob of at most `max_bytes` bytes. Returns `None` if the store does not have it, or if it is
    /// damaged.
    pub fn read_blob(&self, digest: &Digest, max_bytes: u64) -> Result<Option<Vec<u8>>, DiskError> {
        let path = self.layout.blob(digest);
        if std::fs::symlink_metadata(&path).is_ok_and(|found| found.len() > max_bytes) {
            return Ok(None);
        }
        match std::fs::read(&path) {
            Ok(bytes) if digest.matches(&bytes) => Ok(Some(bytes)),
            Ok(_) => {
                tracing::warn!(%digest, "a stored blob does not match its digest; it is deleted and downloaded again");
                // A tree that is being built from it must not be committed.
                self.leases.remove_damaged(&Item::Blob(digest.clone()), || {
                    std::fs::remove_file(&path).map_err(|error| DiskError::new("remove", &path, error))
                })?;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::new("read", path, error)),
        }
    }

    /// Stores bytes whose digest the caller has verified.
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), DiskError> {
        let _space = self.reserve(Usage::file(bytes.len() as u64))?;
        let unfinished = Unfinished::create(self)?;
        let failed = |error| DiskError::new("write", unfinished.path(), error);
        (&unfinished.file).write_all(bytes).map_err(failed)?;
        self.commit_blob(unfinished, digest)
    }

    /// Writes a blob as it is received, and commits it if size and digest are right. Its space was reserved as `space`.
    pub(crate) fn write_blob(
        &self,
        blob: &Descriptor,
        mut reader: BlobReader,
        space: &Reservation,
    ) -> Result<(), StreamFault> {
        let unfinished = Unfinished::create(self)?;
        let failed = |error: io::Error| DiskError::new("write", unfinished.path(), error);
        if blob.size() >= PREALLOCATE {
            match rustix::fs::fallocate(&unfinished.file, FallocateFlags::empty(), 0, blob.size()) {
                Ok(()) => space.spend(Usage::file(blob.size())),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into()).into()),
            }
        }
        let mut output = io::BufWriter::with_capacity(256 << 10, &unfinished.file);
        loop {
            let piece = reader.piece()?;
            if piece.is_empty() {
                break;
            }
            output.write_all(&piece).map_err(failed)?;
        }
        output.flush().map_err(failed)?;
        drop(output);
        reader.finish()?;
        Ok(self.commit_blob(unfinished, blob.digest())?)
    }

    fn commit_blob(&self, unfinished: Unfinished, digest: &Digest) -> Result<(), DiskError> {
        let path = self.layout.blob(digest);
        let mode = Mode::RUSR | Mode::RGRP | Mode::ROTH;
        rustix::fs::fchmod(&unfinished.file, mode)
            .map_err(|errno| DiskError::new("set the mode of", &path, errno))?;
        self.label(&unfinished.path())?;
        unfinished.rename(&path)
    }
}

/// A file in `tmp` that is deleted when this value is dropped, unless it was committed.
struct Unfinished {
    path: Option<PathBuf>,
    file: File,
}

impl Unfinished {
    fn create(store: &Store) -> Result<Self, DiskError> {
        let path = store.tmp_path();
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| DiskError::new("create the file", &path, error))?;
        Ok(Self { path: Some(path), file })
    }

    fn path(&self) -> PathBuf {
        self.path.clone().unwrap_or_default()
    }

    /// Renames the file to the blob's name. It was verified just now, so it can replace an existing file of
    /// that name. Trees keep the inode that they link to.
    fn rename(mut self, name: &Path) -> Result<(), DiskError> {
        if let Some(path) = &self.path {
            std::fs::rename(path, name).map_err(|error| DiskError::new("commit", name, error))?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}
