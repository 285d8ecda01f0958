//! The observer of a client, which receives its requests, for example to count them in metrics.

use std::fmt;
use std::time::Duration;

use super::error::RegistryErrorKind;
use crate::reference::RegistryHost;

/// Receives the requests of a client by the registry of the reference, whichever mirror, storage or token service answers
/// for it. Each method must return immediately; by default it does nothing.
pub trait RequestObserver: fmt::Debug + Send + Sync {
    /// A request ended with the headers of a response, or without a response, after this time. Redirects and the wait for
    /// a free request slot are included.
    fn requested(&self, _registry: &RegistryHost, _took: Duration) {}
    /// A request, or the content that it returned, failed. A request that is repeated is reported each time.
    fn failed(&self, _registry: &RegistryHost, _kind: RegistryErrorKind) {}
}

/// An observer that ignores all requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRequestObserver;

impl RequestObserver for NoRequestObserver {}
