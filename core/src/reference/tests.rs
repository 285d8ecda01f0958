use proptest::prelude::*;
use rstest::rstest;

use super::*;

const SHA256: &str = "sha256:4fe6f3e48881647c22bea5c5ca02872b6f5d9ff75931a692e00c50f59de3f429";

fn canonical(text: &str) -> Result<String, ReferenceError> {
    Reference::parse(text).map(|reference| reference.to_string())
}

#[rstest]
#[case("ghcr.io/acme/model:v1", "ghcr.io/acme/model:v1")]
#[case("oras://ghcr.io/acme/model:v1", "ghcr.io/acme/model:v1")]
#[case("oci://ghcr.io/acme/model:v1", "ghcr.io/acme/model:v1")]
#[case("ghcr.io/acme/model", "ghcr.io/acme/model:latest")]
#[case("GHCR.io:443/acme/model:V1", "ghcr.io/acme/model:V1")]
#[case("kind-registry:5000/java-app", "kind-registry:5000/java-app:latest")]
#[case("localhost/app", "localhost/app:latest")]
#[case("LocalHost:5000/app:1", "localhost:5000/app:1")]
#[case("team:443/app", "team:443/app:latest")]
#[case("ubuntu", "docker.io/library/ubuntu:latest")]
#[case("ubuntu:20.04", "docker.io/library/ubuntu:20.04")]
#[case("library/ubuntu", "docker.io/library/ubuntu:latest")]
#[case("docker.io/ubuntu", "docker.io/library/ubuntu:latest")]
#[case("index.docker.io/acme/app:1", "docker.io/acme/app:1")]
#[case("registry-1.docker.io:443/library/ubuntu", "docker.io/library/ubuntu:latest")]
#[case("[2001:DB8::0:1]:5000/a/b:1", "[2001:db8::1]:5000/a/b:1")]
#[case("ghcr.io/a__b/c--d/e.f_g", "ghcr.io/a__b/c--d/e.f_g:latest")]
fn has_one_canonical_form(#[case] text: &str, #[case] expected: &str) {
    assert_eq!(canonical(text).as_deref(), Ok(expected));
    assert_eq!(canonical(expected).as_deref(), Ok(expected));
}

#[test]
fn keeps_tag_and_digest() {
    let by_digest = format!("ghcr.io/acme/model@{SHA256}");
    assert_eq!(canonical(&by_digest).as_deref(), Ok(by_digest.as_str()));
    let by_both = format!("ghcr.io/acme/model:v1@{SHA256}");
    assert_eq!(canonical(&by_both).as_deref(), Ok(by_both.as_str()));
    let sha512 = format!("ghcr.io/acme/model@sha512:{}", "0a".repeat(64));
    assert_eq!(canonical(&sha512).as_deref(), Ok(sha512.as_str()));
}

#[rstest]
#[case::empty("")]
#[case::only_the_scheme("oras://")]
#[case::other_scheme("https://ghcr.io/acme/model")]
#[case::only_the_other_scheme("oci://")]
#[case::scheme_twice("oras://oras://ghcr.io/acme/model")]
#[case::both_schemes("oras://oci://ghcr.io/acme/model")]
#[case::blank(" ghcr.io/acme/model")]
#[case::newline("ghcr.io/acme/model\n")]
#[case::nul("ghcr.io/acme/model\0")]
#[case::other_script("ghcr.io/acme/modèle")]
#[case::no_host("/acme/model")]
#[case::no_repository("ghcr.io/")]
#[case::no_repository_ipv6("[::1]:5000")]
#[case::empty_segment("ghcr.io/acme//model")]
#[case::slash_at_the_end("ghcr.io/acme/")]
#[case::dots("ghcr.io/../model")]
#[case::dot("ghcr.io/./model")]
#[case::upper_case("ghcr.io/Acme/model")]
#[case::three_underscores("ghcr.io/a___b")]
#[case::two_dots("ghcr.io/a..b")]
#[case::dash_first("ghcr.io/-a")]
#[case::dash_last("ghcr.io/a-")]
#[case::percent("ghcr.io/acme%2fmodel")]
#[case::backslash("ghcr.io\\acme/model")]
#[case::query("ghcr.io/acme/model?x=1")]
#[case::fragment("ghcr.io/acme/model#1")]
#[case::userinfo("user:secret@ghcr.io/acme/model")]
#[case::userinfo_before_a_digest("me@ghcr.io/acme/model@sha256:00")]
#[case::empty_tag("ghcr.io/acme/model:")]
#[case::two_tags("ghcr.io/acme/model:a:b")]
#[case::tag_with_a_dot_first("ghcr.io/acme/model:.a")]
#[case::tag_with_a_colon_in_the_path("ghcr.io/acme:1/model")]
#[case::empty_digest("ghcr.io/acme/model@")]
#[case::short_digest("ghcr.io/acme/model@sha256:4fe6")]
#[case::trailing_dot("ghcr.io./acme/model")]
#[case::host_as_a_number("2130706433:80/acme/model")]
fn rejects_invalid_references(#[case] text: &str) {
    assert!(Reference::parse(text).is_err(), "{:?}", Reference::parse(text));
}

