//! Sets of CA certificates, and what they vouch for.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::server::ParsedCertificate;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::{Validity, for_rustls};
use crate::tls;

/// CA certificates, each once, in the order in which they were given. Compared as sets of parsed
/// certificates: spaces, comments, line breaks and order of the PEM do not matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bundle {
    certificates: Vec<CertificateDer<'static>>,
}

impl Bundle {
    /// What can be read of a PEM text that somebody else wrote; garbage is left out.
    pub(crate) fn parse_leniently(pem: &[u8]) -> Self {
        CertificateDer::pem_slice_iter(pem)
            .filter_map(Result::ok)
            .filter(|certificate| validity_of(certificate).is_ok())
            .collect()
    }

    /// Whether there is no certificate in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    /// Whether this very certificate is in it.
    pub(crate) fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        self.certificates.iter().any(|own| own == certificate)
    }

    /// Whether all of `other` is in it.
    pub(crate) fn contains_all(&self, other: &Self) -> bool {
        other.certificates.iter().all(|certificate| self.contains(certificate))
    }

    /// The certificates.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.certificates.iter()
    }

    /// All certificates as PEM, one after the other.
    pub(crate) fn pem(&self) -> String {
        self.certificates.iter().map(to_pem).collect()
    }

    /// When the first certificate of the bundle, the CA in use, runs out.
    pub(crate) fn not_after(&self) -> Option<SystemTime> {
        self.certificates.first().and_then(|certificate| validity_of(certificate).ok()).map(|v| v.not_after())
    }

    /// Whether a client that trusts this bundle accepts `chain` (leaf first) at `at`, names aside; the
    /// error says why not. A leaf that is itself in the bundle is accepted, as Go does.
    pub(crate) fn vouches_for(&self, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<(), String> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err("there is no certificate".to_owned());
        };
        if self.contains(leaf) {
            if validity_of(leaf)?.contains(at) {
                return Ok(());
            }
            return Err("it is expired or not good yet".to_owned());
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.certificates.iter().cloned());
        let parsed = ParsedCertificate::try_from(leaf).map_err(|error| error.to_string())?;
        let algorithms = tls::provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, for_rustls(at), algorithms)
            .map_err(|error| error.to_string())
    }
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.contains_all(other) && other.contains_all(self)
    }
}

impl From<CertificateDer<'static>> for Bundle {
    fn from(certificate: CertificateDer<'static>) -> Self {
        Self { certificates: vec![certificate] }
    }
}

impl FromIterator<CertificateDer<'static>> for Bundle {
    fn from_iter<I: IntoIterator<Item = CertificateDer<'static>>>(certificates: I) -> Self {
        let mut bundle = Self::default();
        bundle.extend(certificates);
        bundle
    }
}

impl Extend<CertificateDer<'static>> for Bundle {
    fn extend<I: IntoIterator<Item = CertificateDer<'static>>>(&mut self, certificates: I) {
        for certificate in certificates {
            if !self.contains(&certificate) {
                self.certificates.push(certificate);
            }
        }
    }
}

/// All certificates of a PEM text, at least one; the error says why it cannot be used.
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

/// From when until when a certificate is good; the error says that it is none.
pub(crate) fn validity_of(certificate: &CertificateDer<'_>) -> Result<Validity, String> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(Validity::of(&parsed)),
        Ok(_) => Err("it holds a certificate with bytes after its end".to_owned()),
        Err(error) => Err(format!("it holds something that is no X.509 certificate ({error})")),
    }
}

/// One certificate as PEM.
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
