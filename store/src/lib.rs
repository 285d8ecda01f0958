//! The content-addressed store of a node: verified blobs, unpacked layers, trees of hard links, and the pulls
//! that fill it.
//!
//! ```text
//! gc, scrub, pull ──► store ──► state ──► content ──► layout ──► disk ──► limits
//!             └─────► unpack ───────────────┘
//! ```
//!
//! This crate does not depend on CSI, kubelet, Kubernetes or a metrics library. A program that mounts trees
//! implements [`GcRoots`], which lists the trees in use. It can implement [`StoreObserver`] to count events.
//!
//! Architecture Invariant: unverified content is never visible. One rename makes a tree visible, after the
//! store has compared the digest of every byte in it.
//!
//! Architecture Invariant: data from a registry is untrusted. Sizes, counts, depths, compression windows and
//! names have limits, each with its own error message ([`Limits`]). Paths are opened beneath a file
//! descriptor.

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
pub use self::disk::selinux::{SelinuxLabel, SelinuxLabelError, has_labels};
pub use self::disk::{DiskError, EntryPath, NameError, Pace, Totals, Unpaced, Usage};
pub use self::error_class::{ErrorClass, PullErrorKind};
pub use self::layout::format::StoreError;
pub use self::layout::{Item, LayerKey, LayerShape, Layout, TreeKey, quarantined_tree, tree_files};
pub use self::limits::{Limits, Percent, PercentError, Reserve};
pub use self::state::{
    CollectionReport, Damage, GcRoots, Lease, Leases, NoObserver, NodeRecord, Provenance, RootsError,
    ScrubReport, StoreObserver, TreesInUse, Work,
};
pub use self::store::preload_index::{PreloadEntry, read_preload_index};
pub use self::store::trees::{Layer, Staging, Tree};
pub use self::store::{Store, locate_store};
