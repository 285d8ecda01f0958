//! The entries of a folder or Secret, and how they are interpreted. No I/O.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use crate::authority::Authority;
use crate::ca_bundle::{CaBundle, parse_certificates};
use crate::error::Error;
use crate::leaf;
use crate::settings::Issuance;

/// The CA certificates to trust; the CA in use comes first.
pub(crate) const CA_CRT: &str = "ca.crt";
/// The private key of the first certificate in [`CA_CRT`].
pub(crate) const CA_KEY: &str = "ca.key";
/// CA certificates that were in use before and are still trusted.
pub(crate) const CA_PREVIOUS_CRT: &str = "ca-previous.crt";
/// The serving certificate, followed by intermediates.
pub(crate) const TLS_CRT: &str = "tls.crt";
/// The private key of [`TLS_CRT`].
pub(crate) const TLS_KEY: &str = "tls.key";

/// The entries of a folder or Secret, as bytes. They are never printed, because some are private keys.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Entries {
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

/// A certificate and a key that have not been checked.
#[derive(Clone)]
pub(crate) struct RawPair {
    /// [`TLS_CRT`]
    pub(crate) certificate: Vec<u8>,
    /// [`TLS_KEY`]
    pub(crate) key: Vec<u8>,
}

/// What [`Entries`] hold.
pub(crate) enum Stored {
    /// Nothing yet, or the key of a CA without its certificate, because the process that created it ended in between. A CA
    /// can be created or completed.
    Nothing,
    /// A CA that oras-csi created.
    Authority(Box<StoredCa>),
    /// An external certificate, with its CAs if there are any.
    External {
        /// The certificate and key.
        pair: RawPair,
        /// [`CA_CRT`] and [`CA_PREVIOUS_CRT`].
        bundle: CaBundle,
    },
}

/// A CA that oras-csi created, and the serving certificate beside it.
pub(crate) struct StoredCa {
    /// The CA.
    pub(crate) authority: Authority,
    /// The CA and earlier CAs.
    pub(crate) bundle: CaBundle,
    /// The contents of [`TLS_CRT`] and [`TLS_KEY`].
    pub(crate) leaf: StoredLeaf,
}

/// The serving certificate beside the CA.
pub(crate) enum StoredLeaf {
    /// There is none.
    Nothing,
    /// The CA signed it, so it can be renewed. Its key is missing or belongs to another certificate if a renewal was
    /// interrupted.
    Ours(Option<RawPair>),
    /// Another CA signed it. It is served, and never renewed or overwritten.
    Foreign(RawPair),
}

impl Entries {
    /// Interprets the entries.
    ///
    /// A `tls.crt` and `tls.key` without a `ca.key` that belongs to `ca.crt` are external. With [`Issuance::External`] no
    /// other case is considered.
    ///
    /// Fails with [`Error::Unusable`], [`Error::Incomplete`], [`Error::KeyMismatch`],
    /// [`Error::OutOfDate`] for an expired CA, or [`Error::NoCertificateYet`].
    pub(crate) fn interpret(self, place: &str, issuance: Issuance, now: SystemTime) -> Result<Stored, Error> {
        let incomplete =
            |present, missing| Err(Error::Incomplete { place: place.to_owned(), present, missing });
        if issuance == Issuance::External {
            return match (self.tls_crt, self.tls_key) {
                (Some(certificate), Some(key)) => {
                    let bundle = bundle(place, self.ca_crt.as_deref(), self.ca_previous.as_deref())?;
                    Ok(Stored::External { pair: RawPair { certificate, key }, bundle })
                }
                (None, None) => Err(Error::NoCertificateYet { place: place.to_owned() }),
                (Some(_), None) => incomplete(TLS_CRT, TLS_KEY),
                (None, Some(_)) => incomplete(TLS_KEY, TLS_CRT),
            };
        }
        if let (Some(ca_crt), Some(ca_key)) = (&self.ca_crt, &self.ca_key) {
            match authority(place, ca_crt, ca_key, now) {
                Ok(authority) => {
                    let bundle = bundle(place, Some(ca_crt), self.ca_previous.as_deref())?;
                    let leaf = stored_leaf(place, authority.certificate(), self.tls_crt, self.tls_key)?;
                    return Ok(Stored::Authority(Box::new(StoredCa { authority, bundle, leaf })));
                }
                // Another tool replaced all entries except `ca.key`, as cert-manager does in a Secret.
                Err(Error::KeyMismatch { .. }) if self.tls_crt.is_some() && self.tls_key.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        match (self.tls_crt, self.tls_key, self.ca_crt) {
            (Some(certificate), Some(key), ca_crt) => {
                let bundle = bundle(place, ca_crt.as_deref(), self.ca_previous.as_deref())?;
                Ok(Stored::External { pair: RawPair { certificate, key }, bundle })
            }
            (Some(_), None, _) => incomplete(TLS_CRT, TLS_KEY),
            (None, Some(_), _) => incomplete(TLS_KEY, TLS_CRT),
            (None, None, Some(_)) => incomplete(CA_CRT, CA_KEY),
            (None, None, None) => Ok(Stored::Nothing),
        }
    }
}

fn authority(place: &str, ca_crt: &[u8], ca_key: &[u8], now: SystemTime) -> Result<Authority, Error> {
    let certificates = certificates(place, CA_CRT, ca_crt)?;
    // parse_certificates returns at least one.
    let authority = Authority::parse(place, &certificates[0], ca_key)?;
    let validity = authority.validity();
    if !validity.contains(now) {
        return Err(Error::OutOfDate {
            place: place.to_owned(),
            entry: CA_CRT,
            not_before: validity.not_before(),
            not_after: validity.not_after(),
            now,
            remedy: "remove ca.crt, ca.key, tls.crt and tls.key, and new ones are created",
        });
    }
    Ok(authority)
}

fn stored_leaf(
    place: &str,
    authority: &CertificateDer<'static>,
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
) -> Result<StoredLeaf, Error> {
    match (certificate, key) {
        (None, None) => Ok(StoredLeaf::Nothing),
        // The certificate is written before its key, so this is not an interrupted renewal.
        (None, Some(_)) => {
            Err(Error::Incomplete { place: place.to_owned(), present: TLS_KEY, missing: TLS_CRT })
        }
        (Some(certificate), key) => {
            let chain = certificates(place, TLS_CRT, &certificate)?;
            let pair = key.map(|key| RawPair { certificate, key });
            match pair {
                pair if leaf::is_from(&chain, authority) => Ok(StoredLeaf::Ours(pair)),
                Some(pair) => Ok(StoredLeaf::Foreign(pair)),
                None => {
                    Err(Error::Incomplete { place: place.to_owned(), present: TLS_CRT, missing: TLS_KEY })
                }
            }
        }
    }
}

fn bundle(place: &str, current: Option<&[u8]>, previous: Option<&[u8]>) -> Result<CaBundle, Error> {
    let mut bundle = CaBundle::default();
    for (entry, pem) in [(CA_CRT, current), (CA_PREVIOUS_CRT, previous)] {
        // cert-manager writes an empty ca.crt for issuers without a CA.
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
#[path = "entries_tests.rs"]
mod tests;
