//! Certificates of a webhook: made or found, kept, renewed, hot-reloaded, and trusted by the API server.
//!
//! [`start`] with [`Settings`] gives [`Certificates`], which hand out a `rustls::ServerConfig` that always
//! serves the certificate of the moment.
//!
//! # Whose certificate
//!
//! What the [`Source`] holds decides:
//!
//! | it holds | then |
//! |---|---|
//! | nothing | a CA is made and kept there as `ca.crt` and `ca.key`; whoever writes first wins |
//! | `ca.crt` with its `ca.key` | the CA is ours: it signs a leaf of seven days, renewed when a third is left |
//! | `tls.crt`, `tls.key`, and no `ca.key` that belongs to `ca.crt` | somebody else's (cert-manager): served with its chain, `ca.crt` is trusted, nothing is ever written |
//!
//! In a folder the leaf is kept beside the CA as `tls.crt` and `tls.key`, so that several processes and a
//! restart share it; `tls.crt` is ours, to be renewed, if and only if our CA signed it, and any other that
//! somebody puts there is served and never overwritten. With a Secret each replica has a leaf of its own,
//! whose key never leaves its memory.
//!
//! # Changes
//!
//! The contents are read every few seconds. A pair is taken if it parses, belongs together, covers all
//! names and has not expired; else the last good one stays and [`Readiness`] says why. `ca.crt` may hold
//! several CAs and `ca-previous.crt` those before: all are in the bundle. Where the bundle is published in
//! a MutatingWebhookConfiguration, a certificate of a new CA is served only once the live configuration
//! trusts it; nothing waits for a ValidatingWebhookConfiguration. CAs that nobody wants any more leave the
//! bundle after a minute.
//!
//! To replace our CA, copy `ca.crt` to `ca-previous.crt` and write a new `ca.crt` and `ca.key`. It is not
//! replaced by itself: it is good for ten years, [`Expiry`] tells when it ends, and after that an error
//! says what to do.
//!
//! # Rights
//!
//! For a Secret: `get` on it, and `update` on it if it is made empty beforehand (a chart can restrict both
//! by name), else `create` in its namespace; only `get` with [`Issuance::External`]. For each
//! webhook configuration: `list`, `watch` and `patch`, all restricted by name.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod bundle;
mod certificates;
mod clock;
mod contents;
mod error;
mod issue;
mod keep;
mod leaf;
mod readiness;
mod reload;
mod settings;
mod store;
#[cfg(test)]
mod testing;
mod tls;
mod trust;

pub use certificates::{Certificates, start};
pub use error::Error;
pub use readiness::{Check, Expiry, Readiness};
pub use settings::{DEFAULT_POLL, Issuance, Names, Settings, Source};
