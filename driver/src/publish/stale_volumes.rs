//! Volumes whose pods are gone and that kubelet never unpublished: after a node was down for long, or where
//! kubelet's folder was cleared by hand.
//!
//! Told by kubelet's own directories: the target is `…/pods/UID/volumes/kubernetes.io~csi/NAME/mount`, `…/pods`
//! is there, and `…/pods/UID` is not. A uid never comes back. Anything else stays: a target elsewhere (a test's, an
//! orchestrator's that is not kubelet), a folder that cannot be looked at, a pod whose directory is still there.

use std::io;
use std::path::{Path, PathBuf};

use oras_csi_store::DiskError;

use crate::mount::{MountError, Target};
use crate::volume_records::Records;

/// Forgets the volumes of pods that are gone, and takes their mounts off by `unmount`. Says how many there were.
pub(super) fn forget_stale_volumes(
    records: &Records,
    unmount: impl Fn(&Target) -> Result<(), MountError>,
) -> Result<usize, DiskError> {
    let mut forgotten = 0;
    for record in records.all()? {
        let Some(pod) = gone_pod_of(record.target()) else { continue };
        let Some(target) = record.target().to_str().and_then(|path| Target::parse(path).ok()) else {
            continue;
        };
        if let Err(error) = unmount(&target) {
            tracing::warn!(volume = record.volume(), target = %target.path().display(), %error, "the pod is gone, and its volume cannot be unmounted");
            continue;
        }
        records.remove(&target)?;
        forgotten += 1;
        tracing::info!(
            volume = record.volume(), id = record.id(), namespace = record.namespace(), pod = %pod.display(),
            "forgot a volume that was never unpublished: its pod's directory is gone"
        );
    }
    Ok(forgotten)
}

/// The directory of the pod whose volume is mounted at `target`, if it is gone for certain.
fn gone_pod_of(target: &Path) -> Option<PathBuf> {
    let parts: Vec<_> = target.iter().collect();
    let [.., pods, _, volumes, driver, _, mount] = parts.as_slice() else { return None };
    if *pods != "pods" || *volumes != "volumes" || *driver != "kubernetes.io~csi" || *mount != "mount" {
        return None;
    }
    let pod = target.ancestors().nth(4)?;
    let is_gone = std::fs::symlink_metadata(pod).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    // Without kubelet's folder in our container every pod would look gone.
    let has_pods = std::fs::metadata(pod.parent()?).is_ok_and(|found| found.is_dir());
    (is_gone && has_pods).then(|| pod.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pod_whose_directory_is_gone_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let target =
            |uid: &str| folder.path().join("pods").join(uid).join("volumes/kubernetes.io~csi/v/mount");
        assert_eq!(gone_pod_of(&target("a")), None, "kubelet's folder is not there at all");
        std::fs::create_dir_all(folder.path().join("pods/b")).unwrap();
        assert_eq!(gone_pod_of(&target("a")), Some(folder.path().join("pods/a")));
        assert_eq!(gone_pod_of(&target("b")), None);
        assert_eq!(gone_pod_of(&folder.path().join("pods/a/mount")), None);
        assert_eq!(gone_pod_of(&folder.path().join("pods/a/volumes/kubernetes.io~empty-dir/v/mount")), None);
    }
}
