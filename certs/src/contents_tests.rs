//! Which entries mean what.

use super::*;
use crate::testing::{names, now};
use rstest::rstest;

/// A CA of ours (a) and another (b), with a leaf of each.
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
    fn contents(&self, notation: &str) -> Contents {
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
        Contents { ca_crt: next(), ca_key: next(), tls_crt: next(), tls_key: next(), ca_previous: None }
    }
}

fn words(kept: Result<Kept, Error>) -> &'static str {
    match kept {
        Ok(Kept::Nothing) => "nothing",
        Ok(Kept::External { bundle, .. }) if bundle.is_empty() => "external",
        Ok(Kept::External { .. }) => "external with ca",
        Ok(Kept::Authority(kept)) => match kept.beside {
            Beside::Nothing => "ours",
            Beside::Ours(Some(_)) => "ours with leaf",
            Beside::Ours(None) => "ours with half a leaf",
            Beside::Foreign(_) => "ours beside another's",
        },
        Err(Error::Incomplete { .. }) => "incomplete",
        Err(Error::Unusable { .. }) => "unusable",
        Err(Error::KeyMismatch { .. }) => "mismatch",
        Err(Error::Absent { .. }) => "absent",
        Err(_) => "another error",
    }
}

#[rstest]
#[case("----", "nothing", "absent")]
#[case("-a--", "nothing", "absent")]
#[case("aa--", "ours", "absent")]
#[case("aaaa", "ours with leaf", "external with ca")]
#[case("aaa-", "ours with half a leaf", "incomplete")]
#[case("aabb", "ours beside another's", "external with ca")]
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
fn meanings(#[case] notation: &str, #[case] automatic: &str, #[case] external: &str) {
    let material = Material::new();
    let meaning = |issuance| words(material.contents(notation).meaning("here", issuance, now()));
    assert_eq!(meaning(Issuance::Automatic), automatic, "automatic");
    assert_eq!(meaning(Issuance::External), external, "external");
}

#[test]
fn the_ca_before_is_in_the_bundle_after_the_one_in_use() {
    let material = Material::new();
    let previous = Some(material.b.certificate_pem().into());
    let contents = Contents { ca_previous: previous, ..material.contents("aa--") };
    let Ok(Kept::Authority(kept)) = contents.meaning("here", Issuance::Automatic, now()) else {
        panic!("not ours")
    };
    let bundle: Vec<_> = kept.bundle.iter().collect();
    assert_eq!(bundle, [material.a.certificate(), material.b.certificate()]);
}

#[test]
fn an_empty_ca_crt_of_somebody_else_is_none() {
    let material = Material::new();
    let contents = Contents { ca_crt: Some(b"\n".to_vec()), ..material.contents("--bb") };
    assert_eq!(words(contents.meaning("here", Issuance::Automatic, now())), "external");
}

#[test]
fn an_expired_ca_says_what_to_do() {
    let material = Material::new();
    let late = material.a.validity().not_after() + std::time::Duration::from_secs(1);
    let Err(error) = material.contents("aa--").meaning("here", Issuance::Automatic, late) else {
        panic!("an expired CA was taken")
    };
    assert!(error.to_string().contains("remove ca.crt, ca.key"), "{error}");
}
