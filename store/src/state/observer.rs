//! Who hears what a store does: metrics, for example.

use std::fmt;

use crate::content::{Inventory, Verdict};
use crate::error_class::PullErrorKind;
use crate::layout::Item;
use crate::state::node_record::CollectionReport;

/// Hears what happens in a store. Each method must return at once; by default it does nothing.
pub trait StoreObserver: fmt::Debug + Send + Sync {
    /// The store was measured: what it holds, and how many bytes are free on its file system.
    fn measured(&self, _inventory: &Inventory, _free_bytes: u64) {}
    /// This many items are leased.
    fn leased(&self, _count: usize) {}
    /// This many mounts of trees exist.
    fn mounted(&self, _count: usize) {}
    /// A garbage collection deleted something.
    fn collected(&self, _report: &CollectionReport) {}
    /// The scrubber verified an item.
    fn scrubbed(&self, _item: &Item, _verdict: &Verdict) {}
    /// An item was found damaged.
    fn damaged(&self, _item: &Item) {}
    /// Bytes came from a registry.
    fn received(&self, _bytes: u64) {}
    /// A pull ended; `failure` is `None` where it succeeded.
    fn pulled(&self, _failure: Option<PullErrorKind>) {}
    /// A pull of a tree with this many bytes succeeded after this time.
    fn pull_took(&self, _bytes: u64, _seconds: f64) {}
}

/// Ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl StoreObserver for NoObserver {}
