use std::collections::HashSet;

use rstest::rstest;

use super::{SECRET, basic};
use crate::credentials::{Credential, CredentialError};

fn refresh(token: &str) -> Credential {
    Credential::refresh_token(token.to_owned()).unwrap()
}

fn bearer(token: &str) -> Credential {
    Credential::registry_token(token.to_owned()).unwrap()
}

#[test]
fn different_credentials_have_different_fingerprints() {
    let all = [
        Credential::Anonymous,
        basic("a", "bc"),
        basic("ab", "c"),
        basic("abc", ""),
        basic("", "abc"),
        basic("a", "bd"),
        refresh("abc"),
        bearer("abc"),
        refresh("a"),
    ];
    let fingerprints = all.iter().map(Credential::fingerprint).collect::<HashSet<_>>();
    assert_eq!(fingerprints.len(), all.len());
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    assert_eq!(basic("a", "bc").fingerprint(), basic("a", "bc").fingerprint());
    assert_eq!(basic("a", "bc"), basic("a", "bc"));
}

#[test]
fn debug_output_contains_no_secret() {
    let all = [basic("robot", SECRET), basic(SECRET, "x"), refresh(SECRET), bearer(SECRET)];
    for credential in &all {
        let Credential::Basic { username, password } = credential else {
            assert_eq!(format!("{:?}", credential.fingerprint()), "…");
            assert!(!format!("{credential:?}").contains(SECRET), "{credential:?}");
            continue;
        };
        let shown = format!("{credential:?} {username:?} {password:?} {:?}", credential.fingerprint());
        assert_eq!(shown, "Basic(…) … … …");
    }
    assert_eq!(format!("{:?}", Credential::Anonymous.fingerprint()), "anonymous");
    assert_eq!(Credential::default(), Credential::Anonymous);
}

/// The password of `_json_key` at Google is a file of many lines.
#[rstest]
#[case("{\n  \"type\": \"service_account\",\r\n\t\"private_key\": \"-----BEGIN\\n\"\n}\n", true)]
#[case("{\"type\": \"service_account\"}\n", true)]
#[case("{a}\u{0}", false)]
#[case("{a\u{0}}", false)]
#[case("{a}\nb", false)]
fn a_password_that_is_a_json_key_can_have_line_breaks(#[case] key: &str, #[case] is_valid: bool) {
    assert_eq!(Credential::basic("_json_key".to_owned(), key.to_owned()).is_ok(), is_valid);
    assert!(Credential::registry_token(key.to_owned()).is_err());
}

#[rstest]
#[case(Credential::basic("a\nb".to_owned(), "c".to_owned()), CredentialError::Control { field: "user name" })]
#[case(Credential::basic("a".to_owned(), "c\n".to_owned()), CredentialError::Control { field: "password" })]
#[case(Credential::basic("a".to_owned(), "c\r\nX-Evil: 1".to_owned()), CredentialError::Control { field: "password" })]
#[case(Credential::basic("a:b".to_owned(), "c".to_owned()), CredentialError::Colon)]
#[case(Credential::basic(String::new(), String::new()), CredentialError::Empty { field: "user name" })]
#[case(Credential::basic("a".to_owned(), "x".repeat(20_000)), CredentialError::TooLong { field: "password", bytes: 20_000 })]
#[case(Credential::refresh_token(String::new()), CredentialError::Empty { field: "identity token" })]
#[case(Credential::refresh_token("a\u{0}".to_owned()), CredentialError::Control { field: "identity token" })]
#[case(Credential::registry_token("a b".to_owned()), CredentialError::Token)]
#[case(Credential::registry_token("ä".to_owned()), CredentialError::Token)]
#[case(Credential::registry_token("a\r\n".to_owned()), CredentialError::Control { field: "registry token" })]
fn credentials_that_cannot_be_sent_are_rejected(
    #[case] made: Result<Credential, CredentialError>,
    #[case] error: CredentialError,
) {
    assert_eq!(made, Err(error));
}
