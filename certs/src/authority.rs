//! Issuing certificates: a CA and the short-lived leaf certificates that it signs. The time is an argument; only the keys
//! are random.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::sign::CertifiedKey;

use crate::ca_bundle::validity_of;
use crate::clock::{Validity, rfc3339};
use crate::error::Error;
use crate::settings::Names;
use crate::tls_config;

/// How long a CA is valid: ten years. It is trusted in one `caBundle` only, so a short life would cause outages without
/// reducing a risk. With `ca-previous.crt` it can be replaced at any time.
pub(crate) const AUTHORITY_LIFE: Duration = Duration::from_hours(3650 * 24);

/// How long a leaf is valid: seven days. It cannot be revoked, so it must expire soon.
pub(crate) const LEAF_LIFE: Duration = Duration::from_hours(7 * 24);

/// How long before now a certificate becomes valid: 25 hours, for clients with a slow clock, and for a clock that is set back
/// by a day. The API server would otherwise trust neither the certificate nor the CA that were made before.
pub(crate) const BACKDATED: Duration = Duration::from_hours(25);

/// A CA with its key, which can sign leaf certificates.
pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
    validity: Validity,
}

/// A leaf certificate and its key, in PEM.
pub(crate) struct IssuedLeaf {
    /// The certificate. The CA signed it directly, without intermediates.
    pub(crate) certificate_pem: String,
    /// The key, in PKCS #8.
    pub(crate) key_pem: String,
}

impl Authority {
    /// Creates a CA with a new ECDSA P-256 key, valid from [`BACKDATED`] before `now` for [`AUTHORITY_LIFE`].
    pub(crate) fn generate(now: SystemTime) -> Result<Self, Error> {
        Self::for_key(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?, now)
    }

    /// Creates a CA certificate for the key in `ca.key` of `place`. Every process can do that: leaf certificates that the
    /// key signs are trusted through any of these CA certificates.
    ///
    /// Fails with [`Error::Unusable`] for a key that does not parse.
    pub(crate) fn for_existing_key(place: &str, key_pem: &[u8], now: SystemTime) -> Result<Self, Error> {
        let key = KeyPair::from_pem(&String::from_utf8_lossy(key_pem)).map_err(|error| Error::Unusable {
            place: place.to_owned(),
            entry: "ca.key",
            reason: format!("it holds no private key that can sign ({error})"),
        })?;
        Self::for_key(key, now)
    }

