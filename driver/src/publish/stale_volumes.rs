//! Forgets volumes whose pods no longer exist and that kubelet never unpublished. This happens after a node was down
//! for long, or if an administrator cleared kubelet's folder.
//!
//! Kubelet's directories show it: the target is `…/pods/UID/volumes/kubernetes.io~csi/NAME/mount`, `…/pods` exists, and
//! `…/pods/UID` does not. A uid is never used again. All other volumes stay: targets at other paths (of a test, or of
//! an orchestrator that is not kubelet), folders that cannot be read, and pods whose directory still exists.

use std::io;
use std::path::{Path, PathBuf};

use oras_csi_store::DiskError;

use crate::mount::{MountError, Target};
use crate::volume_records::Records;

/// Removes the records of volumes whose pods no longer exist, and unmounts them with `unmount`. Returns their number.
pub(super) fn forget_stale_volumes(
    records: &Records,
    unmount: impl Fn(&Target) -> Result<(), MountError>,
) -> Result<usize, DiskError> {
    let mut forgotten = 0;
    for record in records.all()? {
        let Some(pod) = deleted_pod_of(record.target()) else { continue };
        let Some(target) = record.target().to_str().and_then(|path| Target::parse(path).ok()) else {
            continue;
        };
        if let Err(error) = unmount(&target) {
            tracing::warn!(volume = record.volume(), target = %target.path().display(), %error, "cannot unmount a volume whose pod no longer exists");
            continue;
        }
        records.remove(&target)?;
        forgotten += 1;
        tracing::info!(
            volume = record.volume(), id = record.id(), namespace = record.namespace(), pod = %pod.display(),
            "removed the record of a volume that was never unpublished: the directory of its pod no longer exists"
        );
    }
    Ok(forgotten)
}

/// Returns the directory of the pod whose volume is at `target`, if that directory certainly does not exist.
fn deleted_pod_of(target: &Path) -> Option<PathBuf> {
    let parts: Vec<_> = target.iter().collect();
    let [.., pods, _, volumes, driver, _, mount] = parts.as_slice() else { return None };
    if *pods != "pods" || *volumes != "volumes" || *driver != "kubernetes.io~csi" || *mount != "mount" {
        return None;
    }
    let pod = target.ancestors().nth(4)?;
    let is_deleted =
        std::fs::symlink_metadata(pod).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    // If kubelet's folder is not mounted into the driver's container, no pod directory exists there.
    let has_pods = std::fs::metadata(pod.parent()?).is_ok_and(|found| found.is_dir());
    (is_deleted && has_pods).then(|| pod.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_only_pods_whose_directory_was_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let target =
            |uid: &str| folder.path().join("pods").join(uid).join("volumes/kubernetes.io~csi/v/mount");
        assert_eq!(deleted_pod_of(&target("a")), None, "kubelet's folder does not exist");
        std::fs::create_dir_all(folder.path().join("pods/b")).unwrap();
        assert_eq!(deleted_pod_of(&target("a")), Some(folder.path().join("pods/a")));
        assert_eq!(deleted_pod_of(&target("b")), None);
        assert_eq!(deleted_pod_of(&folder.path().join("pods/a/mount")), None);
        assert_eq!(
            deleted_pod_of(&folder.path().join("pods/a/volumes/kubernetes.io~empty-dir/v/mount")),
            None
        );
    }
}
