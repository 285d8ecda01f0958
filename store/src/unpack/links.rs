//! Replaces a path that leads through symbolic links by one that does not, as if the root of the layer were `/`.
//!
//! Packages write files through links of the same layer, for example `lib/x` where `lib` is a link to `usr/lib`. containerd
//! resolves the directory of each entry beneath the root: absolute targets begin at the root, and `..` does not leave it. A
//! target that does not exist is created. `openat2` with `RESOLVE_IN_ROOT` resolves only what exists, and does not return
//! the path that the limits on names apply to. So the links are read one by one. The result is only a path: it is opened as
//! each other path, beneath the root and without following links.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::io::Errno;

use super::error::UnpackError;
use crate::disk::beneath::open_beneath;
use crate::disk::{DiskError, EntryPath};
use crate::limits::Limits;

/// How many links one path can lead through, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Returns `path` without symbolic links. Names that do not exist are kept. `steps` is how many names may still be looked
/// up.
pub(super) fn resolve(
    root: &OwnedFd,
    path: &EntryPath,
    limits: &Limits,
    steps: &mut u64,
) -> Result<EntryPath, UnpackError> {
    let too_many = || UnpackError::TooManyLinks { path: path.to_string() };
    let mut resolved = EntryPath::root();
    // The names that are still to be looked up, the next one last.
    let mut rest = path.segments().rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        *steps = steps.checked_sub(1).ok_or_else(too_many)?;
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                resolved = resolved.split().map_or_else(EntryPath::root, |(parent, _)| parent);
                continue;
            }
            _ => {}
        }
        let Some(target) = read_link(root, &resolved, &name)? else {
            resolved = resolved.child(&name);
            resolved.check(limits)?;
            continue;
        };
        links += 1;
        if links > MAX_LINKS {
            return Err(too_many());
        }
        if target.first() == Some(&b'/') {
            resolved = EntryPath::root();
        }
        rest.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
    }
    Ok(resolved)
}

/// Returns the target of the link `name`, or `None` if there is no such link.
fn read_link(root: &OwnedFd, folder: &EntryPath, name: &[u8]) -> Result<Option<Vec<u8>>, UnpackError> {
    let failed = |errno| {
        let path = PathBuf::from(OsStr::from_bytes(folder.child(name).as_bytes()));
        UnpackError::Disk(DiskError::new("read the link", path, errno))
    };
    let folder = match open_beneath(root, folder) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    match rustix::fs::readlinkat(&folder, OsStr::from_bytes(name), Vec::new()) {
        Ok(target) => Ok(Some(target.into_bytes())),
        Err(Errno::INVAL | Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(errno) => Err(failed(errno)),
    }
}
