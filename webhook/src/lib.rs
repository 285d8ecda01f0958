//! The admission webhook of oras-csi: what a pod asks for becomes a volume that says exactly which bytes.
//!
//! One request goes through these, in this order: [`review`] decodes, `view` and `intent` read the pod,
//! [`policy`] refuses, `resolve` asks registries, `patch` plans, [`review`] answers. [`admit`] is the order;
//! [`server`] is HTTP around it.
//!
//! Architecture Invariant: `view`, `intent`, `policy::judge`, `pins::key`, `contents` and `patch` do no
//! I/O.

#![cfg_attr(test, allow(clippy::expect_used, clippy::panic, clippy::unwrap_used))]

pub mod admit;
pub mod credentials;
pub mod denial;
pub mod manifest;
pub mod metrics;
pub mod pins;
pub mod pod_template;
pub mod policy;
pub mod review;
pub mod seal;
pub mod server;
pub mod sets;

mod contents;
mod intent;
mod patch;
mod registries;
mod resolve;
mod view;

/// Who writes objects of the cluster, for the API server's record.
const FIELD_MANAGER: &str = "oras-csi-webhook";

pub use registries::Registries;
pub use resolve::ResolverSettings;
