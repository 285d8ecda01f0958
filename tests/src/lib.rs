//! What the integration and e2e tests share: programs of the testbed as values that stop when dropped.
//!
//! The programs come from `tests/testbed/` and are named by the environment that `make test-integration` and
//! `make test-e2e` set: `ORAS_CSI_TESTBED_BIN`, `ORAS_CSI_BIN` and, where there is an API server, `KUBECONFIG`.

// A test cannot go on without its programs.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::print_stderr
)]

pub mod admission;
pub mod archive;
pub mod backstop;
pub mod blocks;
pub mod cluster;
pub mod collector;
pub mod controller;
pub mod driver;
pub mod installation;
pub mod load;
pub mod monitoring;
pub mod mutator;
pub mod node;
pub mod openmetrics;
pub mod page;
pub mod parts;
pub mod process;
pub mod registry;
pub mod throttle;
pub mod trial;
pub mod webhook;
