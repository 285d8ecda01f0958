//! The seal: the webhook's word that it admitted a volume, for a namespace, under a handle (design §4).
//!
//! Ed25519 (RFC 8032) over the canonical JSON array `["csi.oras.land/seal/v1", namespace, handle, set, id,
//! recipe]`, written `v1.KEYID.BASE64URL`. It is deterministic: sealing twice is sealing once. The webhook has the
//! private key, drivers have public keys only; the key's id lets keys rotate.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::digest::Digest;
use crate::display::Shown;
use crate::volume::CanonicalVolume;

const VERSION: &str = "v1";
const DOMAIN: &str = "csi.oras.land/seal/v1";
const SIGNATURE_LENGTH: usize = 64;
const PUBLIC_KEY_LENGTH: usize = 32;
const KEY_ID_LENGTH: usize = 16;
const PRIVATE_PEM: &str = "PRIVATE KEY";
const PUBLIC_PEM: &str = "PUBLIC KEY";
/// What stands before the 32 bytes of a key in its `SubjectPublicKeyInfo` (RFC 8410, section 10.1).
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// For whom a volume is: what a seal binds besides the volume itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder<'a> {
    namespace: &'a str,
    handle: &'a str,
}

impl<'a> Holder<'a> {
    /// A pod of a namespace, for a volume that it has inline.
    pub fn pod(namespace: &'a str) -> Self {
        Self { namespace, handle: "" }
    }

    /// Whoever claims, in a namespace, the `PersistentVolume` with that `volumeHandle`.
    pub fn claim(namespace: &'a str, handle: &'a str) -> Self {
        Self { namespace, handle }
    }
}

impl fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespace {}", Shown::new(self.namespace))?;
        if self.handle.is_empty() {
            return Ok(());
        }
        write!(f, ", volume handle {}", Shown::new(self.handle))
    }
}

