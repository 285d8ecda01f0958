//! What a node keeps and how it gets there: verified blobs, unpacked layers, and trees of hard links.
//!
//! ```text
//! pull ──► unpack ──► store ──► state ──► content ──► layout ──► disk ──► limits
//! gc, scrub ────────────┘
//! ```
//!
//! This crate knows no CSI, no kubelet, no Kubernetes and no metrics. A program that mounts trees tells the store what
//! is in use by a [`GcRoots`], and hears what happens by a [`StoreObserver`].
//!
//! Architecture Invariant: nothing is visible that was not verified. A tree appears in the store by one rename, after
//! the digest of every byte it is made of was compared.
//!
//! Architecture Invariant: nothing a registry sends is believed. Sizes, counts, depths, windows and names have limits
//! with messages of their own ([`Limits`]); paths are opened beneath a descriptor.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod gc;
pub mod pull;
pub mod scrub;
pub mod unpack;

mod content;
mod disk;
mod error_class;
mod layout;
mod limits;
mod state;
mod store;

pub use self::content::{
    BlobReader, HeldBlob, HeldEntry, HeldLayer, HeldTree, Inventory, State, StreamFault, TreeContent,
    Verdict, verify_blob, verify_layer, verify_tree,
};
pub use self::disk::{DiskError, EntryPath, NameError, Pace, Totals, Unpaced};
pub use self::error_class::{ErrorClass, PullErrorKind};
pub use self::layout::format::StoreError;
pub use self::layout::{Item, LayerKey, LayerShape, Layout, TreeKey, quarantined_tree, tree_files};
pub use self::limits::{Limits, Percent, PercentError, Reserve};
pub use self::state::{
    CollectionReport, Damage, GcRoots, Lease, Leases, NoObserver, NodeRecord, Provenance, RootsError,
    ScrubReport, StoreObserver, TreesInUse,
};
pub use self::store::preload_index::{PreloadEntry, read_preload_index};
pub use self::store::trees::{Layer, Staging, Tree};
pub use self::store::{Store, look_at};
