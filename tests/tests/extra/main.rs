//! Tests beside programs of other projects: GitOps engines and admission controllers that work on the same objects.
//!
//! `make test-extra` builds these programs and runs one test at a time, because each of them watches the whole cluster.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

mod argo_cd;
mod flux;
mod jaeger;
mod manifests;
mod mutators;
mod picture;
mod programs;
mod prometheus;
