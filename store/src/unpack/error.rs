//! Why a layer cannot be unpacked.

use std::io;

use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;

use super::compress::{CompressionError, Window};
use super::tar::TarError;
use crate::content::blob_reader::StreamFault;
use crate::disk::{DiskError, NameError};
use crate::error_class::ErrorClass;

/// Why a layer does not become files.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A name that leads elsewhere, or that cannot be.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The archive's own form.
    #[error(transparent)]
    Tar(TarError),
    /// Media type and compression differ.
    #[error(transparent)]
    Compression(CompressionError),
    /// The stream does not decompress.
    #[error("the layer cannot be decompressed: {0}: it was damaged before it was pushed")]
    Corrupt(Shown),
    /// A zstd window above the limit.
    #[error(transparent)]
    Window(Window),
    /// The stream ended, was too long, or had the wrong digest.
    #[error(transparent)]
    Stream(#[from] StreamFault),
    /// Too many files.
    #[error("the layers of the volume have more than {limit} entries together, the limit")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// An entry outside the directory that the layer is.
    #[error(
        "the entry \"{entry}\" is not beneath \"{prefix}\", the directory that the layer's title names: push it again with a current ORAS"
    )]
    OutsidePrefix {
        /// The entry.
        entry: Shown,
        /// The title.
        prefix: String,
    },
    /// A file where the root is.
    #[error("the layer makes the root of the volume something else than a directory")]
    RootIsNoDirectory,
    /// A link out of an ORAS directory.
    #[error(
        "the symbolic link \"{path}\" leads to \"{target}\", which may lie outside the directory that was pushed: make it relative, with \"..\" only in front"
    )]
    SymlinkLeaves {
        /// The link.
        path: String,
        /// Where it leads.
        target: Shown,
    },
    /// A link to nothing, or to an endless name.
    #[error("the symbolic link \"{path}\" leads to an empty or impossible name")]
    LinkTarget {
        /// The link.
        path: String,
    },
    /// A hard link to what is not there.
    #[error("the hard link \"{path}\" is to \"{existing}\", which is no earlier file of the same layer")]
    HardLink {
        /// The link.
        path: String,
        /// What it names.
        existing: String,
    },
    /// A path through something that is no directory.
    #[error(
        "the directory \"{path}\" leads through a symbolic link or a file of the same layer: nothing is written through links"
    )]
    Through {
        /// The directory.
        path: String,
    },
    /// A file over a directory with something in it.
    #[error("\"{path}\" is a directory with something in it, and then something else, in the same layer")]
    ReplacesDirectory {
        /// The path.
        path: String,
    },
    /// `io.deis.oras.content.digest` does not match.
    #[error("the uncompressed content has the digest {found}, and the layer's annotation says {wanted}")]
    ContentDigest {
        /// What the annotation says.
        wanted: Digest,
        /// What came.
        found: Digest,
    },
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<TarError> for UnpackError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Io(error) => Self::from_stream(error),
            other => Self::Tar(other),
        }
    }
}

impl From<CompressionError> for UnpackError {
    fn from(error: CompressionError) -> Self {
        match error {
            CompressionError::Io(error) => Self::from_stream(error),
            lies @ CompressionError::Lies { .. } => Self::Compression(lies),
        }
    }
}

impl UnpackError {
    /// An error that came out of the chain of readers: ours, or the decompressor's.
    pub(crate) fn from_stream(error: io::Error) -> Self {
        let error = match error.downcast::<StreamFault>() {
            Ok(fault) => return Self::Stream(fault),
            Err(error) => error,
        };
        match error.downcast::<Window>() {
            Ok(window) => Self::Window(window),
            Err(error) => Self::Corrupt(Shown::new(&error.to_string())),
        }
    }

    /// What kind of failure it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Disk(_) => ErrorClass::Failed,
            Self::Stream(fault) => fault.class(),
            _ => ErrorClass::Refused,
        }
    }
}
