//! What the store has, what was taken away, what was found damaged. Labels are of closed sets.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::Metrics;
use crate::scrub::Verdict;
use crate::store::{CollectionReport, Inventory, Item};

type Label = [(&'static str, &'static str); 1];
type Labels = [(&'static str, &'static str); 2];

#[derive(Clone, Debug)]
pub(super) struct Holdings {
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

impl Holdings {
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
    pub(crate) fn holds(&self, inventory: &Inventory, free: u64) {
        let holdings = &self.0.holdings;
        for (state, bytes) in inventory.sizes() {
            holdings.bytes.get_or_create(&[("state", state.name())]).set(amount(bytes));
        }
        let counts = [
            ("tree", inventory.trees().len()),
            ("layer", inventory.layers().len()),
            ("blob", inventory.blobs().len()),
            ("set_aside", inventory.aside().len()),
            ("partial", inventory.partial().len()),
        ];
        for (name, count) in counts {
            holdings.objects.get_or_create(&[("kind", name)]).set(amount(count));
        }
        holdings.free.set(amount(free));
    }

    pub(crate) fn collected(&self, done: &CollectionReport) {
        let counts =
            [("tree", done.trees), ("layer", done.layers), ("blob", done.blobs), ("set_aside", done.aside)];
        for (name, count) in counts {
            self.0.holdings.evictions.get_or_create(&[("kind", name)]).inc_by(count);
        }
        self.0.holdings.evicted_bytes.inc_by(done.bytes);
    }

    pub(crate) fn scrubbed(&self, item: &Item, verdict: &Verdict) {
        let result = match verdict {
            Verdict::Good => "good",
            Verdict::Damaged(_) => "damaged",
            Verdict::Gone => "gone",
            Verdict::NoSums => "no_sums",
            Verdict::Stopped => return,
        };
        self.0.holdings.scrubbed.get_or_create(&[("kind", kind(item)), ("result", result)]).inc();
    }

    pub(crate) fn damaged(&self, item: &Item) {
        self.0.holdings.damaged.get_or_create(&[("kind", kind(item))]).inc();
    }

    pub(crate) fn leases(&self, count: usize) {
        self.0.holdings.leases.set(amount(count));
    }

    pub(crate) fn mounts(&self, count: usize) {
        self.0.holdings.mounts.set(amount(count));
    }

    pub(crate) fn looked_up(&self, found: bool) {
        let result = if found { "hit" } else { "miss" };
        self.0.holdings.lookups.get_or_create(&[("result", result)]).inc();
    }

    /// How long it took to bring a tree of so many bytes into the store.
    pub(crate) fn pull_took(&self, bytes: u64, seconds: f64) {
        let size = match bytes {
            0..0x10_0000 => "below 1 MiB",
            0x10_0000..0x400_0000 => "below 64 MiB",
            0x400_0000..0x4000_0000 => "below 1 GiB",
            0x4000_0000..0x4_0000_0000 => "below 16 GiB",
            _ => "16 GiB and more",
        };
        self.0.holdings.pull_seconds.get_or_create(&[("size", size)]).observe(seconds);
    }
}
