//! The metrics of the store: its content, evictions, scrubs and damage. Label values come from closed sets.

use std::sync::atomic::AtomicU64;

use oras_csi_store::{CollectionReport, Inventory, Item, PullErrorKind, StoreObserver, Verdict};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Metrics, Pull, PullOutcome};

type Label = [(&'static str, &'static str); 1];
type Labels = [(&'static str, &'static str); 2];

#[derive(Clone, Debug)]
pub(super) struct StoreMetrics {
    bytes: Family<Label, Gauge>,
    inodes: Family<Label, Gauge>,
    objects: Family<Label, Gauge>,
    free: Gauge,
    free_inodes: Gauge,
    evictions: Family<Label, Counter>,
    evicted_bytes: Counter<u64, AtomicU64>,
    scrubbed: Family<Labels, Counter>,
    damaged: Family<Label, Counter>,
    leases: Gauge,
    mounts: Gauge,
    lookups: Family<Label, Counter>,
    pull_seconds: Family<Label, Histogram, fn() -> Histogram>,
}

fn pull_seconds() -> Histogram {
    Histogram::new([0.1, 0.5, 2.0, 10.0, 30.0, 120.0, 600.0, 3_600.0])
}

impl StoreMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self {
            bytes: Family::default(),
            inodes: Family::default(),
            objects: Family::default(),
            free: Gauge::default(),
            free_inodes: Gauge::default(),
            evictions: Family::default(),
            evicted_bytes: Counter::default(),
            scrubbed: Family::default(),
            damaged: Family::default(),
            leases: Gauge::default(),
            mounts: Gauge::default(),
            lookups: Family::default(),
            pull_seconds: Family::new_with_constructor(pull_seconds),
        };
        let metrics = new.clone();
        registry.register("store_bytes", "Disk space of the store in bytes, by state", metrics.bytes);
        registry.register("store_inodes", "Inodes of the store, by state", metrics.inodes);
        registry.register("store_objects", "Objects in the store, by kind", metrics.objects);
        registry.register("store_free_bytes", "Free bytes on the file system of the store", metrics.free);
        registry.register(
            "store_free_inodes",
            "Free inodes on the file system of the store; the largest number if they are not limited",
            metrics.free_inodes,
        );
        registry.register("evictions", "Objects that garbage collection deleted, by kind", metrics.evictions);
        registry.register("evicted_bytes", "Bytes that garbage collection deleted", metrics.evicted_bytes);
        registry.register(
            "scrubbed",
            "Stored objects that the scrubber verified, by kind and result",
            metrics.scrubbed,
        );
        registry.register("damaged", "Stored objects that were found damaged, by kind", metrics.damaged);
        registry.register("leases", "Leased objects: in use by a call or a pull in progress", metrics.leases);
        registry.register("mounts", "Mounts of trees on this node", metrics.mounts);
        registry.register("tree_lookups", "Publishes, by whether the tree was in the store", metrics.lookups);
        registry.register(
            "pull_seconds",
            "Duration of pulls in seconds, by size of the tree",
            metrics.pull_seconds,
        );
        new
    }
}

fn kind(item: &Item) -> &'static str {
    match item {
        Item::Tree(_) => "tree",
        Item::Layer(_) => "layer",
        Item::Blob(_) => "blob",
    }
}

fn amount(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// Whether a publish found its tree in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TreeLookup {
    Hit,
    Miss,
}

impl Metrics {
    pub(crate) fn looked_up(&self, result: TreeLookup) {
        let result = match result {
            TreeLookup::Hit => "hit",
            TreeLookup::Miss => "miss",
        };
        self.0.store.lookups.get_or_create(&[("result", result)]).inc();
    }
}

impl StoreObserver for Metrics {
    fn measured(&self, inventory: &Inventory, free_bytes: u64, free_inodes: Option<u64>) {
        let store = &self.0.store;
        for (state, usage) in inventory.usage_by_state() {
            store.bytes.get_or_create(&[("state", state.name())]).set(amount(usage.bytes));
            store.inodes.get_or_create(&[("state", state.name())]).set(amount(usage.inodes));
        }
        let counts = [
            ("tree", inventory.trees().len()),
            ("layer", inventory.layers().len()),
            ("blob", inventory.blobs().len()),
            ("set_aside", inventory.quarantined().len()),
            ("partial", inventory.partial().len()),
        ];
        for (name, count) in counts {
            store.objects.get_or_create(&[("kind", name)]).set(amount(count));
        }
        store.free.set(amount(free_bytes));
        store.free_inodes.set(free_inodes.map_or(i64::MAX, amount));
    }

    fn collected(&self, done: &CollectionReport) {
        let counts = [
            ("tree", done.trees),
            ("layer", done.layers),
            ("blob", done.blobs),
            ("set_aside", done.quarantined),
        ];
        for (name, count) in counts {
            self.0.store.evictions.get_or_create(&[("kind", name)]).inc_by(count);
        }
        self.0.store.evicted_bytes.inc_by(done.bytes);
    }

    fn scrubbed(&self, item: &Item, verdict: &Verdict) {
        let result = match verdict {
            Verdict::Good => "good",
            Verdict::Damaged(_) => "damaged",
            Verdict::Gone => "gone",
            Verdict::NoChecksums => "no_sums",
            Verdict::Stopped => return,
        };
        self.0.store.scrubbed.get_or_create(&[("kind", kind(item)), ("result", result)]).inc();
    }

    fn damaged(&self, item: &Item) {
        self.0.store.damaged.get_or_create(&[("kind", kind(item))]).inc();
    }

    fn leased(&self, count: usize) {
        self.0.store.leases.set(amount(count));
    }

    fn mounted(&self, count: usize) {
        self.0.store.mounts.set(amount(count));
    }

    fn received(&self, bytes: u64) {
        self.0.bytes.inc_by(bytes);
    }

    fn pulled(&self, failure: Option<PullErrorKind>) {
        let outcome = failure.map_or(PullOutcome::Done, PullOutcome::from);
        self.0.pulls.get_or_create(&Pull { outcome }).inc();
    }

    fn pull_took(&self, bytes: u64, seconds: f64) {
        let size = match bytes {
            0..0x10_0000 => "below 1 MiB",
            0x10_0000..0x400_0000 => "below 64 MiB",
            0x400_0000..0x4000_0000 => "below 1 GiB",
            0x4000_0000..0x4_0000_0000 => "below 16 GiB",
            _ => "16 GiB and more",
        };
        self.0.store.pull_seconds.get_or_create(&[("size", size)]).observe(seconds);
    }
}
