//! Verifies stored items: blobs against their digest, layers and trees against their recorded checksums.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use oras_csi_core::digest::{Digest, Hasher};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use super::checksums::{self, Compared};
use super::description::{self, ImageDescription, LayerDescription, TreeDescription};
use super::inventory::HeldTree;
use crate::disk::reader::{Pace, ReadError, Reader};
use crate::disk::walk::walk;
use crate::disk::{DiskError, Totals};
use crate::layout::{CHECKSUMS, FILES, IMAGE, LAYER, LayerKey, Layout, TREE};

/// The result of verifying an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The item is intact.
    Good,
    /// The item is damaged, as this message describes.
    Damaged(String),
    /// The item no longer exists: it was garbage-collected or quarantined meanwhile.
    Gone,
    /// The item has no checksums, because an earlier version of the driver created it.
    NoChecksums,
    /// [`Pace`] stopped the verification.
    Stopped,
}

/// Verifies a blob against its digest.
pub fn verify_blob(layout: &Layout, digest: &Digest, pace: &mut dyn Pace) -> Verdict {
    let mut hasher = Hasher::new(digest.algorithm());
    let path = layout.blob(digest);
    let mut reader = Reader::from_disk();
    match reader.read(CWD, path.as_os_str(), pace, &mut |piece| hasher.update(piece)) {
        Ok(_) => {
            let found = hasher.finish();
            if found == *digest {
                Verdict::Good
            } else {
                Verdict::Damaged(format!("its content has the digest {found}"))
            }
        }
        Err(ReadError::Stopped) => Verdict::Stopped,
        Err(ReadError::Disk(Errno::NOENT)) => Verdict::Gone,
        Err(ReadError::Disk(errno)) => {
            Verdict::Damaged(format!("it cannot be read: {}", io::Error::from(errno)))
        }
    }
}

/// Reads an image and returns its size and checksum.
pub(crate) fn describe_image(path: &Path, pace: &mut dyn Pace) -> Result<ImageDescription, Errno> {
    match read_image(&mut Reader::from_memory(), path, pace) {
        Ok(image) => Ok(image),
        Err(ReadError::Stopped) => Err(Errno::CANCELED),
        Err(ReadError::Disk(errno)) => Err(errno),
    }
}

fn read_image(reader: &mut Reader, path: &Path, pace: &mut dyn Pace) -> Result<ImageDescription, ReadError> {
    let mut hasher = Xxh3::new();
    let bytes = reader.read(CWD, path.as_os_str(), pace, &mut |piece| hasher.update(piece))?;
    Ok(ImageDescription { bytes, xxh3: format!("{:032x}", hasher.digest128()) })
}

fn verify_image(folder: &Path, wanted: &ImageDescription, pace: &mut dyn Pace) -> Verdict {
    match read_image(&mut Reader::from_disk(), &folder.join(IMAGE), pace) {
        Ok(found) if found == *wanted => Verdict::Good,
        Ok(_) => Verdict::Damaged("its image has other content than when it was written".to_owned()),
        Err(ReadError::Stopped) => Verdict::Stopped,
        Err(ReadError::Disk(_)) if !folder.exists() => Verdict::Gone,
        Err(ReadError::Disk(errno)) => {
            Verdict::Damaged(format!("its image cannot be read: {}", io::Error::from(errno)))
        }
    }
}

/// Checks that the image of a layer or a tree exists with the right size, without reading it.
pub(crate) fn check_image(folder: &Path, image: Option<&ImageDescription>) -> Result<(), String> {
    let Some(image) = image else { return Ok(()) };
    match std::fs::symlink_metadata(folder.join(IMAGE)) {
        Ok(found) if found.len() == image.bytes => Ok(()),
        Ok(found) => Err(format!("its image has {} bytes instead of {}", found.len(), image.bytes)),
        Err(error) => Err(format!("its image: {error}")),
    }
}

