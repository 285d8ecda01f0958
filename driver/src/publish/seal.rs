//! Whose word is needed before a volume is mounted.
//!
//! The keys are read anew for every volume: they are a few short files, a new one counts as soon as kubelet has
//! brought it, and one that an administrator drops is forgotten at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oras_csi_core::display::Shown;
use oras_csi_core::seal::{Holder, PublicKey, PublicKeys, SealError};

use super::PublishRequest;

/// More files, or longer ones, are no folder of keys.
const MOST_KEYS: usize = 1_024;
const LONGEST_KEY: u64 = 16 << 10;

/// Which volumes are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seals {
    /// Any canonical one: for a driver that stands alone, without a webhook.
    #[default]
    NotNeeded,
    /// Those that bear a seal of one of the keys in this folder.
    Needed(PathBuf),
}

/// Why a volume is not mounted, canonical as it is.
#[derive(Debug, thiserror::Error)]
pub enum SealRefusal {
    /// The seal does not count.
    #[error("{0}")]
    Seal(#[from] SealError),
    /// The keys cannot be read.
    #[error("the keys whose seals count cannot be read: {}: {source}", .folder.display())]
    Keys {
        /// Where they are.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What kubelet writes into a request is not what kubelet would write.
    #[error(
        "the request says that it is for the pod {stated}, and its target {} is not that pod's: its \
         csi.storage.k8s.io/ attributes are not kubelet's (the CSIDriver object csi.oras.land must be there, with \
         podInfoOnMount: true)", .target.display()
    )]
    Forged {
        /// `csi.storage.k8s.io/pod.uid`.
        stated: Shown,
        /// The target.
        target: PathBuf,
    },
}

impl Seals {
    /// Whether the volume of a request may be mounted for the pod that it says it is for.
    pub(super) fn check(&self, request: &PublishRequest) -> Result<(), SealRefusal> {
        let Self::Needed(folder) = self else { return Ok(()) };
        let target = request.target().path();
        // Whoever writes attributes does not know the uid of a pod that is yet to be, nor where kubelet mounts.
        if request.pod_uid().is_empty() || pod_of(target) != Some(request.pod_uid()) {
            let (stated, target) = (request.pod_uid().into(), target.to_owned());
            return Err(SealRefusal::Forged { stated, target });
        }
        let holder = if request.is_inline() {
            Holder::pod(request.namespace())
        } else {
            Holder::claim(request.namespace(), request.volume())
        };
        let keys = read(folder).map_err(|source| SealRefusal::Keys { folder: folder.clone(), source })?;
        Ok(request.canonical().verify_seal(&keys, holder)?)
    }

    /// Whether the seal, which was checked, gives the right to the bytes by itself: that of a cluster set does.
    pub(super) fn vouch_for(&self, request: &PublishRequest) -> bool {
        matches!(self, Self::Needed(_)) && request.canonical().set().is_some()
    }
}

/// The pod whose volume is mounted at a path: `…/pods/UID/volumes/kubernetes.io~csi/NAME/mount`.
fn pod_of(target: &Path) -> Option<&str> {
    let parts: Option<Vec<&str>> = target.iter().map(|part| part.to_str()).collect();
    match parts?.as_slice() {
        [.., "pods", uid, "volumes", "kubernetes.io~csi", _, "mount"] => Some(*uid),
        _ => None,
    }
}

/// The public keys in a folder. A file that holds none is passed over, with a word in the log; so are those whose
/// names begin with a dot, which are kubelet's own.
fn read(folder: &Path) -> io::Result<PublicKeys> {
    let mut keys = Vec::new();
    for entry in fs::read_dir(folder)?.take(MOST_KEYS) {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let mut text = String::new();
        let read = fs::File::open(&path)
            .and_then(|file| io::Read::read_to_string(&mut io::Read::take(file, LONGEST_KEY), &mut text));
        match read
            .map_err(|error| error.to_string())
            .and_then(|_| PublicKey::from_pem(&text).map_err(|error| error.to_string()))
        {
            Ok(key) => keys.push(key),
            Err(error) => {
                tracing::warn!(path = %path.display(), error, "a file among the seals' keys is none");
            }
        }
    }
    Ok(keys.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_by_its_target() {
        let pod = |path: &str| pod_of(Path::new(path)).map(str::to_owned);
        let usual = "/var/lib/kubelet/pods/3f8a/volumes/kubernetes.io~csi/in/mount";
        assert_eq!(pod(usual).as_deref(), Some("3f8a"));
        assert_eq!(pod("/k/pods/a/pods/b/volumes/kubernetes.io~csi/v/mount").as_deref(), Some("b"));
        for other in [
            "/",
            "/tmp/csi-mount/target",
            "/k/pods/3f8a/volumes/kubernetes.io~csi/in",
            "/k/pods/3f8a/volumes/kubernetes.io~csi/in/mount/more",
            "/k/pods/3f8a/volumes/kubernetes.io~empty-dir/in/mount",
            "/k/pods/volumes/kubernetes.io~csi/in/mount",
        ] {
            assert_eq!(pod(other), None, "{other}");
        }
    }

    #[test]
    fn keys_are_read_as_kubelet_lays_them_out() {
        let folder = tempfile::tempdir().unwrap();
        let key = oras_csi_core::seal::SealKey::generate().unwrap();
        let data = folder.path().join("..2026_11_25");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("a.pem"), key.public().to_pem()).unwrap();
        fs::write(data.join("b.pem"), "none").unwrap();
        std::os::unix::fs::symlink("..2026_11_25", folder.path().join("..data")).unwrap();
        for name in ["a.pem", "b.pem"] {
            std::os::unix::fs::symlink(format!("..data/{name}"), folder.path().join(name)).unwrap();
        }
        let keys = read(folder.path()).unwrap();
        assert_eq!(keys.ids().collect::<Vec<_>>(), [key.public().id()]);
        assert!(read(&folder.path().join("missing")).is_err());
    }
}
