//! Looks every so often whether there is something to collect, and measures the store.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::collect::{Goal, collect};
use super::roots::Roots;
use super::watermarks::Watermarks;
use crate::content::inventory::Inventory;
use crate::disk::DiskSpace;
use crate::store::Store;

/// Collects and measures until `stop`; `tidy` comes first each time.
pub async fn run(
    store: Arc<Store>,
    marks: Watermarks,
    tidy: impl Fn() + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let tidy = Arc::new(tidy);
    loop {
        let (round, tidy) = (store.clone(), tidy.clone());
        let done = tokio::task::spawn_blocking(move || {
            tidy();
            look(&round, &marks);
        });
        if done.await.is_err() {
            tracing::error!("a collection broke off; the next one is tried");
        }
        tokio::select! {
            () = tokio::time::sleep(marks.every()) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn look(store: &Store, marks: &Watermarks) {
    if let Err(error) = collect(store, Goal::Watermarks(marks), marks.age()) {
        tracing::warn!(%error, "nothing more is collected now");
    }
    let observer = store.observer();
    match Inventory::read(store.layout()) {
        Ok(inventory) => {
            observer.measured(&inventory, DiskSpace::measure(store.root()).map_or(0, DiskSpace::free));
        }
        Err(error) => tracing::warn!(%error, "the store cannot be measured"),
    }
    observer.leased(store.leases().count());
    if let Some(roots) = store.roots()
        && let Ok(roots) = Roots::read(roots.as_ref(), store.layout())
    {
        observer.mounted(roots.mounts());
    }
}