/// Verifies a layer against its checksums.
pub fn verify_layer(layout: &Layout, key: &LayerKey, pace: &mut dyn Pace) -> Result<Verdict, DiskError> {
    let folder = layout.layer(key);
    let description = std::fs::read(folder.join(LAYER)).ok();
    let description = description.and_then(|text| description::parse::<LayerDescription>(&text));
    if let Some(image) = description.and_then(|description| description.image) {
        return Ok(verify_image(&folder, &image, pace));
    }
    compared(&layout.layer(key), pace)
}

/// Verifies a tree against its description: its size, and the checksums of files that belong to it alone.
/// Files that it shares are verified with its blobs and layers.
pub fn verify_tree(layout: &Layout, tree: &HeldTree, pace: &mut dyn Pace) -> Result<Verdict, DiskError> {
    let folder = layout.tree(tree.key());
    if !folder.exists() {
        return Ok(Verdict::Gone);
    }
    // The description in the inventory can be out of date if the tree was removed and built again meanwhile.
    let description =
        std::fs::read(folder.join(TREE)).ok().and_then(|text| description::parse::<TreeDescription>(&text));
    let Some(description) = description else {
        return Ok(Verdict::Damaged("its description (tree.json) is damaged".to_owned()));
    };
    // The image is a link to that of its layer, and its content is verified there.
    if description.content.image.is_some() {
        return Ok(match check_image(&folder, description.content.image.as_ref()) {
            Ok(()) => Verdict::Good,
            Err(_) if !folder.exists() => Verdict::Gone,
            Err(found) => Verdict::Damaged(found),
        });
    }
    let totals = description.totals();
    let Some(root) = open(&folder.join(FILES))? else { return Ok(missing(&folder)) };
    match count(&root) {
        Ok(found) if found == totals => {}
        Ok(found) => {
            return Ok(Verdict::Damaged(format!(
                "it has {} bytes in {} files and directories, and had {} in {}",
                found.bytes, found.inodes, totals.bytes, totals.inodes
            )));
        }
        // The tree may have been removed while its entries were counted.
        Err(_) if !folder.exists() => return Ok(Verdict::Gone),
        Err(error) => return Ok(Verdict::Damaged(error.to_string())),
    }
    Ok(match compared(&folder, pace)? {
        // An earlier version created the tree: all its files are links to verified files.
        Verdict::NoChecksums => Verdict::Good,
        other => other,
    })
}

fn compared(folder: &std::path::Path, pace: &mut dyn Pace) -> Result<Verdict, DiskError> {
    if !folder.exists() {
        return Ok(Verdict::Gone);
    }
    let Some(root) = open(&folder.join(FILES))? else { return Ok(missing(folder)) };
    Ok(match checksums::compare(&root, &folder.join(CHECKSUMS), &mut Reader::from_disk(), pace)? {
        Compared::Same => Verdict::Good,
        // The item may have been removed while it was compared.
        Compared::Differs(_) | Compared::NoChecksums if !folder.exists() => Verdict::Gone,
        Compared::Differs(found) => Verdict::Damaged(found),
        Compared::NoChecksums => Verdict::NoChecksums,
        Compared::Stopped => Verdict::Stopped,
    })
}

fn missing(folder: &std::path::Path) -> Verdict {
    if folder.exists() { Verdict::Damaged("its files are missing".to_owned()) } else { Verdict::Gone }
}

fn open(path: &std::path::Path) -> Result<Option<OwnedFd>, DiskError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(root) => Ok(Some(root)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(DiskError::new("open", path, errno)),
    }
}

fn count(root: &OwnedFd) -> Result<Totals, DiskError> {
    let mut found = Totals { bytes: 0, inodes: 1 };
    walk(root, |entry| {
        found.inodes += 1;
        if entry.kind == FileType::RegularFile {
            found.bytes += entry.size();
        }
        Ok::<_, DiskError>(())
    })?;
    Ok(found)
}
