use rstest::rstest;

use super::*;

fn patterns(texts: &[&str]) -> Vec<RegistryPattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn policy(rules: Rules) -> Policy {
    Policy::new(Author::Object("p".into()), Mode::Enforce, rules)
}

fn denying(texts: &[&str]) -> Policy {
    policy(Rules { deny: patterns(texts), ..Rules::default() })
}

fn allowing(texts: &[&str]) -> Policy {
    policy(Rules { allow: Some(patterns(texts)), ..Rules::default() })
}

/// Returns the rule that a reference violates, if any.
fn violated(policy: &Policy, text: &str) -> Option<Rule> {
    let reference = Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    policy.check_reference(&reference, Source::Direct).err().map(|violation| violation.rule())
}

/// A denied registry is denied in every spelling.
#[rstest]
fn no_spelling_of_a_reference_bypasses_deny(
    #[values(
        "ghcr.io/acme/model:v1",
        "GHCR.IO/acme/model:v1",
        "GhCr.Io:443/acme/model:v1",
        "oras://ghcr.io/acme/model",
        "oci://ghcr.io/acme/model",
        "ghcr.io:443/acme/model@sha256:4fe6f3e48881647c22bea5c5ca02872b6f5d9ff75931a692e00c50f59de3f429",
        "ghcr.io:0443/acme/model"
    )]
    text: &str,
) {
    for pattern in ["ghcr.io", "ghcr.io:443", "GHCR.io/acme/*", "*.io", "**", "ghcr.io/acme/model"] {
        match Reference::parse(text) {
            Ok(_) => {
                assert_eq!(violated(&denying(&[pattern]), text), Some(Rule::RegistriesDeny), "{pattern}");
            }
            Err(_) => assert!(text.contains(":0443"), "{text} is another spelling, and not an error"),
        }
    }
}

/// Texts that some client or resolver would read as a registry, but that are not references.
#[test]
fn unusual_spellings_of_a_host_are_not_references() {
    for text in [
        "ghcr.io./acme/model",
        "ghcr.io.:443/acme/model",
        "user@ghcr.io/acme/model",
        "user:pass@ghcr.io/acme/model",
        "ghcr.io@evil.example/acme/model",
        "ghcr%2eio/acme/model",
        "ghcr.io%00.evil.example/acme/model",
        "ghcr.io%2facme/model",
        "ghcr.io/acme%2fmodel",
        "ghcr.io\\acme/model",
        "ghcr.io/acme\\model",
        "ghcr.io/../ghcr.io/acme",
        "ghcr.io/./acme",
        "ghcr.io//acme/model",
        "/ghcr.io/acme/model",
        "ghcr.io:/acme/model",
        "ghcr.io:99999/acme",
        "ghcr.io:443:443/acme",
        "ghcr\u{3002}io/acme/model",
        "\u{ff47}hcr.io/acme/model",
        "gh\u{441}r.io/acme/model",
        "xn--ghr-6cd.io\u{200b}/acme",
        "ghcr.io\u{200b}/acme/model",
        " ghcr.io/acme/model",
        "ghcr.io/acme/model ",
        "ghcr.io/acme/model\n",
        "ghcr.io#/acme/model",
        "ghcr.io?x=/acme/model",
        "https://ghcr.io/acme/model",
        "oras://oras://ghcr.io/acme",
        "docker://ghcr.io/acme/model",
        "ghcr.io/Acme/model",
        "127.1/acme",
        "0x7f.0.0.1/acme",
        "2130706433:80/acme",
        "0177.0.0.1/acme",
        "1.2.3.4.:5000/acme",
        "[::1/acme",
        "::1/acme",
        "[::1%25lo]/acme",
        "[fe80::1%eth0]/acme",
        "[::ffff:1.2.3.4.5]/acme",
        "[::ffff:1.2.3.4]/acme",
        "[::ffff:102:304]:443/acme",
        "[64:ff9b::1.2.3.4]/acme",
        "[v1.x]/acme",
    ] {
        assert!(Reference::parse(text).is_err(), "{text:?} is parsed as {:?}", Reference::parse(text));
    }
}

