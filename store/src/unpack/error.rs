//! Why a layer cannot be unpacked.

use std::io;

use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;

use super::budget::DiskLimitExceeded;
use super::compress::{CompressionError, WindowTooLarge};
use super::disk_meter::ChargeError;
use super::tar::TarError;
use crate::content::blob_reader::StreamFault;
use crate::disk::{DiskError, NameError};
use crate::error_class::ErrorClass;

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive has something that only files can represent. It is unpacked into files then.
    #[error("the archive cannot be written into one image")]
    NotForImage,
    /// A name is invalid or leads out of the tree.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The archive is invalid.
    #[error(transparent)]
    Tar(TarError),
    /// The media type and the compression differ.
    #[error(transparent)]
    Compression(CompressionError),
    /// The stream cannot be decompressed.
    #[error("the layer cannot be decompressed: {0}. It was damaged before it was pushed; push it again")]
    Corrupt(Shown),
    /// A zstd window exceeds the limit.
    #[error(transparent)]
    Window(WindowTooLarge),
    /// The stream ended early, was too long or had the wrong digest.
    #[error(transparent)]
    Stream(#[from] StreamFault),
    /// The volume has too many entries.
    #[error(
        "the layers of the volume have more than {limit} entries together, the limit (--max-entries). Push fewer files, or raise the limit"
    )]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// The volume takes too much of the disk.
    #[error(
        "the layers of the volume are too large: they take more than {limit} bytes of the disk together, the limit (--max-unpacked). Each file, directory and link counts, and each copy of a file with too many hard links. Push less, or raise the limit"
    )]
    TooMuchDisk {
        /// The limit.
        limit: u64,
    },
    /// An entry lies outside of the directory that the title of the layer names.
    #[error(
        "the entry \"{entry}\" is not beneath \"{prefix}\", the directory that the layer's title names. Push the layer again with a current ORAS"
    )]
    OutsidePrefix {
        /// The entry.
        entry: Shown,
        /// The title.
        prefix: String,
    },
    /// An entry replaces the root by a file or a link.
    #[error(
        "the layer replaces the root of the volume by something that is not a directory. Push the directory again, and not a file or a link of its name"
    )]
    RootIsNoDirectory,
    /// A symbolic link leads out of an ORAS directory.
    #[error(
        "the symbolic link \"{path}\" leads to \"{target}\", which may lie outside the directory that was pushed. Push a copy in which the links are replaced by their files (`cp -rL`, as for a snapshot of Hugging Face), or push the directory that holds both the link and its target, with relative links"
    )]
    SymlinkEscapes {
        /// The link.
        path: String,
        /// Its target.
        target: Shown,
    },
    /// The target of a symbolic link is empty or too long.
    #[error(
        "the symbolic link \"{path}\" has a target that is empty or impossible. Push the directory again without it"
    )]
    LinkTarget {
        /// The link.
        path: String,
    },
    /// The target of a hard link does not exist.
    #[error(
        "the hard link \"{path}\" is to \"{existing}\", which is no earlier file of the same layer. Pack the file before the link, in the same layer"
    )]
    HardLink {
        /// The link.
        path: String,
        /// Its target.
        existing: String,
    },
    /// A path leads through something that is not a directory.
    #[error(
        "the directory \"{path}\" leads through a symbolic link or a file of the same layer. Only image layers can write through links, and only to directories"
    )]
    ThroughLink {
        /// The directory.
        path: String,
    },
    /// A path leads through more links than the kernel follows, or through links to each other.
    #[error(
        "\"{path}\" leads through too many symbolic links of the same layer, or through a loop of them. Push the files again without these links"
    )]
    TooManyLinks {
        /// The path.
        path: String,
    },
    /// An entry replaces a directory that is not empty.
    #[error(
        "the layer has \"{path}\" twice: as a directory with something in it, and later as something else. Push it again with each path once"
    )]
    ReplacesDirectory {
        /// The path.
        path: String,
    },
    /// The annotation `io.deis.oras.content.digest` does not match.
    #[error(
        "the uncompressed content has the digest {found}, but the layer's annotation says {wanted}. Push the layer again"
    )]
    ContentDigest {
        /// The digest of the annotation.
        wanted: Digest,
        /// The digest of the content.
        found: Digest,
    },
    /// An operation on the store's disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<ChargeError> for UnpackError {
    fn from(error: ChargeError) -> Self {
        match error {
            ChargeError::Limit(DiskLimitExceeded { limit }) => Self::TooMuchDisk { limit },
            ChargeError::Disk(error) => Self::Disk(error),
        }
    }
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
            mismatch @ CompressionError::Mismatch { .. } => Self::Compression(mismatch),
        }
    }
}

impl UnpackError {
    /// Reports whether the disk was full.
    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            Self::Stream(StreamFault::Disk(error)) | Self::Disk(error) => error.is_full(),
            _ => false,
        }
    }

    /// Converts an error of the chain of readers: one of this crate, or one of the decompressor.
    pub(crate) fn from_stream(error: io::Error) -> Self {
        let error = match error.downcast::<StreamFault>() {
            Ok(fault) => return Self::Stream(fault),
            Err(error) => error,
        };
        match error.downcast::<WindowTooLarge>() {
            Ok(window) => Self::Window(window),
            Err(error) => Self::Corrupt(Shown::new(&error.to_string())),
        }
    }

    /// Returns the class of the failure, for exit codes.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Disk(_) => ErrorClass::Failed,
            Self::Stream(fault) => fault.class(),
            _ => ErrorClass::Refused,
        }
    }
}
