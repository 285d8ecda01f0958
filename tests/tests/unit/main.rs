//! Tests of the repository as a whole that need neither root nor Go.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

mod crds;
mod dependencies;
mod documentation;
mod language;
mod logs;
mod messages;
mod metrics;
mod reference;
mod release;
mod site;
