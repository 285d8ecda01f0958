//! Certificates of a webhook: created or found, stored, renewed, reloaded, and trusted by the API server.
//!
//! [`start`] with [`Settings`] returns [`Certificates`], which provide a `rustls::ServerConfig` that always serves the
//! present certificate.
//!
//! # Which certificate is served
//!
//! The contents of the [`Source`] decide:
//!
//! | contents | result |
//! |---|---|
//! | nothing | a CA is created and stored as `ca.crt` and `ca.key`; the first writer wins |
//! | `ca.crt` with its `ca.key` | this CA signs a leaf certificate of seven days, which is renewed when a third of its life is left |
//! | `tls.crt`, `tls.key`, and no `ca.key` that belongs to `ca.crt` | an external certificate (cert-manager): it is served with its chain, `ca.crt` is trusted, and nothing is ever written |
//!
//! In a folder, the leaf is stored beside the CA as `tls.crt` and `tls.key`, so that several processes and a restart share
//! it. The webhook renews `tls.crt` only if the CA in the folder signed it. Any other certificate is served and never
//! overwritten. With a Secret, each replica has a leaf of its own, and the key of the leaf stays in memory.
//!
//! # Changes
//!
//! The contents are read every few seconds. A pair is accepted if it parses, belongs together, covers all names and has not
//! expired. Otherwise the last valid pair stays in use and [`Readiness`] reports the reason. `ca.crt` can hold several CAs,
//! and `ca-previous.crt` earlier ones: all of them are in the bundle. If the bundle is written into a
//! MutatingWebhookConfiguration, a certificate of a new CA is served only when the configuration in the cluster trusts it.
//! Nothing waits for a ValidatingWebhookConfiguration. Unused CAs are removed from the bundle after a minute.
//!
//! To replace the CA, copy `ca.crt` to `ca-previous.crt` and write a new `ca.crt` and `ca.key`. The CA is not replaced
//! automatically: it is valid for ten years, [`Expiry`] reports when it ends, and then an error says what to do.
//!
//! # Permissions
//!
//! For a Secret: `get`, and `update` if the Secret is created empty beforehand (a chart can restrict both by name);
//! otherwise `create` in its namespace. With [`Issuance::External`] only `get`. For each webhook configuration: `list`,
//! `watch` and `patch`, all restricted by name.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod authority;
mod bundle_reconciler;
mod ca_bundle;
mod ca_storage;
mod certificates;
mod clock;
mod entries;
mod error;
mod leaf;
pub mod new_file;
mod readiness;
mod reload;
mod settings;
mod store;
#[cfg(test)]
mod testing;
mod tls_config;

use oras_csi_kube_support::field_manager::FieldManager;

pub use certificates::{Certificates, start};
pub use error::Error;
pub use readiness::{Check, Expiry, Readiness};
pub use settings::{DEFAULT_POLL, Issuance, Names, Settings, Source};

/// The name under which the API server records the writes of this crate.
const FIELD_MANAGER: FieldManager = FieldManager::new("oras-csi-certs");
