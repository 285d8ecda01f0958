//! What the store has, what was taken away, what was found damaged. Labels are of closed sets.

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
    objects: Family<Label, Gauge>,
    free: Gauge,
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
            objects: Family::default(),
            free: Gauge::default(),
            evictions: Family::default(),
            evicted_bytes: Counter::default(),
            scrubbed: Family::default(),
            damaged: Family::default(),
            leases: Gauge::default(),
            mounts: Gauge::default(),
            lookups: Family::default(),
            pull_seconds: Family::new_with_constructor(pull_seconds),
        };
        let it = new.clone();
        registry.register("store_bytes", "Bytes in the store, by what they are", it.bytes);
        registry.register("store_objects", "Things in the store", it.objects);
        registry.register("store_free_bytes", "Bytes that are free on the store's file system", it.free);
        registry.register("evictions", "Things that were collected", it.evictions);
        registry.register("evicted_bytes", "Bytes that were collected", it.evicted_bytes);
        registry.register("scrubbed", "Things that were compared at rest", it.scrubbed);
        registry.register("damaged", "Things that were found damaged at rest", it.damaged);
        registry.register("leases", "Things that are in use and not yet recorded", it.leases);
        registry.register("mounts", "Mounts of trees on the node", it.mounts);
        registry.register("tree_lookups", "Publishes that found their tree, or did not", it.lookups);
        registry.register("pull_seconds", "Time of a pull, by how much is in the tree", it.pull_seconds);
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

impl Metrics {
    pub(crate) fn looked_up(&self, found: bool) {
        let result = if found { "hit" } else { "miss" };
        self.0.store.lookups.get_or_create(&[("result", result)]).inc();
    }
}

impl StoreObserver for Metrics {
    fn measured(&self, inventory: &Inventory, free: u64) {
        let store = &self.0.store;
        for (state, bytes) in inventory.sizes() {
            store.bytes.get_or_create(&[("state", state.name())]).set(amount(bytes));
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
        store.free.set(amount(free));
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

    /// How long it took to bring a tree of so many bytes into the store.
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
