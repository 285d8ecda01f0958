//! Compares what is at rest with what it was.

use std::io;
use std::os::fd::OwnedFd;

use oras_csi_core::digest::{Digest, Hasher};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::checksums::{self, Compared};
use super::description::{self, TreeDescription};
use super::inventory::HeldTree;
use crate::disk::reader::{Broken, Pace, Reader};
use crate::disk::walk::walk;
use crate::disk::{DiskError, Totals};
use crate::layout::{CHECKSUMS, FILES, LayerKey, Layout, TREE};

/// What became of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what it was.
    Good,
    /// It is not, in words.
    Damaged(String),
    /// It is gone: collected, or set aside by somebody else.
    Gone,
    /// It has no checksums: an earlier version of the driver made it.
    NoChecksums,
    /// It was told to end.
    Stopped,
}

/// Compares a blob with its digest.
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
                Verdict::Damaged(format!("its bytes have the digest {found}"))
            }
        }
        Err(Broken::Stopped) => Verdict::Stopped,
        Err(Broken::Disk(Errno::NOENT)) => Verdict::Gone,
        Err(Broken::Disk(errno)) => {
            Verdict::Damaged(format!("it cannot be read: {}", io::Error::from(errno)))
        }
    }
}

/// Compares a layer with its checksums.
pub fn verify_layer(layout: &Layout, key: &LayerKey, pace: &mut dyn Pace) -> Result<Verdict, DiskError> {
    compared(&layout.layer(key), pace)
}

/// Compares a tree with what its description says: how much is in it, and the checksums of what is its own. The
/// bytes that it shares are those of its blobs and layers.
pub fn verify_tree(layout: &Layout, tree: &HeldTree, pace: &mut dyn Pace) -> Result<Verdict, DiskError> {
    let folder = layout.tree(tree.key());
    if !folder.exists() {
        return Ok(Verdict::Gone);
    }
    // Not what the inventory has: it may have been read while the tree was taken away and made again.
    let note =
        std::fs::read(folder.join(TREE)).ok().and_then(|text| description::parse::<TreeDescription>(&text));
    let Some(totals) = note.map(|note| note.totals()) else {
        return Ok(Verdict::Damaged("its description is not what was written".to_owned()));
    };
    let Some(root) = open(&folder.join(FILES))? else { return Ok(missing(&folder)) };
    match count(&root) {
        Ok(found) if found == totals => {}
        Ok(found) => {
            return Ok(Verdict::Damaged(format!(
                "it has {} bytes in {} files and directories, and had {} in {}",
                found.bytes, found.inodes, totals.bytes, totals.inodes
            )));
        }
        // It may have been taken away while it was counted.
        Err(_) if !folder.exists() => return Ok(Verdict::Gone),
        Err(error) => return Ok(Verdict::Damaged(error.to_string())),
    }
    Ok(match compared(&folder, pace)? {
        // A tree of an earlier version: its files are other names of verified ones.
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
        // It may have been taken away while it was compared.
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
