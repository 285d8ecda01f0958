//! What a folder or Secret holds, and what that means. Pure.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use crate::bundle::{Bundle, parse_certificates};
use crate::error::Error;
use crate::issue::Authority;
use crate::leaf;
use crate::settings::Issuance;

/// The CA certificates to trust; the CA in use comes first.
pub(crate) const CA_CRT: &str = "ca.crt";
/// The private key of the first certificate in [`CA_CRT`].
pub(crate) const CA_KEY: &str = "ca.key";
/// CA certificates that were in use before and are trusted still.
pub(crate) const CA_PREVIOUS_CRT: &str = "ca-previous.crt";
/// The serving certificate, intermediates after it.
pub(crate) const TLS_CRT: &str = "tls.crt";
/// The private key of [`TLS_CRT`].
pub(crate) const TLS_KEY: &str = "tls.key";

/// The entries of a folder or Secret, as bytes. Not printed: some are private keys.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// [`CA_CRT`]
    pub(crate) ca_crt: Option<Vec<u8>>,
    /// [`CA_KEY`]
    pub(crate) ca_key: Option<Vec<u8>>,
    /// [`CA_PREVIOUS_CRT`]
    pub(crate) ca_previous: Option<Vec<u8>>,
    /// [`TLS_CRT`]
    pub(crate) tls_crt: Option<Vec<u8>>,
    /// [`TLS_KEY`]
    pub(crate) tls_key: Option<Vec<u8>>,
}

/// A certificate and key that have not been looked at.
#[derive(Clone)]
pub(crate) struct RawPair {
    /// [`TLS_CRT`]
    pub(crate) certificate: Vec<u8>,
    /// [`TLS_KEY`]
    pub(crate) key: Vec<u8>,
}

/// What [`Contents`] mean.
pub(crate) enum Kept {
    /// Nothing yet, or the key of a CA whose certificate was not written before the process that made it
    /// ended: a CA may be made and kept, or finished.
    Nothing,
    /// Our own CA.
    Authority(Box<KeptAuthority>),
    /// Somebody else's certificate, with the CAs that they trust; perhaps none.
    External {
        /// The certificate and key.
        pair: RawPair,
        /// [`CA_CRT`] and [`CA_PREVIOUS_CRT`].
        bundle: Bundle,
    },
}

/// Our own CA, and the serving certificate beside it.
pub(crate) struct KeptAuthority {
    /// The CA.
    pub(crate) authority: Authority,
    /// The CA and those before it.
    pub(crate) bundle: Bundle,
    /// What is in [`TLS_CRT`] and [`TLS_KEY`].
    pub(crate) beside: Beside,
}

/// The serving certificate beside our own CA.
pub(crate) enum Beside {
    /// There is none.
    Nothing,
    /// The CA signed it, so it is ours to renew. Its key may be missing or another's: a renewal that was
    /// cut short.
    Ours(Option<RawPair>),
    /// Somebody put another there: it is served, and never renewed nor overwritten.
    Foreign(RawPair),
}

