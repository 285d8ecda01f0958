//! Unpacks one tar layer into an empty directory.

use std::io::BufRead;
use std::os::fd::OwnedFd;

use oras_csi_core::digest::Digest;

use super::budget::Budget;
use super::compress;
use super::error::UnpackError;
use super::metered::Metered;
use super::tar::{Kind, TarReader};
use super::tree_writer::TreeWriter;
use crate::content::blob_reader::BlobReader;
use crate::disk::Totals;
use crate::disk::entry_path::{EntryPath, shown, stays_inside};
use crate::layout::LayerShape;
use crate::limits::Limits;

/// How a layer is unpacked: what its entries are relative to, and what of the volume's limits it shares with others.
#[derive(Clone, Debug)]
pub struct Unpacking {
    shape: LayerShape,
    budget: Budget,
}

impl Unpacking {
    /// A layer of this shape, beside others of the same budget.
    pub fn new(shape: LayerShape, budget: Budget) -> Self {
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
        LayerShape::Directory { content, .. } => content.as_ref(),
        LayerShape::Image => None,
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
    let image = *shape == LayerShape::Image;
    while let Some(entry) = archive.advance()? {
        let path = place(&entry.name, shape, limits)?;
        match entry.kind {
            Kind::File => writer.file(&path, entry.mode, entry.mtime, entry.size, &mut archive)?,
            Kind::Directory => writer.directory(&path, entry.mtime)?,
            Kind::Symlink(target) => {
                if !image && !stays_inside(path.depth().saturating_sub(1), &target) {
                    return Err(UnpackError::SymlinkLeaves {
                        path: path.to_string(),
                        target: shown(&target),
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
fn place(name: &[u8], shape: &LayerShape, limits: &Limits) -> Result<EntryPath, UnpackError> {
    // Images are made by many tools, and some write "/etc/passwd" for "etc/passwd": GNU tar takes both.
    let relative = match shape {
        LayerShape::Image => &name[name.iter().take_while(|byte| **byte == b'/').count()..],
        LayerShape::Directory { .. } => name,
    };
    let path = EntryPath::parse(relative, limits)?;
    match shape {
        LayerShape::Image => Ok(path),
        LayerShape::Directory { prefix, .. } => path
            .beneath(prefix)
            .ok_or_else(|| UnpackError::OutsidePrefix { entry: shown(name), prefix: prefix.to_string() }),
    }
}
