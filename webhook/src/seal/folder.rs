//! Keys in a folder: `seal.key`, and `public/KEYID.pem` for the driver. For a webhook without Kubernetes.

use std::fs;
use std::io;
use std::path::Path;

use oras_csi_certs::new_file::{FileMode, write_new};
use oras_csi_core::seal::{KeyError, PublicKey, PublicKeys, SealKey};
use zeroize::Zeroizing;

use super::{FileOperation, SealKeyError, SealKeys, Sealer};

const PRIVATE_KEY: &str = "seal.key";
const PUBLIC_KEYS: &str = "public";
/// How many bytes of a key file are read.
const MAX_BYTES: u64 = 16 << 10;

/// Makes a sealer with the keys in a folder, and creates a key if there is none.
pub fn open_folder(folder: &Path) -> Result<Sealer, SealKeyError> {
    let (private, public) = (folder.join(PRIVATE_KEY), folder.join(PUBLIC_KEYS));
    fs::create_dir_all(&public).map_err(|source| failed(FileOperation::Create, &public, source))?;
    let signing = match read_key(&private) {
        Err(SealKeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            create_key(&private)?
        }
        read => read?,
    };
    let file = public.join(format!("{}.pem", signing.public().id()));
    if !file.exists() {
        let pem = signing.public().to_pem();
        write_new(&file, pem.as_bytes(), FileMode::Public)
            .map_err(|source| failed(FileOperation::Write, &file, source))?;
    }
    let mut valid = vec![signing.public().clone()];
    for entry in fs::read_dir(&public).map_err(|source| failed(FileOperation::List, &public, source))? {
        let path = entry.map_err(|source| failed(FileOperation::List, &public, source))?.path();
        let key = PublicKey::from_pem(&read_text(&path)?);
        valid.push(key.map_err(|source| broken(&path, source))?);
    }
    let sealer = Sealer::without_keys_yet();
    sealer.set(SealKeys { signing, public: PublicKeys::from_iter(valid) });
    Ok(sealer)
}

/// Reads the private key in a file.
pub fn read_key(path: &Path) -> Result<SealKey, SealKeyError> {
    SealKey::from_pem(&read_text(path)?).map_err(|source| broken(path, source))
}

/// Creates a key, or reads the key of another process that was first.
fn create_key(path: &Path) -> Result<SealKey, SealKeyError> {
    let key = SealKey::generate().map_err(|source| broken(path, source))?;
    let pem = key.to_pem().map_err(|source| broken(path, source))?;
    match write_new(path, pem.as_bytes(), FileMode::Private) {
        Ok(true) => Ok(key),
        Ok(false) => read_key(path),
        Err(source) => Err(failed(FileOperation::Write, path, source)),
    }
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, SealKeyError> {
    let mut text = Zeroizing::new(String::new());
    let file = fs::File::open(path).map_err(|source| failed(FileOperation::Read, path, source))?;
    io::Read::read_to_string(&mut io::Read::take(file, MAX_BYTES), &mut text)
        .map_err(|source| failed(FileOperation::Read, path, source))?;
    Ok(text)
}

fn failed(operation: FileOperation, path: &Path, source: io::Error) -> SealKeyError {
    SealKeyError::File { operation, path: path.display().to_string(), source }
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
    fn a_key_is_created_once_and_the_seals_of_an_old_key_stay_valid() {
        let folder = tempfile::tempdir().unwrap();
        let first = open_folder(folder.path()).unwrap();
        let again = open_folder(folder.path()).unwrap();
        assert_eq!(sealed(&first), sealed(&again));
        let mode = fs::metadata(folder.path().join(PRIVATE_KEY)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);

        fs::remove_file(folder.path().join(PRIVATE_KEY)).unwrap();
        let rotated = open_folder(folder.path()).unwrap();
        assert_ne!(sealed(&first), sealed(&rotated));
        assert!(rotated.has_valid_seal(&sealed(&first), Holder::pod("team")));
        assert!(!rotated.has_valid_seal(&sealed(&first), Holder::pod("other")));
        assert_eq!(
            fs::read_dir(folder.path().join(PUBLIC_KEYS)).unwrap().count(),
            2,
            "no unfinished file is left"
        );

        for entry in fs::read_dir(folder.path().join(PUBLIC_KEYS)).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let dropped = open_folder(folder.path()).unwrap();
        assert!(!dropped.has_valid_seal(&sealed(&first), Holder::pod("team")));
        assert!(dropped.has_valid_seal(&sealed(&rotated), Holder::pod("team")));
    }

    #[test]
    fn an_invalid_key_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(PRIVATE_KEY), "mine").unwrap();
        let error = open_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("seal.key") && error.contains("openssl"), "{error}");
        assert_eq!(fs::read(folder.path().join(PRIVATE_KEY)).unwrap(), b"mine");
    }
}
