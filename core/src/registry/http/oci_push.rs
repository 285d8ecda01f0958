//! Pushes blobs and manifests with oci-client.
//!
//! oci-client 0.18 has traps. They do not apply here, for these reasons:
//!
//! - Its token code sends credentials to any realm, stores them by registry and hides errors. It is not used: the
//!   authorization comes from this client's own token code, and oci-client sends it as it is.
//! - It has no setting for redirects, host name resolution or the size of a response. All its connections go through a
//!   [`Tunnel`], which leads to the endpoint's host and port and nowhere else, applies the address guard, and limits
//!   time and bytes. A redirect or an upload `Location` on another server fails there.
//! - `Client::new` ignores an invalid configuration, so `Client::try_from` is used. It reads the system's CA
//!   certificates, so it runs on a blocking thread.
//! - `try_from` also builds a default client, which panics on a system without CA certificates. Then this client
//!   pushes.
//! - `push_blob` panics on a relative upload `Location` and `push_manifest_raw` on a digest without `Location`. A blob
//!   is therefore pushed as a stream, and a digest is passed as a tag, which gives the same URL.
//!
//! These endpoints are pushed to without oci-client, because it has no setting for them: those with `client` or `header`
//! in `hosts.toml`, mirrors (their requests need the `ns` parameter), those with another path than `/v2`, and those behind
//! a proxy of the environment. If the root of the API does not answer, this client pushes as well.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::token_cache::{RegistryOperation, RegistryTokenType};
use oci_client::{Client, Reference as OciReference};
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncReadExt as _;
use tokio::time::{timeout, timeout_at};

use super::client::Inner;
use super::route::{Attempt, Operation, Target};
use super::write::{Blob, BlobContent};
use crate::credentials::Credential;
use crate::registry::address::authority;
use crate::registry::error::{RegistryError, RegistryErrorKind};
use crate::registry::hosts::{Endpoint, TlsFiles};
use crate::registry::tls;
use crate::registry::transport::USER_AGENT;
use crate::registry::tunnel::{Protocol, Tunnel, TunnelSettings};

/// How much of a file is in memory at once.
const CHUNK_BYTES: usize = 256 << 10;
/// The slowest upload of a blob that is allowed, in bytes per second.
const MIN_UPLOAD_RATE: u64 = 64 << 10;

/// A client for one push, and the tunnel that it uses.
struct PushSession {
    client: Client,
    reference: OciReference,
    _tunnel: Tunnel,
}

impl Inner {
    /// Pushes a blob with oci-client. Returns false if this client must push it.
    pub(super) async fn push_blob_with_oci_client(
        &self,
        attempt: &Attempt<'_>,
        blob: &Blob,
    ) -> Result<bool, RegistryError> {
        let Some(session) = self.oci_session(attempt, "latest").await? else { return Ok(false) };
        let Ok(content) = stream_content(&blob.content).await else { return Ok(false) };
        let digest = blob.digest.to_string();
        let push = session.client.push_blob_stream(&session.reference, content, &digest, Some(blob.size));
        let time = self.settings.metadata_timeout + Duration::from_secs(blob.size / MIN_UPLOAD_RATE);
        match timeout(time, push).await {
            Ok(pushed) => Ok(is_pushed(attempt, pushed)),
            Err(_) => Err(attempt.route.label().stalled("end of the upload", time)),
        }
    }

    /// Pushes a manifest with oci-client. Returns false if this client must push it.
    pub(super) async fn push_manifest_with_oci_client(
        &self,
        attempt: &Attempt<'_>,
        name: &str,
        media_type: &'static str,
        bytes: &Bytes,
    ) -> Result<bool, RegistryError> {
        let Some(session) = self.oci_session(attempt, name).await? else { return Ok(false) };
        let media_type = HeaderValue::from_static(media_type);
        let push = session.client.push_manifest_raw(&session.reference, bytes.clone(), media_type);
        match timeout_at(attempt.deadline, push).await {
            Ok(pushed) => Ok(is_pushed(attempt, pushed)),
            Err(_) => Err(attempt.route.label().stalled("answer", self.settings.metadata_timeout)),
        }
    }

    /// Prepares a push to an endpoint. Returns `None` if oci-client cannot push there.
    async fn oci_session(
        &self,
        attempt: &Attempt<'_>,
        name: &str,
    ) -> Result<Option<PushSession>, RegistryError> {
        let endpoint = attempt.endpoint;
        let is_supported = !endpoint.is_mirror()
            && endpoint.base().path() == "/v2"
            && endpoint.tls().client.is_empty()
            && endpoint.headers().is_empty()
            && self.transport.is_direct(endpoint.base())
            && self.transport.check(&attempt.route.allowed, endpoint.base()).is_ok();
        let Some(settings) = self.tunnel_settings(attempt).filter(|_| is_supported) else { return Ok(None) };
        if self.authorize_push(attempt).await.is_err() {
            return Ok(None);
        }
        let resolver = self.transport.guarded_resolver(attempt.route.allowed.contains(endpoint.base()));
        let Ok(tunnel) = Tunnel::open(settings, resolver).await else { return Ok(None) };
        let (protocol, files, proxy) = (protocol(endpoint), endpoint.tls().clone(), tunnel.proxy_url());
        let built = tokio::task::spawn_blocking(move || build_client(protocol, &files, proxy)).await;
        let Ok(Some(client)) = built else { return Ok(None) };
        let (registry, repository) = (authority(endpoint.base()), attempt.route.repository.clone());
        let reference = OciReference::with_tag(registry, repository, name.to_owned());
        if self.set_authorization(attempt, &client, &reference).await.is_none() {
            return Ok(None);
        }
        Ok(Some(PushSession { client, reference, _tunnel: tunnel }))
    }

