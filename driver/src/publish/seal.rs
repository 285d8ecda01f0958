//! Verifies that the webhook admitted a volume for the pod of the request (docs/design.md, "Seal").
//!
//! The public keys are read again for every volume. They are a few short files; a new key is valid as soon as kubelet
//! has updated the mounted ConfigMap, and a key that the administrator removes is invalid at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oras_csi_core::display::Shown;
use oras_csi_core::seal::{Holder, PublicKey, PublicKeys, SealError};

use super::PublishRequest;

/// How many files of the key folder are read, and how much of each.
const MAX_KEYS: usize = 1_024;
const MAX_KEY_BYTES: u64 = 16 << 10;

/// Which volumes the driver mounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seals {
    /// Any canonical volume: stand-alone mode, without a webhook.
    #[default]
    NotNeeded,
    /// Volumes with a valid seal of one of the keys in this folder.
    Needed(PathBuf),
}

/// Why the seal of a canonical volume is rejected.
#[derive(Debug, thiserror::Error)]
pub enum SealRejection {
    /// The seal is missing or invalid.
    #[error("{0}")]
    Seal(#[from] SealError),
    /// The public keys cannot be read.
    #[error("cannot read the public keys of the seals in {}: {source}. Check the ConfigMap oras-csi-seal and --seal-keys", .folder.display())]
    Keys {
        /// The folder of the keys.
        folder: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The attributes that kubelet adds contradict the target path, so another client wrote them.
    #[error(
        "the request is for the pod with uid \"{stated}\", but the target path {} belongs to another pod: the \
         csi.storage.k8s.io/ attributes do not come from kubelet. The CSIDriver object csi.oras.land must exist and have \
         podInfoOnMount: true", .target.display()
    )]
    Forged {
        /// `csi.storage.k8s.io/pod.uid`.
        stated: Shown,
        /// The target.
        target: PathBuf,
    },
}

impl SealRejection {
    /// All values of [`Self::reason`].
    pub(crate) const REASONS: [&'static str; 5] =
        ["missing", "unknown_key", "invalid", "no_keys", "other_pod"];

    /// Returns a short, stable name for a metric's label.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Seal(SealError::Missing) => "missing",
            Self::Seal(SealError::UnknownKey { .. }) => "unknown_key",
            Self::Seal(SealError::Invalid { .. }) => "invalid",
            Self::Keys { .. } => "no_keys",
            Self::Forged { .. } => "other_pod",
        }
    }
}

impl Seals {
    /// Verifies that the volume was admitted for the pod of the request.
    pub(super) fn check(&self, request: &PublishRequest) -> Result<(), SealRejection> {
        let Self::Needed(folder) = self else { return Ok(()) };
        let target = request.target().path();
        // A user who writes attributes by hand cannot know the uid of a pod that does not exist yet, nor its target path.
        if request.pod_uid().is_empty() || pod_uid_of(target) != Some(request.pod_uid()) {
            let (stated, target) = (request.pod_uid().into(), target.to_owned());
            return Err(SealRejection::Forged { stated, target });
        }
        let holder = if request.is_inline() {
            Holder::pod(request.namespace())
        } else {
            Holder::claim(request.namespace(), request.volume())
        };
        let keys =
            read_keys(folder).map_err(|source| SealRejection::Keys { folder: folder.clone(), source })?;
        Ok(request.canonical().verify_seal(&keys, holder)?)
    }

    /// Reports whether the verified seal of a volume grants the pull permission: the seal of a cluster set does.
    pub(super) fn authorizes_pull(&self, request: &PublishRequest) -> bool {
        matches!(self, Self::Needed(_)) && request.canonical().set().is_some()
    }
}

/// Returns the uid in a target path of kubelet: `…/pods/UID/volumes/kubernetes.io~csi/NAME/mount`.
fn pod_uid_of(target: &Path) -> Option<&str> {
    let parts: Option<Vec<&str>> = target.iter().map(|part| part.to_str()).collect();
    match parts?.as_slice() {
        [.., "pods", uid, "volumes", "kubernetes.io~csi", _, "mount"] => Some(*uid),
        _ => None,
    }
}

/// Reads the public keys in a folder. Files whose names begin with a dot belong to kubelet and are skipped. A file
/// without a valid key is logged and skipped.
fn read_keys(folder: &Path) -> io::Result<PublicKeys> {
    let mut keys = Vec::new();
    for entry in fs::read_dir(folder)?.take(MAX_KEYS) {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let mut text = String::new();
        let read = fs::File::open(&path)
            .and_then(|file| io::Read::read_to_string(&mut io::Read::take(file, MAX_KEY_BYTES), &mut text));
        match read
            .map_err(|error| error.to_string())
            .and_then(|_| PublicKey::from_pem(&text).map_err(|error| error.to_string()))
        {
            Ok(key) => keys.push(key),
            Err(error) => {
                tracing::warn!(path = %path.display(), error, "a file in the folder of the seal keys is not a public key; skipping it");
            }
        }
    }
    Ok(keys.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_pod_uid_from_the_target_path() {
        let pod = |path: &str| pod_uid_of(Path::new(path)).map(str::to_owned);
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
    fn reads_keys_in_the_layout_of_a_mounted_config_map() {
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
        let keys = read_keys(folder.path()).unwrap();
        assert_eq!(keys.ids().collect::<Vec<_>>(), [key.public().id()]);
        assert!(read_keys(&folder.path().join("missing")).is_err());
    }
}
