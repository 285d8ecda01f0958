//! Registry configuration in the format of containerd's `certs.d`: which addresses serve a registry, and how the
//! client connects to them.
//!
//! The format is the one that nodes already have (containerd, docs/hosts.md): a folder for each registry with a
//! `hosts.toml`, or with certificates in Docker's layout. As in containerd, `HOST_PORT_` comes before `HOST:PORT`,
//! because a ConfigMap's key holds no colon, and `_default` comes last. The endpoints are every `[host."URL"]` in the
//! order of the file, then `server`. Unlike in containerd, a file that cannot be read is an error and never a silent
//! fallback to other settings: the file may be what keeps a registry's traffic inside the network.
//!
//! Nothing is cached. Each lookup reads the small file and the certificates that it names, so the next request uses a
//! changed ConfigMap.

mod config;
mod endpoint;
mod error;
mod parse;
#[cfg(test)]
mod tests;
mod trust;

pub use self::config::HostsConfig;
pub(crate) use self::endpoint::TlsFiles;
pub use self::endpoint::{Capabilities, Endpoint};
pub use self::error::HostsError;

pub(crate) use self::endpoint::Pem;
