//! Runs garbage collection at intervals, and measures the store.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::collect::{Goal, collect};
use super::roots::Roots;
use super::watermarks::Watermarks;
use crate::content::inventory::Inventory;
use crate::disk::DiskSpace;
use crate::store::Store;

/// Runs garbage collection and measures the store at intervals until `stop`. Calls `before_each` before each
/// round.
pub async fn run(
    store: Arc<Store>,
    marks: Watermarks,
    before_each: impl Fn() + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let before_each = Arc::new(before_each);
    loop {
        let (round_store, before_each) = (store.clone(), before_each.clone());
        let done = tokio::task::spawn_blocking(move || {
            before_each();
            collect_and_measure(&round_store, &marks);
        });
        if done.await.is_err() {
            tracing::error!("a garbage collection panicked; it is retried at the next interval");
        }
        tokio::select! {
            () = tokio::time::sleep(marks.interval()) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn collect_and_measure(store: &Store, marks: &Watermarks) {
    if let Err(error) = collect(store, Goal::Watermarks(marks), marks.minimum_age()) {
        tracing::warn!(%error, "garbage collection failed; it is retried at the next interval");
    }
    let observer = store.observer();
    match Inventory::read(store.layout()) {
        Ok(inventory) => {
            let space = DiskSpace::measure(store.root()).ok();
            let free_inodes = space.and_then(DiskSpace::free_inodes);
            observer.measured(&inventory, space.map_or(0, DiskSpace::free), free_inodes);
        }
        Err(error) => tracing::warn!(%error, "cannot measure the store for its metrics"),
    }
    observer.leased(store.leases().count());
    if let Some(roots) = store.roots()
        && let Ok(roots) = Roots::read(roots.as_ref(), store.layout())
    {
        observer.mounted(roots.mounts());
    }
}
