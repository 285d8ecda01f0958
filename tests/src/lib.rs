//! What the tests across crates share: the real parts of the testbed as values that stop when dropped.
//!
//! The parts come from `tests/testbed/` and are named by the environment that `make test-parts` and
//! `make test-node` set: `ORAS_CSI_TESTBED_BIN`, `ORAS_CSI_BIN` and, where there is an API server, `KUBECONFIG`.

// A test that cannot get its parts has nothing to go on with.
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
pub mod cluster;
pub mod controller;
pub mod driver;
pub mod mutator;
pub mod node;
pub mod parts;
pub mod process;
pub mod registry;
pub mod scripted;
pub mod throttle;
pub mod webhook;
