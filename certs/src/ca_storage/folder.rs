//! A folder with the CA and the serving certificate.
//!
//! Every file is written under a temporary name and then linked or renamed, so a reader never sees half of one. The key of
//! the CA is linked first and its certificate after it. The process that links the key wins, and any process can make a
//! certificate for that key, so the next process completes what a killed process left behind. A serving certificate is
//! renamed into place before its key: the certificate shows which CA issued the pair, even if the process is killed in
//! between. A lock on the folder prevents that two processes mix their pairs.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::authority::{Authority, IssuedLeaf};
use crate::ca_bundle::parse_certificates;
use crate::entries::{CA_CRT, CA_KEY, CA_PREVIOUS_CRT, Entries, TLS_CRT, TLS_KEY};
use crate::error::Error;
use crate::leaf::{self, Leaf};
use crate::new_file::{self, FileMode};
use crate::settings::Names;

/// The mode of the folder.
const FOLDER_MODE: u32 = 0o700;

/// How often the lock on the folder is tried: five seconds in all, while a renewal takes milliseconds.
const LOCK_TRIES: u32 = 250;
/// The delay between two tries.
const LOCK_RETRY_DELAY: Duration = Duration::from_millis(20);

/// A folder that holds the CA.
#[derive(Clone, Debug)]
pub(crate) struct CaFolder {
    path: PathBuf,
}

/// A valid serving certificate that is not due for renewal.
pub(crate) struct Renewed {
    /// The certificate.
    pub(crate) leaf: Leaf,
    /// Whether it is in the folder; otherwise it is only in memory.
    pub(crate) is_stored: bool,
}

impl CaFolder {
    /// The folder at `path`, which may not exist yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Returns the folder as messages name it.
    pub(crate) fn place(&self) -> String {
        self.path.display().to_string()
    }

    /// Reads all entries. Certificates are read before their keys: the webhook never writes `ca.key` after its `ca.crt`,
    /// so a `ca.crt` without `ca.key` is not a write in progress.
    pub(crate) fn read(&self) -> Result<Entries, Error> {
        Ok(Entries {
            ca_crt: self.read_entry(CA_CRT)?,
            ca_key: self.read_entry(CA_KEY)?,
            ca_previous: self.read_entry(CA_PREVIOUS_CRT)?,
            tls_crt: self.read_entry(TLS_CRT)?,
            tls_key: self.read_entry(TLS_KEY)?,
        })
    }

    /// Stores `proposed` if there is no key. If there is a key without a certificate, creates the certificate for that key.
    pub(crate) fn store_ca(&self, proposed: &Authority, now: SystemTime) -> Result<(), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(&self.path)
            .map_err(|source| Error::Write { path: self.path.clone(), source })?;
        if self.write_new(CA_KEY, proposed.key_pem(), FileMode::Private)? {
            self.write_new(CA_CRT, proposed.certificate_pem(), FileMode::Public)?;
            return Ok(());
        }
        let Some(key) = self.read_entry(CA_KEY)? else { return Ok(()) };
        let completed = Authority::for_existing_key(&self.place(), &key, now)?;
        self.write_new(CA_CRT, completed.certificate_pem(), FileMode::Public)?;
        Ok(())
    }

    /// Returns a serving certificate of `authority` that is not due for renewal: the one in the folder, if another process
    /// has just renewed it, else a new one, which is stored in the folder. If the folder cannot be written, the new
    /// certificate is only used: no other process needs it.
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
            return Ok(Renewed { leaf, is_stored: true });
        }
        let issued = authority.issue(names, now)?;
        let leaf =
            Leaf::parse(&place, issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes(), names, now)?;
        let is_ours = certificate.is_none_or(|certificate| {
            parse_certificates(&certificate).is_ok_and(|chain| leaf::is_from(&chain, authority.certificate()))
        });
        let mut is_stored = is_ours;
        if is_ours && let Err(error) = self.write_pair(&issued) {
            tracing::warn!(%error, "cannot store the serving certificate; using it from memory");
            is_stored = false;
        }
        Ok(Renewed { leaf, is_stored })
    }

    fn write_pair(&self, issued: &IssuedLeaf) -> Result<(), Error> {
        self.replace(TLS_CRT, &issued.certificate_pem, FileMode::Public)?;
        self.replace(TLS_KEY, &issued.key_pem, FileMode::Private)
    }

    /// Locks the folder while a pair is renewed. If the file system has no locks, or a stopped process holds the lock, the
    /// worst outcome is a pair that does not match, which the next start or renewal repairs.
    fn lock(&self) -> Option<File> {
        let folder = File::open(&self.path).ok()?;
        for _ in 0..LOCK_TRIES {
            match folder.try_lock() {
                Ok(()) => return Some(folder),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_RETRY_DELAY),
                Err(TryLockError::Error(error)) => {
                    tracing::debug!(%error, folder = %self.path.display(), "the file system does not support locks; continuing without one");
                    return None;
                }
            }
        }
        tracing::warn!(folder = %self.path.display(), "another process holds the lock on the folder; continuing without it");
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

    /// Writes an entry if it does not exist. Returns false if it exists.
    fn write_new(&self, entry: &str, text: &str, mode: FileMode) -> Result<bool, Error> {
        let path = self.path.join(entry);
        new_file::write_new(&path, text.as_bytes(), mode).map_err(|source| Error::Write { path, source })
    }

    /// Writes an entry, and replaces an existing one in one step.
    fn replace(&self, entry: &str, text: &str, mode: FileMode) -> Result<(), Error> {
        let path = self.path.join(entry);
        new_file::replace(&path, text.as_bytes(), mode).map_err(|source| Error::Write { path, source })
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
