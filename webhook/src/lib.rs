//! The admission webhook of oras-csi. It replaces the artifacts that a pod requests with a volume that is pinned to
//! digests.
//!
//! One request passes these modules in this order: [`review`] decodes it, `view` and `intent` read the pod, [`policy`]
//! checks names, [`credentials`] reads pull secrets, `resolve` contacts registries, [`policy`] checks contents, `patch`
//! plans the JSON Patch, [`review`] builds the answer. [`admit`] is this order; [`server`] is the HTTP server around it.
//!
//! Architecture Invariant: `view`, `intent`, `policy::evaluate`, `pins::key`, `contents` and `patch` do no I/O.

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
mod reapply;
mod registries;
mod resolve;
mod view;

/// The name under which the API server records the writes of the webhook.
const FIELD_MANAGER: FieldManager = FieldManager::new("oras-csi-webhook");

use oras_csi_kube_support::field_manager::FieldManager;

pub use registries::Registries;
pub use resolve::ResolverSettings;
