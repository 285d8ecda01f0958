//! Timeouts, retries and limits of the HTTP client.

use std::sync::Arc;
use std::time::Duration;

use super::attempts::EndpointTimeouts;
use crate::registry::guard::{HostResolver, SystemResolver};
use crate::registry::limits::Limits;
use crate::registry::observer::{NoRequestObserver, RequestObserver};
use crate::registry::retry;

/// Timeouts, retries and limits of the HTTP client.
///
/// ```
/// use std::time::Duration;
///
/// use oras_csi_core::registry::Settings;
///
/// let settings = Settings::default().with_connect_timeout(Duration::from_secs(2)).with_tries(1);
/// # let _ = settings;
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) connect_timeout: Duration,
    pub(super) mirror_connect_timeout: Duration,
    pub(super) header_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) metadata_timeout: Duration,
    pub(super) caller_timeout: Option<Duration>,
    pub(super) max_retry_wait: Duration,
    pub(super) tries: u32,
    pub(super) limits: Limits,
    pub(super) uses_proxies: bool,
    pub(super) resolver: Arc<dyn HostResolver>,
    pub(super) observer: Arc<dyn RequestObserver>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            mirror_connect_timeout: Duration::from_secs(2),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            metadata_timeout: Duration::from_mins(1),
            caller_timeout: None,
            max_retry_wait: retry::MAX_DELAY,
            tries: 3,
            limits: Limits::default(),
            uses_proxies: true,
            resolver: Arc::new(SystemResolver),
            observer: Arc::new(NoRequestObserver),
        }
    }
}

impl Settings {
    /// Sets how long name resolution, connection and TLS handshake may take together (default 10 s).
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long the same may take for an endpoint after which another one is tried (default 2 s). `dial_timeout` in
    /// `hosts.toml` takes precedence.
    #[must_use]
    pub fn with_mirror_connect_timeout(mut self, timeout: Duration) -> Self {
        self.mirror_connect_timeout = timeout;
        self
    }

    /// Sets how long the headers of a response may take (default 30 s).
    #[must_use]
    pub fn with_answer_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = timeout;
        self
    }

    /// Sets how long a body may pause (default 30 s).
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Sets how long an operation may take, with tokens, retries and every mirror: all of
    /// [`Registry::resolve`](crate::registry::Registry::resolve) and
    /// [`Registry::manifest`](crate::registry::Registry::manifest), and
    /// [`Registry::blob`](crate::registry::Registry::blob) up to its first byte (default 60 s).
    #[must_use]
    pub fn with_metadata_deadline(mut self, deadline: Duration) -> Self {
        self.metadata_timeout = deadline;
        self
    }

    /// Sets how long the callers wait, if that is shorter than the time for an operation. An endpoint after which another
    /// one is tried gets half of what remains of this time, and a request is repeated only if as much time remains as it
    /// took. The last endpoint may still use the time for the operation, whose result may be cached.
    #[must_use]
    pub fn with_caller_deadline(mut self, deadline: Duration) -> Self {
        self.caller_timeout = Some(deadline);
        self
    }

    /// Sets how long the client waits in total for all `Retry-After` of one operation (default 60 s). If the registry
    /// asks for more, the operation fails at once with the requested time.
    #[must_use]
    pub fn with_max_retry_wait(mut self, wait: Duration) -> Self {
        self.max_retry_wait = wait;
        self
    }

    /// Sets how often the last endpoint of a registry is tried before the operation fails (default 3).
    #[must_use]
    pub fn with_tries(mut self, tries: u32) -> Self {
        self.tries = tries.max(1);
        self
    }

    /// Sets how much a registry may send.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets whether `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` are used, as Go programs use them (default yes). The
    /// proxy resolves the host names: for them the address guard does not apply, for address literals it does.
    #[must_use]
    pub fn with_proxies(mut self, uses_proxies: bool) -> Self {
        self.uses_proxies = uses_proxies;
        self
    }

    /// Sets the resolver for host names (default: the system's). The address guard checks its results as well.
    #[must_use]
    pub fn with_resolver(mut self, resolver: Arc<dyn HostResolver>) -> Self {
        self.resolver = resolver;
        self
    }

    /// Sets the observer, which receives each request that reads.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn RequestObserver>) -> Self {
        self.observer = observer;
        self
    }

    pub(super) fn endpoint_timeouts(&self) -> EndpointTimeouts {
        EndpointTimeouts {
            connect: self.connect_timeout,
            mirror_connect: self.mirror_connect_timeout.min(self.connect_timeout),
            caller: self.caller_timeout,
        }
    }
}
