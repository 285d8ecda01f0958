//! Garbage collection: deletes unused items when the disk, or the store's own limit, is nearly full.
//!
//! ```text
//! quarantined, not mounted ──────────────────────────► deleted, always
//! trees that are not in a volume record, not ┐
//!   in the preload index, not mounted        │
//! blobs, layers, partial blobs without a     ├ least recently used first, ──► tmp ──► deleted, until the goal is
//!   tree                                     ┘ older than the minimum age             reached
//! ```
//!
//! It runs in four cases (docs/design.md, "Garbage collection"):
//!
//! * at intervals: if usage is above the high watermark, down to the low watermark;
//! * when a pull does not have enough disk space: for the bytes and inodes that it needs, and only if deleting all
//!   unused items would free enough;
//! * after a pull ran out of disk space while unpacking: until the free space has doubled;
//! * by `oras-csi store gc`.
//!
//! With a tree, its blobs and layers are deleted, unless another tree that stays needs them. Leased items
//! stay, including items that were leased at any time during the collection (see `state::leases`).
//!
//! Architecture Invariant: a tree that is mounted, in a volume record, leased or in the preload index is
//! never deleted. If mounts, volume records or the preload index cannot be read, nothing is deleted.

mod candidates;
mod collect;
mod periodic;
mod roots;
mod watermarks;

pub use self::collect::{Goal, collect, double_free_space};
pub use self::periodic::run;
pub use self::roots::Roots;
pub use self::watermarks::Watermarks;
