//! Work on published volumes that no call requests: at start, at each garbage collection, and after each scrub.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use oras_csi_store::StoreObserver as _;

use super::stale_volumes::forget_stale_volumes;
use super::{PublishError, Publisher};

/// How many trees with damaged content are pulled at a time.
const MAX_PARALLEL_REPAIRS: usize = 4;

impl Publisher {
    /// Reads the records of earlier runs, compares them with the mounts, and forgets volumes whose pods no longer exist.
    pub fn take_over(&self) -> Result<(), PublishError> {
        let disk = &self.disk;
        let forgotten = forget_stale_volumes(&disk.records, |target| disk.mounter.unpublish(target, None))?;
        let records = disk.records.all()?;
        let mounted = disk.mounter.mounted()?;
        let points: HashSet<&Path> = mounted.iter().map(|(path, _)| path.as_path()).collect();
        let unmounted = records.iter().filter(|record| !points.contains(record.target())).count();
        let recorded = records.len();
        disk.metrics.volumes().set(i64::try_from(recorded).unwrap_or(i64::MAX));
        disk.metrics.mounted(mounted.len());
        tracing::info!(
            recorded,
            mounted = mounted.len(),
            unmounted,
            forgotten,
            "took over the volumes of earlier runs"
        );
        Ok(())
    }

    /// Forgets volumes whose pods no longer exist. Blocks the thread.
    pub(crate) fn forget_stale_volumes(&self) {
        let disk = &self.disk;
        match forget_stale_volumes(&disk.records, |target| disk.mounter.unpublish(target, None)) {
            Ok(forgotten) => drop(disk.metrics.volumes().dec_by(i64::try_from(forgotten).unwrap_or(0))),
            Err(error) => {
                tracing::warn!(%error, "cannot look for volumes whose pods no longer exist; retrying at the next garbage collection");
            }
        }
    }

    /// Pulls quarantined content of mounted volumes again, with the administrator's credentials, so that the next pod
    /// finds it in the store. If these credentials are not accepted, the next pod that requests the content pulls it
    /// with its own credentials.
    pub(crate) async fn repull_damaged(self: Arc<Self>) {
        let missing = self.run_on_disk(|disk| {
            let mut missing = Vec::new();
            for record in disk.records.all()? {
                let is_stored = record.tree().is_none_or(|key| disk.store.layout().tree(&key).exists());
                missing.extend(record.recipe().filter(|_| !is_stored));
            }
            Ok(missing)
        });
        let Ok(missing) = missing.await else { return };
        let fetcher = Arc::new(self.pulls.fetcher().with_credentials(Arc::new(self.keyring.clone())));
        let mut seen = HashSet::new();
        let missing =
            missing.into_iter().map(|recipe| (self.pulls.fetcher().key(&recipe), recipe)).collect::<Vec<_>>();
        let missing = missing.into_iter().filter(|(key, _)| seen.insert(key.clone()));
        // No pod waits for it, because the volumes stay mounted. So these pulls are preloads.
        let pulling = missing.map(|(key, recipe)| {
            let (publisher, fetcher) = (&self, &fetcher);
            async move {
                match publisher.pulls.start_in_background(&recipe, fetcher).wait().await {
                    Ok(_) => tracing::info!(tree = %key, "pulled damaged content of a mounted volume again"),
                    Err(error) => {
                        tracing::warn!(tree = %key, %error, "cannot pull damaged content of a mounted volume again; the next pod that requests it pulls it");
                    }
                }
            }
        });
        let pulling: Vec<_> = pulling.collect();
        stream::iter(pulling).for_each_concurrent(MAX_PARALLEL_REPAIRS, |pull| pull).await;
    }
}
