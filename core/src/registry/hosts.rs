//! containerd's `certs.d`: which addresses stand behind a registry's name, and how they are spoken to.
//!
//! The format nodes already have (containerd, docs/hosts.md): a folder for each registry, in it a
//! `hosts.toml` or certificates in Docker's layout. As containerd: `HOST_PORT_` before `HOST:PORT` (a
//! ConfigMap's key holds no colon), `_default` last; every `[host."URL"]` in the order of the file, then
//! `server`. Unlike containerd, a file that cannot be read is an error, never a silent fall back to other
//! settings: they may be the ones that keep a registry's traffic inside.
//!
//! Nothing is cached: a lookup reads the one small file and the certificates that it names, so that a
//! ConfigMap that changes is seen by the next request.

mod parse;
#[cfg(test)]
mod tests;
mod trust;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use http::HeaderMap;
use url::Url;

use crate::display::Printable;
use crate::reference::RegistryHost;

pub(crate) use self::trust::Trust;

/// The folder for registries that have none of their own.
const DEFAULT_FOLDER: &str = "_default";
/// Longer configuration files are not read.
const LONGEST_FILE: u64 = 1 << 20;

/// Why the configuration of a registry cannot be used. Always says which file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    /// The folder that was given is not there.
    #[error("{}: not a folder that can be read ({reason}): give the folder that holds HOST/hosts.toml", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file that cannot be read.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Not TOML.
    #[error("{}: not valid TOML: {reason}", .path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: Printable,
    },
    /// A key with a value that cannot be.
    #[error("{}: {key}: {problem}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key, as `host."https://mirror:5000".ca`.
        key: Printable,
        /// What is wrong, and what to write.
        problem: Printable,
    },
}

/// One address to ask, and how.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    base: Url,
    capabilities: Capabilities,
    tls: TlsFiles,
    headers: HeaderMap,
    dial_timeout: Option<Duration>,
    mirror: bool,
    named: bool,
    takes_credentials: bool,
    trust: Arc<Trust>,
}

/// What an endpoint may be asked for (`capabilities`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) push: bool,
}

impl Capabilities {
    const ALL: Self = Self { pull: true, resolve: true, push: true };
}

/// A file that was read, with its name for the error.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Pem {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Arc<[u8]>,
}

/// Certificates as they are in the files, and whether the server's is checked.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Vec<Pem>,
    /// Certificates and their keys, in the order in which they are offered.
    pub(crate) client: Vec<(Pem, Pem)>,
    pub(crate) skip_verify: bool,
}

impl Endpoint {
    /// Where the API is: `https://host[:port]/v2`, without a slash at the end.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Whether tags may be resolved here.
    pub fn resolves(&self) -> bool {
        self.capabilities.resolve
    }

    /// Whether manifests and blobs may be read here.
    pub fn pulls(&self) -> bool {
        self.capabilities.pull
    }

    /// Whether blobs and manifests may be written here.
    pub fn pushes(&self) -> bool {
        self.capabilities.push
    }

    /// Whether it stands for another registry, so that requests name that one (`?ns=`, as containerd's).
    pub fn is_mirror(&self) -> bool {
        self.mirror
    }

    /// Whether an administrator wrote this address down: then it may be a loopback or link-local one.
    pub fn is_named(&self) -> bool {
        self.named
    }

    /// Whether the registry's credentials are shown here: to its own address, to the `server` that stands for it,
    /// and to mirrors that the administrator names. What a mirror wants else stands in its `header`.
    pub fn takes_credentials(&self) -> bool {
        self.takes_credentials
    }

    /// Whom it may name.
    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether requests go unencrypted.
    pub fn is_plain_http(&self) -> bool {
        self.base.scheme() == "http"
    }

    /// Whether the server's certificate is not checked.
    pub fn skips_verification(&self) -> bool {
        self.tls.skip_verify
    }

    /// `header` of the configuration: may hold secrets.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(crate) fn dial_timeout(&self) -> Option<Duration> {
        self.dial_timeout
    }

    pub(crate) fn tls(&self) -> &TlsFiles {
        &self.tls
    }

    /// The registry's own address, when nothing else is configured.
    fn server_of(registry: &RegistryHost, scheme: &str) -> Result<Self, HostsError> {
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
            takes_credentials: true,
            trust: Arc::default(),
        })
    }

    /// containerd's `isProxy`: another authority than the registry's, Docker Hub's own server aside.
    fn is_mirror_of(base: &Url, registry: &RegistryHost) -> bool {
        let authority = authority(base);
        let same = authority.parse::<RegistryHost>().is_ok_and(|host| {
            host.host() == registry.host() && host.effective_port() == registry.effective_port()
        });
        // A port that the scheme implies is not in the URL any more: http://host:80 stands for host:80.
        let implied = base.port_or_known_default();
        let same = same || (base.host_str() == Some(registry.host()) && implied == registry.port());
        !(same || registry.is_docker_hub() && authority == "registry-1.docker.io")
    }
}

