//! The metrics of the store: its content, evictions, scrubs and damage. Label values come from closed sets.

use oras_csi_store::{CollectionReport, Inventory, Item, PullErrorKind, State, StoreObserver, Verdict, Work};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Labels, Metrics, counters};

/// The kinds of items that are verified, and those that are counted.
const ITEMS: [&str; 3] = ["tree", "layer", "blob"];
const EVICTED: [&str; 4] = ["tree", "layer", "blob", "set_aside"];
const OBJECTS: [&str; 5] = ["tree", "layer", "blob", "set_aside", "partial"];
const RESULTS: [&str; 4] = ["good", "damaged", "gone", "no_sums"];

#[derive(Clone, Debug)]
pub(super) struct StoreMetrics {
    bytes: Family<Labels<1>, Gauge>,
    inodes: Family<Labels<1>, Gauge>,
    objects: Family<Labels<1>, Gauge>,
    free: Gauge,
    free_inodes: Family<Labels<0>, Gauge>,
    evictions: Family<Labels<1>, Counter>,
    evicted: Counter,
    scrubbed: Family<Labels<2>, Counter>,
    damaged: Family<Labels<1>, Counter>,
    leases: Gauge,
    mounts: Gauge,
    lookups: Family<Labels<1>, Counter>,
}

impl StoreMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self {
            bytes: Family::default(),
            inodes: Family::default(),
            objects: Family::default(),
            free: Gauge::default(),
            free_inodes: Family::default(),
            evictions: counters("kind", &EVICTED),
            evicted: Counter::default(),
            scrubbed: Family::default(),
            damaged: counters("kind", &ITEMS),
            leases: Gauge::default(),
            mounts: Gauge::default(),
            lookups: counters("result", &["hit", "miss"]),
        };
        for state in State::ALL {
            drop(new.bytes.get_or_create(&[("state", state.name())]));
            drop(new.inodes.get_or_create(&[("state", state.name())]));
        }
        for kind in OBJECTS {
            drop(new.objects.get_or_create(&[("kind", kind)]));
        }
        for (kind, result) in ITEMS.iter().flat_map(|kind| RESULTS.map(|result| (*kind, result))) {
            drop(new.scrubbed.get_or_create(&[("kind", kind), ("result", result)]));
        }
        drop(new.free_inodes.get_or_create(&[]));
        let metrics = new.clone();
        registry.register_with_unit("store", "Disk space of the store, by state", Unit::Bytes, metrics.bytes);
        registry.register("store_inodes", "Inodes of the store, by state", metrics.inodes);
        registry.register("store_objects", "Objects in the store, by kind", metrics.objects);
        registry.register_with_unit(
            "store_free",
            "Free bytes on the file system of the store",
            Unit::Bytes,
            metrics.free,
        );
        registry.register(
            "store_free_inodes",
            "Free inodes on the file system of the store; absent if the file system does not limit them",
            metrics.free_inodes,
        );
        registry.register("evictions", "Objects that garbage collection deleted, by kind", metrics.evictions);
        registry.register_with_unit(
            "evicted",
            "Bytes that garbage collection deleted",
            Unit::Bytes,
            metrics.evicted,
        );
        registry.register(
            "scrubbed",
            "Stored objects that the scrubber verified, by kind and result",
            metrics.scrubbed,
        );
        registry.register("damaged", "Stored objects that were found damaged, by kind", metrics.damaged);
        registry.register("leases", "Leased objects: in use by a call or a pull in progress", metrics.leases);
        registry.register("mounts", "Mounts of trees on this node", metrics.mounts);
        registry.register("tree_lookups", "Publishes, by whether the tree was in the store", metrics.lookups);
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
    /// The tree is in the store, with files of this size.
    Hit {
        /// The size of all files.
        bytes: u64,
    },
    /// The tree must be pulled, or the pod must show that it can pull it.
    Miss,
}

impl Metrics {
    pub(crate) fn looked_up(&self, result: TreeLookup) {
        let result = match result {
            TreeLookup::Hit { bytes } => {
                self.content("store", bytes);
                "hit"
            }
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
        match free_inodes {
            Some(free) => drop(store.free_inodes.get_or_create(&[]).set(amount(free))),
            None => drop(store.free_inodes.remove(&[])),
        }
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
        self.0.store.evicted.inc_by(done.bytes);
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
        self.content("registry", bytes);
    }

    fn reused(&self, bytes: u64) {
        self.content("store", bytes);
    }

    fn pulled(&self, failure: Option<PullErrorKind>) {
        self.pull_ended(failure);
    }

    fn pull_took(&self, bytes: u64, seconds: f64) {
        self.pull_lasted(bytes, seconds);
    }

    fn queued(&self, work: Work) {
        self.download_queued(work);
    }

    fn left_queue(&self, work: Work, waited: Option<f64>) {
        self.download_left_queue(work, waited);
    }
}
