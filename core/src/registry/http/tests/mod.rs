//! Tests of the client against scripted servers: correct responses give the exact bytes, wrong ones fail in time.

mod blob;
mod credentials;
mod echo;
mod manifest;
mod mirror;
mod observer;
mod proxy;
mod push;
mod redirect;
mod referrers;
mod tls;
mod token;

use std::time::Duration;

use futures_util::StreamExt;
use oras_csi_testkit::scripted::{Part, Request, Server, answer, chunk, head};
use tempfile::TempDir;

use super::{HttpRegistry, Settings};
use crate::digest::Digest;
use crate::manifest::{Descriptor, media};
use crate::reference::{PinnedReference, Reference};
use crate::registry::{BlobStream, HostsConfig, Limits, Registry, RegistryError, RegistryErrorKind as Kind};

const SHORT: Duration = Duration::from_millis(300);

fn settings() -> Settings {
    Settings::default()
        .with_connect_timeout(Duration::from_secs(2))
        .with_answer_timeout(SHORT)
        .with_idle_timeout(SHORT)
        .with_metadata_deadline(Duration::from_secs(2))
        .with_tries(2)
        .with_proxies(false)
}

/// A client that is configured for plain http to `server`.
fn client(server: &Server) -> HttpRegistry {
    let hosts = HostsConfig::load(None).unwrap().with_plain_http(server.host().parse().unwrap());
    HttpRegistry::new(hosts, settings())
}

/// A client with `certs.d/_default/hosts.toml`.
fn client_with(toml: &str) -> (HttpRegistry, TempDir) {
    client_with_settings(toml, settings())
}

fn client_with_settings(toml: &str, settings: Settings) -> (HttpRegistry, TempDir) {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("_default")).unwrap();
    std::fs::write(folder.path().join("_default/hosts.toml"), toml).unwrap();
    let hosts = HostsConfig::load(Some(folder.path())).unwrap();
    (HttpRegistry::new(hosts, settings), folder)
}

/// A table of `hosts.toml` that allows an address but sends no read request to it.
fn push_only(url: &str) -> String {
    format!("[host.\"{url}\"]\ncapabilities = [\"push\"]\n")
}

fn reference(server: &Server) -> Reference {
    format!("{}/team/app:v1", server.host()).parse().unwrap()
}

fn pinned(server: &Server, digest: &Digest) -> PinnedReference {
    format!("{}/team/app@{digest}", server.host()).parse().unwrap()
}

fn manifest_bytes() -> Vec<u8> {
    let empty = Digest::sha256_of(b"{}");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{empty}","size":2}},"layers":[]}}"#,
        media::OCI_MANIFEST,
        media::EMPTY
    )
    .into_bytes()
}

/// A correct response with the manifest.
fn manifest_answer() -> Vec<Part> {
    let bytes = manifest_bytes();
    let digest = Digest::sha256_of(&bytes).to_string();
    answer(200, &[("Content-Type", media::OCI_MANIFEST), ("Docker-Content-Digest", &digest)], &bytes)
}

async fn collect(stream: BlobStream) -> (Vec<u8>, Option<RegistryError>) {
    let mut bytes = Vec::new();
    let mut stream = stream;
    while let Some(item) = stream.next().await {
        match item {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(error) => return (bytes, Some(error)),
        }
    }
    (bytes, None)
}
