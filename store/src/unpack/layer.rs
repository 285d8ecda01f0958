//! Unpacks one tar layer into an empty directory.

use std::io::BufRead;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use oras_csi_core::digest::Digest;

use super::budget::Budget;
use super::compress;
use super::error::UnpackError;
use super::image::{ImagePlan, ImageTarget, ImageWriter, should_become_image};
use super::metered::MeteredReader;
use super::tar::{EntryKind, TarReader};
use super::tree_writer::{LinkRule, TreeWriter};
use super::upward_links::UpwardLinks;
use super::zstd_windows::WindowMemory;
use crate::content::blob_reader::BlobReader;
use crate::disk::entry_path::{EntryPath, shown, stays_inside};
use crate::disk::{Totals, Usage};
use crate::layout::LayerShape;
use crate::limits::Limits;

/// How a layer is unpacked.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    shape: LayerShape,
    budget: Budget,
    memory: Option<Arc<dyn WindowMemory>>,
    image: Option<ImagePlan>,
}

impl UnpackOptions {
    /// Unpacks a layer of this shape. The layers of a volume share `budget`.
    pub fn new(shape: LayerShape, budget: Budget) -> Self {
        Self { shape, budget, memory: None, image: None }
    }

    /// Returns the options for a layer that can become an image.
    #[must_use]
    pub(crate) fn with_image(self, plan: ImagePlan) -> Self {
        Self { image: Some(plan), ..self }
    }

    /// Returns the options for a layer that becomes files.
    #[must_use]
    pub(crate) fn without_image(&self) -> Self {
        Self { image: None, ..self.clone() }
    }

    /// Returns the image that the layer can become.
    pub(crate) fn image(&self) -> Option<&ImagePlan> {
        self.image.as_ref()
    }

    /// Returns a permission to write an image. Without limits on memory there is always one.
    fn try_image(&self) -> Option<Box<dyn Send>> {
        self.memory.as_ref().map_or_else(|| Some(Box::new(()) as Box<dyn Send>), |memory| memory.try_image())
    }

    /// Returns the limits that the layers of the volume share.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Returns the options with memory for zstd windows. Without it, the memory is not limited.
    #[must_use]
    pub(crate) fn with_memory(self, memory: Arc<dyn WindowMemory>) -> Self {
        Self { memory: Some(memory), ..self }
    }
}

/// The result of unpacking a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnpackSummary {
    /// How many entries and bytes were written.
    pub totals: Totals,
    /// What the disk is charged for the entries, without the records beside them.
    pub usage: Usage,
    /// How many device nodes, FIFOs and other special entries were skipped.
    pub skipped: u64,
    /// Whether the entries were written into an image.
    pub(crate) is_image: bool,
}

/// Unpacks a tar layer into `root`, an empty directory, and verifies its digests at the end.
///
/// After an error the directory contains what was written before it.
pub fn unpack_layer(
    blob: BlobReader,
    options: &UnpackOptions,
    root: &OwnedFd,
    limits: &Limits,
) -> Result<UnpackSummary, UnpackError> {
    unpack_layer_or_image(blob, options, root, None, limits)
}

/// Unpacks a tar layer as [`unpack_layer`], or into `image` if the archive has many small files. `root` is empty then.
pub(crate) fn unpack_layer_or_image(
    mut blob: BlobReader,
    options: &UnpackOptions,
    root: &OwnedFd,
    image: Option<&ImageTarget<'_>>,
    limits: &Limits,
) -> Result<UnpackSummary, UnpackError> {
    let UnpackOptions { shape, budget, memory, .. } = options;
    let media_type = blob.media_type().to_owned();
    let content = match shape {
        LayerShape::Directory { content, .. } => content.as_ref(),
        LayerShape::Image => None,
    };
    let (unpacked, found) = {
        let opened = compress::open(&mut blob, &media_type, limits.zstd_window_log(), memory.clone())?;
        let mut plain = MeteredReader::new(opened, limits, budget, content.map(Digest::algorithm));
        let unpacked = unpack_archive(&mut plain, options, root, image, limits)?;
        // Bytes after the end of the archive belong to the stream, and the digests cover them.
        loop {
            let length = plain.fill_buf().map_err(UnpackError::from_stream)?.len();
            if length == 0 {
                break;
            }
            plain.consume(length);
        }
        (unpacked, plain.finish())
    };
    // The digest of the blob comes first: it shows whether the registry or the publisher of the layer is at fault.
    blob.finish()?;
    match (content, found) {
        (Some(wanted), Some(found)) if found != *wanted => {
            Err(UnpackError::ContentDigest { wanted: wanted.clone(), found })
        }
        _ => Ok(unpacked),
    }
}

