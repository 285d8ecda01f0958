//! Writing a file as a whole: a reader never sees half of it, and a crash leaves either the file or nothing.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

/// Who can read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileMode {
    /// The owner only (0600), for keys.
    Private,
    /// Everyone (0644), for certificates and public keys.
    Public,
}

impl FileMode {
    fn permissions(self) -> Permissions {
        Permissions::from_mode(match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        })
    }
}

/// Writes a file if it does not exist. Returns false, and leaves the file as it is, if it exists.
pub fn write_new(path: &Path, bytes: &[u8], mode: FileMode) -> io::Result<bool> {
    match temporary(path, bytes, mode)?.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error.error),
    }
    sync_folder(path)?;
    Ok(true)
}

/// Writes a file, and replaces one of the same name in one step.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: FileMode) -> io::Result<()> {
    temporary(path, bytes, mode)?.persist(path).map_err(|error| error.error)?;
    sync_folder(path)
}

fn temporary(path: &Path, bytes: &[u8], mode: FileMode) -> io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix(".oras-csi-")
        .permissions(mode.permissions())
        .tempfile_in(folder_of(path))?;
    // The umask may have removed permissions.
    file.as_file().set_permissions(mode.permissions())?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// Syncs the folder, so that the new name survives a loss of power.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_file_is_left_alone_and_no_temporary_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(write_new(&path, b"one", FileMode::Private).unwrap());
        assert!(!write_new(&path, b"two", FileMode::Private).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        replace(&path, b"three", FileMode::Public).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
