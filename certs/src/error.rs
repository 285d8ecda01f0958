//! What can go wrong, with the values and with what to do.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::clock::human;

/// Why certificates could not be had, kept or served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No name was given for the server.
    #[error("no name was given for the serving certificate: give at least one DNS name or IP address")]
    NoNames,

    /// A DNS name that is none.
    #[error("{name:?} is not a DNS name: give one without wildcards, and IP addresses as such")]
    InvalidName {
        /// What was given.
        name: String,
    },

    /// A Secret or a webhook configuration was named, but there is no client for the API server.
    #[error(
        "{what} needs a Kubernetes API server: run in a cluster or give a kubeconfig, or keep certificates in a folder"
    )]
    NoClient {
        /// What needs it.
        what: &'static str,
    },

    /// A folder or file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A folder or file could not be made.
    #[error("cannot write {}: {source}; give a folder that this user may write, or one that already holds tls.crt and tls.key", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The API server refused or could not be reached.
    #[error("cannot {action} {place}: {}; {hint}", api_words(source))]
    Api {
        /// What was tried, as a verb of RBAC.
        action: &'static str,
        /// The object.
        place: String,
        /// What may help.
        hint: &'static str,
        /// What the client said.
        source: Box<kube::Error>,
    },

    /// A certificate or key does not parse.
    #[error("{entry} of {place} cannot be used: {reason}")]
    Unusable {
        /// The folder or Secret.
        place: String,
        /// The entry's name.
        entry: &'static str,
        /// Why not.
        reason: String,
    },

    /// Certificate and key do not belong together.
    #[error("{key} of {place} is not the key of {certificate}: replace both together")]
    KeyMismatch {
        /// The folder or Secret.
        place: String,
        /// The certificate's entry.
        certificate: &'static str,
        /// The key's entry.
        key: &'static str,
    },

    /// Half of what belongs together is missing.
    #[error("{place} holds {present} without {missing}: add it, or remove {present}")]
    Incomplete {
        /// The folder or Secret.
        place: String,
        /// The entry that is there.
        present: &'static str,
        /// The entry that is not.
        missing: &'static str,
    },

    /// An external certificate is awaited.
    #[error(
        "{place} holds no tls.crt and tls.key yet: whoever issues the certificate (cert-manager?) has to put them there"
    )]
    Absent {
        /// The folder or Secret.
        place: String,
    },

    /// The certificate is for other names.
    #[error(
        "tls.crt of {place} is not for {name:?}: it needs every name of the server as a subject alternative name"
    )]
    NotCovered {
        /// The folder or Secret.
        place: String,
        /// The first name that is missing.
        name: String,
    },

    /// Expired, or not good yet.
    #[error("{entry} of {place} is good from {} to {}, and it is {}: {remedy}", human(*not_before), human(*not_after), human(*now))]
    OutOfDate {
        /// The folder or Secret.
        place: String,
        /// The entry's name.
        entry: &'static str,
        /// First moment it is good.
        not_before: SystemTime,
        /// Last moment it is good.
        not_after: SystemTime,
        /// The time it was looked at.
        now: SystemTime,
        /// What to do.
        remedy: &'static str,
    },

    /// The certificate is not signed by the CA beside it.
    #[error(
        "tls.crt of {place} is not trusted by ca.crt beside it ({reason}), so the API server would refuse it: put the CA that signed it into ca.crt"
    )]
    NotTrusted {
        /// The folder or Secret.
        place: String,
        /// Why not.
        reason: String,
    },

    /// Others kept changing the Secret or folder.
    #[error(
        "{place} kept changing while a CA was being kept in it ({tries} tries): see who else writes there"
    )]
    Contended {
        /// The folder or Secret.
        place: String,
        /// How often it was tried.
        tries: u32,
    },

    /// A certificate could not be made.
    #[error("cannot make a certificate: {source}")]
    Issue {
        /// What rcgen said.
        #[from]
        source: rcgen::Error,
    },

    /// The TLS configuration could not be made.
    #[error("cannot set up TLS: {source}")]
    Tls {
        /// What rustls said.
        #[from]
        source: rustls::Error,
    },

    /// The process is ending.
    #[error("stopped before the certificate was loaded")]
    Stopped,

    /// A thread for file work ended early.
    #[error("reading or writing certificates was cut short: {source}")]
    Thread {
        /// What the runtime said.
        #[from]
        source: tokio::task::JoinError,
    },
}

impl Error {
    /// Whether trying the same again soon may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => status.code >= 500 || status.code == 429,
                kube::Error::Service(_) | kube::Error::HyperError(_) => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether this may be what is seen between two steps of somebody who replaces several entries.
    pub(crate) fn is_half_done(&self) -> bool {
        matches!(self, Self::KeyMismatch { .. } | Self::Incomplete { .. } | Self::NotTrusted { .. })
    }
}

/// What an API error says, without the debug print that kube appends to it.
pub(crate) fn api_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}
