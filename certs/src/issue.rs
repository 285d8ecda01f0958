//! Making certificates: a CA and the short-lived leaves that it signs. Pure, but for the randomness of
//! keys: the time is an argument.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::sign::CertifiedKey;

use crate::bundle::validity_of;
use crate::clock::{Validity, human};
use crate::error::Error;
use crate::settings::Names;
use crate::tls;

/// How long a CA is good for: ten years. It is pinned in one `caBundle` and nowhere else, so a short life
/// would add an outage and take away no risk; `ca-previous.crt` lets it be replaced at any time.
pub(crate) const AUTHORITY_LIFE: Duration = Duration::from_hours(3650 * 24);

/// How long a leaf is good for: seven days. Nobody can revoke it, so it must run out by itself.
pub(crate) const LEAF_LIFE: Duration = Duration::from_hours(7 * 24);

/// How far back a certificate's life begins, for clients whose clock is behind: five minutes.
pub(crate) const BACKDATED: Duration = Duration::from_mins(5);

/// A CA with its key: it can sign leaves.
pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
    validity: Validity,
}

/// A leaf as it is written: PEM, certificate and key.
pub(crate) struct Issued {
    /// The certificate, which the CA signed directly: no intermediates.
    pub(crate) certificate_pem: String,
    /// Its key, PKCS #8.
    pub(crate) key_pem: String,
}

impl Authority {
    /// A new CA with a new ECDSA P-256 key, good from [`BACKDATED`] before `now` for [`AUTHORITY_LIFE`].
    pub(crate) fn generate(now: SystemTime) -> Result<Self, Error> {
        Self::for_key(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?, now)
    }

    /// A new CA certificate for the key in `ca.key` of `place`: whichever process makes it, what the key
    /// signs is trusted through it.
    ///
    /// Fails with [`Error::Unusable`] for a key that does not parse.
    pub(crate) fn finish(place: &str, key_pem: &[u8], now: SystemTime) -> Result<Self, Error> {
        let key = KeyPair::from_pem(&String::from_utf8_lossy(key_pem)).map_err(|error| Error::Unusable {
            place: place.to_owned(),
            entry: "ca.key",
            reason: format!("it holds no private key that can sign ({error})"),
        })?;
        Self::for_key(key, now)
    }

    fn for_key(key: KeyPair, now: SystemTime) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        // The date tells two CAs in one bundle apart for people; for machines the key identifier does.
        params.distinguished_name.push(DnType::CommonName, format!("oras-csi webhook CA {}", human(now)));
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

    /// The CA of which `certificate` and `key_pem` were read from `place`.
    ///
    /// Fails with [`Error::Unusable`] for a key that does not parse, [`Error::KeyMismatch`] for another
    /// certificate's key.
    pub(crate) fn parse(
        place: &str,
        certificate: &CertificateDer<'static>,
        key_pem: &[u8],
    ) -> Result<Self, Error> {
        let unusable = |entry, reason: String| Error::Unusable { place: place.to_owned(), entry, reason };
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|error| unusable("ca.key", format!("it holds no private key ({error})")))?;
        match CertifiedKey::from_der(vec![certificate.clone()], key, &tls::provider()) {
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
        let certificate_pem = crate::bundle::to_pem(certificate);
        Ok(Self { certificate: certificate.clone(), certificate_pem, key_pem, issuer, validity })
    }

    /// A leaf for `names` with a new ECDSA P-256 key, for TLS servers only, good from [`BACKDATED`] before
    /// `now` for [`LEAF_LIFE`], but no longer than the CA itself.
    pub(crate) fn issue(&self, names: &Names, now: SystemTime) -> Result<Issued, Error> {
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
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// The CA's certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA's certificate as PEM.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA's private key as PEM: for whoever keeps it, and for no log.
    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// From when until when the CA is good.
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
    use crate::bundle::{Bundle, parse_certificates};
    use crate::testing::{names, now};
    use x509_parser::prelude::{FromDer, X509Certificate};

    #[test]
    fn a_ca_is_a_ca_and_a_leaf_is_none() {
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
        Bundle::from(authority.certificate().clone()).vouches_for(&chain, now()).unwrap();
    }

    #[test]
    fn a_leaf_does_not_outlive_its_ca() {
        let authority = Authority::generate(now()).unwrap();
        let late = authority.validity().not_after() - Duration::from_mins(1);
        let issued = authority.issue(&names(), late).unwrap();
        let chain = parse_certificates(issued.certificate_pem.as_bytes()).unwrap();
        assert_eq!(validity_of(&chain[0]).unwrap().not_after(), authority.validity().not_after());
    }

    #[test]
    fn a_ca_read_back_signs_what_the_first_one_vouches_for() {
        let made = Authority::generate(now()).unwrap();
        let read = Authority::parse("here", made.certificate(), made.key_pem().as_bytes()).unwrap();
        let issued = read.issue(&names(), now()).unwrap();
        let chain = parse_certificates(issued.certificate_pem.as_bytes()).unwrap();
        Bundle::from(made.certificate().clone()).vouches_for(&chain, now()).unwrap();

        let other = Authority::generate(now()).unwrap();
        let mixed = Authority::parse("here", made.certificate(), other.key_pem().as_bytes());
        assert!(matches!(mixed, Err(Error::KeyMismatch { .. })));
        let garbage = Authority::parse("here", made.certificate(), b"garbage");
        assert!(matches!(garbage, Err(Error::Unusable { entry: "ca.key", .. })));
    }

    #[test]
    fn no_key_is_printed() {
        let authority = Authority::generate(now()).unwrap();
        assert!(!format!("{authority:?}").contains("PRIVATE"));
    }
}
