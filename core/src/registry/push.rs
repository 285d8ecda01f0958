//! Writing to registries, through oci-client.
//!
//! A push goes where the command's user says, with bytes of our own, so what keeps reading off oci-client
//! ([`super::http`]) weighs less here. `hosts.toml` counts: the first host that may be pushed to is asked,
//! as in containerd. Anonymous for now.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::HeaderValue;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference as ClientReference};
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt;

use super::hosts::authority;
use super::{Endpoint, HostsConfig, HostsError, tls, transport};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::display::Printable;
use crate::manifest::{Descriptor, media};
use crate::reference::Reference;

/// How much of a file is in memory at once.
const PIECE: usize = 256 << 10;
/// The empty JSON object: image-spec, manifest.md, "Guidance for an Empty Descriptor".
const EMPTY: &[u8] = b"{}";

/// Why something could not be pushed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The configuration of the registry cannot be used.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// The configuration has something that pushing does not do.
    #[error("{registry}: {problem}")]
    NotAllowed {
        /// The registry.
        registry: Printable,
        /// What, and what to do.
        problem: Printable,
    },
    /// A file that cannot be read.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The registry did not take it.
    #[error("{what} was not pushed to {reference}: {words}")]
    Registry {
        /// Which blob or manifest.
        what: Printable,
        /// Where to.
        reference: Printable,
        /// What it or the network said.
        words: Printable,
    },
}

/// The bytes of a layer.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In a file, which is read twice: for its digest and to be sent.
    File(PathBuf),
}

/// A layer to push.
#[derive(Clone, Debug)]
pub struct PushLayer {
    media_type: String,
    annotations: BTreeMap<String, String>,
    content: Content,
}

impl PushLayer {
    /// A layer without annotations.
    pub fn new(media_type: impl Into<String>, content: Content) -> Self {
        Self { media_type: media_type.into(), annotations: BTreeMap::new(), content }
    }

    /// The same with one more annotation.
    #[must_use]
    pub fn annotated(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }
}

/// An artifact to push (image-spec, manifest.md, "Guidelines for Artifact Usage").
#[derive(Clone, Debug)]
pub struct Artifact {
    kind: String,
    layers: Vec<PushLayer>,
    config: Option<(String, Bytes)>,
    subject: Option<Descriptor>,
    annotations: BTreeMap<String, String>,
}

impl Artifact {
    /// An artifact of a type with layers, with the empty config.
    pub fn new(artifact_type: impl Into<String>, layers: Vec<PushLayer>) -> Self {
        let (kind, annotations) = (artifact_type.into(), BTreeMap::new());
        Self { kind, layers, config: None, subject: None, annotations }
    }

    /// The same with a config of its own.
    #[must_use]
    pub fn with_config(mut self, media_type: impl Into<String>, content: impl Into<Bytes>) -> Self {
        self.config = Some((media_type.into(), content.into()));
        self
    }

    /// The same, attached to another manifest of the repository.
    #[must_use]
    pub fn attached_to(mut self, subject: Descriptor) -> Self {
        self.subject = Some(subject);
        self
    }

    /// The same with one more annotation of the manifest.
    #[must_use]
    pub fn annotated(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }
}

/// Pushes artifacts.
#[derive(Clone, Debug)]
pub struct Pusher {
    hosts: HostsConfig,
}

impl Pusher {
    /// Pushes to the registries as `hosts` has them.
    pub fn new(hosts: HostsConfig) -> Self {
        Self { hosts }
    }

