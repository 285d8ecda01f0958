//! The CSI node driver of oras-csi: mounts canonical volumes read-only.
//!
//! ```text
//! kubelet ── NodePublishVolume ──► node ──► publish ──► oras_csi_store ◄── preload ◄── cluster sets
//!    │                              │          ├──► volume_records
//!    │                           status        └──► mount ──► /var/lib/kubelet/pods/…/mount
//!    └── plugin registration ──► registration  └──► pod_events ──► API server
//! ```
//!
//! [`run`] runs the whole driver. The crate `oras-csi-store` pulls, stores and deletes the content.
//!
//! Architecture Invariant: the driver accepts only digests. Every volume enters as a [`publish::PublishRequest`], which
//! holds a canonical volume. No tag reaches this crate.
//!
//! Architecture Invariant: a mount is read-only, nosuid and nodev from the instant at which it is visible, because it is
//! a clone of a mount with these flags ([`mount`], the only file with mount system calls).
//!
//! Architecture Invariant: only `status` builds gRPC statuses, from a table of errors and codes.
//!
//! Architecture Invariant: secrets of a request are neither stored nor logged.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod gc_roots;
pub mod kubelet_pods;
pub mod metrics;
pub mod mount;
pub mod mountinfo;
pub mod pod_events;
pub mod preload;
pub mod proto;
pub mod publish;
pub mod settings;
pub mod socket;
pub mod volume_records;

mod endpoint;
mod identity;
mod node;
mod registration;
mod server;
pub mod startup_taint;
mod status;

pub use self::gc_roots::NodeRoots;
pub use self::kubelet_pods::OwnPod;
pub use self::pod_events::PodEvents;
pub use self::server::{Bound, RunError, bind, run};
pub use self::settings::Settings;
pub use self::startup_taint::StartupTaint;
