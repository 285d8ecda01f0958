//! The contract of oras-csi: what the webhook writes and the driver accepts.
//!
//! Everything in this crate is either pure (references, recipes, canonical volumes, policies) or talks to a
//! registry and to nothing else ([`registry`]). The crate knows neither Kubernetes nor CSI. The webhook, the
//! driver and the command line use the same types, so each program can read what another one writes.
//! `docs/design.md` describes the contract.
//!
//! Modules, from the lowest layer to the highest. A module uses only modules of lower layers, which a test checks:
//!
//! | modules | content |
//! |---|---|
//! | [`display`], [`dns_name`], [`go_duration`], [`keys`], [`jitter`] | text in messages, names of objects, durations, names of annotations and attributes, random delays |
//! | [`artifact_name`], [`digest`], [`media_type`], [`patch_level`], [`platform`], [`trace`] | simple values |
//! | [`path`], [`mod@reference`], [`manifest`], [`seal`] | paths and globs, references, manifests and indexes, signatures |
//! | [`pattern`], [`recipe`] | patterns over registries, the steps of a volume |
//! | [`policy`], [`patch`], [`volume_id`] | an administrator's rules, patch artifacts, volume ids |
//! | [`volume`], [`credentials`] | the canonical volume, docker configs and credential helpers |
//! | [`registry`] | the registry client |
//!
//! Architecture Invariant: a value of one of these types is valid. Its fields are private, and parsing is the
//! only way to construct it, so no caller checks it again.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![forbid(unsafe_code)]

pub mod artifact_name;
pub mod credentials;
pub mod digest;
pub mod display;
pub mod dns_name;
pub mod entry_path;
pub mod go_duration;
pub mod jitter;
pub mod keys;
#[cfg(test)]
mod layers;
pub mod manifest;
pub mod media_type;
pub mod patch;
pub mod patch_level;
pub mod path;
pub mod pattern;
pub mod platform;
pub mod policy;
pub mod recipe;
pub mod reference;
pub mod registry;
pub mod seal;
pub mod trace;
pub mod volume;
pub mod volume_id;
