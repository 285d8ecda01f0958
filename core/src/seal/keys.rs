//! The Ed25519 keys that sign and verify seals.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

use super::{Holder, SIGNATURE_LENGTH, Seal, SealError, SealedContent};
use crate::digest::Digest;

const PUBLIC_KEY_LENGTH: usize = 32;
const PRIVATE_PEM: &str = "PRIVATE KEY";
const PUBLIC_PEM: &str = "PUBLIC KEY";
/// The bytes before the 32 bytes of the key in a `SubjectPublicKeyInfo` (RFC 8410, section 10.1).
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The id of a key: the first 16 hexadecimal characters of the SHA-256 of its 32 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    /// The length of every key id, in characters.
    pub(super) const LENGTH: usize = 16;

    fn of(key: &[u8]) -> Self {
        let mut hex = Digest::sha256_of(key).hex().to_owned();
        hex.truncate(Self::LENGTH);
        Self(hex)
    }

    /// Parses a key id; returns `None` for a text with another length or other characters.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == Self::LENGTH && text.bytes().all(is_hex)).then(|| Self(text.to_owned()))
    }

    /// Returns the 16 hexadecimal characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The error for data that is not an Ed25519 key. The message never has a part of the data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not a PEM block with the expected label.
    #[error(
        "it is not a PEM block \"{expected}\": create a key with `openssl genpkey -algorithm ed25519`, and its public key \
         with `openssl pkey -pubout`"
    )]
    Pem {
        /// The expected label of the PEM block.
        expected: &'static str,
    },
    /// The PEM block has a key of another algorithm, or no key.
    #[error("it is not an Ed25519 key: create one with `openssl genpkey -algorithm ed25519`")]
    Kind,
    /// The operating system returned no random numbers.
    #[error("cannot generate a key: the operating system returned no random numbers")]
    Random,
}

/// How many signatures a key keeps. A message is at most a few KiB: see `CanonicalVolume::MAX_BYTES`.
const MAX_SIGNATURES: usize = 256;

/// The private key that signs volumes. Its `Debug` output has only the key id.
pub struct SealKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
    /// The signatures of recent messages. All pods of a workload get the same seal, and signing is deterministic, so a
    /// message is signed once. They belong to this key: another key starts without any.
    signatures: Mutex<HashMap<Vec<u8>, [u8; SIGNATURE_LENGTH]>>,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealKey").field("id", self.public.id()).finish_non_exhaustive()
    }
}

impl SealKey {
    /// Generates a new key.
    pub fn generate() -> Result<Self, KeyError> {
        Self::new(Ed25519KeyPair::generate().map_err(|_| KeyError::Random)?)
    }

    fn new(pair: Ed25519KeyPair) -> Result<Self, KeyError> {
        let bytes = pair.public_key().as_ref().try_into().map_err(|_| KeyError::Kind)?;
        Ok(Self { pair, public: PublicKey::new(bytes), signatures: Mutex::default() })
    }

    /// Parses a PKCS#8 key in PEM (RFC 5958, RFC 7468), with or without the public key in it.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = Zeroizing::new(parse_pem(text, PRIVATE_PEM)?);
        Self::new(Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| KeyError::Kind)?)
    }

    /// Returns the private key in PEM, for the file or Secret that stores it.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        let der: Pkcs8V1Der<'_> = self.pair.as_der().map_err(|_| KeyError::Kind)?;
        let bytes = Zeroizing::new(der.as_ref().to_vec());
        Ok(Zeroizing::new(pem::encode(&pem::Pem::new(PRIVATE_PEM, bytes.as_slice()))))
    }

    /// Returns the public key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `content` for `holder`.
    pub fn sign(&self, content: SealedContent<'_>, holder: Holder<'_>) -> Seal {
        let message = content.payload(holder);
        let known = self.signatures.lock().unwrap_or_else(PoisonError::into_inner).get(&message).copied();
        let signature = known.unwrap_or_else(|| self.sign_message(message));
        Seal { key: self.public.id.clone(), signature }
    }

    /// Signs a message, and keeps the signature.
    fn sign_message(&self, message: Vec<u8>) -> [u8; SIGNATURE_LENGTH] {
        let signature = self.pair.sign(&message).as_ref().try_into();
        let signature =
            signature.unwrap_or_else(|_| unreachable!("an Ed25519 signature has 64 bytes (RFC 8032)"));
        let mut signatures = self.signatures.lock().unwrap_or_else(PoisonError::into_inner);
        // Starting again costs one signature for each message, which is less than keeping the order of use.
        if signatures.len() >= MAX_SIGNATURES {
            signatures.clear();
        }
        signatures.insert(message, signature);
        signature
    }

    #[cfg(test)]
    pub(super) fn kept_signatures(&self) -> usize {
        self.signatures.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A public key, with which a driver verifies seals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    bytes: [u8; PUBLIC_KEY_LENGTH],
}

impl PublicKey {
    fn new(bytes: [u8; PUBLIC_KEY_LENGTH]) -> Self {
        Self { id: KeyId::of(&bytes), bytes }
    }

    /// Returns the id of the key.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Parses a `SubjectPublicKeyInfo` in PEM (RFC 8410, RFC 7468).
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = parse_pem(text, PUBLIC_PEM)?;
        let bytes = der.strip_prefix(&PUBLIC_PREFIX).ok_or(KeyError::Kind)?;
        Ok(Self::new(bytes.try_into().map_err(|_| KeyError::Kind)?))
    }

    /// Returns the key in PEM.
    pub fn to_pem(&self) -> String {
        pem::encode(&pem::Pem::new(PUBLIC_PEM, [PUBLIC_PREFIX.as_slice(), &self.bytes].concat()))
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn parse_pem(text: &str, expected: &'static str) -> Result<Vec<u8>, KeyError> {
    match pem::parse(text) {
        Ok(block) if block.tag() == expected => Ok(block.into_contents()),
        _ => Err(KeyError::Pem { expected }),
    }
}

/// The public keys whose seals are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicKeys(BTreeMap<KeyId, PublicKey>);

impl FromIterator<PublicKey> for PublicKeys {
    fn from_iter<T: IntoIterator<Item = PublicKey>>(keys: T) -> Self {
        Self(keys.into_iter().map(|key| (key.id.clone(), key)).collect())
    }
}

impl PublicKeys {
    /// Returns the ids of the keys.
    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.0.keys()
    }

    /// Verifies that one of these keys signed `content` for `holder`.
    ///
    /// Fails when no key has the key id of the seal, and when the signature is not valid.
    pub fn verify(
        &self,
        seal: &Seal,
        content: SealedContent<'_>,
        holder: Holder<'_>,
    ) -> Result<(), SealError> {
        let Some(key) = self.0.get(&seal.key) else {
            let known = self.ids().map(KeyId::as_str).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".to_owned() } else { known };
            return Err(SealError::UnknownKey { key: seal.key.clone(), known });
        };
        UnparsedPublicKey::new(&ED25519, key.bytes)
            .verify(&content.payload(holder), &seal.signature)
            .map_err(|_| SealError::Invalid { holder: holder.to_string() })
    }
}
