//! How entries are interpreted.

use super::*;
use crate::testing::{names, now};
use rstest::rstest;

/// A CA (a) and another CA (b), with a leaf of each.
struct Material {
    a: Authority,
    b: Authority,
}

impl Material {
    fn new() -> Self {
        Self { a: Authority::generate(now()).unwrap(), b: Authority::generate(now()).unwrap() }
    }

    /// Entries by a short notation: which CA each of ca.crt, ca.key, tls.crt, tls.key is from; `-` for
    /// none, `!` for garbage.
    fn entries(&self, notation: &str) -> Entries {
        let leaves = [&self.a, &self.b].map(|authority| authority.issue(&names(), now()).unwrap());
        let mut entries = notation.chars().enumerate().map(|(index, letter)| {
            let which = match letter {
                'a' => 0,
                'b' => 1,
                '!' => return Some(b"garbage".to_vec()),
                _ => return None,
            };
            let authority = [&self.a, &self.b][which];
            let text = match index {
                0 => authority.certificate_pem(),
                1 => authority.key_pem(),
                2 => &leaves[which].certificate_pem,
                _ => &leaves[which].key_pem,
            };
            Some(text.as_bytes().to_vec())
        });
        let mut next = || entries.next().flatten();
        Entries { ca_crt: next(), ca_key: next(), tls_crt: next(), tls_key: next(), ca_previous: None }
    }
}

fn describe(stored: Result<Stored, Error>) -> &'static str {
    match stored {
        Ok(Stored::Nothing) => "nothing",
        Ok(Stored::External { bundle, .. }) if bundle.is_empty() => "external",
        Ok(Stored::External { .. }) => "external with ca",
        Ok(Stored::Authority(stored)) => match stored.leaf {
            StoredLeaf::Nothing => "ours",
            StoredLeaf::Ours(Some(_)) => "ours with leaf",
            StoredLeaf::Ours(None) => "ours with half a leaf",
            StoredLeaf::Foreign(_) => "ours with a foreign leaf",
        },
        Err(Error::Incomplete { .. }) => "incomplete",
        Err(Error::Unusable { .. }) => "unusable",
        Err(Error::KeyMismatch { .. }) => "mismatch",
        Err(Error::NoCertificateYet { .. }) => "absent",
        Err(_) => "another error",
    }
}

#[rstest]
#[case("----", "nothing", "absent")]
#[case("-a--", "nothing", "absent")]
#[case("aa--", "ours", "absent")]
#[case("aaaa", "ours with leaf", "external with ca")]
#[case("aaa-", "ours with half a leaf", "incomplete")]
#[case("aabb", "ours with a foreign leaf", "external with ca")]
#[case("aa-a", "incomplete", "incomplete")]
#[case("aab-", "incomplete", "incomplete")]
#[case("aa!b", "unusable", "external with ca")]
#[case("--bb", "external", "external")]
#[case("b-bb", "external with ca", "external with ca")]
#[case("babb", "external with ca", "external with ca")]
#[case("ba--", "mismatch", "absent")]
#[case("b---", "incomplete", "absent")]
#[case("--b-", "incomplete", "incomplete")]
#[case("---b", "incomplete", "incomplete")]
#[case("a!--", "unusable", "absent")]
#[case("!a--", "unusable", "absent")]
#[case("!-bb", "unusable", "unusable")]
fn entries_are_interpreted(#[case] notation: &str, #[case] automatic: &str, #[case] external: &str) {
    let material = Material::new();
    let interpreted = |issuance| describe(material.entries(notation).interpret("here", issuance, now()));
    assert_eq!(interpreted(Issuance::Automatic), automatic, "automatic");
    assert_eq!(interpreted(Issuance::External), external, "external");
}

#[test]
fn an_earlier_ca_is_in_the_bundle_after_the_present_ca() {
    let material = Material::new();
    let previous = Some(material.b.certificate_pem().into());
    let entries = Entries { ca_previous: previous, ..material.entries("aa--") };
    let Ok(Stored::Authority(stored)) = entries.interpret("here", Issuance::Automatic, now()) else {
        panic!("not ours")
    };
    let bundle: Vec<_> = stored.bundle.iter().collect();
    assert_eq!(bundle, [material.a.certificate(), material.b.certificate()]);
}

#[test]
fn an_empty_external_ca_crt_is_ignored() {
    let material = Material::new();
    let entries = Entries { ca_crt: Some(b"\n".to_vec()), ..material.entries("--bb") };
    assert_eq!(describe(entries.interpret("here", Issuance::Automatic, now())), "external");
}

#[test]
fn the_error_for_an_expired_ca_says_what_to_do() {
    let material = Material::new();
    let late = material.a.validity().not_after() + std::time::Duration::from_secs(1);
    let Err(error) = material.entries("aa--").interpret("here", Issuance::Automatic, late) else {
        panic!("an expired CA was accepted")
    };
    assert!(error.to_string().contains("remove ca.crt, ca.key"), "{error}");
}
