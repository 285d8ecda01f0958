//! One address that serves a registry, with its connection settings.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use url::Url;

use super::error::HostsError;
use super::trust::Trust;
use crate::reference::RegistryHost;
use crate::registry::address::authority;

/// The folder for registries without a folder of their own.
pub(super) const DEFAULT_FOLDER: &str = "_default";

/// An address that serves a registry, with its connection settings.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) base: Url,
    pub(super) capabilities: Capabilities,
    pub(super) tls: TlsFiles,
    pub(super) headers: HeaderMap,
    pub(super) dial_timeout: Option<Duration>,
    pub(super) mirror: bool,
    pub(super) named: bool,
    pub(super) receives_credentials: bool,
    pub(super) trust: Arc<Trust>,
}

/// The operations that an endpoint is configured for (`capabilities`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) push: bool,
}

impl Capabilities {
    pub(super) const ALL: Self = Self { pull: true, resolve: true, push: true };
}

/// The content of a PEM file, with its path for errors.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Pem {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Arc<[u8]>,
}

/// The certificate files of an endpoint, and whether its server certificate is verified.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Vec<Pem>,
    /// Client certificates and their keys, in the order in which they are offered.
    pub(crate) client: Vec<(Pem, Pem)>,
    pub(crate) skip_verify: bool,
}

impl Endpoint {
    /// Returns the base URL of the API: `https://host[:port]/v2`, without a trailing slash.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Reports whether the endpoint is configured to resolve tags.
    pub fn resolves(&self) -> bool {
        self.capabilities.resolve
    }

    /// Reports whether the endpoint is configured to serve manifests and blobs.
    pub fn pulls(&self) -> bool {
        self.capabilities.pull
    }

    /// Reports whether the endpoint is configured to accept blobs and manifests.
    pub fn pushes(&self) -> bool {
        self.capabilities.push
    }

    /// Reports whether the endpoint serves another registry, so that requests name that registry (`?ns=`, as in
    /// containerd).
    pub fn is_mirror(&self) -> bool {
        self.mirror
    }

    /// Reports whether an administrator configured the address. Only then may it be a loopback or link-local one.
    pub fn is_named(&self) -> bool {
        self.named
    }

    /// Reports whether the registry's credentials are sent to this endpoint: to the registry's own address, to its
    /// `server`, and to the mirrors in `credentials_for`. Other mirrors get only what is in their `header`.
    pub fn receives_credentials(&self) -> bool {
        self.receives_credentials
    }

    /// Returns the hosts that the administrator trusts with credentials, redirects or foreign layers.
    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Reports whether requests are not encrypted.
    pub fn is_plain_http(&self) -> bool {
        self.base.scheme() == "http"
    }

    /// Reports whether the server certificate is not verified.
    pub fn skips_verification(&self) -> bool {
        self.tls.skip_verify
    }

    /// Returns `header` of the configuration, which may hold secrets.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(crate) fn dial_timeout(&self) -> Option<Duration> {
        self.dial_timeout
    }

    pub(crate) fn tls(&self) -> &TlsFiles {
        &self.tls
    }

    /// Returns the registry's own address with default settings.
    pub(super) fn default_for(registry: &RegistryHost, scheme: &str) -> Result<Self, HostsError> {
        let authority =
            if registry.is_docker_hub() { "registry-1.docker.io".to_owned() } else { registry.to_string() };
        let text = format!("{scheme}://{authority}/v2");
        let base = Url::parse(&text).map_err(|error| HostsError::Key {
            path: PathBuf::from(DEFAULT_FOLDER),
            key: text.into(),
            problem: error.to_string().into(),
        })?;
        Ok(Self {
            base,
            capabilities: Capabilities::ALL,
            tls: TlsFiles::default(),
            headers: HeaderMap::new(),
            dial_timeout: None,
            mirror: false,
            named: false,
            receives_credentials: true,
            trust: Arc::default(),
        })
    }

    /// Reports whether `base` is another authority than the registry's (containerd's `isProxy`). Docker Hub's API host
    /// is not a mirror of Docker Hub.
    pub(super) fn is_mirror_of(base: &Url, registry: &RegistryHost) -> bool {
        let authority = authority(base);
        let same = authority.parse::<RegistryHost>().is_ok_and(|host| {
            host.host() == registry.host() && host.effective_port() == registry.effective_port()
        });
        // `Url` drops the scheme's default port: http://host:80 is the address of the registry host:80.
        let implied = base.port_or_known_default();
        let same = same || (base.host_str() == Some(registry.host()) && implied == registry.port());
        !(same || registry.is_docker_hub() && authority == "registry-1.docker.io")
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("base", &self.base.as_str())
            .field("capabilities", &self.capabilities)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("skip_verify", &self.tls.skip_verify)
            .field("mirror", &self.mirror)
            .field("named", &self.named)
            .finish_non_exhaustive()
    }
}
