//! The contract of oras-csi: what the webhook promises and the driver accepts.
//!
//! Everything here is either pure (references, recipes, canonical volumes, patterns) or talks to a
//! registry and nothing else ([`registry`]). No Kubernetes, no CSI: both programs and the command
//! line use the same types, so that what one writes the other reads.
//!
//! Architecture Invariant: a value of one of these types is valid. Fields are private and there is one
//! way in, which parses; nobody downstream checks again.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod artifact_name;
pub mod credentials;
pub mod digest;
pub mod display;
pub mod dns_name;
pub mod jitter;
pub mod keys;
pub mod manifest;
pub mod media_type;
pub mod patch;
pub mod path;
pub mod pattern;
pub mod platform;
pub mod policy;
pub mod recipe;
pub mod reference;
pub mod registry;
pub mod seal;
pub mod volume;
pub mod volume_id;
