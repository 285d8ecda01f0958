//! The admission webhook of oras-csi: what a pod asks for becomes a volume that says exactly which bytes.
//!
//! One request goes through these, in this order: [`review`] decodes, `view` and `intent` read the pod,
//! [`policy`] refuses, `resolve` asks registries, `patch` plans, [`review`] answers. [`admit`] is the order;
//! [`server`] is HTTP around it.
//!
//! Architecture Invariant: `view`, `intent`, `policy::evaluate`, `pins::key`, `contents` and `patch` do no
//! I/O.

#![cfg_attr(test, allow(clippy::expect_used, clippy::panic, clippy::unwrap_used))]

pub mod admit;
pub mod credentials;
pub mod denial;
pub mod manifest;
pub mod metrics;
pub mod pins;
pub mod policy;
pub mod review;
pub mod seal;
pub mod server;
pub mod sets;
pub mod workload;

mod contents;
mod intent;
mod patch;
mod resolve;
mod view;

/// The name under which the API server records the writes of the webhook.
const FIELD_MANAGER: FieldManager = FieldManager::new("oras-csi-webhook");

use oras_csi_kube_support::field_manager::FieldManager;

pub use intent::Registries;
pub use resolve::ResolverSettings;
