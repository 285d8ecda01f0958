//! Passes a blob from the network to a blocking thread, bounds the buffered bytes, and verifies size and
//! digest.
//!
//! An async task sends pieces into a bounded channel, or a download writes them to a [`Spool`]. [`BlobReader`] receives
//! them in the thread that decompresses and writes. Both bound memory use, independent of the blob's size.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::Bytes;
use oras_csi_core::digest::{Digest, Hasher};
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::registry::RegistryError;
use tokio::sync::mpsc;

use super::blob_sink::Next;
use super::spool::Spool;
use crate::disk::DiskError;
use crate::error_class::ErrorClass;

/// The number of pieces that are buffered between network and disk.
pub(crate) const PIECES: usize = 8;

/// An item in the channel: the next bytes of a blob, or the error that ended the download.
pub(crate) type Piece = Result<Bytes, RegistryError>;

/// The reason why a downloaded blob cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StreamFault {
    /// The registry failed during the download.
    #[error("{}", .0.with_advice())]
    Registry(#[from] RegistryError),
    /// The sender was dropped, because the driver is stopping.
    #[error("the download was canceled because the driver is stopping. The next attempt starts it again")]
    Stopped,
    /// The blob has more or fewer bytes than the manifest states.
    #[error("the blob {digest} has the wrong size: it has {} bytes, and the manifest says {wanted}", match .found { Some(found) => found.to_string(), None => "more".to_owned() })]
    Size {
        /// The blob.
        digest: Digest,
        /// The size in the manifest.
        wanted: u64,
        /// The received size, or `None` if more bytes than expected were received.
        found: Option<u64>,
    },
    /// The received bytes have another digest.
    #[error(
        "the blob {wanted} has the wrong content: the received bytes have the digest {found}. The registry or a proxy changed them"
    )]
    Digest {
        /// The requested digest.
        wanted: Digest,
        /// The digest of the received bytes.
        found: Digest,
    },
    /// The layers of a volume exceed the limit on the unpacked size.
    #[error(
        "the layers of the volume are too large: they unpack to more than {limit} bytes together, the limit (--max-unpacked). Push less, or raise the limit"
    )]
    Unpacked {
        /// The limit.
        limit: u64,
    },
    /// The disk is full or failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl StreamFault {
    /// Returns the class of the error.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Registry(_) | Self::Stopped | Self::Disk(_) => ErrorClass::Failed,
            Self::Size { .. } | Self::Digest { .. } | Self::Unpacked { .. } => ErrorClass::Refused,
        }
    }
}

/// Where the pieces of a blob come from.
enum Source {
    Channel(mpsc::Receiver<Piece>),
    Spool(Arc<Spool>),
}

impl Source {
    /// Returns the next piece, or `None` if there is none any more. Blocks.
    fn next(&mut self) -> Option<Result<Bytes, StreamFault>> {
        match self {
            Self::Channel(pieces) => pieces.blocking_recv().map(|piece| piece.map_err(Into::into)),
            Self::Spool(spool) => match spool.next() {
                Ok(Next::Bytes(piece)) if piece.is_empty() => None,
                Ok(Next::Bytes(piece)) => Some(Ok(piece)),
                Ok(Next::Closed) => None,
                Err(error) => Some(Err(error.into())),
            },
        }
    }
}

/// Reads the bytes of a blob and hashes them.
pub struct BlobReader {
    source: Source,
    current: Bytes,
    descriptor: Descriptor,
    hasher: Hasher,
    seen: u64,
    ended: bool,
}

impl BlobReader {
    pub(crate) fn new(descriptor: Descriptor, pieces: mpsc::Receiver<Piece>) -> Self {
        Self::of_source(descriptor, Source::Channel(pieces))
    }

    /// Reads a blob from a spool of its size.
    pub(crate) fn of_spool(descriptor: Descriptor, spool: Arc<Spool>) -> Self {
        Self::of_source(descriptor, Source::Spool(spool))
    }

    fn of_source(descriptor: Descriptor, source: Source) -> Self {
        let hasher = Hasher::new(descriptor.digest().algorithm());
        Self { source, current: Bytes::new(), descriptor, hasher, seen: 0, ended: false }
    }

    /// Returns a reader of `bytes`, with their own digest and size.
    pub fn of_bytes(media_type: &str, bytes: Bytes) -> Self {
        let descriptor = Descriptor::new(media_type, Digest::sha256_of(&bytes), bytes.len() as u64);
        let (sender, pieces) = mpsc::channel(1);
        // The channel has capacity for one piece.
        let _ = sender.try_send(Ok(bytes));
        Self::new(descriptor, pieces)
    }

    /// Returns the media type from the manifest.
    pub fn media_type(&self) -> &str {
        self.descriptor.media_type()
    }

    /// Returns the next piece; empty at the end. Blocks, so it must not be called from async code.
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
            match self.source.next() {
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => {
                    self.seen += piece.len() as u64;
                    if self.seen > self.descriptor.size() {
                        return Err(size(None));
                    }
                    self.hasher.update(&piece);
                    return Ok(piece);
                }
                Some(Err(error)) => return Err(error),
                None if self.seen < self.descriptor.size() => return Err(StreamFault::Stopped),
                None => self.ended = true,
            }
        }
        Ok(Bytes::new())
    }

    /// Reads the rest of the blob and compares size and digest with the manifest.
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