#[rstest]
#[case::upper_case("ghcr.io/acme/**", "GHCR.IO/acme/model", None)]
#[case::port_spelled_out("ghcr.io/acme/**", "ghcr.io:443/acme/model", None)]
#[case::other_port("ghcr.io/acme/**", "ghcr.io:8443/acme/model", Some("registry ghcr.io:8443"))]
#[case::longer_host(
    "ghcr.io/acme/**",
    "ghcr.io.evil.example/acme/model",
    Some("registry ghcr.io.evil.example")
)]
#[case::host_as_a_path("ghcr.io/acme/**", "evil.example/ghcr.io/acme/model", Some("registry evil.example"))]
#[case::sub_domain("ghcr.io/acme/**", "a.ghcr.io/acme/model", Some("registry a.ghcr.io"))]
#[case::longer_path("ghcr.io/acme/**", "ghcr.io/acme-evil/model", Some("repository ghcr.io/acme-evil/model"))]
#[case::prefix_of_the_path("ghcr.io/acme/**", "ghcr.io/acm/model", Some("repository"))]
#[case::the_team_itself("ghcr.io/acme/**", "ghcr.io/acme", Some("repository"))]
#[case::deep("ghcr.io/acme/*", "ghcr.io/acme/a/b", Some("repository"))]
#[case::hub_short("docker.io/library/*", "ubuntu", None)]
#[case::hub_library("docker.io/library/*", "library/ubuntu", None)]
#[case::hub_index("docker.io/library/*", "index.docker.io/library/ubuntu", None)]
#[case::hub_registry_1("docker.io/library/*", "registry-1.docker.io:443/library/ubuntu", None)]
#[case::hub_short_with_host("docker.io/library/*", "docker.io/ubuntu", None)]
#[case::hub_other("docker.io/library/*", "docker.io/evil/ubuntu", Some("repository docker.io/evil/ubuntu"))]
#[case::hub_look_alike("docker.io/library/*", "docker.io.evil.example/library/ubuntu", Some("registry"))]
#[case::hub_other_port("docker.io/library/*", "docker.io:5000/library/ubuntu", Some("registry"))]
#[case::ipv6_long("[2001:db8::1]:5000/**", "[2001:0DB8:0:0:0:0:0:0001]:5000/a", None)]
#[case::ipv6_other("[2001:db8::1]:5000/**", "[2001:db8::2]:5000/a", Some("registry"))]
#[case::dotless_port("kind-registry:5000/**", "KIND-registry:5000/a", None)]
#[case::dotless_other_port("kind-registry:5000/**", "kind-registry:5001/a", Some("registry"))]
#[case::a_tag_is_no_part("ghcr.io/acme/model", "ghcr.io/acme/model:v1", None)]
fn allow_and_deny_match_the_same_references(
    #[case] pattern: &str,
    #[case] text: &str,
    #[case] component: Option<&str>,
) {
    let reference = Reference::parse(text).unwrap();
    let policy = allowing(&[pattern]);
    match (policy.check_reference(&reference, Source::Direct), component) {
        (Ok(Some(matched)), None) => assert_eq!(matched.to_string(), pattern),
        (Err(violation), Some(component)) => {
            assert_eq!(violation.rule(), Rule::RegistriesAllow);
            assert!(violation.component().starts_with(component), "{violation}");
            assert_eq!(violation.instead(), format!("use one of: {pattern}"));
        }
        (found, _) => panic!("{text}: {found:?}"),
    }
    let denied = violated(&denying(&[pattern]), text);
    assert_eq!(denied.is_some(), component.is_none(), "deny matches exactly what allow matches");
}

#[test]
fn deny_wins_over_allow() {
    let rules = Rules {
        allow: Some(patterns(&["ghcr.io/**"])),
        deny: patterns(&["ghcr.io/evil/**"]),
        ..Rules::default()
    };
    let policy = policy(rules);
    assert_eq!(violated(&policy, "ghcr.io/acme/x"), None);
    assert_eq!(violated(&policy, "ghcr.io/evil/x"), Some(Rule::RegistriesDeny));
    assert_eq!(violated(&policy, "r.io/x"), Some(Rule::RegistriesAllow));
}

const DIGEST: &str = "sha256:4fe6f3e48881647c22bea5c5ca02872b6f5d9ff75931a692e00c50f59de3f429";

