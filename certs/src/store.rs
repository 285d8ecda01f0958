//! What is served now: the one thing that the TLS listener, readiness and the background tasks share.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::bundle::Bundle;
use crate::leaf::Leaf;

/// The certificate in use, and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    /// The certificate in use.
    pub(crate) leaf: Leaf,
    /// When the CA in use runs out, where there is one.
    pub(crate) authority_not_after: Option<SystemTime>,
}

/// Holds the certificate in use and hands it to rustls. Swapped whole: a handshake sees the old one or the
/// new one. Connections that are up are not touched.
#[derive(Debug, Default)]
pub(crate) struct CertificateStore {
    serving: ArcSwapOption<Serving>,
    wanted: RwLock<Bundle>,
    problem: RwLock<Option<String>>,
}

impl CertificateStore {
    /// What is served now; none before the first certificate was loaded.
    pub(crate) fn serving(&self) -> Option<Arc<Serving>> {
        self.serving.load_full()
    }

    /// Serves another certificate from the next handshake on.
    pub(crate) fn serve(&self, serving: Serving) {
        self.serving.store(Some(Arc::new(serving)));
    }

    /// The CAs that clients should trust. May be ahead of what is served: a new CA is published first.
    pub(crate) fn wanted(&self) -> Bundle {
        self.wanted.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets what [`wanted`](Self::wanted) gives.
    pub(crate) fn want(&self, bundle: Bundle) {
        *self.wanted.write().unwrap_or_else(PoisonError::into_inner) = bundle;
    }

    /// What stands in the way of following the folder or Secret, if anything does.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what stands in the way; true if that is news.
    pub(crate) fn note(&self, problem: Option<String>) -> bool {
        let mut noted = self.problem.write().unwrap_or_else(PoisonError::into_inner);
        let news = *noted != problem;
        *noted = problem;
        news
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // One certificate for all names: a client that came for another name sees that for itself.
        self.serving.load().as_ref().map(|serving| Arc::clone(serving.leaf.certified_key()))
    }
}
