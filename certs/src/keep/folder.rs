//! A folder that keeps a CA and the serving certificate.
//!
//! Every file is written under another name first and then linked or renamed, so nobody ever reads half
//! of one. The CA's key is linked first and its certificate after it: whichever process links the key
//! wins, and a certificate that anyone makes for that key is as good as any other's, so a process that is
//! killed in between leaves nothing behind that the next one could not finish. A serving certificate is
//! renamed into place before its key, so that the certificate tells whose the pair is even if the process
//! is killed in between; a lock on the folder keeps two processes from mixing theirs.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::bundle::parse_certificates;
use crate::contents::{CA_CRT, CA_KEY, CA_PREVIOUS_CRT, Contents, TLS_CRT, TLS_KEY};
use crate::error::Error;
use crate::issue::{Authority, Issued};
use crate::leaf::{self, Leaf};
use crate::settings::Names;

/// For the folder itself.
const PRIVATE_FOLDER: u32 = 0o700;
/// For keys.
const PRIVATE: u32 = 0o600;
/// For certificates.
const PUBLIC: u32 = 0o644;

/// How often the lock on the folder is tried: for five seconds, where a renewal takes milliseconds.
const LOCK_TRIES: u32 = 250;
/// How long to wait between two tries.
const BETWEEN_LOCK_TRIES: Duration = Duration::from_millis(20);

/// A folder that keeps a CA.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

/// A serving certificate that is good and not due.
pub(crate) struct Renewed {
    /// The certificate.
    pub(crate) leaf: Leaf,
    /// Whether it is in the folder; otherwise it is in memory only.
    pub(crate) kept: bool,
}

impl Folder {
    /// The folder at `path`, which need not exist.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The folder as people know it.
    pub(crate) fn place(&self) -> String {
        self.path.display().to_string()
    }

    /// Reads all entries. Certificates are read before their keys: no key of ours is ever written later
    /// than the CA certificate that needs it, so a `ca.crt` without `ca.key` is really that.
    pub(crate) fn read(&self) -> Result<Contents, Error> {
        Ok(Contents {
            ca_crt: self.read_entry(CA_CRT)?,
            ca_key: self.read_entry(CA_KEY)?,
            ca_previous: self.read_entry(CA_PREVIOUS_CRT)?,
            tls_crt: self.read_entry(TLS_CRT)?,
            tls_key: self.read_entry(TLS_KEY)?,
        })
    }

    /// Keeps `proposed`, unless there is a key already; makes the certificate for that key, unless there
    /// is one.
    pub(crate) fn establish(&self, proposed: &Authority, now: SystemTime) -> Result<(), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE_FOLDER)
            .create(&self.path)
            .map_err(|source| Error::Write { path: self.path.clone(), source })?;
        if self.write_new(CA_KEY, proposed.key_pem(), PRIVATE)? {
            self.write_new(CA_CRT, proposed.certificate_pem(), PUBLIC)?;
            return Ok(());
        }
        let Some(key) = self.read_entry(CA_KEY)? else { return Ok(()) };
        let finished = Authority::finish(&self.place(), &key, now)?;
        self.write_new(CA_CRT, finished.certificate_pem(), PUBLIC)?;
        Ok(())
    }

    /// A serving certificate of `authority` that is good and not due: the one in the folder, if another
    /// process has just put it there, else a new one, which is put there. In a folder that cannot be
    /// written the new one is just used: it is our own, and no other process needs it.
    pub(crate) fn renew(
        &self,
        authority: &Authority,
        names: &Names,
        now: SystemTime,
    ) -> Result<Renewed, Error> {
        let place = self.place();
        let _lock = self.lock();
        let (certificate, key) = (self.read_entry(TLS_CRT)?, self.read_entry(TLS_KEY)?);
        if let (Some(certificate), Some(key)) = (&certificate, &key)
            && let Ok(leaf) = Leaf::parse(&place, certificate, key, names, now)
            && leaf.is_from(authority.certificate())
            && !leaf.is_due(now)
        {
            return Ok(Renewed { leaf, kept: true });
        }
        let issued = authority.issue(names, now)?;
        let leaf =
            Leaf::parse(&place, issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes(), names, now)?;
        let ours = certificate.is_none_or(|certificate| {
            parse_certificates(&certificate).is_ok_and(|chain| leaf::is_from(&chain, authority.certificate()))
        });
        let mut kept = ours;
        if ours && let Err(error) = self.write_pair(&issued) {
            tracing::warn!(%error, "the serving certificate is used but not kept");
            kept = false;
        }
        Ok(Renewed { leaf, kept })
    }

    fn write_pair(&self, issued: &Issued) -> Result<(), Error> {
        self.replace(TLS_CRT, &issued.certificate_pem, PUBLIC)?;
        self.replace(TLS_KEY, &issued.key_pem, PRIVATE)
    }

    /// Holds others off while a pair is renewed. Where the file system has no locks, or somebody who holds
    /// one was stopped, the worst that can happen is a pair that does not match, which the next start or
    /// renewal repairs.
    fn lock(&self) -> Option<File> {
        let folder = File::open(&self.path).ok()?;
        for _ in 0..LOCK_TRIES {
            match folder.try_lock() {
                Ok(()) => return Some(folder),
                Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN_LOCK_TRIES),
                Err(TryLockError::Error(error)) => {
                    tracing::debug!(%error, folder = %self.path.display(), "no locks here");
                    return None;
                }
            }
        }
        tracing::warn!(folder = %self.path.display(), "somebody holds the lock on the folder: going on without");
        None
    }

    fn read_entry(&self, entry: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path.join(entry);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// Writes an entry that is not there; false if it is, which leaves it as it is.
    fn write_new(&self, entry: &str, text: &str, mode: u32) -> Result<bool, Error> {
        let path = self.path.join(entry);
        let failed = |source| Error::Write { path: path.clone(), source };
        match self.temporary(text, mode).map_err(failed)?.persist_noclobber(&path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(failed(error.error)),
        }
        sync(&self.path).map_err(failed)?;
        Ok(true)
    }

    /// Writes an entry in one step over what is there.
    fn replace(&self, entry: &str, text: &str, mode: u32) -> Result<(), Error> {
        let path = self.path.join(entry);
        let failed = |source| Error::Write { path: path.clone(), source };
        self.temporary(text, mode).map_err(failed)?.persist(&path).map_err(|error| failed(error.error))?;
        sync(&self.path).map_err(failed)
    }

    fn temporary(&self, text: &str, mode: u32) -> std::io::Result<tempfile::NamedTempFile> {
        let mut file = tempfile::Builder::new()
            .prefix(".oras-csi-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(&self.path)?;
        // The umask may have taken something away.
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        Ok(file)
    }
}

/// Makes a new name in a folder survive a loss of power.
fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