#[test]
fn limits_the_lengths_of_repository_and_tag() {
    assert!(Reference::parse(&format!("ghcr.io/{}", "a".repeat(255))).is_ok());
    assert!(Reference::parse(&format!("ghcr.io/{}", "a".repeat(256))).is_err());
    assert!(Reference::parse(&format!("ghcr.io/a:{}", "a".repeat(128))).is_ok());
    assert!(Reference::parse(&format!("ghcr.io/a:{}", "a".repeat(129))).is_err());
    assert!(Reference::parse(&"a".repeat(1 << 20)).is_err());
}

#[test]
fn an_ambiguous_first_segment_suggests_both_references() {
    let error = Reference::parse("team/app:v1").map_err(|error| error.to_string());
    let message = error.expect_err("team/app is ambiguous");
    assert!(message.contains("docker.io/team/app:v1"), "{message}");
    assert!(message.contains("team:443/app:v1"), "{message}");
    for spelling in ["docker.io/team/app:v1", "team:443/app:v1"] {
        assert_eq!(canonical(spelling).as_deref(), Ok(spelling));
    }
    assert!(matches!(Reference::parse("library/a/b"), Err(ReferenceError::Ambiguous { .. })));
    assert!(matches!(Reference::parse("Team/app"), Err(ReferenceError::Ambiguous { .. })));
}

#[rstest]
#[case("library/../evil/x", None)]
#[case("team/a//b", None)]
#[case("team/app/", None)]
#[case("team/App:V1", Some("docker.io/team/app:V1 or team:443/app:V1"))]
#[case("my_team/app", Some("docker.io/my_team/app"))]
fn suggestions_for_an_ambiguous_reference_parse(#[case] text: &str, #[case] suggested: Option<&str>) {
    let error = Reference::parse(text).unwrap_err();
    let ReferenceError::Ambiguous { .. } = error else {
        assert_eq!(suggested, None, "{error}");
        return;
    };
    let suggested = suggested.ok_or(error.to_string()).unwrap();
    assert!(error.to_string().ends_with(&format!("write {suggested}")), "{error}");
    for spelling in suggested.split(" or ") {
        assert!(Reference::parse(spelling).is_ok(), "{spelling}");
    }
}

#[test]
fn a_configured_host_without_a_dot_is_not_ambiguous() {
    let known = |host: &str| host == "team";
    let reference =
        Reference::parse_with_known_hosts("Team/app", &known).map(|reference| reference.to_string());
    assert_eq!(reference.as_deref(), Ok("team:443/app:latest"));
    assert!(Reference::parse_with_known_hosts("other/app", &known).is_err());
    assert_eq!(canonical("team:443/app:latest").as_deref(), Ok("team:443/app:latest"));
}

/// Docker reads these as a tag or a repository of docker.io.
#[rstest]
#[case("SHA")]
#[case("oci://SHA")]
#[case("@SHA")]
#[case("HEX")]
#[case("oras://HEX")]
fn a_digest_alone_lacks_registry_and_repository(#[case] text: &str) {
    let text = text.replace("SHA", SHA256).replace("HEX", &SHA256["sha256:".len()..]);
    let error = Reference::parse(&text).unwrap_err();
    assert!(matches!(error, ReferenceError::DigestAlone { .. }), "{error}");
    let message = format!("is a digest without a registry and a repository: write HOST/REPOSITORY@{SHA256}");
    assert!(error.to_string().ends_with(&message), "{error}");
}

