//! Keys in a folder: `seal.key`, and `public/KEYID.pem` for drivers. For a webhook without Kubernetes.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use oras_csi_core::seal::{KeyError, PublicKey, PublicKeys, SealKey};
use zeroize::Zeroizing;

use super::{Ring, SealKeyError, Sealer};

const PRIVATE: &str = "seal.key";
const PUBLIC: &str = "public";
/// No key is longer.
const LONGEST: u64 = 16 << 10;

/// A sealer with the key of a folder, which is made there where there is none.
pub fn open(folder: &Path) -> Result<Sealer, SealKeyError> {
    let (private, public) = (folder.join(PRIVATE), folder.join(PUBLIC));
    fs::create_dir_all(&public).map_err(|source| failed("make", &public, source))?;
    let signing = match read_key(&private) {
        Err(SealKeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            establish(&private)?
        }
        read => read?,
    };
    let file = public.join(format!("{}.pem", signing.public().id()));
    if !file.exists() {
        write_new(&file, signing.public().to_pem().as_bytes(), 0o644)?;
    }
    let mut counting = vec![signing.public().clone()];
    for entry in fs::read_dir(&public).map_err(|source| failed("list", &public, source))? {
        let path = entry.map_err(|source| failed("list", &public, source))?.path();
        let key = PublicKey::from_pem(&read_text(&path)?);
        counting.push(key.map_err(|source| broken(&path, source))?);
    }
    let sealer = Sealer::waiting();
    sealer.set(Ring { signing, public: PublicKeys::from_iter(counting) });
    Ok(sealer)
}

/// The private key in a file.
pub fn read_key(path: &Path) -> Result<SealKey, SealKeyError> {
    SealKey::from_pem(&read_text(path)?).map_err(|source| broken(path, source))
}

/// A new key, unless another process comes first.
fn establish(path: &Path) -> Result<SealKey, SealKeyError> {
    let key = SealKey::generate().map_err(|source| broken(path, source))?;
    let pem = key.to_pem().map_err(|source| broken(path, source))?;
    match write_new(path, pem.as_bytes(), 0o600) {
        Err(SealKeyError::File { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            read_key(path)
        }
        written => written.map(|()| key),
    }
}

/// Writes a file that was not there, whole or not at all.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), SealKeyError> {
    let at = |source| failed("write", path, source);
    let unfinished = path.with_extension(format!("{}.new", std::process::id()));
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&unfinished);
    let written = file.as_mut().map_err(|error| io::Error::from(error.kind())).and_then(|file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::hard_link(&unfinished, path)
    });
    let _ = fs::remove_file(&unfinished);
    written.map_err(at)
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, SealKeyError> {
    let mut text = Zeroizing::new(String::new());
    let file = fs::File::open(path).map_err(|source| failed("read", path, source))?;
    io::Read::read_to_string(&mut io::Read::take(file, LONGEST), &mut text)
        .map_err(|source| failed("read", path, source))?;
    Ok(text)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> SealKeyError {
    SealKeyError::File { action, path: path.display().to_string(), source }
}

fn broken(path: &Path, source: KeyError) -> SealKeyError {
    SealKeyError::Key { place: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use oras_csi_core::digest::Digest;
    use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
    use oras_csi_core::reference::Reference;
    use oras_csi_core::seal::Holder;
    use oras_csi_core::volume::CanonicalVolume;

    use super::*;
    use crate::denial::At;

    fn sealed(sealer: &Sealer) -> CanonicalVolume {
        let pinned = Reference::parse("r.example/a").unwrap().pin(Digest::sha256_of(b""));
        let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).unwrap();
        let volume = CanonicalVolume::new(None, recipe).unwrap();
        sealer.seal(At::Volume("v"), volume, Holder::pod("team")).unwrap()
    }

    #[test]
    fn a_key_is_made_once_and_an_old_one_still_counts() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        let again = open(folder.path()).unwrap();
        assert_eq!(sealed(&first), sealed(&again));
        let mode = fs::metadata(folder.path().join(PRIVATE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);

        fs::remove_file(folder.path().join(PRIVATE)).unwrap();
        let rotated = open(folder.path()).unwrap();
        assert_ne!(sealed(&first), sealed(&rotated));
        assert!(rotated.believes(&sealed(&first), Holder::pod("team")));
        assert!(!rotated.believes(&sealed(&first), Holder::pod("other")));
        assert_eq!(fs::read_dir(folder.path().join(PUBLIC)).unwrap().count(), 2, "and nothing half-made");

        for entry in fs::read_dir(folder.path().join(PUBLIC)).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let dropped = open(folder.path()).unwrap();
        assert!(!dropped.believes(&sealed(&first), Holder::pod("team")));
        assert!(dropped.believes(&sealed(&rotated), Holder::pod("team")));
    }

    #[test]
    fn what_is_no_key_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(PRIVATE), "mine").unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("seal.key") && error.contains("openssl"), "{error}");
        assert_eq!(fs::read(folder.path().join(PRIVATE)).unwrap(), b"mine");
    }
}
