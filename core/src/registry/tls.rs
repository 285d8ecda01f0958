//! TLS settings of an endpoint, as rustls wants them.
//!
//! Roots are the system's and the endpoint's `ca`, as containerd. A static binary in an empty image has no
//! system roots: that matters only when an https address is asked that has no `ca` either, and is said then.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hosts::{Pem, TlsFiles};

/// Why no TLS settings come out of the files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TlsError {
    #[error("{}: {problem}", .path.display())]
    File { path: PathBuf, problem: String },
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// A configuration, and whether it knows any authority.
pub(super) struct Tls {
    pub(super) config: ClientConfig,
    pub(super) can_verify: bool,
}

/// Builds the configuration for an endpoint. `own` is false for the hosts that it redirects to: they are
/// verified with the same authorities, get no client certificate and are never left unverified.
pub(super) fn configure(files: &TlsFiles, own: bool) -> Result<Tls, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let setup = |error: rustls::Error| TlsError::Setup(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(setup)?;
    let skip_verify = files.skip_verify && own;
    let roots = roots(&files.ca)?;
    let can_verify = skip_verify || !roots.is_empty();
    let builder = if skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider.clone())))
    } else {
        builder.with_root_certificates(roots)
    };
    let mut config = if files.client.is_empty() || !own {
        builder.with_no_client_auth()
    } else {
        let client = files.client.iter().map(|(certificate, key)| certified(certificate, key, &provider));
        builder.with_client_cert_resolver(Arc::new(Clients(client.collect::<Result<_, _>>()?)))
    };
    // One HTTP/1.1 connection for each stream of bytes: faster for few large blobs than sharing one.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Tls { config, can_verify })
}

fn certified(certificate: &Pem, key: &Pem, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
    let problem = |error: &dyn std::fmt::Display| TlsError::File {
        path: key.path.clone(),
        problem: format!("no private key that can be used: {error}"),
    };
    let chain = certificates(certificate)?;
    let parsed = PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|error| problem(&error))?;
    CertifiedKey::from_der(chain, parsed, provider).map(Arc::new).map_err(|error| problem(&error))
}

/// A client's certificates: the first that one of the authorities has issued that the server names, as Go's programs
/// choose. Where none is, the first all the same, which servers have been known to take.
#[derive(Debug)]
struct Clients(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Clients {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut able = self.0.iter().filter(|one| one.key.choose_scheme(schemes).is_some());
        // An issuer stands in a certificate exactly as the server writes it (RFC 8446, 4.2.4).
        let issued = |one: &&Arc<CertifiedKey>| {
            let certificates = one.cert.iter();
            certificates.flat_map(|certificate| authorities.iter().map(move |name| (certificate, *name))).any(
                |(certificate, name)| {
                    !name.is_empty() && certificate.windows(name.len()).any(|part| part == name)
                },
            )
        };
        able.clone().find(issued).or_else(|| able.next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The certificates of a PEM file, which must have at least one.
pub(super) fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |problem: String| TlsError::File { path: pem.path.clone(), problem };
    let parsed = CertificateDer::pem_slice_iter(&pem.bytes).collect::<Result<Vec<_>, _>>();
    match parsed {
        Ok(certificates) if certificates.is_empty() => Err(wrong("no certificate in PEM form in it".into())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(wrong(format!("not PEM: {error}"))),
    }
}

fn roots(own: &[Pem]) -> Result<Arc<RootCertStore>, TlsError> {
    let system = system_roots();
    if own.is_empty() {
        return Ok(system);
    }
    let mut roots = RootCertStore::clone(&system);
    for pem in own {
        for certificate in certificates(pem)? {
            roots
                .add(certificate)
                .map_err(|error| TlsError::File { path: pem.path.clone(), problem: error.to_string() })?;
        }
    }
    Ok(Arc::new(roots))
}

/// The system's authorities (`SSL_CERT_FILE`, `SSL_CERT_DIR`, or where distributions keep them), read once;
/// none are looked for again.
pub(super) fn system_roots() -> Arc<RootCertStore> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = SYSTEM.get() {
        return roots.clone();
    }
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a system certificate cannot be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let roots = Arc::new(roots);
    if roots.is_empty() {
        return roots;
    }
    SYSTEM.get_or_init(|| roots).clone()
}

/// `skip_verify`: any certificate will do, though the handshake must be signed with its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
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
