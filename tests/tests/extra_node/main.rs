//! Tests beside programs of other projects on a real node with the chart: cert-manager, and Kubernetes' own suite of tests
//! for storage drivers; and what takes longer than the e2e tier allows.
//!
//! `make test-extra` builds these programs, and runs these tests if it runs as root.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

mod cert_manager;
mod seal_key;
mod storage_suite;

use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::process::run;

/// Returns the output of `kubectl`.
fn says(words: &[&str]) -> String {
    run(&mut kubectl(words))
}
