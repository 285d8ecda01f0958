//! The CSI node driver of oras-csi: canonical volumes become read-only mounts.
//!
//! ```text
//! kubelet ── NodePublishVolume ──► node ──► publish ──► oras_csi_store ◄── preload ◄── cluster sets
//!    │                              │          ├──► volume_records
//!    │                           status        └──► mount ──► /var/lib/kubelet/pods/…/mount
//!    └── plugin registration ──► registration
//! ```
//!
//! [`run`] is the whole driver. What it pulls, keeps and deletes is the crate `oras-csi-store`.
//!
//! Architecture Invariant: the driver accepts only what is pinned. [`publish::PublishRequest`] is the one
//! way in, and it holds a canonical volume; no tag ever reaches this crate.
//!
//! Architecture Invariant: what is mounted is read-only, nosuid and nodev from the instant it can be seen,
//! because it is a clone of a mount that has these flags ([`mount`], the only file with mount system calls).
//!
//! Architecture Invariant: only `status` builds a gRPC status, from a table of errors and codes.
//!
//! Architecture Invariant: secrets of a request are neither kept nor printed.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod gc_roots;
pub mod metrics;
pub mod mount;
pub mod mountinfo;
pub mod preload;
pub mod proto;
pub mod publish;
pub mod settings;
pub mod socket;
pub mod volume_records;

mod identity;
mod node;
mod registration;
mod server;
mod status;

pub use self::gc_roots::NodeRoots;
pub use self::server::{Bound, RunError, bind, run};
pub use self::settings::Settings;
