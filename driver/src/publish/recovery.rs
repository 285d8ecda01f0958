//! What is done for volumes without anybody asking: at the start, beside collections, and after a scrub.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use oras_csi_store::StoreObserver as _;
use oras_csi_store::pull::PullStatus;

use super::stale_volumes::forget_stale_volumes;
use super::{PublishError, Publisher};

impl Publisher {
    /// Reads what an earlier run recorded and compares it with what is mounted; forgets volumes whose pods are gone.
    pub fn take_over(&self) -> Result<(), PublishError> {
        let disk = &self.disk;
        let forgotten = forget_stale_volumes(&disk.records, |target| disk.mounter.unpublish(target))?;
        let records = disk.records.all()?;
        let mounted = disk.mounter.mounted()?;
        let points: HashSet<&Path> = mounted.iter().map(|(path, _)| path.as_path()).collect();
        let gone = records.iter().filter(|record| !points.contains(record.target())).count();
        let recorded = records.len();
        disk.metrics.volumes().set(i64::try_from(recorded).unwrap_or(i64::MAX));
        disk.metrics.mounted(mounted.len());
        tracing::info!(
            recorded,
            mounted = mounted.len(),
            gone,
            forgotten,
            "took over the volumes of earlier runs"
        );
        Ok(())
    }

    /// Forgets volumes whose pods are gone since. Blocks.
    pub(crate) fn forget_stale_volumes(&self) {
        let disk = &self.disk;
        match forget_stale_volumes(&disk.records, |target| disk.mounter.unpublish(target)) {
            Ok(forgotten) => drop(disk.metrics.volumes().dec_by(i64::try_from(forgotten).unwrap_or(0))),
            Err(error) => tracing::warn!(%error, "volumes whose pods are gone cannot be told"),
        }
    }

    /// Fetches again what was set aside and is mounted, with the administrator's credentials: whoever asks next
    /// finds it. What cannot be fetched so is fetched when somebody asks, with theirs.
    pub(crate) async fn repull_damaged(self: Arc<Self>) {
        let missing = self.disk(|disk| {
            let mut missing = Vec::new();
            for record in disk.records.all()? {
                let there = record.tree().is_none_or(|key| disk.store.layout().tree(&key).exists());
                missing.extend(record.recipe().filter(|_| !there));
            }
            Ok(missing)
        });
        let Ok(missing) = missing.await else { return };
        let fetcher = Arc::new(self.pulls.fetcher().with_credentials(Arc::new(self.keyring.clone())));
        let mut seen = HashSet::new();
        for recipe in missing {
            let key = self.pulls.fetcher().key(&recipe);
            if !seen.insert(key.clone()) {
                continue;
            }
            let waited = self.pulls.wait_for(&recipe, &fetcher, self.wait).await;
            let healed = matches!(waited, PullStatus::Ready(_));
            tracing::info!(tree = %key, healed, "fetched again what is mounted and was found damaged");
        }
    }
}
