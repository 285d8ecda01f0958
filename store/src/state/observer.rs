//! The observer of a store, which receives its events, for example to count them in metrics.

use std::fmt;

use crate::content::{Inventory, Verdict};
use crate::error_class::PullErrorKind;
use crate::layout::Item;
use crate::state::node_record::CollectionReport;

/// What a download is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Pods wait for it, or a command.
    Pods,
    /// A preload, which no pod waits for.
    Preload,
}

impl Work {
    /// Returns a short, stable name for a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Preload => "preload",
        }
    }
}

/// Receives the events of a store. Each method must return immediately; by default it does nothing.
pub trait StoreObserver: fmt::Debug + Send + Sync {
    /// The store was measured: what it holds, and how many bytes and inodes are free on its file system. A file system
    /// without a limit on inodes has no number.
    fn measured(&self, _inventory: &Inventory, _free_bytes: u64, _free_inodes: Option<u64>) {}
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
    /// Bytes were received from a registry.
    fn received(&self, _bytes: u64) {}
    /// Bytes that a pull needs are in the store already.
    fn reused(&self, _bytes: u64) {}
    /// A blob waits for its first turn to be downloaded.
    fn queued(&self, _work: Work) {}
    /// A blob does not wait any more. It got its first turn after this many seconds, or was cancelled.
    fn left_queue(&self, _work: Work, _waited: Option<f64>) {}
    /// A pull ended; `failure` is `None` if it succeeded.
    fn pulled(&self, _failure: Option<PullErrorKind>) {}
    /// A pull of a tree with this many bytes took this long and succeeded.
    fn pull_took(&self, _bytes: u64, _seconds: f64) {}
}

/// An observer that ignores all events.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl StoreObserver for NoObserver {}
