//! The administrator's registry configuration, as far as admission needs it before any network access.

use oras_csi_core::reference::RegistryHost;
use oras_csi_core::registry::HostsConfig;

/// The part of the administrator's `certs.d` that has to be known before any registry is contacted.
pub trait Registries: Send + Sync + 'static {
    /// Reports whether a first segment without a dot and a port is one of the administrator's hosts.
    fn names(&self, segment: &str) -> bool;
    /// Reports whether plain HTTP is allowed for that host.
    fn allows_plain_http(&self, host: &RegistryHost) -> bool;
    /// Reports whether an unverified certificate is allowed for that host.
    fn allows_insecure(&self, host: &RegistryHost) -> bool;
}

impl Registries for HostsConfig {
    fn names(&self, segment: &str) -> bool {
        Self::is_configured(self, segment)
    }

    fn allows_plain_http(&self, host: &RegistryHost) -> bool {
        Self::allows_plain_http(self, host)
    }

    fn allows_insecure(&self, host: &RegistryHost) -> bool {
        Self::allows_insecure(self, host)
    }
}
