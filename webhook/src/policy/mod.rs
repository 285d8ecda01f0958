//! Which policies hold where, and what they say of a pod.
//!
//! A policy is an `ArtifactPolicy` ([`object`]), read from files ([`files`]) or watched in the cluster
//! ([`cluster`]); `--allow-registry` is one more. [`Policies`] has those in force and is swapped as a whole, so
//! that one request sees one state. [`judge`] asks them, with the pure rules of [`oras_csi_core::policy`].
//!
//! A policy that cannot be read does not open a gate: its last good generation stays, and where there is none,
//! the namespaces that it selects get nothing until somebody mends it.

mod book;
mod cluster;
mod entry;
mod files;
pub(crate) mod judge;
pub mod object;
pub(crate) mod selector;

pub use book::{
    Labels, Namespaces, NamespacesError, NoPolicy, Policies, Rulebook, StatedError, StatedNamespaces,
};
pub use cluster::{ClusterNamespaces, watch};
pub use entry::{Entry, EntryError, is_policy};
pub use files::{LabelsFrom, Loaded, PolicyFileError, keep, load};
pub use judge::Opinion;
