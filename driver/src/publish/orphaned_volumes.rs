//! Unmounts volumes of deleted pods that kubelet can no longer unpublish.
//!
//! Kubelet writes `vol_data.json` beside a target before it publishes the volume, and reads it to unpublish. If the file is
//! lost and kubelet restarts after the pod was deleted, kubelet tries once and never calls NodeUnpublishVolume
//! (kubernetes/kubernetes#60987). The mount, its record and the pod's folder would stay until the node is replaced.
//!
//! A wrong unmount is worse than such a leak, so the driver unmounts only if all of this holds at three checks in a row:
//!
//! * the volume has a record, and its target is in the folder of this kubelet: `…/pods/UID/volumes/kubernetes.io~csi/NAME/mount`;
//! * `vol_data.json` certainly does not exist. While it exists, kubelet unpublishes the volume itself;
//! * kubelet answers, its list of pods has the driver's own pod, and no pod in it has the namespace and name of the volume's pod;
//! * nothing else is mounted in the folder of the pod's volumes. Kubelet removes a deleted pod from its list before the containers
//!   have ended, but it unmounts their other volumes, such as the token of the service account, only after that.
//!
//! `stale_volumes` has the other case, in which the pod's folder no longer exists.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oras_csi_kube_support::repeated_failure::RepeatedFailure;
use tokio_util::sync::CancellationToken;

use super::{Disk, PublishError, Publisher};
use crate::kubelet_pods::{KubeletPods, PodKey};
use crate::mount::Target;
use crate::volume_records::Record;

/// The file that kubelet needs to unpublish a volume.
const DESCRIPTION: &str = "vol_data.json";
/// At how many checks in a row a volume must be found, before it is unmounted.
const CHECKS: u32 = 3;

/// Looks for such volumes until `stop` is cancelled.
pub(crate) async fn run(publisher: Arc<Publisher>, kubelet: KubeletPods, stop: CancellationToken) {
    let mut search = Search { found: HashMap::new(), failures: RepeatedFailure::default() };
    let searching = async {
        loop {
            tokio::time::sleep(kubelet.check_interval()).await;
            search.check(&publisher, &kubelet).await;
        }
    };
    stop.run_until_cancelled(searching).await;
}

struct Search {
    /// At how many checks in a row each target was found, and why it was not unmounted.
    found: HashMap<PathBuf, (u32, RepeatedFailure)>,
    failures: RepeatedFailure,
}

impl Search {
    async fn check(&mut self, publisher: &Publisher, kubelet: &KubeletPods) {
        let folder = kubelet.folder();
        let records = publisher.run_on_disk(move |disk| Ok(disk.without_description(&folder)?)).await;
        let records = match records {
            Ok(records) => records,
            Err(error) => return self.start_over(&error.to_string()),
        };
        if records.is_empty() {
            self.found.clear();
            return;
        }
        let pods = match kubelet.list().await {
            Ok(pods) => pods,
            Err(error) => return self.start_over(&error.to_string()),
        };
        let mut found = HashMap::new();
        for record in records {
            let Some(pod) = pod_of(&record).filter(|pod| !pods.contains(pod)) else { continue };
            let (checks, mut failures) = self.found.remove(record.target()).unwrap_or_default();
            let checks = checks.saturating_add(1);
            if checks < CHECKS {
                found.insert(record.target().to_owned(), (checks, failures));
                continue;
            }
            let folder = kubelet.folder();
            if let Err(error) = publisher.unmount_orphan(record.clone(), pod, folder).await {
                let error = error.to_string();
                if failures.is_new(&error) {
                    tracing::warn!(volume = record.volume(), target = %record.target().display(), error, "cannot unmount a volume that kubelet can no longer unpublish; retrying");
                }
                found.insert(record.target().to_owned(), (checks, failures));
            }
        }
        self.found = found;
        self.failures.clear();
    }

    fn start_over(&mut self, failure: &str) {
        self.found.clear();
        if self.failures.is_new(failure) {
            tracing::warn!(
                error = failure,
                "cannot check for volumes that kubelet can no longer unpublish; retrying"
            );
        }
    }
}

impl Publisher {
    async fn unmount_orphan(&self, record: Record, pod: PodKey, folder: PathBuf) -> Result<(), PublishError> {
        // A call of kubelet has the lock: then kubelet knows the volume.
        let Some(lock) = self.target_locks.try_lock(record.target()) else { return Ok(()) };
        self.run_on_disk(move |disk| {
            let _lock = lock;
            disk.unmount_orphan(&record, &pod, &folder)
        })
        .await
    }
}

