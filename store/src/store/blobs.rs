//! Blobs: files named by the digest that their content has.

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
use crate::disk::DiskError;

/// From this size on the space is taken before the first byte comes.
const PREALLOCATE: u64 = 1 << 20;

impl Store {
    /// The folder with the blobs of one algorithm.
    pub(crate) fn open_blobs(&self, algorithm: Algorithm) -> Result<OwnedFd, DiskError> {
        let path = self.layout.blobs(algorithm);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| DiskError::new("open", path, errno))
    }

    /// Whether the blob is there. A file of another size is not it: the disk is damaged, or the manifest lies.
    /// It is fetched again, and takes the file's place if its bytes are right.
    pub fn has_blob(&self, blob: &Descriptor) -> Result<bool, DiskError> {
        let path = self.layout.blob(blob.digest());
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() && found.len() == blob.size() => Ok(true),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(DiskError::new("look at", path, error)),
        }
    }

    /// The bytes of a blob of at most `longest` bytes, if it is there and they have its digest.
    pub fn read_blob(&self, digest: &Digest, longest: u64) -> Result<Option<Vec<u8>>, DiskError> {
        let path = self.layout.blob(digest);
        if std::fs::symlink_metadata(&path).is_ok_and(|found| found.len() > longest) {
            return Ok(None);
        }
        match std::fs::read(&path) {
            Ok(bytes) if digest.matches(&bytes) => Ok(Some(bytes)),
            Ok(_) => {
                tracing::warn!(%digest, "a blob has other bytes than when it was written; it is fetched again");
                std::fs::remove_file(&path).map_err(|error| DiskError::new("remove", path, error))?;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::new("read", path, error)),
        }
    }

    /// Keeps bytes whose digest was verified.
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), DiskError> {
        let unfinished = Unfinished::create(self)?;
        let failed = |error| DiskError::new("write", unfinished.path(), error);
        (&unfinished.file).write_all(bytes).map_err(failed)?;
        self.commit_blob(unfinished, digest)
    }

    /// Writes a blob as it arrives, and keeps it if size and digest are right.
    pub(crate) fn write_blob(&self, blob: &Descriptor, mut reader: BlobReader) -> Result<(), StreamFault> {
        let unfinished = Unfinished::create(self)?;
        let failed = |error: io::Error| DiskError::new("write", unfinished.path(), error);
        if blob.size() >= PREALLOCATE {
            self.check_free_space(blob.size())?;
            match rustix::fs::fallocate(&unfinished.file, FallocateFlags::empty(), 0, blob.size()) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
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
        unfinished.rename(&path)
    }
}

/// A file in `tmp` that goes when this is dropped, unless it was renamed.
struct Unfinished {
    path: Option<PathBuf>,
    file: File,
}

impl Unfinished {
    fn create(store: &Store) -> Result<Self, DiskError> {
        let path = store.tmp_path();
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| DiskError::new("make the file", &path, error))?;
        Ok(Self { path: Some(path), file })
    }

    fn path(&self) -> PathBuf {
        self.path.clone().unwrap_or_default()
    }

    /// Gives it its name. It was verified just now, so it is as good as a file that has the name already,
    /// or better; trees keep the inode that they link to.
    fn rename(mut self, name: &Path) -> Result<(), DiskError> {
        if let Some(path) = &self.path {
            std::fs::rename(path, name).map_err(|error| DiskError::new("keep", name, error))?;
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
