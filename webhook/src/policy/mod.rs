//! Which policies apply to a namespace, and what they say of the artifacts of a pod.
//!
//! A policy is an `ArtifactPolicy` ([`object`]), read from files ([`files`]) or watched in the cluster ([`cluster`]);
//! `--allow-registry` is one more. [`Policies`] holds the policies in force and is replaced as a whole, so that one
//! request sees one state. [`evaluate`] applies them, with the pure rules of [`oras_csi_core::policy`].
//!
//! A policy that cannot be read does not open a gate: its last valid generation stays in force. If there is none, no
//! artifact is allowed in the namespaces that it selects until the policy is corrected.

mod cluster;
mod entry;
pub(crate) mod evaluate;
mod files;
pub mod object;
mod policies;
pub(crate) mod selector;
mod spec_error;

pub use cluster::{ClusterNamespaces, watch};
pub use entry::{Entry, EntryError, is_policy};
pub use evaluate::Evaluation;
pub use files::{LabelsFrom, Loaded, PolicyFileError, load, reload_files};
pub use policies::{
    ApplicablePolicies, Labels, ManifestNamespaceError, ManifestNamespaces, Namespaces, NamespacesError,
    NoPolicy, Policies,
};
pub use spec_error::SpecError;
