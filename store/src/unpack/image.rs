//! Writes the files of an archive with many small files into one EROFS image, instead of one inode for each.
//!
//! ```text
//! block 0    superblock; the inode of the root directory
//! block 1…   in the order of the archive: small files within blocks of inodes, larger files in blocks of their own
//! then       the directories, written when the archive ends
//! ```
//!
//! The image is written once and sequentially, apart from the blocks in which inodes are collected. Only names stay in
//! memory until the end. The format is EROFS without compression (Linux Documentation/filesystems/erofs.rst,
//! fs/erofs/erofs_fs.h); [`mod@format`] encodes it.
//!
//! An archive is unpacked into files first. It becomes an image when it has had many entries with little content
//! ([`should_become_image`]), so archives of few or large files are not affected. docs/decisions/erofs-images.md has the
//! measurements.
//!
//! The writer knows the simple cases only: new files, directories, symbolic links, and hard links to files. Everything else
//! (an entry that replaces another one, a path through a link, a sparse or a large file) ends it with
//! [`UnpackError::NotForImage`], and the caller unpacks the archive into files again. So there is one place that decides
//! what such entries mean.
//!
//! In the image the files are at `/trees/KEY/files`, the path that they have in a store without images. The kernel reports
//! this path for a mount of them, and the driver recognizes its volumes by it.

mod format;
mod writer;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub(crate) use self::writer::ImageWriter;
use super::budget::Budget;
use super::error::UnpackError;
use crate::disk::{EntryPath, Totals};
use crate::layout::TreeKey;
use crate::limits::{Limits, Reserve};

/// How many entries an archive must have had.
const MIN_ENTRIES: u64 = 2_048;
/// How many bytes an entry may have had on average. Files are faster for large reads: a read through an image passes two
/// page caches.
const MAX_AVERAGE_BYTES: u64 = 128 << 10;

/// The largest file in an image. O_DIRECT, which programs use to read large files, fails in an image that is mounted from a
/// file.
const MAX_FILE: u64 = 16 << 20;

/// The image that an archive can become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImagePlan {
    /// The tree that is the image.
    pub(crate) tree: TreeKey,
    /// The path of the archive's root in the tree.
    pub(crate) at: EntryPath,
}

/// An image that is written to a file.
#[derive(Debug)]
pub(crate) struct ImageTarget<'a> {
    pub(crate) plan: &'a ImagePlan,
    /// The path of the file, where nothing is.
    pub(crate) path: PathBuf,
}

/// Writes an image with one file, and returns the path of the file in it.
pub(crate) fn write_test_image(disk: &OwnedFd, path: &Path, content: &[u8]) -> Result<PathBuf, UnpackError> {
    let (limits, budget) = (Limits::default().with_reserve(Reserve::bytes(0)), Budget::default());
    let tree = TreeKey::test();
    let plan = ImagePlan { tree: tree.clone(), at: EntryPath::root() };
    let target = ImageTarget { plan: &plan, path: path.to_owned() };
    let mut writer = ImageWriter::create(&target, disk, &limits, &budget, Box::new(()))?;
    let name = EntryPath::root().child(b"file");
    writer.file(&name, 0o444, 0, content.len() as u64, &mut &content[..])?;
    writer.finish()?;
    Ok(Path::new("trees").join(crate::layout::tree_files(&tree)).join("file"))
}

/// Reports whether an archive that has had these entries, with a largest file of this size, should become an image.
pub(super) fn should_become_image(totals: Totals, largest: u64) -> bool {
    largest <= MAX_FILE && totals.inodes >= MIN_ENTRIES && totals.bytes / MAX_AVERAGE_BYTES <= totals.inodes
}