#[rstest]
#[case("r.io/a", Some("tag latest matches latest"))]
#[case("r.io/a:latest", Some("tag latest matches latest"))]
#[case("r.io/a:latest@DIGEST", Some("tag latest matches latest"))]
#[case("r.io/a:1.0-SNAPSHOT", Some("tag 1.0-SNAPSHOT matches *-SNAPSHOT"))]
#[case("r.io/a:Latest", None)]
#[case("r.io/a:latest-1", None)]
#[case("r.io/a:1.0", None)]
#[case("r.io/a@DIGEST", None)]
fn denied_tags_apply_to_the_written_tag(#[case] text: &str, #[case] component: Option<&str>) {
    let denied_tags = vec!["latest".parse().unwrap(), "*-SNAPSHOT".parse().unwrap()];
    let policy = policy(Rules { denied_tags, ..Rules::default() });
    let reference = Reference::parse(&text.replace("DIGEST", DIGEST)).unwrap();
    let found = policy.check_reference(&reference, Source::Direct).err();
    assert_eq!(found.as_ref().map(Violation::component), component);
    assert!(found.is_none_or(|found| found.rule() == Rule::DeniedTags && found.rule().is_about_tags()));
}

#[rstest]
#[case("r.io/a", true)]
#[case("r.io/a:v1", true)]
#[case("r.io/a:v1@DIGEST", false)]
#[case("r.io/a@DIGEST", false)]
fn require_digest_rejects_references_without_a_digest(#[case] text: &str, #[case] is_violated: bool) {
    let policy = policy(Rules { require_digest: true, ..Rules::default() });
    let rule = violated(&policy, &text.replace("DIGEST", DIGEST));
    assert_eq!(rule, is_violated.then_some(Rule::RequireDigest));
}

#[test]
fn sets_only_allows_cluster_sets() {
    let policy = policy(Rules { sets_only: true, ..Rules::default() });
    let reference = Reference::parse(&format!("r.io/a@{DIGEST}")).unwrap();
    assert_eq!(policy.check_reference(&reference, Source::Direct).unwrap_err().rule(), Rule::SetsOnly);
    assert!(policy.check_reference(&reference, Source::ClusterSet).is_ok());
}

fn contents(artifact_type: &str, layers: &[(&str, u64)]) -> ArtifactContents {
    let layers = layers.iter().map(|(media_type, size)| ((*media_type).to_owned(), *size)).collect();
    ArtifactContents { artifact_type: artifact_type.into(), layers }
}

fn types(texts: &[&str]) -> Vec<TypePattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[rstest]
#[case(contents("application/vnd.acme.model", &[("a/b", 1)]), None)]
#[case(contents("Application/Vnd.ACME.Model", &[("A/B; x=y", 1)]), None)]
#[case(contents("application/vnd.acme", &[("a/b", 1)]), Some(Rule::AllowedArtifactTypes))]
#[case(contents("", &[("a/b", 1)]), Some(Rule::AllowedArtifactTypes))]
#[case(contents("application/vnd.acme.model", &[("a/b", 1), ("a/c", 1)]), Some(Rule::AllowedMediaTypes))]
#[case(contents("application/vnd.acme.model", &[("a/b", 1_024)]), None)]
#[case(contents("application/vnd.acme.model", &[("a/b", 1_000), ("a/b", 25)]), Some(Rule::MaxSize))]
#[case(contents("application/vnd.acme.model", &[("a/b", u64::MAX), ("a/b", 2)]), Some(Rule::MaxSize))]
#[case(contents("application/vnd.acme.model", &[]), None)]
fn evaluates_rules_about_the_content(#[case] contents: ArtifactContents, #[case] rule: Option<Rule>) {
    let rules = Rules {
        artifact_types: Some(types(&["application/vnd.acme.*"])),
        media_types: Some(types(&["a/b"])),
        max_size: Some("1Ki".parse().unwrap()),
        ..Rules::default()
    };
    let policy = policy(rules);
    assert!(policy.looks_at_contents());
    assert_eq!(policy.check_contents(&contents).err().map(|violation| violation.rule()), rule);
}

#[test]
fn a_policy_without_rules_allows_everything() {
    let policy = policy(Rules::default());
    assert!(!policy.looks_at_contents());
    assert_eq!(violated(&policy, "anything.example/a:latest"), None);
    assert_eq!(policy.check_contents(&contents("", &[("", u64::MAX)])), Ok(()));
}
