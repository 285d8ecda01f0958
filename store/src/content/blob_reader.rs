//! A blob on its way from the network to a thread that blocks: bounded, counted, hashed.
//!
//! An async task sends pieces into a channel that holds a few of them; [`BlobReader`] takes them out in
//! the thread that decompresses and writes. Memory is bounded by the channel, whatever the blob's size.

use std::io::{self, BufRead, Read};

use bytes::Bytes;
use oras_csi_core::digest::{Digest, Hasher};
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::registry::RegistryError;
use tokio::sync::mpsc;

use crate::disk::DiskError;
use crate::error_class::ErrorClass;

/// How many pieces wait between network and disk.
pub(crate) const PIECES: usize = 16;

/// What travels through the channel.
pub(crate) type Piece = Result<Bytes, RegistryError>;

/// Why a stream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StreamFault {
    /// The registry failed in the middle.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The sender is gone: the driver shuts down.
    #[error("the download was given up because the driver stops; it starts again with the next attempt")]
    Stopped,
    /// More or fewer bytes than the manifest says.
    #[error("the blob {digest} has {} bytes, and the manifest says {wanted}", match .found { Some(found) => found.to_string(), None => "more".to_owned() })]
    Size {
        /// Which blob.
        digest: Digest,
        /// What the manifest says.
        wanted: u64,
        /// What came, if it ended.
        found: Option<u64>,
    },
    /// Other bytes than asked for.
    #[error(
        "the bytes that came for {wanted} have the digest {found}: the registry or something on the way changed them"
    )]
    Digest {
        /// What was asked for.
        wanted: Digest,
        /// What came.
        found: Digest,
    },
    /// More than the layers of a volume may unpack to.
    #[error("the layers of the volume unpack to more than {limit} bytes together, the limit")]
    Unpacked {
        /// The limit.
        limit: u64,
    },
    /// No room on the disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl StreamFault {
    /// What kind of failure it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Registry(_) | Self::Stopped | Self::Disk(_) => ErrorClass::Failed,
            Self::Size { .. } | Self::Digest { .. } | Self::Unpacked { .. } => ErrorClass::Refused,
        }
    }
}

/// The bytes of a blob, hashed as they pass.
pub struct BlobReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    descriptor: Descriptor,
    hasher: Hasher,
    seen: u64,
    ended: bool,
}

impl BlobReader {
    pub(crate) fn new(descriptor: Descriptor, pieces: mpsc::Receiver<Piece>) -> Self {
        let hasher = Hasher::new(descriptor.digest().algorithm());
        Self { pieces, current: Bytes::new(), descriptor, hasher, seen: 0, ended: false }
    }

    /// A blob that is there already, whole and as it says.
    pub fn of_bytes(media_type: &str, bytes: Bytes) -> Self {
        let descriptor = Descriptor::new(media_type, Digest::sha256_of(&bytes), bytes.len() as u64);
        let (sender, pieces) = mpsc::channel(1);
        // A channel of one takes one.
        let _ = sender.try_send(Ok(bytes));
        Self::new(descriptor, pieces)
    }

    /// The media type that the manifest gives it.
    pub fn media_type(&self) -> &str {
        self.descriptor.media_type()
    }

    /// The next piece; empty at the end. Not to be called from async code.
    pub(crate) fn piece(&mut self) -> Result<Bytes, StreamFault> {
        if !self.current.is_empty() {
            return Ok(std::mem::take(&mut self.current));
        }
        while !self.ended {
            let size = |found| StreamFault::Size {
                digest: self.descriptor.digest().clone(),
                wanted: self.descriptor.size(),
                found,
            };
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => {
                    self.seen += piece.len() as u64;
                    if self.seen > self.descriptor.size() {
                        return Err(size(None));
                    }
                    self.hasher.update(&piece);
                    return Ok(piece);
                }
                Some(Err(error)) => return Err(error.into()),
                None if self.seen < self.descriptor.size() => return Err(StreamFault::Stopped),
                None => self.ended = true,
            }
        }
        Ok(Bytes::new())
    }

    /// Reads what is left and compares size and digest with the manifest's.
    pub fn finish(mut self) -> Result<(), StreamFault> {
        while !self.piece()?.is_empty() {}
        let found = self.hasher.finish();
        if found == *self.descriptor.digest() {
            Ok(())
        } else {
            Err(StreamFault::Digest { wanted: self.descriptor.digest().clone(), found })
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let count = piece.len().min(into.len());
        into[..count].copy_from_slice(&piece[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            self.current = self.piece().map_err(io::Error::other)?;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        let _ = self.current.split_to(count.min(self.current.len()));
    }
}
