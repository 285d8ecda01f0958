//! Looks every so often whether there is something to collect, and measures the store.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Goal, Roots, Watermarks, collect};
use crate::store::{Inventory, Room, Store};

/// Collects and measures until `stop`; `tidy` comes first each time.
pub(crate) async fn keep(
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
    let metrics = store.metrics();
    match Inventory::read(store.layout()) {
        Ok(inventory) => metrics.holds(&inventory, Room::of(store.root()).map_or(0, Room::free)),
        Err(error) => tracing::warn!(%error, "the store cannot be measured"),
    }
    metrics.leases(store.leases().count());
    if let Ok(roots) = Roots::read(store.layout()) {
        metrics.mounts(roots.mounts());
    }
}
