//! The HTTP client for registries and its shared state.

use std::fmt;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::failed_endpoints::FailedEndpoints;
use super::settings::Settings;
use crate::credentials::Credential;
use crate::registry::auth::Tokens;
use crate::registry::hosts::HostsConfig;
use crate::registry::proxy::Proxies;
use crate::registry::transport::{Transport, TransportLimits};

/// How many large manifests are parsed at the same time. Each can need some 30 MiB while it is parsed.
const MAX_PARSING: usize = 2;

/// Reads from registries over HTTP with one credential. Clones are cheap: they share connections, and tokens by
/// credential.
///
/// ```
/// use oras_csi_core::registry::{HostsConfig, HttpRegistry, Settings};
///
/// let registry = HttpRegistry::new(HostsConfig::load(None)?, Settings::default());
/// # let _ = registry;
/// # Ok::<(), oras_csi_core::registry::HostsError>(())
/// ```
#[derive(Clone)]
pub struct HttpRegistry {
    pub(super) inner: Arc<Inner>,
    pub(super) credential: Credential,
}

/// What all clones of a client share.
pub(super) struct Inner {
    pub(super) hosts: HostsConfig,
    pub(super) settings: Settings,
    pub(super) tokens: Tokens,
    pub(super) transport: Transport,
    /// The endpoints that did not answer.
    pub(super) failed: Arc<FailedEndpoints>,
    /// Permits to parse a large manifest.
    pub(super) parsing: Semaphore,
}

impl HttpRegistry {
    /// Creates an anonymous client. [`Registry::with_credential`](crate::registry::Registry::with_credential) returns
    /// one with a credential.
    pub fn new(hosts: HostsConfig, settings: Settings) -> Self {
        let proxies = if settings.uses_proxies { Proxies::from_environment() } else { Proxies::default() };
        Self::with_proxies(hosts, settings, proxies)
    }

    pub(super) fn with_proxies(hosts: HostsConfig, settings: Settings, proxies: Proxies) -> Self {
        let limits = TransportLimits {
            header_timeout: settings.header_timeout,
            redirects: settings.limits.redirects(),
        };
        let transport = Transport::new(limits, proxies, Arc::clone(&settings.resolver));
        let (tokens, parsing) = (Tokens::default(), Semaphore::new(MAX_PARSING));
        let failed = Arc::default();
        let inner = Arc::new(Inner { hosts, settings, tokens, transport, failed, parsing });
        Self { inner, credential: Credential::Anonymous }
    }

    /// Returns a client of the same registries that authenticates with `credential`.
    #[must_use]
    pub fn authenticated_with(&self, credential: Credential) -> Self {
        Self { inner: Arc::clone(&self.inner), credential }
    }
}

impl fmt::Debug for HttpRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRegistry").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}
