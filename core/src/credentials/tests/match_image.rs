use rstest::rstest;

use super::registry;
use crate::credentials::match_image::redacted_key;
use crate::credentials::{MatchImage, MatchImageError};

#[rstest]
#[case::host("ghcr.io", "ghcr.io", "acme/model", true)]
#[case::longer_host("ghcr.io", "ghcr.io.evil.example", "acme/model", false)]
#[case::host_behind_another("ghcr.io", "evil-ghcr.io", "acme/model", false)]
#[case::subdomain("ghcr.io", "x.ghcr.io", "acme/model", false)]
#[case::scheme("https://ghcr.io", "ghcr.io", "acme/model", true)]
#[case::plain_scheme("http://ghcr.io/", "ghcr.io", "acme/model", true)]
#[case::scheme_in_upper_case("HTTPS://GHCR.IO", "ghcr.io", "acme/model", true)]
#[case::upper_case("Ghcr.IO/acme", "ghcr.io", "acme/model", true)]
#[case::version_1("https://ghcr.io/v1/", "ghcr.io", "acme/model", true)]
#[case::version_2("https://ghcr.io/v2/acme", "ghcr.io", "acme/model", true)]
#[case::version_2_and_another_path("https://ghcr.io/v2/other", "ghcr.io", "acme/model", false)]
#[case::path_named_as_a_version("ghcr.io/v2x", "ghcr.io", "acme/model", false)]
#[case::path("example.org/acme", "example.org", "acme/model", true)]
#[case::whole_path("example.org/acme", "example.org", "acme", true)]
#[case::path_with_a_slash("example.org/acme/", "example.org", "acme/model", true)]
#[case::path_that_goes_on("example.org/acme", "example.org", "acmeevil/model", false)]
#[case::path_below_another("example.org/acme", "example.org", "other/acme", false)]
#[case::longer_path("example.org/acme/model", "example.org", "acme", false)]
#[case::standard_port("ghcr.io:443", "ghcr.io", "acme/model", true)]
#[case::standard_port_of_a_short_name("team", "team:443", "app", true)]
#[case::port("kind-registry:5000", "kind-registry:5000", "app", true)]
#[case::other_port("kind-registry:5000", "kind-registry:5001", "app", false)]
#[case::port_of_one_side("example.org", "example.org:5000", "app", false)]
#[case::port_of_the_other_side("example.org:5000", "example.org", "app", false)]
#[case::wildcard("*.example.org", "a.example.org", "app", true)]
#[case::wildcard_is_one_label("*.example.org", "a.b.example.org", "app", false)]
#[case::wildcard_is_a_label("*.example.org", "example.org", "app", false)]
#[case::wildcard_and_longer_host("*.example.org", "a.example.org.evil", "app", false)]
#[case::part_of_a_label("registry-*.example.org", "registry-eu.example.org", "app", true)]
#[case::other_part_of_a_label("registry-*.example.org", "evil.example.org", "app", false)]
#[case::end_of_a_label("*-good.example.org", "x-good.example.org", "app", true)]
#[case::middle_of_a_label("a*b*c.example.org", "axbxc.example.org", "app", true)]
#[case::nothing_for_a_wildcard("a*b*c.example.org", "abc.example.org", "app", true)]
#[case::wildcard_used_twice("ab*ba.example.org", "aba.example.org", "app", false)]
#[case::wildcard_in_the_middle("prefix.*.io", "prefix.kubernetes.io", "app", true)]
#[case::top_level_wildcard("prefix.kubernetes.*", "prefix.kubernetes.io", "app", true)]
#[case::two_wildcards("*.*.example.org", "a.b.example.org", "app", true)]
#[case::wildcard_and_port("*.example.org:5000/acme", "a.example.org:5000", "acme/model", true)]
#[case::wildcard_and_other_port("*.example.org:5000", "a.example.org", "app", false)]
#[case::wildcard_and_standard_port("*.example.org:443", "a.example.org", "app", true)]
#[case::wildcard_in_upper_case("*.Example.ORG", "a.example.org", "app", true)]
#[case::wildcard_of_numbers("10.0.0.*", "10.0.0.7", "app", true)]
#[case::docker_hub("https://index.docker.io/v1/", "docker.io", "library/ubuntu", true)]
#[case::docker_hub_of_docker("index.docker.io", "docker.io", "acme/model", true)]
#[case::docker_hub_of_the_api("registry-1.docker.io", "docker.io", "acme/model", true)]
#[case::docker_hub_itself("docker.io", "docker.io", "acme/model", true)]
#[case::docker_hub_and_path("docker.io/acme", "docker.io", "library/ubuntu", false)]
#[case::docker_hub_on_a_port("index.docker.io:5000", "docker.io", "acme/model", false)]
#[case::ipv6("[2001:DB8:0::1]:5000", "[2001:db8::1]:5000", "app", true)]
#[case::ipv6_without_port("https://[2001:db8::1]/acme", "[2001:db8::1]", "acme/x", true)]
#[case::other_ipv6("[2001:db8::1]:5000", "[2001:db8::2]:5000", "app", false)]
#[case::ipv4("10.0.0.7:5000", "10.0.0.7:5000", "app", true)]
fn keys_match_as_in_kubelet_with_stricter_paths(
    #[case] key: &str,
    #[case] host: &str,
    #[case] repository: &str,
    #[case] expected: bool,
) {
    let key = key.parse::<MatchImage>().unwrap();
    assert_eq!(key.matches(&registry(host), repository), expected, "{key}");
}

#[rstest]
#[case::user("https://me@ghcr.io", "…@ghcr.io")]
#[case::user_who_looks_like_a_host("ghcr.io@evil.example", "…@evil.example")]
#[case::password("https://me:geheim@ghcr.io/v1/", "…@ghcr.io/v1/")]
#[case::password_with_signs("https://me:ge?h#e@im@ghcr.io", "…")]
#[case::query("ghcr.io/v1/?token=geheim", "ghcr.io/v1/…")]
fn keys_that_may_hold_a_password_are_rejected_and_not_shown(#[case] key: &str, #[case] shown: &str) {
    assert!(key.parse::<MatchImage>().is_err(), "{key}");
    assert_eq!(redacted_key(key).to_string(), shown);
}

#[rstest]
fn invalid_keys_are_rejected(
    #[values(
        "",
        "https://",
        "/acme",
        "ftp://ghcr.io",
        "ghcr.io:",
        "ghcr.io:0",
        "ghcr.io:65536",
        "ghcr.io:*",
        "*.example.org:*",
        "*.example.org:0x1bb",
        "*..example.org",
        "*.exa_mple.org",
        "[*]:5000",
        "2001:db8::1",
        "[::ffff:10.0.0.7]:5000",
        "ghcr.io/acme*",
        "ghcr.io/Acme",
        "ghcr.io/../acme",
        "ghcr.io/./acme",
        "ghcr.io//acme",
        "ghcr.io/ac%6de",
        "ghcr.io/acme:tag",
        "ghcr.io\\@evil.example",
        "ghcr.io\n",
        " ghcr.io",
        "ghcr。io"
    )]
    key: &str,
) {
    assert!(key.parse::<MatchImage>().is_err(), "{:?}", key.parse::<MatchImage>());
}

#[test]
fn long_keys_are_rejected() {
    assert_eq!("a".repeat(1025).parse::<MatchImage>(), Err(MatchImageError::TooLong));
    let stars = format!("{}.org", "*a".repeat(17));
    assert_eq!(stars.parse::<MatchImage>(), Err(MatchImageError::TooLong));
}