#[rstest]
#[case("ghcr.io/acme/model:SHA", "ghcr.io/acme/model@SHA")]
#[case("oras://ghcr.io/acme/model:SHA", "ghcr.io/acme/model@SHA")]
#[case("model:SHA", "model@SHA")]
fn a_digest_follows_an_at_sign(#[case] text: &str, #[case] correct: &str) {
    let [text, correct] = [text, correct].map(|text| text.replace("SHA", SHA256));
    let error = Reference::parse(&text).unwrap_err();
    assert!(
        error.to_string().ends_with(&format!("a digest follows \"@\", not \":\": write {correct}")),
        "{error}"
    );
}

#[rstest]
#[case("sha256:v1")]
#[case("sha256")]
#[case("abcdef0123456789")]
fn short_names_that_are_like_a_digest_stay_names(#[case] text: &str) {
    assert!(Reference::parse(text).is_ok(), "{:?}", Reference::parse(text));
}

#[rstest]
#[case("hf.co/Org/Model", "hf.co/org/model")]
#[case("oci://hf.co/Org/Model:Q4", "oci://hf.co/org/model:Q4")]
#[case("Model:v1", "model:v1")]
#[case("docker.io/Model", "docker.io/model")]
fn upper_case_keeps_its_hint(#[case] text: &str, #[case] lower: &str) {
    let error = Reference::parse(text).unwrap_err().to_string();
    assert!(
        error.ends_with(&format!("a repository cannot have upper-case letters: did you mean {lower}?")),
        "{error}"
    );
}

#[test]
fn an_error_suggests_the_repository_in_lower_case() {
    let message = Reference::parse("ghcr.io/Acme/Model:v1").map_err(|error| error.to_string());
    assert!(message.is_err_and(|message| message.contains("did you mean ghcr.io/acme/model:v1?")));
}

#[test]
fn an_error_has_no_control_characters() {
    let error = Reference::parse("ghcr.io/\x1b[31m\u{202e}x").map_err(|error| error.to_string());
    assert!(error.is_err_and(|message| !message.contains(['\x1b', '\u{202e}'])));
}

#[rstest]
#[case::tag("ghcr.io/acme/model:v1", "no digest")]
#[case::nothing("ghcr.io/acme/model", "no digest")]
#[case::both("ghcr.io/acme/model:v1@SHA", "a tag beside")]
#[case::scheme("oras://ghcr.io/acme/model@SHA", "canonical form")]
#[case::other_scheme("oci://ghcr.io/acme/model@SHA", "canonical form")]
#[case::upper_case("GHCR.io/acme/model@SHA", "canonical form")]
#[case::default_port("ghcr.io:443/acme/model@SHA", "canonical form")]
#[case::short_name("ubuntu@SHA", "canonical form")]
fn a_pinned_reference_accepts_only_the_canonical_form_with_a_digest(#[case] text: &str, #[case] words: &str) {
    let text = text.replace("SHA", SHA256);
    let error = text.parse::<PinnedReference>().map_err(|error| error.to_string());
    assert!(error.as_ref().is_err_and(|message| message.contains(words)), "{error:?}");
}

#[test]
fn pinning_removes_the_tag() {
    let digest = SHA256.parse::<Digest>().expect("a digest");
    let pinned = Reference::parse("kind-registry:5000/java-app:1").expect("a reference").pin(digest);
    let text = format!("kind-registry:5000/java-app@{SHA256}");
    assert_eq!(pinned.to_string(), text);
    assert_eq!(text.parse::<PinnedReference>(), Ok(pinned));
}

proptest! {
    #[test]
    fn the_display_form_parses_to_the_same_reference(text in "((oras|oci)://)?([A-Za-z0-9.:\\[\\]-]{1,20}/)?[a-z0-9._/-]{1,30}(:[A-Za-z0-9._-]{1,8})?") {
        if let Ok(reference) = Reference::parse(&text) {
            let printed = reference.to_string();
            prop_assert_eq!(Reference::parse(&printed), Ok(reference));
        }
    }

    #[test]
    fn hostile_text_never_panics(text in "\\PC*") {
        let _ = Reference::parse(&text);
        let _ = Reference::parse_with_known_hosts(&text, &|_| true);
    }

    #[test]
    fn a_reference_with_a_configured_host_parses_without_the_configuration(first in "[a-z][a-z0-9-]{0,8}[a-z0-9]", rest in "[a-z0-9]{1,8}") {
        let reference = Reference::parse_with_known_hosts(&format!("{first}/{rest}"), &|_| true);
        if let Ok(reference) = reference {
            prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
        }
    }
}
