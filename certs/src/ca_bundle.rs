//! Sets of CA certificates, and the certificates that they trust.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::server::ParsedCertificate;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::{Validity, to_unix_time};
use crate::tls_config;

/// CA certificates, each once, in the order in which they were added. Bundles are compared as sets of parsed
/// certificates, so spaces, comments, line breaks and the order in the PEM text do not matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct CaBundle {
    certificates: Vec<CertificateDer<'static>>,
}

impl CaBundle {
    /// Reads the valid certificates of a PEM text, and skips everything else.
    pub(crate) fn parse_leniently(pem: &[u8]) -> Self {
        CertificateDer::pem_slice_iter(pem)
            .filter_map(Result::ok)
            .filter(|certificate| validity_of(certificate).is_ok())
            .collect()
    }

    /// Reports whether there is no certificate in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    /// Reports whether this certificate is in it.
    pub(crate) fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        self.certificates.iter().any(|own| own == certificate)
    }

    /// Reports whether all certificates of `other` are in it.
    pub(crate) fn contains_all(&self, other: &Self) -> bool {
        other.certificates.iter().all(|certificate| self.contains(certificate))
    }

    /// Iterates over the certificates.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.certificates.iter()
    }

    /// Returns all certificates as PEM, one after the other.
    pub(crate) fn pem(&self) -> String {
        self.certificates.iter().map(to_pem).collect()
    }

    /// Returns when the first certificate, the CA in use, expires.
    pub(crate) fn not_after(&self) -> Option<SystemTime> {
        self.certificates.first().and_then(|certificate| validity_of(certificate).ok()).map(|v| v.not_after())
    }

    /// Checks whether a client that trusts this bundle accepts `chain` (leaf first) at the time `at`, without checking
    /// names. The error says why not. A leaf that is itself in the bundle is accepted, as Go does.
    pub(crate) fn verify_chain(&self, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<(), String> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err("there is no certificate".to_owned());
        };
        if self.contains(leaf) {
            if validity_of(leaf)?.contains(at) {
                return Ok(());
            }
            return Err("it has expired or is not valid yet".to_owned());
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.certificates.iter().cloned());
        let parsed = ParsedCertificate::try_from(leaf).map_err(|error| error.to_string())?;
        let algorithms = tls_config::crypto_provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            intermediates,
            to_unix_time(at),
            algorithms,
        )
        .map_err(|error| error.to_string())
    }
}

impl PartialEq for CaBundle {
    fn eq(&self, other: &Self) -> bool {
        self.contains_all(other) && other.contains_all(self)
    }
}

impl From<CertificateDer<'static>> for CaBundle {
    fn from(certificate: CertificateDer<'static>) -> Self {
        Self { certificates: vec![certificate] }
    }
}

impl FromIterator<CertificateDer<'static>> for CaBundle {
    fn from_iter<I: IntoIterator<Item = CertificateDer<'static>>>(certificates: I) -> Self {
        let mut bundle = Self::default();
        bundle.extend(certificates);
        bundle
    }
}

impl Extend<CertificateDer<'static>> for CaBundle {
    fn extend<I: IntoIterator<Item = CertificateDer<'static>>>(&mut self, certificates: I) {
        for certificate in certificates {
            if !self.contains(&certificate) {
                self.certificates.push(certificate);
            }
        }
    }
}

/// Parses all certificates of a PEM text, at least one. The error says why the text cannot be used.
pub(crate) fn parse_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("it is not PEM ({error})"))?;
    if certificates.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    for certificate in &certificates {
        validity_of(certificate)?;
    }
    Ok(certificates)
}

/// Returns the validity of a certificate. The error says that it is not a certificate.
pub(crate) fn validity_of(certificate: &CertificateDer<'_>) -> Result<Validity, String> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(Validity::of(&parsed)),
        Ok(_) => Err("it holds a certificate with bytes after its end".to_owned()),
        Err(error) => Err(format!("it holds something that is not an X.509 certificate ({error})")),
    }
}

/// Returns one certificate as PEM.
pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    const LINE: usize = 64;
    let text = STANDARD.encode(certificate);
    let mut pem = String::with_capacity(text.len() + text.len() / LINE + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = next;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
