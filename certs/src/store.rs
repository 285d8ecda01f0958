//! The certificate that is served now. The TLS listener, readiness and the background tasks share it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::ca_bundle::CaBundle;
use crate::leaf::Leaf;

/// The certificate in use.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    /// The certificate in use.
    pub(crate) leaf: Leaf,
    /// When the CA in use expires, if there is one.
    pub(crate) authority_not_after: Option<SystemTime>,
}

/// Holds the certificate in use for rustls. It is replaced as a whole: a handshake gets the old certificate or the new one.
/// Existing connections do not change.
#[derive(Debug, Default)]
pub(crate) struct CertificateStore {
    serving: ArcSwapOption<Serving>,
    ca_bundle: RwLock<CaBundle>,
    problem: RwLock<Option<String>>,
}

impl CertificateStore {
    /// Returns the certificate in use, or `None` before the first one is loaded.
    pub(crate) fn serving(&self) -> Option<Arc<Serving>> {
        self.serving.load_full()
    }

    /// Uses another certificate from the next handshake on.
    pub(crate) fn serve(&self, serving: Serving) {
        self.serving.store(Some(Arc::new(serving)));
    }

    /// Returns the CAs that clients should trust. A new CA is here before a certificate of it is in use.
    pub(crate) fn ca_bundle(&self) -> CaBundle {
        self.ca_bundle.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the CAs that clients should trust.
    pub(crate) fn set_ca_bundle(&self, bundle: CaBundle) {
        *self.ca_bundle.write().unwrap_or_else(PoisonError::into_inner) = bundle;
    }

    /// Returns why the folder or Secret could not be used at the last refresh, if it could not.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the problem of the last refresh, or that there is none. Returns true if that is a change.
    pub(crate) fn set_problem(&self, problem: Option<String>) -> bool {
        let mut last = self.problem.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = *last != problem;
        *last = problem;
        is_new
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // There is one certificate for all names. A client that expects another name rejects it.
        self.serving.load().as_ref().map(|serving| Arc::clone(serving.leaf.certified_key()))
    }
}
