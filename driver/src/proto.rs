//! The generated protocol code, and nothing else: lints stop here.
//!
//! Made by `build.rs` from the files in `proto/`.

#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    rust_2018_idioms
)]

/// The Container Storage Interface, version 1.13.
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// Kubelet's plugin registration, version 1.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// Kubelet's list of the pods of the node, version 1.
pub mod pod_resources {
    tonic::include_proto!("v1");
}