impl Contents {
    /// What the entries mean.
    ///
    /// A `tls.crt` and `tls.key` without a `ca.key` that belongs to `ca.crt` are external. With
    /// [`Issuance::External`] nothing else is looked at.
    ///
    /// Fails with [`Error::Unusable`], [`Error::Incomplete`], [`Error::KeyMismatch`],
    /// [`Error::OutOfDate`] for a CA that has expired, or [`Error::Absent`].
    pub(crate) fn meaning(self, place: &str, issuance: Issuance, now: SystemTime) -> Result<Kept, Error> {
        let incomplete =
            |present, missing| Err(Error::Incomplete { place: place.to_owned(), present, missing });
        if issuance == Issuance::External {
            return match (self.tls_crt, self.tls_key) {
                (Some(certificate), Some(key)) => {
                    let bundle = bundle(place, self.ca_crt.as_deref(), self.ca_previous.as_deref())?;
                    Ok(Kept::External { pair: RawPair { certificate, key }, bundle })
                }
                (None, None) => Err(Error::Absent { place: place.to_owned() }),
                (Some(_), None) => incomplete(TLS_CRT, TLS_KEY),
                (None, Some(_)) => incomplete(TLS_KEY, TLS_CRT),
            };
        }
        if let (Some(ca_crt), Some(ca_key)) = (&self.ca_crt, &self.ca_key) {
            match authority(place, ca_crt, ca_key, now) {
                Ok(authority) => {
                    let bundle = bundle(place, Some(ca_crt), self.ca_previous.as_deref())?;
                    let beside = beside(place, authority.certificate(), self.tls_crt, self.tls_key)?;
                    return Ok(Kept::Authority(Box::new(KeptAuthority { authority, bundle, beside })));
                }
                // Somebody replaced everything but our key, as cert-manager does in a Secret.
                Err(Error::KeyMismatch { .. }) if self.tls_crt.is_some() && self.tls_key.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        match (self.tls_crt, self.tls_key, self.ca_crt) {
            (Some(certificate), Some(key), ca_crt) => {
                let bundle = bundle(place, ca_crt.as_deref(), self.ca_previous.as_deref())?;
                Ok(Kept::External { pair: RawPair { certificate, key }, bundle })
            }
            (Some(_), None, _) => incomplete(TLS_CRT, TLS_KEY),
            (None, Some(_), _) => incomplete(TLS_KEY, TLS_CRT),
            (None, None, Some(_)) => incomplete(CA_CRT, CA_KEY),
            (None, None, None) => Ok(Kept::Nothing),
        }
    }
}

fn authority(place: &str, ca_crt: &[u8], ca_key: &[u8], now: SystemTime) -> Result<Authority, Error> {
    let certificates = certificates(place, CA_CRT, ca_crt)?;
    // parse_certificates gives at least one.
    let authority = Authority::parse(place, &certificates[0], ca_key)?;
    let validity = authority.validity();
    if !validity.contains(now) {
        return Err(Error::OutOfDate {
            place: place.to_owned(),
            entry: CA_CRT,
            not_before: validity.not_before(),
            not_after: validity.not_after(),
            now,
            remedy: "remove ca.crt, ca.key, tls.crt and tls.key to have new ones made",
        });
    }
    Ok(authority)
}

fn beside(
    place: &str,
    authority: &CertificateDer<'static>,
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
) -> Result<Beside, Error> {
    match (certificate, key) {
        (None, None) => Ok(Beside::Nothing),
        // The certificate is written before its key, so this is not a renewal of ours that was cut short.
        (None, Some(_)) => {
            Err(Error::Incomplete { place: place.to_owned(), present: TLS_KEY, missing: TLS_CRT })
        }
        (Some(certificate), key) => {
            let chain = certificates(place, TLS_CRT, &certificate)?;
            let pair = key.map(|key| RawPair { certificate, key });
            match pair {
                pair if leaf::is_from(&chain, authority) => Ok(Beside::Ours(pair)),
                Some(pair) => Ok(Beside::Foreign(pair)),
                None => {
                    Err(Error::Incomplete { place: place.to_owned(), present: TLS_CRT, missing: TLS_KEY })
                }
            }
        }
    }
}

fn bundle(place: &str, current: Option<&[u8]>, previous: Option<&[u8]>) -> Result<Bundle, Error> {
    let mut bundle = Bundle::default();
    for (entry, pem) in [(CA_CRT, current), (CA_PREVIOUS_CRT, previous)] {
        // cert-manager writes an empty ca.crt for issuers that name no CA.
        if let Some(pem) = pem.filter(|pem| !pem.trim_ascii().is_empty()) {
            bundle.extend(certificates(place, entry, pem)?);
        }
    }
    Ok(bundle)
}

fn certificates(place: &str, entry: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    parse_certificates(pem).map_err(|reason| Error::Unusable { place: place.to_owned(), entry, reason })
}

#[cfg(test)]
#[path = "contents_tests.rs"]
mod tests;