impl Disk {
    /// Returns the records of volumes in the folder of kubelet's pods whose description is lost.
    fn without_description(&self, folder: &Path) -> Result<Vec<Record>, oras_csi_store::DiskError> {
        let mut records = self.records.all()?;
        records.retain(|record| has_lost_description(record.target(), folder));
        Ok(records)
    }

    fn unmount_orphan(&self, record: &Record, pod: &PodKey, folder: &Path) -> Result<(), PublishError> {
        let Some(target) = record.target().to_str().and_then(|path| Target::parse(path).ok()) else {
            return Ok(());
        };
        // Between the check and the lock, kubelet may have published the volume again, or another one.
        if self.records.get(&target)?.as_ref() != Some(record) || !has_lost_description(target.path(), folder)
        {
            return Ok(());
        }
        // The third folder above …/UID/volumes/kubernetes.io~csi/NAME/mount.
        let Some(volumes) = target.path().ancestors().nth(3) else { return Ok(()) };
        if self.mounter.has_other_mounts_below(volumes)? {
            return Ok(());
        }
        if let (Some(tree), Some(subpaths)) = (record.tree(), subpaths_of(target.path())) {
            self.mounter.unmount_subpaths(&tree, &subpaths)?;
        }
        self.mounter.unpublish(&target, None)?;
        if let Some(tree) = record.tree() {
            self.store.mark_used(&tree);
        }
        self.records.remove(&target)?;
        self.metrics.volumes().dec();
        tracing::warn!(
            volume = record.volume(), id = record.id(), namespace = pod.namespace, pod = pod.name, target = %target.path().display(),
            "unmounted a volume that kubelet can no longer unpublish: kubelet does not have its pod, and its {DESCRIPTION} is missing"
        );
        Ok(())
    }
}

fn pod_of(record: &Record) -> Option<PodKey> {
    Some(PodKey { namespace: record.namespace().to_owned(), name: record.pod()?.to_owned() })
}

/// Reports whether `target` is a target of the kubelet whose pods are in `folder`, and its description certainly does not
/// exist.
fn has_lost_description(target: &Path, folder: &Path) -> bool {
    let Ok(names) = target.strip_prefix(folder) else { return false };
    let names: Vec<_> = names.iter().filter_map(|name| name.to_str()).collect();
    let [_uid, "volumes", "kubernetes.io~csi", _name, "mount"] = names.as_slice() else { return false };
    let Some(volume) = target.parent() else { return false };
    let is_missing = std::fs::symlink_metadata(volume.join(DESCRIPTION))
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    // Without the folder of the volume, nothing is known about the file: kubelet's folder may not be mounted.
    is_missing && std::fs::symlink_metadata(volume).is_ok_and(|found| found.is_dir())
}

/// Returns the folder in which kubelet mounts `subPath`s of the volume: `…/pods/UID/volume-subpaths/NAME`.
fn subpaths_of(target: &Path) -> Option<PathBuf> {
    let volume = target.parent()?;
    Some(volume.ancestors().nth(3)?.join("volume-subpaths").join(volume.file_name()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_volume_of_this_kubelet_without_a_description_is_found() {
        let kubelet = tempfile::tempdir().unwrap();
        let folder = kubelet.path().join("pods");
        let target = folder.join("uid/volumes/kubernetes.io~csi/v/mount");
        let volume = target.parent().unwrap();
        assert!(!has_lost_description(&target, &folder), "the folder of the volume does not exist");
        std::fs::create_dir_all(volume).unwrap();
        assert!(has_lost_description(&target, &folder));
        assert!(!has_lost_description(&target, &kubelet.path().join("other/pods")));
        assert!(!has_lost_description(volume, &folder));
        let other = folder.join("uid/volumes/kubernetes.io~empty-dir/v/mount");
        std::fs::create_dir_all(other.parent().unwrap()).unwrap();
        assert!(!has_lost_description(&other, &folder));
        // A broken file is a file: kubelet, or an administrator, can repair it.
        std::fs::write(volume.join(DESCRIPTION), "").unwrap();
        assert!(!has_lost_description(&target, &folder));
    }

    #[test]
    fn subpaths_are_beside_the_volumes_of_the_pod() {
        let target = Path::new("/kubelet/pods/uid/volumes/kubernetes.io~csi/v/mount");
        assert_eq!(subpaths_of(target).unwrap(), Path::new("/kubelet/pods/uid/volume-subpaths/v"));
    }
}