    fn for_key(key: KeyPair, now: SystemTime) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        // The date lets people distinguish two CAs in one bundle. Programs use the key identifier.
        params.distinguished_name.push(DnType::CommonName, format!("oras-csi webhook CA {}", rfc3339(now)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + AUTHORITY_LIFE).into();
        let certificate = params.self_signed(&key)?;
        let validity = validity_of(certificate.der()).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            issuer: Issuer::new(params, key),
            validity,
        })
    }

    /// Makes a CA from a certificate and a key that were read from `place`.
    ///
    /// Fails with [`Error::Unusable`] for a key that does not parse, and with [`Error::KeyMismatch`] for the key of another
    /// certificate.
    pub(crate) fn parse(
        place: &str,
        certificate: &CertificateDer<'static>,
        key_pem: &[u8],
    ) -> Result<Self, Error> {
        let unusable = |entry, reason: String| Error::Unusable { place: place.to_owned(), entry, reason };
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|error| unusable("ca.key", format!("it holds no private key ({error})")))?;
        match CertifiedKey::from_der(vec![certificate.clone()], key, &tls_config::crypto_provider()) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(Error::KeyMismatch {
                    place: place.to_owned(),
                    certificate: "ca.crt",
                    key: "ca.key",
                });
            }
            Err(error) => return Err(unusable("ca.key", error.to_string())),
        }
        let key_pem = String::from_utf8_lossy(key_pem).into_owned();
        let key = KeyPair::from_pem(&key_pem).map_err(|error| unusable("ca.key", error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(certificate, key)
            .map_err(|error| unusable("ca.crt", error.to_string()))?;
        let validity = validity_of(certificate).map_err(|reason| unusable("ca.crt", reason))?;
        let certificate_pem = crate::ca_bundle::to_pem(certificate);
        Ok(Self { certificate: certificate.clone(), certificate_pem, key_pem, issuer, validity })
    }

    /// Issues a leaf for `names` with a new ECDSA P-256 key, for TLS servers only. It is valid from [`BACKDATED`] before `now`
    /// for [`LEAF_LIFE`], but not longer than the CA.
    pub(crate) fn issue(&self, names: &Names, now: SystemTime) -> Result<IssuedLeaf, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "oras-csi webhook");
        for name in names.dns() {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(names.ips().iter().map(|ip| SanType::IpAddress(*ip)));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + LEAF_LIFE).min(self.validity.not_after()).into();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(IssuedLeaf { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Returns the certificate of the CA.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns the certificate of the CA as PEM.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns the private key of the CA as PEM. It must be stored only, and never logged.
    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Returns the validity of the CA.
    pub(crate) fn validity(&self) -> Validity {
        self.validity
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("validity", &self.validity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca_bundle::{CaBundle, parse_certificates};
    use crate::testing::{names, now};
    use x509_parser::prelude::{FromDer, X509Certificate};

    #[test]
    fn a_leaf_is_not_a_ca() {
        let authority = Authority::generate(now()).unwrap();
        let (_, ca) = X509Certificate::from_der(authority.certificate()).unwrap();
        let constraints = ca.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        assert!(ca.key_usage().unwrap().unwrap().value.key_cert_sign());
        assert_eq!(authority.validity().not_before(), now() - BACKDATED);
        assert_eq!(authority.validity().not_after(), now() + AUTHORITY_LIFE);

        let issued = authority.issue(&names(), now()).unwrap();
        let chain = parse_certificates(issued.certificate_pem.as_bytes()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        assert!(!leaf.is_ca());
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth && !usage.any);
        let validity = Validity::of(&leaf);
        assert_eq!((validity.not_before(), validity.not_after()), (now() - BACKDATED, now() + LEAF_LIFE));
        let san = leaf.subject_alternative_name().unwrap().unwrap().value;
        assert_eq!(san.general_names.len(), names().dns().len() + names().ips().len());
        CaBundle::from(authority.certificate().clone()).verify_chain(&chain, now()).unwrap();
    }

    #[test]
    fn a_leaf_expires_no_later_than_its_ca() {
        let authority = Authority::generate(now()).unwrap();
        let late = authority.validity().not_after() - Duration::from_mins(1);
        let issued = authority.issue(&names(), late).unwrap();
        let chain = parse_certificates(issued.certificate_pem.as_bytes()).unwrap();
        assert_eq!(validity_of(&chain[0]).unwrap().not_after(), authority.validity().not_after());
    }

    #[test]
    fn a_ca_that_was_read_back_issues_trusted_leaves() {
        let made = Authority::generate(now()).unwrap();
        let read = Authority::parse("here", made.certificate(), made.key_pem().as_bytes()).unwrap();
        let issued = read.issue(&names(), now()).unwrap();
        let chain = parse_certificates(issued.certificate_pem.as_bytes()).unwrap();
        CaBundle::from(made.certificate().clone()).verify_chain(&chain, now()).unwrap();

        let other = Authority::generate(now()).unwrap();
        let mixed = Authority::parse("here", made.certificate(), other.key_pem().as_bytes());
        assert!(matches!(mixed, Err(Error::KeyMismatch { .. })));
        let garbage = Authority::parse("here", made.certificate(), b"garbage");
        assert!(matches!(garbage, Err(Error::Unusable { entry: "ca.key", .. })));
    }

    #[test]
    fn debug_output_has_no_key() {
        let authority = Authority::generate(now()).unwrap();
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }
}
