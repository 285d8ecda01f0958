//! Collection: what nobody uses makes room for what somebody wants.
//!
//! ```text
//! set aside, not mounted ────────────────────────────► deleted, always
//! trees that no record names, no cluster set ┐
//!   wants, nothing mounts                    │
//! blobs, layers, partial blobs of no tree    ├ least recently used first, ──► tmp ──► deleted, until there is room
//!                                            ┘ older than the minimum age
//! ```
//!
//! It runs every so often, above the high watermark down to the low one; when a pull finds no room, for what that
//! pull needs, and not at all where everything that could go would not be enough; and by `oras-csi store gc`.
//!
//! With a tree go the blobs and layers that no tree that stays needs. What is leased stays, and what was leased
//! while the collection ran (see the leases of [`crate::store`]).
//!
//! Architecture Invariant: a tree that is mounted, recorded, leased or wanted by a cluster set is never taken away.
//! Where mounts, records or what sets want cannot be read, nothing is.

mod candidates;
mod collect;
mod periodic;
mod roots;
mod watermarks;

pub use self::collect::{Goal, collect, make_more_space};
pub use self::periodic::run;
pub use self::roots::Roots;
pub use self::watermarks::Watermarks;