/// Where the entries of an archive go.
enum Output<'a> {
    Files(Box<TreeWriter<'a>>),
    Image(Box<ImageWriter<'a>>),
}

fn unpack_archive(
    stream: impl BufRead,
    options: &UnpackOptions,
    root: &OwnedFd,
    image: Option<&ImageTarget<'_>>,
    limits: &Limits,
) -> Result<UnpackSummary, UnpackError> {
    let UnpackOptions { shape, budget, .. } = options;
    let mut archive = TarReader::new(stream);
    let is_layer_of_image = *shape == LayerShape::Image;
    let links = if is_layer_of_image { LinkRule::Resolve } else { LinkRule::Reject };
    let mut output = Output::Files(Box::new(TreeWriter::new(root, limits, budget, links)?));
    let mut upward_links = UpwardLinks::default();
    let mut skipped = 0;
    // Asked for once: an archive for which there is none is unpacked into files.
    let mut image_permit = None;
    while let Some(entry) = archive.advance()? {
        let path = entry_path(&entry.name, shape, limits)?;
        if let (Output::Files(files), Some(target)) = (&output, image)
            && upward_links.is_empty()
            && files.can_become_image()
            && should_become_image(files.totals(), files.largest())
            && let Some(permit) = image_permit.get_or_insert_with(|| options.try_image()).take()
        {
            budget.release_disk(files.usage().bytes);
            let mut image = ImageWriter::create(target, root, limits, budget, permit)?;
            image.take_over(root)?;
            image.set_times(files.times());
            output = Output::Image(Box::new(image));
        }
        if let EntryKind::Symlink(target) = &entry.kind
            && !is_layer_of_image
            && !stays_inside(path.depth().saturating_sub(1), target)
        {
            upward_links.add(&path, target)?;
        }
        match (&mut output, entry.kind) {
            (Output::Files(writer), EntryKind::File) => {
                writer.file(&path, entry.mode, entry.mtime, entry.size, &mut archive)?;
            }
            (Output::Image(writer), EntryKind::File) => {
                writer.file(&path, entry.mode, entry.mtime, entry.size, &mut archive)?;
            }
            (Output::Files(writer), EntryKind::Sparse(map)) => {
                // The holes count as unpacked bytes, because readers see them, but take nothing of the disk.
                budget.count_bytes(map.holes(), limits)?;
                writer.sparse_file(&path, entry.mode, entry.mtime, &map, &mut archive)?;
            }
            (Output::Image(_), EntryKind::Sparse(_)) => return Err(UnpackError::NotForImage),
            (Output::Files(writer), EntryKind::Directory) => writer.directory(&path, entry.mtime)?,
            (Output::Image(writer), EntryKind::Directory) => writer.directory(&path, entry.mtime)?,
            (Output::Files(writer), EntryKind::Symlink(target)) => {
                writer.symlink(&path, &target, entry.mtime)?;
            }
            (Output::Image(writer), EntryKind::Symlink(target)) => {
                writer.symlink(&path, &target, entry.mtime)?;
            }
            (Output::Files(writer), EntryKind::HardLink(existing)) => {
                writer.hard_link(&path, &entry_path(&existing, shape, limits)?)?;
            }
            (Output::Image(writer), EntryKind::HardLink(existing)) => {
                writer.hard_link(&path, &entry_path(&existing, shape, limits)?)?;
            }
            (_, EntryKind::Special) => {
                budget.count_entry(limits)?;
                skipped += 1;
            }
        }
    }
    match output {
        Output::Files(writer) => {
            upward_links.check(root)?;
            let (totals, usage) = writer.finish();
            Ok(UnpackSummary { totals, usage, skipped, is_image: false })
        }
        // The links are checked against directories on the disk.
        Output::Image(_) if !upward_links.is_empty() => Err(UnpackError::NotForImage),
        Output::Image(writer) => {
            let (totals, usage) = writer.finish()?;
            Ok(UnpackSummary { totals, usage, skipped, is_image: true })
        }
    }
}

/// Returns the path in the tree of the layer for the name of an entry.
fn entry_path(name: &[u8], shape: &LayerShape, limits: &Limits) -> Result<EntryPath, UnpackError> {
    // Some tools write "/etc/passwd" instead of "etc/passwd" in images. GNU tar accepts both.
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