/// Which key: the first 16 hexadecimal characters of the SHA-256 of its 32 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    fn of(key: &[u8]) -> Self {
        let mut hex = Digest::sha256_of(key).hex().to_owned();
        hex.truncate(KEY_ID_LENGTH);
        Self(hex)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A seal as it is written. That it is one says nothing: see [`PublicKeys::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    key: KeyId,
    signature: [u8; SIGNATURE_LENGTH],
}

/// A text that is no seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not of the form v1.KEYID.BASE64URL")]
pub struct NoSeal;

impl Seal {
    /// How many characters every seal has.
    pub const LENGTH: usize = VERSION.len() + 1 + KEY_ID_LENGTH + 1 + (SIGNATURE_LENGTH * 4).div_ceil(3);

    /// The key that it says it was made with.
    pub fn key(&self) -> &KeyId {
        &self.key
    }
}

impl FromStr for Seal {
    type Err = NoSeal;

    fn from_str(text: &str) -> Result<Self, NoSeal> {
        let mut parts = text.split('.');
        let (Some(VERSION), Some(key), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NoSeal);
        };
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if key.len() != KEY_ID_LENGTH || !key.bytes().all(is_hex) {
            return Err(NoSeal);
        }
        // The decoder takes one spelling only: no padding, no stray bits at the end.
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).map_err(|_| NoSeal)?;
        let signature = signature.try_into().map_err(|_| NoSeal)?;
        Ok(Self { key: KeyId(key.to_owned()), signature })
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{}.{}", self.key, BASE64_URL_SAFE_NO_PAD.encode(self.signature))
    }
}

/// Why something is no key. Never says what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not PEM, or of another kind.
    #[error(
        "it is no PEM block \"{wanted}\": make one with openssl genpkey -algorithm ed25519, and its public half with \
         openssl pkey -pubout"
    )]
    Pem {
        /// The label that it should have.
        wanted: &'static str,
    },
    /// A key of another algorithm, or none.
    #[error("it is no Ed25519 key: make one with openssl genpkey -algorithm ed25519")]
    Kind,
    /// The machine has no random numbers.
    #[error("the system gives no random numbers for a new key")]
    Random,
}

/// The private key: what makes seals. `Debug` shows its id alone.
pub struct SealKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealKey").field("id", self.public.id()).finish_non_exhaustive()
    }
}

impl SealKey {
    /// A new one.
    pub fn generate() -> Result<Self, KeyError> {
        Self::new(Ed25519KeyPair::generate().map_err(|_| KeyError::Random)?)
    }

    fn new(pair: Ed25519KeyPair) -> Result<Self, KeyError> {
        let bytes = pair.public_key().as_ref().try_into().map_err(|_| KeyError::Kind)?;
        Ok(Self { pair, public: PublicKey::new(bytes) })
    }

    /// Reads PKCS#8 in PEM (RFC 5958, RFC 7468), with or without the public half in it.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = Zeroizing::new(read_pem(text, PRIVATE_PEM)?);
        Self::new(Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| KeyError::Kind)?)
    }

    /// The key in PEM: for the one file or Secret that keeps it.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        let der: Pkcs8V1Der<'_> = self.pair.as_der().map_err(|_| KeyError::Kind)?;
        let bytes = Zeroizing::new(der.as_ref().to_vec());
        Ok(Zeroizing::new(pem::encode(&pem::Pem::new(PRIVATE_PEM, bytes.as_slice()))))
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The same volume, sealed for `holder`.
    pub fn seal(&self, volume: CanonicalVolume, holder: Holder<'_>) -> CanonicalVolume {
        let signature = self.pair.sign(&signed(&volume, holder));
        let signature = signature.as_ref().try_into();
        let signature =
            signature.unwrap_or_else(|_| unreachable!("an Ed25519 signature has 64 bytes (RFC 8032)"));
        volume.with_seal(Seal { key: self.public.id.clone(), signature })
    }
}

/// What is signed.
fn signed(volume: &CanonicalVolume, holder: Holder<'_>) -> Vec<u8> {
    let set = volume.set().unwrap_or_default();
    let parts =
        [DOMAIN, holder.namespace, holder.handle, set, volume.id().as_str(), volume.recipe().to_json()];
    serde_json::Value::from_iter(parts).to_string().into_bytes()
}

/// A public key: what a driver knows the webhook's word by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    bytes: [u8; PUBLIC_KEY_LENGTH],
}

impl PublicKey {
    fn new(bytes: [u8; PUBLIC_KEY_LENGTH]) -> Self {
        Self { id: KeyId::of(&bytes), bytes }
    }

    /// Its id.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Reads a `SubjectPublicKeyInfo` in PEM (RFC 8410, RFC 7468).
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = read_pem(text, PUBLIC_PEM)?;
        let bytes = der.strip_prefix(&PUBLIC_PREFIX).ok_or(KeyError::Kind)?;
        Ok(Self::new(bytes.try_into().map_err(|_| KeyError::Kind)?))
    }

    /// The key in PEM.
    pub fn to_pem(&self) -> String {
        pem::encode(&pem::Pem::new(PUBLIC_PEM, [PUBLIC_PREFIX.as_slice(), &self.bytes].concat()))
    }
}

fn read_pem(text: &str, wanted: &'static str) -> Result<Vec<u8>, KeyError> {
    match pem::parse(text) {
        Ok(block) if block.tag() == wanted => Ok(block.into_contents()),
        _ => Err(KeyError::Pem { wanted }),
    }
}

/// The keys whose seals count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicKeys(BTreeMap<KeyId, PublicKey>);

impl FromIterator<PublicKey> for PublicKeys {
    fn from_iter<T: IntoIterator<Item = PublicKey>>(keys: T) -> Self {
        Self(keys.into_iter().map(|key| (key.id.clone(), key)).collect())
    }
}

impl PublicKeys {
    /// Their ids.
    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.0.keys()
    }

    /// Whether a volume bears a seal of one of these keys that was made for it and for `holder`.
    pub fn check(&self, volume: &CanonicalVolume, holder: Holder<'_>) -> Result<(), SealError> {
        let seal = volume.seal().ok_or(SealError::Missing)?;
        let Some(key) = self.0.get(&seal.key) else {
            let known = self.ids().map(KeyId::as_str).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".to_owned() } else { known };
            return Err(SealError::UnknownKey { key: seal.key.clone(), known });
        };
        let signed = signed(volume, holder);
        UnparsedPublicKey::new(&ED25519, key.bytes)
            .verify(&signed, &seal.signature)
            .map_err(|_| SealError::Foreign { holder: holder.to_string() })
    }
}

/// Why a volume's seal does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is none.
    #[error(
        "the volume has no seal (csi.oras.land/seal), so no oras-csi webhook admitted it: create it again through the \
         API server, where the webhook is installed and sees it"
    )]
    Missing,
    /// Of a key that is not there.
    #[error(
        "the volume's seal was made with key {key}, and the keys that count here are: {known}. A new key takes up to two \
         minutes to reach every node; one that the administrator has dropped needs the volume's owner created again"
    )]
    UnknownKey {
        /// Which it says.
        key: KeyId,
        /// Those that there are.
        known: String,
    },
    /// The signature is of something else.
    #[error(
        "the volume's seal is not for this volume in {holder}: it was admitted for another namespace or handle, or \
         changed since: create it again through the API server, and leave the csi.oras.land/ attributes to the webhook"
    )]
    Foreign {
        /// For whom it would have to be.
        holder: String,
    },
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::keys::canonical;
    use crate::recipe::{Layer, PinnedRecipe, Step};
    use crate::reference::Reference;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";

    fn recipe(repository: &str) -> PinnedRecipe {
        let pinned = Reference::parse(repository).unwrap().pin(Digest::sha256_of(b""));
        PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).unwrap()
    }

    fn volume(repository: &str) -> CanonicalVolume {
        CanonicalVolume::new(None, recipe(repository)).unwrap()
    }

    fn keys(keys: &[&SealKey]) -> PublicKeys {
        keys.iter().map(|key| key.public().clone()).collect()
    }

    /// RFC 8032, section 7.1, test 1 has this key; openssl wrote the PEM.
    #[test]
    fn a_key_is_that_of_the_standard() {
        let key = SealKey::from_pem(KEY).unwrap();
        let public = key.public().to_pem();
        assert_eq!(
            public.replace("\r\n", "\n"),
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
             -----END PUBLIC KEY-----\n"
        );
        assert_eq!(PublicKey::from_pem(&public).as_ref(), Ok(key.public()));
        assert_eq!(key.public().id().as_str(), &Digest::sha256_of(&key.public().bytes).hex()[..16]);
    }

    #[test]
    fn what_is_written_reads_back_and_is_the_same_again() {
        let key = SealKey::generate().unwrap();
        let again = SealKey::from_pem(&key.to_pem().unwrap()).unwrap();
        let sealed = key.seal(volume("r.example/a"), Holder::pod("team"));
        assert_eq!(again.seal(sealed.clone(), Holder::pod("team")), sealed, "deterministic, and sealed anew");
        let text = sealed.seal().unwrap().to_string();
        assert_eq!(text.len(), Seal::LENGTH);
        assert_eq!(text.parse().as_ref(), Ok(sealed.seal().unwrap()));
        assert!(!format!("{key:?}").contains("BEGIN") && format!("{key:?}").len() < 80);
    }

    #[test]
    fn what_is_signed_is_what_the_contract_says() {
        let volume = volume("r.example/a").with_set("s").unwrap();
        let signed = String::from_utf8(signed(&volume, Holder::claim("team", "pv \"1\""))).unwrap();
        let digest = Digest::sha256_of(b"");
        let expected = format!(
            r#"["csi.oras.land/seal/v1","team","pv \"1\"","s","{}","[{{\"add\":\"r.example/a@{digest}\"}}]"]"#,
            volume.id()
        );
        assert_eq!(signed, expected);
    }

    /// Each differs in one thing from the one that passes.
    #[test]
    fn a_seal_is_for_one_volume_one_holder_one_set_and_one_key() {
        let (key, other) = (SealKey::generate().unwrap(), SealKey::generate().unwrap());
        let holder = Holder::claim("team", "pv-1");
        let of_set = || volume("r.example/a").with_set("models").unwrap();
        let sealed = key.seal(of_set(), holder);
        let seal = sealed.seal().unwrap().clone();
        assert_eq!(keys(&[&key]).check(&sealed, holder), Ok(()));
        assert_eq!(keys(&[&other, &key]).check(&sealed, holder), Ok(()));

        for holder in [
            Holder::claim("teams", "pv-1"),
            Holder::claim("team", "pv-2"),
            Holder::pod("team"),
            Holder::claim("", "pv-1"),
        ] {
            assert!(
                matches!(keys(&[&key]).check(&sealed, holder), Err(SealError::Foreign { .. })),
                "{holder}"
            );
        }
        let renamed = CanonicalVolume::new(Some("other"), recipe("r.example/a")).unwrap();
        for volume in [
            volume("r.example/b").with_set("models").unwrap(),
            volume("r.example/a"),
            volume("r.example/a").with_set("model").unwrap(),
            renamed.with_set("models").unwrap(),
        ] {
            let forged = volume.with_seal(seal.clone());
            assert!(
                matches!(keys(&[&key]).check(&forged, holder), Err(SealError::Foreign { .. })),
                "{forged:?}"
            );
        }
        assert!(matches!(keys(&[&other]).check(&sealed, holder), Err(SealError::UnknownKey { .. })));
        assert!(matches!(keys(&[]).check(&sealed, holder), Err(SealError::UnknownKey { .. })));
        let stolen_name = of_set().with_seal(Seal { key: other.public().id().clone(), ..seal });
        assert!(matches!(keys(&[&key, &other]).check(&stolen_name, holder), Err(SealError::Foreign { .. })));
        assert_eq!(keys(&[&key]).check(&of_set(), holder), Err(SealError::Missing));
    }

    #[rstest]
    #[case("")]
    #[case("v1")]
    #[case("v1..")]
    #[case("v2.0123456789abcdef.AAAA")]
    #[case("v1.0123456789abcdef.AAAA")]
    #[case("v1.0123456789ABCDEF.")]
    fn what_is_no_seal_is_none(#[case] text: &str) {
        assert_eq!(text.parse::<Seal>(), Err(NoSeal));
    }

    #[test]
    fn a_seal_has_one_spelling() {
        let sealed = SealKey::from_pem(KEY).unwrap().seal(volume("r.example/a"), Holder::pod("team"));
        let text = sealed.to_attributes()[canonical::SEAL].clone();
        for other in [
            format!("{text}=="),
            format!("{text}."),
            format!(" {text}"),
            text.to_uppercase(),
            // The last character's unused bits.
            format!("{}{}", &text[..text.len() - 1], if text.ends_with('A') { 'B' } else { 'h' }),
        ] {
            assert!(other == text || other.parse::<Seal>().is_err(), "{other}");
        }
    }

    #[rstest]
    #[case("")]
    #[case("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n")]
    #[case("-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n")]
    #[case("-----BEGIN EC PRIVATE KEY-----\nMAA=\n-----END EC PRIVATE KEY-----\n")]
    fn what_is_no_key_is_told_apart(#[case] text: &str) {
        let error = SealKey::from_pem(text).unwrap_err();
        assert!(error.to_string().contains("openssl genpkey -algorithm ed25519"), "{error}");
        assert!(PublicKey::from_pem(text).is_err());
        assert!(PublicKey::from_pem(KEY).is_err(), "a private key is no public one");
    }
}
