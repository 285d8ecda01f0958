use rstest::rstest;

use super::{SECRET, basic, config, registry};
use crate::credentials::{
    Credential, DockerConfig, DockerConfigError, EntryError, EntryProblem, HelperChoice,
};

fn found(text: &str, host: &str, repository: &str) -> Vec<Credential> {
    config(text).credentials_for(&registry(host), repository)
}

#[rstest]
#[case::auth(r#"{"auth":"bWU6Z2VoZWlt"}"#, Some(basic("me", "geheim")))]
#[case::auth_with_padding(r#"{"auth":"bWU6Z2VoZWltMQ=="}"#, Some(basic("me", "geheim1")))]
#[case::auth_without_padding(r#"{"auth":"bWU6Z2VoZWltMQ"}"#, Some(basic("me", "geheim1")))]
#[case::auth_in_lines(r#"{"auth":"bWU6\nZ2VoZWlt\n"}"#, Some(basic("me", "geheim")))]
#[case::colon_in_the_password(r#"{"auth":"bWU6YTpi"}"#, Some(basic("me", "a:b")))]
#[case::nul_at_the_end(r#"{"auth":"bWU6eAAA"}"#, Some(basic("me", "x")))]
#[case::auth_before_the_rest(
    r#"{"auth":"bWU6Z2VoZWlt","username":"you","password":"p"}"#,
    Some(basic("me", "geheim"))
)]
#[case::name_and_password(
    r#"{"username":"me","password":"geheim","email":"a@b","x":[1]}"#,
    Some(basic("me", "geheim"))
)]
#[case::password_alone(r#"{"password":"geheim"}"#, Some(basic("", "geheim")))]
#[case::identity_token(r#"{"auth":"bWU6Z2VoZWlt","identitytoken":"t"}"#, Credential::refresh_token("t".to_owned()).ok())]
#[case::registry_token(r#"{"identitytoken":"t","registrytoken":"r"}"#, Credential::registry_token("r".to_owned()).ok())]
#[case::empty_tokens(
    r#"{"auth":"bWU6Z2VoZWlt","identitytoken":"","registrytoken":""}"#,
    Some(basic("me", "geheim"))
)]
#[case::docker_leaves_this_beside_a_store("{}", None)]
#[case::null("null", None)]
#[case::email_alone(r#"{"email":"a@b"}"#, None)]
fn an_entry_is_read_as_docker_reads_it(#[case] entry: &str, #[case] expected: Option<Credential>) {
    let text = format!(r#"{{"auths":{{"ghcr.io":{entry}}},"HttpHeaders":{{"a":"b"}},"psFormat":"x"}}"#);
    let expected = expected.into_iter().collect::<Vec<_>>();
    assert_eq!(config(&text).problems(), []);
    assert_eq!(found(&text, "ghcr.io", "acme/model"), expected);
    // The same as a .dockercfg, beside an entry that certainly is one.
    let older = format!(r#"{{"ghcr.io":{entry},"x.example":{{"auth":"bWU6Z2VoZWlt"}}}}"#);
    assert_eq!(found(&older, "ghcr.io", "acme/model"), expected);
}

#[rstest]
#[case::not_base64(r#"{"auth":"hunter2-geheim"}"#, EntryError::Auth)]
#[case::no_colon(r#"{"auth":"aHVudGVyMi1nZWhlaW0="}"#, EntryError::Auth)]
#[case::not_utf8(r#"{"auth":"bWU6/w=="}"#, EntryError::Auth)]
#[case::number(r#"{"auth":"bWU6eA==","password":123456}"#, EntryError::Shape)]
#[case::text(r#""hunter2-geheim""#, EntryError::Shape)]
#[case::twice(r#"{"password":"hunter2-geheim","password":"x"}"#, EntryError::Shape)]
fn an_invalid_entry_is_ignored_and_the_others_are_used(#[case] entry: &str, #[case] error: EntryError) {
    let text = format!(r#"{{"auths":{{"ghcr.io/acme":{entry},"ghcr.io":{{"auth":"bWU6Z2VoZWlt"}}}}}}"#);
    let config = config(&text);
    assert_eq!(found(&text, "ghcr.io", "acme/model"), [basic("me", "geheim")]);
    assert_eq!(config.problems().iter().map(EntryProblem::error).collect::<Vec<_>>(), [&error]);
    let shown = format!("{} {config:?}", config.problems()[0]);
    assert!(shown.contains("ghcr.io/acme"), "{shown}");
    assert!(!["hunter2", "geheim", "123456", "aHVu"].iter().any(|secret| shown.contains(secret)), "{shown}");
}

#[test]
fn entries_with_line_breaks_are_reported_and_ignored() {
    let text =
        r#"{"auths":{"ghcr.io":{"auth":"bWU6Z2VoZWltCg=="},"b.io":{"username":"a\r\nX: y","password":"p"}}}"#;
    let config = config(text);
    assert_eq!(config.entries(), 0);
    let words = config.problems().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(
        words[1].contains("\"ghcr.io\"") && words[1].contains("password has a control character"),
        "{words:?}"
    );
    assert!(words[0].contains("\"b.io\"") && words[0].contains("user name has a control"), "{words:?}");
}

#[test]
fn invalid_keys_are_reported_and_ignored() {
    let text = format!(
        r#"{{"auths":{{"https://me:{SECRET}@ghcr.io":{{"auth":"YTpi"}},"ghcr.io/*":{{"auth":"YTpi"}},"ghcr.io":{{"auth":"YTpi"}}}}}}"#
    );
    let config = config(&text);
    assert_eq!(config.problems().len(), 2);
    assert_eq!(found(&text, "ghcr.io", "acme/model"), [basic("a", "b")]);
    let shown = format!("{config:?}{}", config.problems()[0]) + &config.problems()[1].to_string();
    assert!(!shown.contains(SECRET), "{shown}");
}

#[test]
fn the_most_specific_key_comes_first_without_duplicates() {
    let entry = |key: &str, user: &str| format!(r#""{key}":{{"username":"{user}","password":"p"}}"#);
    let entries = [
        entry("*.example.org", "wildcard"),
        entry("a.example.org", "host"),
        entry("https://a.example.org/v2/", "host"),
        entry("a.example.org/acme", "acme"),
        entry("a.example.org/acme/model", "model"),
        entry("a.example.org/acme/other", "other"),
        entry("*.example.org/acme", "wildcard-acme"),
        entry("*", "none"),
    ];
    let text = format!(r#"{{"auths":{{{}}}}}"#, entries.join(","));
    let order = ["model", "acme", "host", "wildcard-acme", "wildcard"].map(|user| basic(user, "p"));
    assert_eq!(found(&text, "a.example.org", "acme/model"), order);
}

#[test]
fn docker_hubs_own_name_comes_first() {
    let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"},"Registry-1.docker.io":{"auth":"Yzpk"},
        "docker.io":{"auth":"ZTpm"}}}"#;
    assert_eq!(found(text, "docker.io", "library/ubuntu")[0], basic("e", "f"));
    assert_eq!(found(text, "docker.io", "library/ubuntu").len(), 3);
}

#[rstest]
#[case::own("ghcr.io", "ghcr")]
#[case::scheme("b.example", "b")]
#[case::port("b.example:5000", "port")]
#[case::hub("docker.io", "hub")]
#[case::others("c.example", "store desktop")]
#[case::subdomain("x.ghcr.io", "store desktop")]
#[case::file_only("quay.io", "none")]
#[case::no_name("evil.example", "none")]
fn the_helper_is_selected_as_in_docker(#[case] host: &str, #[case] expected: &str) {
    let config = config(
        r#"{"credsStore":"desktop","credHelpers":{"GHCR.io":"ghcr","https://b.example/":"b","b.example:5000":"port",
        "https://index.docker.io/v1/":"hub","quay.io":"","evil.example":"../../bin/sh","*.example":"x","d.io/p":"x"}}"#,
    );
    let chosen = match config.helper_for(&registry(host)) {
        HelperChoice::Host(name) => name.to_string(),
        HelperChoice::Store(name) => format!("store {name}"),
        HelperChoice::None => "none".to_owned(),
    };
    assert_eq!(chosen, expected);
    assert_eq!(config.problems().len(), 3);
}

#[test]
fn a_credentials_store_with_a_path_is_ignored() {
    let config = config(r#"{"credsStore":"/bin/sh"}"#);
    assert_eq!(config.helper_for(&registry("ghcr.io")), HelperChoice::None);
    assert!(config.problems()[0].to_string().contains("credsStore"), "{}", config.problems()[0]);
}

#[rstest]
#[case::empty("", DockerConfigError::Json { line: 1, column: 0 })]
#[case::list("[]", DockerConfigError::Json { line: 1, column: 0 })]
#[case::secret_alone("\"hunter2-geheim\"", DockerConfigError::Json { line: 1, column: 16 })]
#[case::cut(r#"{"auths":{"ghcr.io":{"auth":"hunter2-geheim"#, DockerConfigError::Json { line: 1, column: 43 })]
#[case::auths(r#"{"auths":"hunter2-geheim"}"#, DockerConfigError::Key("auths"))]
#[case::helpers(r#"{"credHelpers":["hunter2-geheim"]}"#, DockerConfigError::Key("credHelpers"))]
#[case::store(r#"{"credsStore":{"x":"hunter2-geheim"}}"#, DockerConfigError::Key("credsStore"))]
fn errors_of_an_invalid_file_do_not_contain_its_text(
    #[case] text: &str,
    #[case] expected: DockerConfigError,
) {
    let error = DockerConfig::parse(text.as_bytes()).unwrap_err();
    assert!(!format!("{error}{error:?}").contains(SECRET), "{error}");
    assert_eq!(error, expected);
}

#[test]
fn size_and_number_of_entries_are_limited() {
    let long = format!(r#"{{"auths":{{"a":{{"email":"{}"}}}}}}"#, "x".repeat(1 << 20));
    assert_eq!(DockerConfig::parse(long.as_bytes()).unwrap_err(), DockerConfigError::TooLong);
    let entries = (0..4097).map(|number| format!(r#""h{number}.io":{{}}"#)).collect::<Vec<_>>().join(",");
    let many = format!(r#"{{"auths":{{{entries}}}}}"#);
    assert_eq!(DockerConfig::parse(many.as_bytes()).unwrap_err(), DockerConfigError::TooMany(4097));
    let deep = format!(r#"{{"auths":{{"a.io":{}{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(config(&deep).problems()[0].error(), &EntryError::Shape);
}
