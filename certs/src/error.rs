//! The errors of this crate.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use oras_csi_kube_support::errors::{is_transient, message};
use oras_csi_kube_support::verb::Verb;

use crate::clock::rfc3339;

/// Why a certificate cannot be created, stored or served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no name for the server.
    #[error("there is no name for the serving certificate: specify at least one DNS name or IP address")]
    NoNames,

    /// A name is not a DNS name.
    #[error("{name:?} is not a DNS name: specify a name without wildcards, and IP addresses as addresses")]
    InvalidName {
        /// The name.
        name: String,
    },

    /// A Secret or a webhook configuration is named, but there is no client for the API server.
    #[error(
        "{what} needs a Kubernetes API server: run in a cluster, specify a kubeconfig, or store the certificates in a folder"
    )]
    NoClient {
        /// What needs the API server.
        what: &'static str,
    },

    /// A folder or file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },

    /// A folder or file cannot be written.
    #[error("cannot write {}: {source}; use a folder that this user can write, or one that holds tls.crt and tls.key already", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },

    /// The API server refused the request, or cannot be reached.
    #[error("cannot {verb} {place}: {}; {}", message(source), advice(source, hint))]
    Api {
        /// The verb of the request.
        verb: Verb,
        /// The object.
        place: String,
        /// What to do.
        hint: &'static str,
        /// The error of the client.
        source: Box<kube::Error>,
    },

    /// A certificate or key does not parse.
    #[error("{entry} of {place} cannot be used: {reason}")]
    Unusable {
        /// The folder or Secret.
        place: String,
        /// The name of the entry.
        entry: &'static str,
        /// The reason.
        reason: String,
    },

    /// The certificate and the key do not belong together.
    #[error("{key} of {place} is not the key of {certificate}: replace both together")]
    KeyMismatch {
        /// The folder or Secret.
        place: String,
        /// The entry of the certificate.
        certificate: &'static str,
        /// The entry of the key.
        key: &'static str,
    },

    /// One of two entries that belong together is missing.
    #[error("{place} holds {present} without {missing}: add it, or remove {present}")]
    Incomplete {
        /// The folder or Secret.
        place: String,
        /// The entry that exists.
        present: &'static str,
        /// The entry that is missing.
        missing: &'static str,
    },

    /// An external certificate has not been stored yet.
    #[error(
        "{place} holds no tls.crt and tls.key yet: waiting for the issuer of the certificate, such as cert-manager, to store them there"
    )]
    NoCertificateYet {
        /// The folder or Secret.
        place: String,
    },

    /// The certificate does not cover a name of the server.
    #[error(
        "tls.crt of {place} does not cover the name {name:?}: it needs every name of the server as a subject alternative name"
    )]
    NotCovered {
        /// The folder or Secret.
        place: String,
        /// The first name that is not covered.
        name: String,
    },

    /// The certificate has expired, or is not valid yet.
    #[error("{entry} of {place} is valid from {} to {}, and the time is {}: {remedy}", rfc3339(*not_before), rfc3339(*not_after), rfc3339(*now))]
    OutOfDate {
        /// The folder or Secret.
        place: String,
        /// The name of the entry.
        entry: &'static str,
        /// The first moment of the validity.
        not_before: SystemTime,
        /// The last moment of the validity.
        not_after: SystemTime,
        /// The time of the check.
        now: SystemTime,
        /// What to do.
        remedy: &'static str,
    },

    /// The CA beside the certificate did not sign it.
    #[error(
        "ca.crt of {place} does not trust tls.crt beside it ({reason}), so the API server would reject it: write the CA that signed it into ca.crt"
    )]
    NotTrusted {
        /// The folder or Secret.
        place: String,
        /// The reason.
        reason: String,
    },

    /// Other writers changed the Secret or folder each time.
    #[error(
        "cannot store a CA in {place}: it changed each time ({tries} tries). Check which other process writes there"
    )]
    Contended {
        /// The folder or Secret.
        place: String,
        /// The number of tries.
        tries: u32,
    },

    /// A certificate cannot be issued.
    #[error("cannot issue a certificate: {source}")]
    Issue {
        /// The error of rcgen.
        #[from]
        source: rcgen::Error,
    },

    /// TLS cannot be configured.
    #[error("cannot set up TLS: {source}")]
    Tls {
        /// The error of rustls.
        #[from]
        source: rustls::Error,
    },

    /// The process is shutting down.
    #[error("stopped before the certificate was loaded")]
    Stopped,

    /// The thread for file access ended early.
    #[error("reading or writing certificates was interrupted: {source}")]
    Thread {
        /// The error of the runtime.
        #[from]
        source: tokio::task::JoinError,
    },
}

/// Returns what to do: a permission is no cause of a failure of the API server itself.
fn advice(error: &kube::Error, hint: &'static str) -> &'static str {
    if is_transient(error) { "check that the API server runs and can be reached" } else { hint }
}

impl Error {
    /// Reports whether the same operation may succeed soon.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Api { source, .. } if is_transient(source))
    }

    /// Reports whether another process may be in the middle of replacing several entries.
    pub(crate) fn may_be_partial_update(&self) -> bool {
        matches!(self, Self::KeyMismatch { .. } | Self::Incomplete { .. } | Self::NotTrusted { .. })
    }
}