/// `host[:port]` of an address.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
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

/// The registries that an administrator configured.
#[derive(Clone, Debug, Default)]
pub struct HostsConfig {
    folder: Option<PathBuf>,
    plain_http: Vec<RegistryHost>,
    warned: Arc<Mutex<BTreeSet<String>>>,
}

impl HostsConfig {
    /// Takes a folder of the `certs.d` kind; without one, every registry is `https://HOST`.
    ///
    /// A folder that is given must be there. What is in it is read when it is needed.
    pub fn load(folder: Option<&Path>) -> Result<Self, HostsError> {
        if let Some(path) = folder {
            std::fs::read_dir(path)
                .map_err(|error| HostsError::Folder { path: path.to_owned(), reason: error.to_string() })?;
        }
        Ok(Self { folder: folder.map(Path::to_owned), ..Self::default() })
    }

    /// The same, and `registry` is `http://` at its own address, whatever the folder says: for a try at
    /// the prompt. It counts as written down by the administrator.
    #[must_use]
    pub fn with_plain_http(mut self, registry: RegistryHost) -> Self {
        self.plain_http.push(registry);
        self
    }

    /// The addresses of a registry, in the order in which they are tried.
    pub fn endpoints(&self, registry: &RegistryHost) -> Result<Vec<Endpoint>, HostsError> {
        if self.plain_http.contains(registry) {
            let server = Endpoint::server_of(registry, "http")?;
            return Ok(vec![Endpoint { named: true, ..server }]);
        }
        let server = Endpoint::server_of(registry, "https")?;
        let Some(folder) = self.folder_of(registry)? else { return Ok(vec![server]) };
        let (endpoints, unknown) = parse::read(&folder, registry, server)?;
        for key in unknown {
            self.warn_once(&folder, &key);
        }
        Ok(endpoints)
    }

    /// Whether the administrator has a folder for `host` (`HOST` or `HOST:PORT`); `_default` names nobody.
    pub fn names(&self, host: &str) -> bool {
        let Ok(registry) = host.parse::<RegistryHost>() else { return false };
        self.plain_http.contains(&registry)
            || self
                .folder
                .as_ref()
                .is_some_and(|folder| folder_names(&registry).iter().any(|name| folder.join(name).is_dir()))
    }

    /// Whether the configuration has plain http for this registry; a broken one has nothing.
    pub fn allows_plain_http(&self, registry: &RegistryHost) -> bool {
        self.endpoints(registry).is_ok_and(|endpoints| endpoints.iter().any(Endpoint::is_plain_http))
    }

    /// Whether the configuration has plain http or an unchecked certificate for this registry.
    pub fn allows_insecure(&self, registry: &RegistryHost) -> bool {
        let insecure = |endpoint: &Endpoint| endpoint.is_plain_http() || endpoint.skips_verification();
        self.endpoints(registry).is_ok_and(|endpoints| endpoints.iter().any(insecure))
    }

    /// Whether lookups read files.
    pub(crate) fn reads_files(&self) -> bool {
        self.folder.is_some()
    }

    fn folder_of(&self, registry: &RegistryHost) -> Result<Option<PathBuf>, HostsError> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let names = folder_names(registry).into_iter().chain([DEFAULT_FOLDER.to_owned()]);
        for path in names.map(|name| folder.join(name)) {
            match std::fs::metadata(&path) {
                Ok(_) => return Ok(Some(path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(HostsError::File { path, reason: error.to_string() }),
            }
        }
        Ok(None)
    }

    fn warn_once(&self, folder: &Path, key: &str) {
        let file = folder.join(parse::FILE);
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.insert(format!("{}\n{key}", file.display())) {
            tracing::warn!(file = %file.display(), key, "unknown key in hosts.toml, it has no effect");
        }
    }
}

/// containerd's `hostPaths`, for both spellings of the standard port: a reference's canonical form has
/// `:443` only where a name has no dot, and a folder may be named either way.
fn folder_names(registry: &RegistryHost) -> Vec<String> {
    let host = registry.host();
    let with_port = |port: u16| [format!("{host}_{port}_"), format!("{host}:{port}")];
    match registry.port() {
        Some(443) => with_port(443).into_iter().chain([host.to_owned()]).collect(),
        Some(port) => with_port(port).into(),
        None => [host.to_owned()].into_iter().chain(with_port(443)).collect(),
    }
}