    /// Pushes blobs, then the manifest under the reference's tag (`latest` where it has none), and gives
    /// the manifest's digest.
    pub async fn push(&self, reference: &Reference, artifact: &Artifact) -> Result<Digest, PushError> {
        let target = self.target(reference)?;
        let (config_type, config) = match &artifact.config {
            Some((media_type, content)) => (media_type.as_str(), content.clone()),
            None => (media::EMPTY, Bytes::from_static(EMPTY)),
        };
        let config = target.blob(config_type, &Content::Bytes(config)).await?;
        let mut layers = Vec::new();
        for layer in &artifact.layers {
            let descriptor = target.blob(&layer.media_type, &layer.content).await?;
            layers.push(described(&descriptor, &layer.annotations));
        }
        if layers.is_empty() {
            let empty = target.blob(media::EMPTY, &Content::Bytes(Bytes::from_static(EMPTY))).await?;
            layers.push(described(&empty, &BTreeMap::new()));
        }
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "artifactType": artifact.kind,
            "config": described(&config, &BTreeMap::new()),
            "layers": layers,
        });
        if let Some(subject) = &artifact.subject {
            manifest["subject"] = described(subject, &BTreeMap::new());
        }
        if !artifact.annotations.is_empty() {
            manifest["annotations"] = json!(artifact.annotations);
        }
        target.manifest(manifest.to_string().into()).await
    }

    fn target(&self, reference: &Reference) -> Result<Target, PushError> {
        let registry = reference.registry();
        let not_allowed = |problem: &str| PushError::NotAllowed {
            registry: registry.to_string().into(),
            problem: problem.into(),
        };
        if reference.digest().is_some() {
            return Err(not_allowed("a push makes the digest: leave it out of the reference and give a tag"));
        }
        let endpoints = self.hosts.endpoints(registry)?;
        let endpoint = endpoints.iter().find(|endpoint| endpoint.pushes());
        let endpoint =
            endpoint.ok_or_else(|| not_allowed("its hosts.toml has no host with the capability to push"))?;
        if endpoint.base().path() != "/v2" {
            return Err(not_allowed("its hosts.toml has a path in the address, which pushing does not know"));
        }
        if !endpoint.tls().client.is_empty() || !endpoint.headers().is_empty() {
            return Err(not_allowed(
                "its hosts.toml has `client` or `header`, which pushing does not know yet",
            ));
        }
        // oci-client 0.18 makes a default client on the way, which panics where there are no authorities.
        if tls::system_roots().is_empty() {
            return Err(not_allowed(
                "no certificate authority is known on this system, which pushing needs even for plain http: \
                 install ca-certificates, or point SSL_CERT_FILE to a file",
            ));
        }
        let client = Client::try_from(config(endpoint)?).map_err(|error| not_allowed(&error.to_string()))?;
        let tag = reference.tag().unwrap_or("latest").to_owned();
        let host = authority(endpoint.base());
        let image = ClientReference::with_tag(host, reference.repository().to_owned(), tag);
        Ok(Target { client, image, shown: reference.to_string().into() })
    }
}

/// A client of its own for each push: oci-client keeps the first credential that it sees for a registry,
/// and tokens by registry alone.
fn config(endpoint: &Endpoint) -> Result<ClientConfig, PushError> {
    let files = endpoint.tls();
    let mut extra_root_certificates = Vec::new();
    for pem in &files.ca {
        let parsed = tls::certificates(pem)
            .map_err(|error| PushError::File { path: pem.path.clone(), reason: error.to_string() })?;
        let one = |der: rustls::pki_types::CertificateDer<'_>| Certificate {
            encoding: CertificateEncoding::Der,
            data: der.to_vec(),
        };
        extra_root_certificates.extend(parsed.into_iter().map(one));
    }
    let protocol = if endpoint.is_plain_http() { ClientProtocol::Http } else { ClientProtocol::Https };
    // Loopback is never proxied; naming a proxy that does not apply to it is how to say so.
    let (http_proxy, no_proxy) = if is_loopback(endpoint) {
        (Some("http://proxy.invalid".to_owned()), Some("localhost,127.0.0.0/8,::1".to_owned()))
    } else {
        (None, None)
    };
    Ok(ClientConfig {
        protocol,
        accept_invalid_certificates: files.skip_verify,
        extra_root_certificates,
        connect_timeout: Some(endpoint.dial_timeout().unwrap_or(Duration::from_secs(10))),
        read_timeout: Some(Duration::from_mins(1)),
        user_agent: concat!("oras-csi/", env!("CARGO_PKG_VERSION")),
        http_proxy,
        no_proxy,
        ..ClientConfig::default()
    })
}

