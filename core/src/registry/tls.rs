//! The TLS configuration of an endpoint.
//!
//! The root certificates are the system's and those of the endpoint's `ca`, as in containerd. A static binary in an
//! empty image has no system roots. That is an error only for an https address whose endpoint has no `ca` either. A
//! server may also present a certificate of `ca` itself.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};

use super::hosts::{Pem, TlsFiles};

/// Why the TLS configuration cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TlsError {
    #[error("{}: {problem}", .path.display())]
    File { path: PathBuf, problem: String },
    #[error("cannot set up TLS: {0}")]
    Setup(String),
}

/// Whether a server is the configured endpoint or the target of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PeerRole {
    /// The endpoint of `hosts.toml`: it gets the client certificates, and `skip_verify` applies to it.
    Endpoint,
    /// Another server: it is verified with the same authorities and gets no client certificate.
    RedirectTarget,
}

/// A TLS configuration.
pub(super) struct Tls {
    pub(super) config: ClientConfig,
    /// Whether a server certificate can be accepted: there is an authority, or verification is off.
    pub(super) can_verify: bool,
}

/// Builds the configuration for a connection. Reads the system's CA certificates, so it blocks.
pub(super) fn configure(files: &TlsFiles, role: PeerRole) -> Result<Tls, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let setup = |error: rustls::Error| TlsError::Setup(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(setup)?;
    let is_endpoint = role == PeerRole::Endpoint;
    let skip_verify = files.skip_verify && is_endpoint;
    let named = named_certificates(&files.ca)?;
    let roots = roots(&named)?;
    let can_verify = skip_verify || !roots.is_empty();
    let builder = if skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(SkipVerification(provider.clone())))
    } else if roots.is_empty() {
        builder.with_root_certificates(roots)
    } else {
        let named = named.into_iter().map(|(_, certificate)| certificate).collect();
        let verifier = Verification::new(roots, named, provider.clone())?;
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    };
    let mut config = if files.client.is_empty() || !is_endpoint {
        builder.with_no_client_auth()
    } else {
        let client = files
            .client
            .iter()
            .map(|(certificate, key)| load_client_certificate(certificate, key, &provider));
        builder.with_client_cert_resolver(Arc::new(ClientCertificates(client.collect::<Result<_, _>>()?)))
    };
    // Each blob gets its own HTTP/1.1 connection, which is faster for few large blobs than one shared connection.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Tls { config, can_verify })
}

fn load_client_certificate(
    certificate: &Pem,
    key: &Pem,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let problem = |error: &dyn std::fmt::Display| TlsError::File {
        path: key.path.clone(),
        problem: format!("no private key that can be used: {error}"),
    };
    let chain = certificates(certificate)?;
    let parsed = PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|error| problem(&error))?;
    CertifiedKey::from_der(chain, parsed, provider).map(Arc::new).map_err(|error| problem(&error))
}

/// Selects a client certificate: the first one that was issued by an authority that the server names, as Go programs
/// select it. If there is none, the first one is sent, which some servers accept.
#[derive(Debug)]
struct ClientCertificates(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientCertificates {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut usable = self.0.iter().filter(|certified| certified.key.choose_scheme(schemes).is_some());
        // The issuer in the certificate has the same bytes as the name that the server sends (RFC 8446, 4.2.4).
        let is_issued = |certified: &&Arc<CertifiedKey>| {
            let certificates = certified.cert.iter();
            certificates.flat_map(|certificate| authorities.iter().map(move |name| (certificate, *name))).any(
                |(certificate, name)| {
                    !name.is_empty() && certificate.windows(name.len()).any(|part| part == name)
                },
            )
        };
        usable.clone().find(is_issued).or_else(|| usable.next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Returns the certificates of a PEM file, which must have at least one.
pub(super) fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let invalid = |problem: String| TlsError::File { path: pem.path.clone(), problem };
    let parsed = CertificateDer::pem_slice_iter(&pem.bytes).collect::<Result<Vec<_>, _>>();
    match parsed {
        Ok(certificates) if certificates.is_empty() => {
            Err(invalid("it has no PEM certificate: write the certificate in PEM form".into()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(invalid(format!("it is not valid PEM: {error}"))),
    }
}

/// A certificate of `ca`, and the file that it is in.
type NamedCertificate = (PathBuf, CertificateDer<'static>);

fn named_certificates(ca_files: &[Pem]) -> Result<Vec<NamedCertificate>, TlsError> {
    let mut named = Vec::new();
    for pem in ca_files {
        named.extend(certificates(pem)?.into_iter().map(|certificate| (pem.path.clone(), certificate)));
    }
    Ok(named)
}

fn roots(named: &[NamedCertificate]) -> Result<Arc<RootCertStore>, TlsError> {
    let system = system_roots();
    if named.is_empty() {
        return Ok(system);
    }
    let mut roots = RootCertStore::clone(&system);
    for (path, certificate) in named {
        roots
            .add(certificate.clone())
            .map_err(|error| TlsError::File { path: path.clone(), problem: error.to_string() })?;
    }
    Ok(Arc::new(roots))
}

/// Returns the system's CA certificates (`SSL_CERT_FILE`, `SSL_CERT_DIR`, or the usual places of distributions).
///
/// They are read once. If there are none, the next call looks again, because they may be mounted later. The function
/// reads files, so it must run on a blocking thread.
pub(super) fn system_roots() -> Arc<RootCertStore> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = SYSTEM.get() {
        return roots.clone();
    }
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "cannot read a CA certificate of the system");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let roots = Arc::new(roots);
    if roots.is_empty() {
        return roots;
    }
    SYSTEM.get_or_init(|| roots).clone()
}

/// Verifies a server's certificate with the root certificates. Also accepts a certificate that is byte for byte one of
/// `ca`, as Go programs do: `openssl req -x509` makes a self-signed certificate that is one of an authority (CA:TRUE),
/// which webpki does not accept from a server.
#[derive(Debug)]
struct Verification {
    by_roots: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl Verification {
    fn new(
        roots: Arc<RootCertStore>,
        named: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        let by_roots = verifier.map_err(|error| TlsError::Setup(error.to_string()))?;
        Ok(Self { by_roots, named })
    }
}

/// Reports whether webpki found only that the certificate is no server certificate of a known authority. It compares
/// the dates before that, so they are right.
fn is_about_the_issuer(error: &rustls::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        rustls::Error::InvalidCertificate(problem) => is_ca_certificate(problem),
        _ => false,
    }
}

/// Reports whether the server's certificate is one of an authority, which webpki does not accept from a server.
pub(super) fn is_ca_certificate(problem: &CertificateError) -> bool {
    matches!(problem, CertificateError::Other(OtherError(other))
        if matches!(other.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity)))
}

impl ServerCertVerifier for Verification {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.by_roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(error) if is_about_the_issuer(&error) && self.named.iter().any(|one| one == end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_roots.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_roots.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_roots.supported_verify_schemes()
    }
}

/// Implements `skip_verify`: accepts every certificate, but the handshake must be signed with its key.
#[derive(Debug)]
struct SkipVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for SkipVerification {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
