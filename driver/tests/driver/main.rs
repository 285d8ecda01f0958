//! Tests the driver through its sockets, with real mounts and a registry in memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    unreachable_pub
)]

mod calls;
mod cluster;
mod collecting;
mod crash;
mod damage;
mod directory;
mod disk_usage;
mod disks;
mod endpoints;
mod hanging_disk;
mod images;
mod kills;
mod kubelet;
mod many;
mod model;
mod namespace;
mod preload;
mod pulls;
mod ranges;
mod recipes;
mod registry;
mod resumes;
mod rights;
mod scale;
mod tenants;
mod trees;
mod volumes;