    fn tunnel_settings(&self, attempt: &Attempt<'_>) -> Option<TunnelSettings> {
        let endpoint = attempt.endpoint;
        Some(TunnelSettings {
            host: endpoint.base().host_str()?.to_owned(),
            port: endpoint.base().port_or_known_default()?,
            protocol: if endpoint.is_plain_http() { Protocol::Http } else { Protocol::Https },
            connect_timeout: endpoint.dial_timeout().unwrap_or(self.settings.connect_timeout),
            idle_timeout: self.settings.idle_timeout,
            max_received: self.settings.limits.manifest(),
        })
    }

    /// Fetches a token with the permission to push, unless one is known or the registry needs none. The registry names
    /// the token service in its answer to a request for the root of the API.
    ///
    /// A refusal is not an error here: the push reports it with the registry's message.
    async fn authorize_push(&self, attempt: &Attempt<'_>) -> Result<(), RegistryError> {
        let requester = attempt.requester();
        let is_authorized = matches!(requester.credential, Credential::RegistryToken(_))
            || self.tokens.has_push_token(&requester)
            || self.tokens.accepts_basic(&requester);
        if is_authorized {
            return Ok(());
        }
        let root = Operation {
            method: Method::GET,
            target: Target::ApiRoot,
            headers: HeaderMap::new(),
            content: None,
        };
        match self.request(attempt, &root).await {
            Err(error) if error.is_transient() || error.kind() == RegistryErrorKind::Certificate => {
                Err(error)
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Gives oci-client the authorization that the endpoint accepted. Returns `None` if it cannot be passed on.
    async fn set_authorization(
        &self,
        attempt: &Attempt<'_>,
        client: &Client,
        reference: &OciReference,
    ) -> Option<()> {
        let requester = attempt.requester();
        let Some(header) = self.known_authorization(&requester) else {
            // Without a stored credential, oci-client sends no authorization and fetches no token.
            return Some(());
        };
        attempt.route.record_sent(&header);
        let registry = reference.resolve_registry();
        if let Some(token) = header.to_str().ok()?.strip_prefix("Bearer ") {
            client.store_auth_if_needed(registry, &RegistryAuth::Bearer(token.to_owned())).await;
            return Some(());
        }
        let Credential::Basic { username, password } = &requester.credential else { return None };
        let (username, password) = (username.expose().to_owned(), password.expose().to_owned());
        // A stored token without an expiry keeps oci-client from asking the registry how to authenticate.
        client.store_auth_if_needed(registry, &RegistryAuth::Anonymous).await;
        for operation in [RegistryOperation::Push, RegistryOperation::Pull] {
            let basic = RegistryTokenType::Basic(username.clone(), password.clone());
            client.tokens.insert(reference, operation, basic).await;
        }
        Some(())
    }
}

fn protocol(endpoint: &Endpoint) -> ClientProtocol {
    if endpoint.is_plain_http() { ClientProtocol::Http } else { ClientProtocol::Https }
}

/// Builds a client for one endpoint and one credential. Returns `None` if the configuration cannot be used; this
/// client's own push then reports what is wrong with it. Blocks.
fn build_client(protocol: ClientProtocol, files: &TlsFiles, proxy: String) -> Option<Client> {
    if tls::system_roots().is_empty() {
        return None;
    }
    let mut extra_root_certificates = Vec::new();
    for pem in &files.ca {
        let certificate =
            |der: CertificateDer<'_>| Certificate { encoding: CertificateEncoding::Der, data: der.to_vec() };
        extra_root_certificates.extend(tls::certificates(pem).ok()?.into_iter().map(certificate));
    }
    Client::try_from(ClientConfig {
        protocol,
        accept_invalid_certificates: files.skip_verify,
        extra_root_certificates,
        use_monolithic_push: true,
        user_agent: USER_AGENT,
        http_proxy: Some(proxy.clone()),
        https_proxy: Some(proxy),
        ..ClientConfig::default()
    })
    .ok()
}

/// Reports whether oci-client pushed. A failure is logged, and this client pushes again.
fn is_pushed(attempt: &Attempt<'_>, pushed: Result<String, OciDistributionError>) -> bool {
    let Err(error) = pushed else { return true };
    let error = attempt.route.label().unreachable(error.to_string());
    let error = attempt.route.redactor().redact(error);
    tracing::debug!(%error, "oci-client could not push; pushing again without it");
    false
}

async fn stream_content(
    content: &BlobContent,
) -> std::io::Result<BoxStream<'static, Result<Bytes, OciDistributionError>>> {
    let path = match content {
        BlobContent::Bytes(bytes) => return Ok(stream::once(std::future::ready(Ok(bytes.clone()))).boxed()),
        BlobContent::File(path) => path,
    };
    let file = tokio::fs::File::open(path).await?;
    let chunks = stream::try_unfold(file, |mut file| async move {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let read = file.read_buf(&mut chunk).await.map_err(OciDistributionError::IoError)?;
        Ok((read > 0).then(|| (chunk.freeze(), file)))
    });
    Ok(chunks.boxed())
}
