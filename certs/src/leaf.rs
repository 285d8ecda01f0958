//! A serving certificate that was checked.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use crate::ca_bundle::{CaBundle, parse_certificates, validity_of};
use crate::clock::Validity;
use crate::error::Error;
use crate::settings::Names;
use crate::tls_config;

/// A certificate chain and its key. They belong together, cover the names of the server, and were valid when they were
/// read: [`Leaf::parse`], which checks that, is the only constructor.
#[derive(Clone)]
pub(crate) struct Leaf {
    key: Arc<CertifiedKey>,
    validity: Validity,
}

impl Leaf {
    /// Parses `tls.crt` (the leaf first, then intermediates) and `tls.key` of `place`.
    ///
    /// Fails with [`Error::Unusable`], [`Error::KeyMismatch`], [`Error::NotCovered`] or
    /// [`Error::OutOfDate`].
    pub(crate) fn parse(
        place: &str,
        certificate: &[u8],
        key: &[u8],
        names: &Names,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let unusable = |entry, reason: String| Error::Unusable { place: place.to_owned(), entry, reason };
        let chain = parse_certificates(certificate).map_err(|reason| unusable("tls.crt", reason))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| unusable("tls.key", format!("it holds no private key in PEM ({error})")))?;
        // parse_certificates returns at least one.
        let validity = validity_of(&chain[0]).map_err(|reason| unusable("tls.crt", reason))?;
        let key =
            CertifiedKey::from_der(chain, key, &tls_config::crypto_provider()).map_err(
                |error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        Error::KeyMismatch { place: place.to_owned(), certificate: "tls.crt", key: "tls.key" }
                    }
                    error => unusable("tls.key", error.to_string()),
                },
            )?;
        let parsed = key.end_entity_cert().and_then(ParsedCertificate::try_from)?;
        for name in names.server_names() {
            if verify_server_name(&parsed, &name).is_err() {
                return Err(Error::NotCovered { place: place.to_owned(), name: name.to_str().into_owned() });
            }
        }
        if !validity.contains(now) {
            return Err(Error::OutOfDate {
                place: place.to_owned(),
                entry: "tls.crt",
                not_before: validity.not_before(),
                not_after: validity.not_after(),
                now,
                remedy: "replace tls.crt and tls.key",
            });
        }
        Ok(Self { key: Arc::new(key), validity })
    }

    /// Returns the chain and the key for rustls.
    pub(crate) fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Returns the certificates, leaf first.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Returns the validity.
    pub(crate) fn validity(&self) -> Validity {
        self.validity
    }

    /// Reports whether `authority` signed it directly.
    pub(crate) fn is_from(&self, authority: &CertificateDer<'static>) -> bool {
        is_from(self.chain(), authority)
    }

    /// Reports whether it must be renewed: a third of its life is left, or a little more. The addition, up to a twentieth of
    /// its life, depends on the signature of the certificate, so that replicas that started together do not renew at the
    /// same time.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        let life = self.validity.life();
        let spread = self.chain().first().map_or(0, |leaf| leaf.last().copied().unwrap_or(0));
        let early = life / 3 + life / 20 * u32::from(spread) / 255;
        now < self.validity.not_before() || now + early >= self.validity.not_after()
    }

    /// Returns how long it remains valid after `now`.
    pub(crate) fn remaining(&self, now: SystemTime) -> Duration {
        self.validity.not_after().duration_since(now).unwrap_or_default()
    }
}

impl PartialEq for Leaf {
    fn eq(&self, other: &Self) -> bool {
        self.chain() == other.chain()
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("validity", &self.validity).finish_non_exhaustive()
    }
}

/// Reports whether `chain` begins with a leaf that `authority` signed directly, even if the leaf has expired.
pub(crate) fn is_from(chain: &[CertificateDer<'_>], authority: &CertificateDer<'static>) -> bool {
    let Some(leaf) = chain.first() else { return false };
    let Ok(validity) = validity_of(leaf) else { return false };
    leaf != authority
        && CaBundle::from(authority.clone())
            .verify_chain(std::slice::from_ref(leaf), validity.middle())
            .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, BACKDATED, LEAF_LIFE};
    use crate::testing::{names, now, other_names};
    use rstest::rstest;

    fn pair(names: &Names) -> (Authority, crate::authority::IssuedLeaf) {
        let authority = Authority::generate(now()).unwrap();
        let issued = authority.issue(names, now()).unwrap();
        (authority, issued)
    }

    fn parse(crt: &str, key: &str, at: SystemTime) -> Result<Leaf, Error> {
        Leaf::parse("here", crt.as_bytes(), key.as_bytes(), &names(), at)
    }

    #[test]
    fn a_valid_pair_is_accepted_and_names_its_ca() {
        let (authority, issued) = pair(&names());
        let leaf = parse(&issued.certificate_pem, &issued.key_pem, now()).unwrap();
        assert!(leaf.is_from(authority.certificate()));
        assert!(!leaf.is_from(Authority::generate(now()).unwrap().certificate()));
    }

    #[test]
    fn an_unusable_pair_is_rejected_with_the_reason() {
        let (_, good) = pair(&names());
        let (_, other) = pair(&names());
        let (_, foreign) = pair(&other_names());
        let at = now();
        let late = at + LEAF_LIFE + Duration::from_secs(1);
        let early = at - BACKDATED - Duration::from_secs(1);
        let result = |crt: &str, key: &str, at| parse(crt, key, at).unwrap_err();
        assert!(matches!(
            result(&good.certificate_pem, &other.key_pem, at),
            Error::KeyMismatch { certificate: "tls.crt", key: "tls.key", .. }
        ));
        assert!(matches!(result("nonsense", &good.key_pem, at), Error::Unusable { entry: "tls.crt", .. }));
        assert!(matches!(
            result(&good.certificate_pem, "nonsense", at),
            Error::Unusable { entry: "tls.key", .. }
        ));
        assert!(matches!(result(&foreign.certificate_pem, &foreign.key_pem, at), Error::NotCovered { .. }));
        assert!(matches!(result(&good.certificate_pem, &good.key_pem, late), Error::OutOfDate { .. }));
        assert!(matches!(result(&good.certificate_pem, &good.key_pem, early), Error::OutOfDate { .. }));
    }

    #[rstest]
    #[case::new(0.0, false)]
    #[case::half(0.5, false)]
    #[case::before_the_window(0.61, false)]
    #[case::a_third_is_left(0.667, true)]
    #[case::nearly_expired(0.99, true)]
    fn a_leaf_is_due_when_a_third_of_its_life_is_left(#[case] lived: f64, #[case] due: bool) {
        let (_, issued) = pair(&names());
        let leaf = parse(&issued.certificate_pem, &issued.key_pem, now()).unwrap();
        let at = leaf.validity().not_before() + leaf.validity().life().mul_f64(lived);
        assert_eq!(leaf.is_due(at), due);
    }

    #[test]
    fn a_leaf_is_due_when_the_clock_was_set_back() {
        let (_, issued) = pair(&names());
        let leaf = parse(&issued.certificate_pem, &issued.key_pem, now()).unwrap();
        assert!(leaf.is_due(now() - 2 * BACKDATED));
    }
}
