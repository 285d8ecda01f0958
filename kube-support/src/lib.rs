//! What the webhook, the driver and the certificates share when they talk to the Kubernetes API server.
//!
//! | module | what it does |
//! |---|---|
//! | [`call`] | limits the time of one request |
//! | [`conditions`] | sets a condition in the status of an object |
//! | [`errors`] | classifies the errors of the API server and prints them |
//! | [`field_manager`] | names the writer in each request |
//! | [`metadata`] | labels and owner references of the objects that oras-csi creates |
//! | [`pull_secret`] | reads a Secret with a docker config by its name |
//! | [`repeated_failure`] | logs a failure once and not with every retry |
//! | [`status`] | replaces the status of an object that has not changed since it was read |
//! | [`time`] | times in whole seconds, as the API server stores them |
//! | [`verb`] | the verbs of RBAC, for error messages |
//! | [`watch`] | follows all objects of a resource through a watch |
//! | [`writes`] | creates an object unless it exists, and replaces one that has not changed |
//!
//! Architecture Invariant: this crate knows no kind of oras-csi and does not depend on any other crate of it.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod call;
pub mod conditions;
pub mod errors;
pub mod field_manager;
pub mod metadata;
pub mod pull_secret;
pub mod repeated_failure;
pub mod status;
pub mod time;
pub mod verb;
pub mod watch;
pub mod writes;
