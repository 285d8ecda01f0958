//! Where the bytes of a large blob go while it is downloaded.

use std::ops::Range;

use bytes::Bytes;

use crate::disk::DiskError;

/// Keeps bytes that arrive in any order until a reader has used them in order: a partial blob, or the spool of an
/// archive.
pub(crate) trait BlobSink: Send + Sync + 'static {
    /// Returns the ranges that have not arrived, in order.
    fn missing(&self) -> Vec<Range<u64>>;

    /// Keeps bytes at `offset`. Blocks, also until the reader has made room.
    fn write(&self, offset: u64, bytes: Bytes) -> Result<(), DiskError>;

    /// Reports whether so much has arrived ahead of missing bytes that no further range should be requested.
    fn is_far_ahead(&self) -> bool;

    /// Syncs written bytes to the disk at intervals, until writing has finished. Blocks.
    fn sync_at_intervals(&self) {}
}

/// The result of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next bytes; empty at the end of the blob.
    Bytes(Bytes),
    /// The writer has finished, and these bytes have not arrived.
    Closed,
}
