//! Integration tests that need the machine or the API server for themselves: `make test-integration` runs them one after
//! the other, after all others.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

mod counts;
mod flood;
mod preload;
mod resume;
mod skew;
