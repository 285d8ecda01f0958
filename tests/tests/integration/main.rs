//! Tests against real registries, a real API server and the `oras-csi` binary.
//!
//! All modules run at the same time in this one process. A test therefore has its own namespace and its own names for
//! cluster-scoped objects, or takes the lock of its module. Tests that measure time belong into `integration_serial`.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

mod admission;
mod apply;
mod backstop;
mod backstop_beside;
mod commands;
mod counts;
mod credentials;
mod driver;
mod hostile;
mod metrics;
mod misbehaving;
mod patches;
mod pins;
mod pod_events;
mod policy;
mod pull;
mod registries;
mod release;
mod rights;
mod sanity;
mod sets;
mod status;
mod tenants;
mod traces;
mod unpack;
