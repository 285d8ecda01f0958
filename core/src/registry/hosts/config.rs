//! Looks up the endpoints of a registry.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::{Handle, RuntimeFlavor};

use super::endpoint::{DEFAULT_FOLDER, Endpoint};
use super::error::HostsError;
use super::parse;
use crate::reference::RegistryHost;

/// The registry configuration of the administrator.
#[derive(Clone, Debug, Default)]
pub struct HostsConfig {
    folder: Option<PathBuf>,
    plain_http: Vec<RegistryHost>,
    warned: Arc<Mutex<BTreeSet<String>>>,
}

impl HostsConfig {
    /// Uses a `certs.d` folder. Without one, every registry is `https://HOST`.
    ///
    /// The folder must exist. Its files are read when they are needed.
    ///
    /// ```
    /// use oras_csi_core::registry::HostsConfig;
    ///
    /// let hosts = HostsConfig::load(None)?;
    /// let endpoints = hosts.endpoints(&"ghcr.io".parse()?)?;
    /// assert_eq!(endpoints[0].base().as_str(), "https://ghcr.io/v2");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load(folder: Option<&Path>) -> Result<Self, HostsError> {
        if let Some(path) = folder {
            std::fs::read_dir(path)
                .map_err(|error| HostsError::Folder { path: path.to_owned(), reason: error.to_string() })?;
        }
        Ok(Self { folder: folder.map(Path::to_owned), ..Self::default() })
    }

    /// Uses plain http for `registry` at its own address, whatever the folder says, for a try at the prompt. The
    /// address counts as configured by the administrator.
    #[must_use]
    pub fn with_plain_http(mut self, registry: RegistryHost) -> Self {
        self.plain_http.push(registry);
        self
    }

    /// Returns the endpoints of a registry, in the order in which they are tried. Reads files if a folder is
    /// configured, so it must then run on a blocking thread.
    pub fn endpoints(&self, registry: &RegistryHost) -> Result<Vec<Endpoint>, HostsError> {
        if self.plain_http.contains(registry) {
            let server = Endpoint::default_for(registry, "http")?;
            return Ok(vec![Endpoint { named: true, ..server }]);
        }
        let server = Endpoint::default_for(registry, "https")?;
        let Some(folder) = self.folder_of(registry)? else { return Ok(vec![server]) };
        let (endpoints, unknown) = parse::read(&folder, registry, server)?;
        for key in unknown {
            self.warn_once(&folder, &key);
        }
        Ok(endpoints)
    }

    /// Reports whether the administrator configured `host` (`HOST` or `HOST:PORT`). The folder `_default` does not
    /// count.
    pub fn is_configured(&self, host: &str) -> bool {
        let Ok(registry) = host.parse::<RegistryHost>() else { return false };
        let Some(folder) = &self.folder else { return self.plain_http.contains(&registry) };
        let has_folder = || folder_names(&registry).iter().any(|name| folder.join(name).is_dir());
        self.plain_http.contains(&registry) || run_blocking(has_folder)
    }

    /// Reports whether the registry is configured for plain http. A broken configuration allows nothing.
    pub fn allows_plain_http(&self, registry: &RegistryHost) -> bool {
        self.any_endpoint(registry, Endpoint::is_plain_http)
    }

    /// Reports whether the registry is configured for plain http or without certificate verification.
    pub fn allows_insecure(&self, registry: &RegistryHost) -> bool {
        self.any_endpoint(registry, |endpoint| endpoint.is_plain_http() || endpoint.skips_verification())
    }

    fn any_endpoint(&self, registry: &RegistryHost, is_match: impl Fn(&Endpoint) -> bool) -> bool {
        let endpoints = if self.reads_files() {
            run_blocking(|| self.endpoints(registry))
        } else {
            self.endpoints(registry)
        };
        endpoints.is_ok_and(|endpoints| endpoints.iter().any(is_match))
    }

    /// Reports whether lookups read files.
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
            tracing::warn!(file = %file.display(), key, "unknown key in hosts.toml has no effect");
        }
    }
}

/// Runs a function that reads files. On a worker thread of a runtime, the other tasks of that thread move to another one
/// first. The single thread of a `current_thread` runtime cannot hand over its tasks.
fn run_blocking<T>(read: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(read),
        _ => read(),
    }
}

/// Returns the folder names of a registry in the order of containerd's `hostPaths`, for both spellings of the standard
/// port: a reference's canonical form has `:443` only if the host name has no dot, and a folder may be named either
/// way.
fn folder_names(registry: &RegistryHost) -> Vec<String> {
    let host = registry.host();
    let with_port = |port: u16| [format!("{host}_{port}_"), format!("{host}:{port}")];
    match registry.port() {
        Some(443) => with_port(443).into_iter().chain([host.to_owned()]).collect(),
        Some(port) => with_port(port).into(),
        None => [host.to_owned()].into_iter().chain(with_port(443)).collect(),
    }
}
