use rstest::rstest;

use super::*;
use crate::digest::Digest;

const KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";

const CONTENT: SealedContent<'_> =
    SealedContent { set: "s", id: "a-0", recipe: r#"[{"add":"r.example/a"}]"# };

/// RFC 8032, section 7.1, test 1 has this key; openssl wrote the PEM.
#[test]
fn parses_the_key_of_rfc_8032() {
    let key = SealKey::from_pem(KEY).unwrap();
    let public = key.public().to_pem();
    assert_eq!(
        public.replace("\r\n", "\n"),
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
         -----END PUBLIC KEY-----\n"
    );
    assert_eq!(PublicKey::from_pem(&public).as_ref(), Ok(key.public()));
    assert_eq!(key.public().id().as_str(), &Digest::sha256_of(key.public().bytes()).hex()[..16]);
}

#[test]
fn the_signed_bytes_are_a_json_array_of_all_values() {
    let payload = String::from_utf8(CONTENT.payload(Holder::claim("team", "pv \"1\""))).unwrap();
    assert_eq!(
        payload,
        r#"["csi.oras.land/seal/v1","team","pv \"1\"","s","a-0","[{\"add\":\"r.example/a\"}]"]"#
    );
}

#[test]
fn debug_output_has_no_private_key() {
    let key = SealKey::generate().unwrap();
    assert!(!format!("{key:?}").contains("BEGIN") && format!("{key:?}").len() < 80);
}

#[test]
fn a_seal_with_the_key_id_of_another_key_is_invalid() {
    let (key, other) = (SealKey::generate().unwrap(), SealKey::generate().unwrap());
    let holder = Holder::pod("team");
    let seal = key.sign(CONTENT, holder);
    let keys = PublicKeys::from_iter([key.public().clone(), other.public().clone()]);
    assert_eq!(keys.verify(&seal, CONTENT, holder), Ok(()));
    let wrong_id = Seal { key: other.public().id().clone(), ..seal };
    assert!(matches!(keys.verify(&wrong_id, CONTENT, holder), Err(SealError::Invalid { .. })));
}

/// A kept signature is the one that the key makes, for this message and this key alone, and their number is limited.
#[test]
fn signatures_are_kept_for_their_message_and_key() {
    let (key, again) = (SealKey::from_pem(KEY).unwrap(), SealKey::from_pem(KEY).unwrap());
    let (other, team) = (SealKey::generate().unwrap(), Holder::pod("team"));
    let first = key.sign(CONTENT, team);
    assert_eq!(key.kept_signatures(), 1);
    assert_eq!(key.sign(CONTENT, team), first);
    assert_eq!(key.kept_signatures(), 1);
    assert_eq!(again.sign(CONTENT, team), first);
    assert_ne!(other.sign(CONTENT, team), first);
    for content in [SealedContent { id: "a-1", ..CONTENT }, SealedContent { set: "", ..CONTENT }] {
        let seal = key.sign(content, team);
        assert_ne!(seal, first);
        let keys = PublicKeys::from_iter([key.public().clone()]);
        assert_eq!(keys.verify(&seal, content, team), Ok(()));
    }
    for number in 0..1_000 {
        let namespace = format!("team-{number}");
        let (kept, fresh) = (Holder::pod(&namespace), SealKey::from_pem(KEY).unwrap());
        assert_eq!(key.sign(CONTENT, kept), fresh.sign(CONTENT, kept));
    }
    assert!(key.kept_signatures() <= 256);
}

#[rstest]
#[case("")]
#[case("v1")]
#[case("v1..")]
#[case("v2.0123456789abcdef.AAAA")]
#[case("v1.0123456789abcdef.AAAA")]
#[case("v1.0123456789ABCDEF.")]
fn rejects_texts_that_are_not_seals(#[case] text: &str) {
    assert_eq!(text.parse::<Seal>(), Err(SealSyntaxError));
}

#[test]
fn a_seal_has_one_spelling() {
    let text = SealKey::from_pem(KEY).unwrap().sign(CONTENT, Holder::pod("team")).to_string();
    assert_eq!(text.len(), Seal::LENGTH);
    for other in [
        format!("{text}=="),
        format!("{text}."),
        format!(" {text}"),
        text.to_uppercase(),
        // The last character has unused bits.
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
fn rejects_pem_that_is_not_an_ed25519_key(#[case] text: &str) {
    let error = SealKey::from_pem(text).unwrap_err();
    assert!(error.to_string().contains("openssl genpkey -algorithm ed25519"), "{error}");
    assert!(PublicKey::from_pem(text).is_err());
    assert!(PublicKey::from_pem(KEY).is_err(), "a private key is not a public key");
}
