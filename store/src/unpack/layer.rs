//! From the bytes of a layer to files in a directory.
//!
//! ```text
//! registry ──► BlobReader ──► compress ──► Metered ──────► tar ──► write
//!              size, digest   magic,       limit, space,   names   openat2 beneath,
//!              of the blob    window       content digest          one name at a time
//! ```
//!
//! [`plan`] decides what a manifest's layers become, [`unpack_layer`] streams one tar layer into an empty
//! directory, [`graft`] lays layer trees and files over each other by hard links. The layers of a volume share a
//! [`budget`] of entries and bytes.
//!
//! What happens to what an archive may hold:
//!
//! | entry | in an ORAS directory | in an image layer |
//! |---|---|---|
//! | file | kept, mode a+rX, no setuid, setgid, sticky, owner or xattrs | the same |
//! | symbolic link | kept if it stays inside, else the layer is refused | kept as it is |
//! | hard link | to an earlier file of the same layer | also to an earlier link |
//! | device, FIFO | left out, counted, logged (as ORAS does) | the same |
//! | `.wh.` names | ordinary files here; whiteouts once an `overlay` step lays them ([`graft`]) | whiteouts of layers below |
//! | the same name twice | the last one counts; over a directory with something in it: refused | the same |
//! | sparse file | refused | refused |
//!
//! Architecture Invariant: nothing here makes a tree visible. Its caller does, after the digest of every
//! layer has been verified over the whole of its stream.

pub mod budget;
pub mod compress;
pub mod filter;
pub mod graft;
pub mod name;
pub mod plan;
pub mod stream;
pub mod tar;
pub mod write;

pub(crate) mod entries;

use std::io::{self, BufRead};
use std::os::fd::OwnedFd;

use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;

use self::budget::Budget;
use self::compress::{CompressionError, Window};
use self::name::{EntryPath, NameError, stays_inside};
use self::stream::{BlobReader, Metered, StreamFault};
use self::tar::{Kind, TarError, TarReader};
pub use self::write::Totals;
use self::write::TreeWriter;
use crate::class::ErrorClass;
use crate::settings::Limits;
use crate::store::DiskError;

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

/// What the entries of a tar layer are relative to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An ORAS directory: every entry lies beneath the title, which is taken off.
    Directory {
        /// The title.
        prefix: EntryPath,
        /// The digest of the uncompressed stream, where the manifest says it.
        content: Option<Digest>,
    },
    /// A layer of an image: entries lie beneath the root.
    Image,
}

/// How a layer is unpacked: what its entries are relative to, and what of the volume's limits it shares with others.
#[derive(Clone, Debug)]
pub struct Unpacking {
    shape: Shape,
    budget: Budget,
}

impl Unpacking {
    /// A layer of this shape, beside others of the same budget.
    pub fn new(shape: Shape, budget: Budget) -> Self {
        Self { shape, budget }
    }
}

/// What came out of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// How much it holds.
    pub totals: Totals,
    /// How many device nodes, FIFOs and the like were left out.
    pub left_out: u64,
}

/// Unpacks a tar layer into `root`, an empty directory, and verifies its digest at the end.
///
/// On an error the directory holds whatever was written up to it.
pub fn unpack_layer(
    mut blob: BlobReader,
    unpacking: &Unpacking,
    root: &OwnedFd,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let Unpacking { shape, budget } = unpacking;
    let media_type = blob.media_type().to_owned();
    let content = match shape {
        Shape::Directory { content, .. } => content.as_ref(),
        Shape::Image => None,
    };
    let (unpacked, found) = {
        let opened = compress::open(&mut blob, &media_type, limits.zstd_window_log())?;
        let mut plain = Metered::new(opened, limits, budget, root, content.map(Digest::algorithm));
        let unpacked = unpack_archive(&mut plain, unpacking, root, limits)?;
        // What follows the archive belongs to the stream, and its digests cover it.
        loop {
            let length = plain.fill_buf().map_err(UnpackError::from_stream)?.len();
            if length == 0 {
                break;
            }
            plain.consume(length);
        }
        (unpacked, plain.finish())
    };
    // First the blob's own digest: it says whether the registry or the one who pushed is to blame.
    blob.finish()?;
    match (content, found) {
        (Some(wanted), Some(found)) if found != *wanted => {
            Err(UnpackError::ContentDigest { wanted: wanted.clone(), found })
        }
        _ => Ok(unpacked),
    }
}

fn unpack_archive(
    stream: impl BufRead,
    unpacking: &Unpacking,
    root: &OwnedFd,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let Unpacking { shape, budget } = unpacking;
    let mut archive = TarReader::new(stream);
    let mut writer = TreeWriter::new(root, limits, budget);
    let mut left_out = 0;
    let image = *shape == Shape::Image;
    while let Some(entry) = archive.advance()? {
        let path = place(&entry.name, shape, limits)?;
        match entry.kind {
            Kind::File => writer.file(&path, entry.mode, entry.mtime, entry.size, &mut archive)?,
            Kind::Directory => writer.directory(&path, entry.mtime)?,
            Kind::Symlink(target) => {
                if !image && !stays_inside(path.depth().saturating_sub(1), &target) {
                    return Err(UnpackError::SymlinkLeaves {
                        path: path.to_string(),
                        target: name::shown(&target),
                    });
                }
                writer.symlink(&path, &target, entry.mtime)?;
            }
            Kind::HardLink(existing) => {
                writer.hard_link(&path, &place(&existing, shape, limits)?, image)?;
            }
            Kind::Special => {
                budget.entry(limits)?;
                left_out += 1;
            }
        }
    }
    Ok(Unpacked { totals: writer.finish(), left_out })
}

/// Where an entry of this name lies in the layer's tree.
fn place(name: &[u8], shape: &Shape, limits: &Limits) -> Result<EntryPath, UnpackError> {
    // Images are made by many tools, and some write "/etc/passwd" for "etc/passwd": GNU tar takes both.
    let relative = match shape {
        Shape::Image => &name[name.iter().take_while(|byte| **byte == b'/').count()..],
        Shape::Directory { .. } => name,
    };
    let path = EntryPath::parse(relative, limits)?;
    match shape {
        Shape::Image => Ok(path),
        Shape::Directory { prefix, .. } => path.beneath(prefix).ok_or_else(|| UnpackError::OutsidePrefix {
            entry: name::shown(name),
            prefix: prefix.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests;
