//! The CSI node driver of oras-csi: canonical volumes become read-only mounts.
//!
//! ```text
//! kubelet ── NodePublishVolume ──► node ──► publish ──► pull ──► store ◄── collect, scrub
//!    │                              │          │          ▲└──► unpack
//!    │                              │          │          └──── preload ◄── cluster sets
//!    │                              │          ├──► records
//!    │                           status        └──► mount ──► /var/lib/kubelet/pods/…/mount
//!    └── plugin registration ──► registration
//! ```
//!
//! [`run`] is the whole driver; [`pull::into_directory`] is the same store and the same unpacking for
//! the command line.
//!
//! Architecture Invariant: the driver accepts only what is pinned. [`publish::PublishRequest`] is the one
//! way in, and it holds a canonical volume; no tag ever reaches this crate.
//!
//! Architecture Invariant: nothing is mounted that was not verified. A tree appears in the store by one
//! rename, after the digest of every byte it is made of was compared ([`store`], [`unpack`]).
//!
//! Architecture Invariant: what is mounted is read-only, nosuid and nodev from the instant it can be seen,
//! because it is a clone of a mount that has these flags ([`mount`], the only file with mount system calls).
//!
//! Architecture Invariant: only `status` builds a gRPC status, from a table of errors and codes.
//!
//! Architecture Invariant: nothing a registry sends is believed. Sizes, counts, depths, windows and names
//! have limits with words of their own ([`settings::Limits`]), paths are opened beneath a descriptor.
//!
//! Architecture Invariant: secrets of a request are neither kept nor printed.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod class;
pub mod collect;
pub mod metrics;
pub mod mount;
pub mod mountinfo;
pub mod preload;
pub mod proto;
pub mod publish;
pub mod pull;
pub mod records;
pub mod scrub;
pub mod settings;
pub mod socket;
pub mod store;
pub mod unpack;

mod identity;
mod node;
mod registration;
mod server;
mod status;

pub use self::class::ErrorClass;
pub use self::server::{Bound, RunError, bind, run};
pub use self::settings::{Limits, Settings};