fn is_loopback(endpoint: &Endpoint) -> bool {
    let host = endpoint.base().host_str().unwrap_or_default();
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || literal.is_ok_and(|address| address.is_loopback())
}

/// Where a push goes.
struct Target {
    client: Client,
    image: ClientReference,
    shown: Printable,
}

impl Target {
    fn failed(&self, what: impl Into<Printable>, error: &OciDistributionError) -> PushError {
        let words = match error {
            OciDistributionError::RequestError(error) => transport::causes(error),
            error => error.to_string(),
        };
        PushError::Registry { what: what.into(), reference: self.shown.clone(), words: words.into() }
    }

    /// Pushes a blob unless the registry has it.
    async fn blob(&self, media_type: &str, content: &Content) -> Result<Descriptor, PushError> {
        let (digest, size) = match content {
            Content::Bytes(bytes) => (Digest::sha256_of(bytes), bytes.len() as u64),
            Content::File(path) => measure(path).await?,
        };
        let name = digest.to_string();
        let failed = |error: OciDistributionError| self.failed(format!("the blob {name}"), &error);
        self.client.store_auth_if_needed(self.image.resolve_registry(), &RegistryAuth::Anonymous).await;
        if !self.client.blob_exists(&self.image, &name).await.map_err(failed)? {
            match content {
                Content::Bytes(bytes) => {
                    self.client.push_blob(&self.image, bytes.clone(), &name).await.map_err(failed)?;
                }
                Content::File(path) if size > 0 => {
                    let pieces = pieces(path).await?;
                    self.client
                        .push_blob_stream(&self.image, pieces, &name, Some(size))
                        .await
                        .map_err(failed)?;
                }
                Content::File(_) => {
                    self.client.push_blob(&self.image, Bytes::new(), &name).await.map_err(failed)?;
                }
            }
        }
        Ok(Descriptor::new(media_type, digest, size))
    }

    async fn manifest(&self, bytes: Bytes) -> Result<Digest, PushError> {
        let digest = Digest::sha256_of(&bytes);
        let media_type = HeaderValue::from_static(media::OCI_MANIFEST);
        let pushed = self.client.push_manifest_raw(&self.image, bytes, media_type).await;
        pushed.map_err(|error| self.failed("the manifest", &error))?;
        Ok(digest)
    }
}

fn described(descriptor: &Descriptor, annotations: &BTreeMap<String, String>) -> Value {
    let mut object = Map::new();
    object.insert("mediaType".into(), descriptor.media_type().into());
    object.insert("digest".into(), descriptor.digest().to_string().into());
    object.insert("size".into(), descriptor.size().into());
    if !annotations.is_empty() {
        object.insert("annotations".into(), json!(annotations));
    }
    Value::Object(object)
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> PushError {
    let path = path.to_owned();
    move |error| PushError::File { path: path.clone(), reason: error.to_string() }
}

async fn measure(path: &Path) -> Result<(Digest, u64), PushError> {
    let mut file = tokio::fs::File::open(path).await.map_err(unreadable(path))?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut size = 0;
    let mut piece = BytesMut::with_capacity(PIECE);
    while file.read_buf(&mut piece).await.map_err(unreadable(path))? > 0 {
        hasher.update(&piece);
        size += piece.len() as u64;
        piece.clear();
    }
    Ok((hasher.finish(), size))
}

async fn pieces(
    path: &Path,
) -> Result<impl futures_util::Stream<Item = Result<Bytes, OciDistributionError>> + use<>, PushError> {
    let file = tokio::fs::File::open(path).await.map_err(unreadable(path))?;
    Ok(stream::try_unfold(file, |mut file| async move {
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = file.read_buf(&mut piece).await.map_err(OciDistributionError::IoError)?;
        Ok((read > 0).then(|| (piece.freeze(), file)))
    }))
}
