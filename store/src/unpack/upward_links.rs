//! Symbolic links of an ORAS directory with `..` behind a name, for example `b/../../x`.
//!
//! ORAS accepts a link if its target is inside the directory by its text. That is not enough: if `b` is itself a link, the
//! kernel continues at the target of `b`. So each name before a `..` must be a directory of the same layer. That is known
//! only at the end of the archive, because a later entry can replace it.

use std::os::fd::OwnedFd;

use super::error::UnpackError;
use crate::disk::EntryPath;
use crate::disk::beneath::open_beneath;
use crate::disk::entry_path::shown;

/// The maximum size of all paths and targets that are kept to the end of an archive.
const MAX_BYTES: usize = 1 << 20;

/// The links of an archive that are checked at its end.
#[derive(Default)]
pub(super) struct UpwardLinks {
    links: Vec<(EntryPath, Vec<u8>)>,
    bytes: usize,
}

fn escapes(path: &EntryPath, target: &[u8]) -> UnpackError {
    UnpackError::SymlinkEscapes { path: path.to_string(), target: shown(target) }
}

impl UpwardLinks {
    /// Adds a link. Fails if its target is outside by its text, or if there are too many links to check.
    pub(super) fn add(&mut self, path: &EntryPath, target: &[u8]) -> Result<(), UnpackError> {
        self.bytes += path.as_bytes().len() + target.len();
        if self.bytes > MAX_BYTES || directories_before_upwards(path, target).is_none() {
            return Err(escapes(path, target));
        }
        self.links.push((path.clone(), target.to_vec()));
        Ok(())
    }

    /// Reports whether there is nothing to check.
    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Checks the links against the directories beneath `root`.
    pub(super) fn check(&self, root: &OwnedFd) -> Result<(), UnpackError> {
        for (path, target) in &self.links {
            let directories = directories_before_upwards(path, target).unwrap_or_default();
            if directories.iter().any(|directory| open_beneath(root, directory).is_err()) {
                return Err(escapes(path, target));
            }
        }
        Ok(())
    }
}

/// Returns the directories that a `..` of the target leaves. Returns `None` if the target is outside by its text.
fn directories_before_upwards(path: &EntryPath, target: &[u8]) -> Option<Vec<EntryPath>> {
    if target.first() == Some(&b'/') {
        return None;
    }
    let (mut at, _) = path.split()?;
    let mut directories = Vec::new();
    for segment in target.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => {
                let (parent, _) = at.split()?;
                directories.push(std::mem::replace(&mut at, parent));
            }
            name => at = at.child(name),
        }
    }
    Some(directories)
}
