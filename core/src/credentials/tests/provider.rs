use std::path::Path;
use std::time::Duration;

use rstest::rstest;
use tempfile::TempDir;

use super::{SECRET, basic, program, registry, runs, timing};
use crate::credentials::helper::Timing;
use crate::credentials::{Credential, Providers};

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n";
const OPEN: &str = r#""kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType""#;

fn entry(name: &str, images: &str, default: &str) -> String {
    format!(
        "- name: {name}\n  matchImages: [{images}]\n  defaultCacheDuration: \"{default}\"\n  apiVersion: \
         credentialprovider.kubelet.k8s.io/v1\n"
    )
}

fn providers(folder: &Path, entries: &str) -> Providers {
    Providers::with_timing(&format!("{HEAD}{entries}"), folder, timing()).unwrap()
}

/// A provider `test` for `*.example.org` that counts its runs and executes these lines.
fn one(folder: &Path, lines: &str) -> Providers {
    program(folder, "test", &format!("echo x >> {}/runs\n{lines}", folder.display()));
    providers(folder, &entry("test", "\"*.example.org\", ghcr.io/acme", "1h"))
}

async fn get(providers: &Providers, host: &str, repository: &str) -> Vec<Credential> {
    let (credentials, failed) = providers.credentials_for(&registry(host), repository).await;
    assert_eq!(failed, []);
    credentials
}

fn answer(key: &str, rest: &str, auth: &str) -> String {
    format!("printf '%s' '{{{OPEN}:\"{key}\"{rest},\"auth\":{auth}}}'")
}

const ME: &str = r#"{"a.example.org":{"username":"me","password":"geheim"}}"#;

#[tokio::test]
async fn a_provider_is_run_only_for_matching_images() {
    let folder = TempDir::new().unwrap();
    let providers = one(folder.path(), &answer("Image", "", ME));
    assert_eq!(get(&providers, "a.example.org", "app").await, [basic("me", "geheim")]);
    assert_eq!(get(&providers, "a.b.example.org", "app").await, []);
    assert_eq!(get(&providers, "ghcr.io", "acmeevil/app").await, []);
    assert_eq!(runs(folder.path()), 1);
    // The answer may contain credentials for other registries. They do not apply to this image.
    assert_eq!(get(&providers, "ghcr.io", "acme/app").await, []);
    assert_eq!(get(&providers, "b.example.org", "app").await, []);
    assert_eq!(runs(folder.path()), 3);
}

#[tokio::test]
async fn request_arguments_and_environment_are_as_in_kubelet() {
    let folder = TempDir::new().unwrap();
    let lines = format!(
        "cat > {}/request\nprintf '{{{OPEN}:\"Image\",\"auth\":{{\"*.example.org\":{{\"username\":\"%s\",\"password\":\"%s\"}}}}}}' \"$1-$2\" \"$WORD\"",
        folder.path().display()
    );
    program(folder.path(), "test", &lines);
    let extra = "  args: [get, \"two words\"]\n  env: [{name: WORD, value: geheim}]\n";
    let providers = providers(folder.path(), &(entry("test", "\"*.example.org:5000\"", "0") + extra));
    assert!(!format!("{providers:?}").contains("geheim"));
    let found = get(&providers, "a.example.org:5000", "acme/app").await;
    // The key of the answer has no port, so it does not match.
    assert_eq!(found, []);
    let request = std::fs::read_to_string(folder.path().join("request")).unwrap();
    assert_eq!(
        request,
        r#"{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"a.example.org:5000/acme/app"}"#
    );
    let extra = extra.to_owned() + &entry("other", "x.io", "0");
    let providers =
        super::provider::providers(folder.path(), &(entry("test", "\"*.example.org\"", "0") + &extra));
    assert_eq!(get(&providers, "a.example.org", "app").await, [basic("get-two words", "geheim")]);
}

#[rstest]
#[case::image("Image", "", [1, 1, 2, 3])]
#[case::registry("Registry", "", [1, 1, 1, 2])]
#[case::global("Global", "", [1, 1, 1, 1])]
#[case::not_at_all("Global", r#","cacheDuration":"0s""#, [1, 2, 3, 4])]
#[case::before_now("Global", r#","cacheDuration":"-5m""#, [1, 2, 3, 4])]
#[case::as_it_says("Global", r#","cacheDuration":"1h30m""#, [1, 1, 1, 1])]
#[case::null_is_the_default("Global", r#","cacheDuration":null"#, [1, 1, 1, 1])]
#[tokio::test]
async fn an_answer_is_cached_as_it_says(#[case] key: &str, #[case] rest: &str, #[case] expected: [usize; 4]) {
    let folder = TempDir::new().unwrap();
    let providers =
        one(folder.path(), &answer(key, rest, r#"{"*.example.org":{"username":"me","password":"x"}}"#));
    let asked = [("a", "app"), ("a", "app"), ("a", "other"), ("b", "app")];
    for ((host, repository), expected) in asked.into_iter().zip(expected) {
        let found = get(&providers, &format!("{host}.example.org"), repository).await;
        assert_eq!(found, [basic("me", "x")]);
        assert_eq!(runs(folder.path()), expected, "{host} {repository}");
    }
}

#[tokio::test]
async fn a_cached_answer_expires() {
    let folder = TempDir::new().unwrap();
    let providers = one(folder.path(), &answer("Global", r#","cacheDuration":"500ms""#, ME));
    get(&providers, "a.example.org", "app").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    get(&providers, "a.example.org", "app").await;
    assert_eq!(runs(folder.path()), 2);
}

#[tokio::test]
async fn concurrent_lookups_run_a_provider_once_even_without_caching() {
    let folder = TempDir::new().unwrap();
    let lines = format!("sleep 0.5; {}", answer("Image", r#","cacheDuration":"0""#, ME));
    let providers = one(folder.path(), &lines);
    let asked = (0..20).map(|_| get(&providers, "a.example.org", "app"));
    for found in futures_util::future::join_all(asked).await {
        assert_eq!(found, [basic("me", "geheim")]);
    }
    assert_eq!(runs(folder.path()), 1);
}

#[rstest]
#[case::exit("echo hunter2-geheim >&2; exit 3", "exit status: 3")]
#[case::garbage("echo hunter2-geheim", "not a CredentialProviderResponse")]
#[case::older_protocol(r#"echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1beta1","cacheKeyType":"Image"}'"#, "not a CredentialProviderResponse")]
#[case::kind(r#"echo '{"kind":"hunter2-geheim","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image"}'"#, "not a CredentialProviderResponse")]
#[case::cache_key(&answer("Pod", "", ME), "cacheKeyType")]
#[case::cache_duration(&answer("Image", r#","cacheDuration":"5 hunter2-geheim""#, ME), "cacheDuration")]
#[case::line_break(&answer("Image", "", r#"{"a.example.org":{"username":"me","password":"hunter2-geheim\r\nX: y"}}"#), "control character")]
#[case::line_break_in_the_name(&answer("Image", "", r#"{"a.example.org":{"username":"hunter2-geheim\n","password":"x"}}"#), "control character")]
#[case::password_is_a_number(&answer("Image", "", r#"{"a.example.org":{"username":"me","password":424242}}"#), "not a CredentialProviderResponse")]
#[case::key(&answer("Image", "", r#"{"me:hunter2-geheim@a.example.org":{"username":"me","password":"x"}}"#), "without a user name")]
#[case::huge("yes hunter2-geheim | head -c 100000", "more than 65536 bytes")]
#[tokio::test]
async fn errors_do_not_contain_the_output(#[case] lines: &str, #[case] words: &str) {
    let folder = TempDir::new().unwrap();
    let providers = one(folder.path(), lines);
    for _ in 0..2 {
        let (found, failed) = providers.credentials_for(&registry("a.example.org"), "app").await;
        assert_eq!((found.len(), failed.len()), (0, 1));
        let shown = format!("{} {:?}", failed[0], failed[0]);
        assert!(shown.starts_with("credential provider test failed for a.example.org/app: "), "{shown}");
        assert!(shown.contains(words), "{shown}");
        assert!(!shown.contains(SECRET) && !shown.contains("424242"), "{shown}");
    }
    assert_eq!(runs(folder.path()), 1, "a failure is cached");
}

#[tokio::test]
async fn a_hanging_or_missing_provider_does_not_affect_the_others() {
    let folder = TempDir::new().unwrap();
    program(folder.path(), "slow", "sleep 1000");
    program(folder.path(), "test", &answer("Image", "", ME));
    let entries = ["slow", "missing", "test"].map(|name| entry(name, "a.example.org", "1h")).concat();
    let timing = Timing { timeout: Duration::from_secs(3), ..timing() };
    let providers = Providers::with_timing(&format!("{HEAD}{entries}"), folder.path(), timing).unwrap();
    let (found, failed) = providers.credentials_for(&registry("a.example.org"), "app").await;
    assert_eq!(found, [basic("me", "geheim")]);
    assert!(failed[0].to_string().contains("was killed"), "{}", failed[0]);
    assert!(failed[1].to_string().contains("missing failed"), "{}", failed[1]);
}

#[tokio::test]
async fn credentials_are_ordered_by_configuration_and_by_key() {
    let folder = TempDir::new().unwrap();
    let user = |name: &str| format!(r#"{{"username":"{name}","password":"p"}}"#);
    let auth = format!(
        r#"{{"*.example.org":{},"a.example.org/acme":{},"a.example.org":{},"b.example.org":{}}}"#,
        user("wildcard"),
        user("path"),
        user("host"),
        user("other")
    );
    program(folder.path(), "z-first", &answer("Image", "", &auth));
    program(
        folder.path(),
        "a-second",
        &answer("Image", "", &format!(r#"{{"a.example.org":{}}}"#, user("second"))),
    );
    program(folder.path(), "c-none", &answer("Image", "", "null"));
    let entries = ["z-first", "a-second", "c-none"].map(|name| entry(name, "a.example.org", "1h")).concat();
    let found = get(&providers(folder.path(), &entries), "a.example.org", "acme/app").await;
    assert_eq!(found, ["path", "host", "wildcard", "second"].map(|name| basic(name, "p")));
}

#[rstest]
#[case::none("", "names no provider")]
#[case::syntax("- name: [hunter2-geheim", "line ")]
#[case::unknown_key(
    "- name: x\n  hunter2-geheim: y\n",
    "is not a valid CredentialProviderConfig (error at line "
)]
#[case::env_of_another_shape(
    "- name: x\n  env: [{name: X, value: [hunter2-geheim]}]\n",
    "is not a valid CredentialProviderConfig (error at line "
)]
#[case::twice(&(entry("x", "a.io", "0") + &entry("x", "b.io", "0")), "twice")]
#[case::path(&entry("../x", "a.io", "0"), "name of a provider")]
#[case::folder(&entry("\"..\"", "a.io", "0"), "name of a provider")]
#[case::no_name(&entry("\"\"", "a.io", "0"), "name of a provider")]
#[case::no_images(&entry("x", "", "0"), "matchImages is empty")]
#[case::image(&entry("x", "\"a.io/*\"", "0"), "matchImages")]
#[case::password_in_image(&entry("x", "\"me:hunter2-geheim@a.io\"", "0"), "…@a.io")]
#[case::duration(&entry("x", "a.io", "12"), "defaultCacheDuration")]
#[case::no_duration(&entry("x", "a.io", ""), "defaultCacheDuration")]
#[case::negative_duration(&entry("x", "a.io", "-5m"), "defaultCacheDuration")]
#[case::protocol(&entry("x", "a.io", "0").replace("io/v1\n", "io/v1beta1\n"), "apiVersion must be")]
fn an_invalid_configuration_is_rejected(#[case] entries: &str, #[case] words: &str) {
    let error = Providers::parse(&format!("{HEAD}{entries}"), Path::new("/")).unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    assert!(!format!("{error}{error:?}").contains(SECRET), "{error:?}");
}

/// Kubelet gives such a provider a token of the pod's service account, which oras-csi does not have.
#[tokio::test]
async fn a_provider_that_needs_a_service_account_token_is_passed_over() {
    let folder = TempDir::new().unwrap();
    for name in ["with-token", "test"] {
        program(folder.path(), name, &answer("Image", "", ME));
    }
    let token = "  tokenAttributes:\n    serviceAccountTokenAudience: a\n    requireServiceAccount: true\n";
    let with_token = entry("with-token", "a.example.org", "1h") + token;
    let both = providers(folder.path(), &(with_token.clone() + &entry("test", "a.example.org", "1h")));
    assert_eq!(format!("{both:?}"), "[\"test\"]");
    assert_eq!(get(&both, "a.example.org", "app").await, [basic("me", "geheim")]);
    let none = providers(folder.path(), &with_token);
    assert_eq!(get(&none, "a.example.org", "app").await, []);
    // What is wrong beside it stays an error.
    let twice = Providers::parse(&format!("{HEAD}{with_token}{with_token}"), folder.path()).unwrap_err();
    assert!(twice.to_string().contains("twice"), "{twice}");
}

#[test]
fn other_documents_and_missing_folders_are_rejected() {
    let text = format!("{HEAD}{}", entry("x", "a.io", "0"));
    for other in
        [text.replace("k8s.io/v1\nkind", "k8s.io/v1beta1\nkind"), text.replace("ProviderConfig", "Config")]
    {
        let error = Providers::parse(&other, Path::new("/")).unwrap_err().to_string();
        assert!(error.contains("must have apiVersion"), "{error}");
    }
    let folder = TempDir::new().unwrap();
    let (file, nowhere) = (folder.path().join("config.yaml"), folder.path().join("nowhere"));
    assert!(Providers::read(&file, folder.path()).unwrap_err().to_string().contains("config.yaml"));
    std::fs::write(&file, &text).unwrap();
    assert!(Providers::read(&file, &nowhere).unwrap_err().to_string().contains("nowhere: not a folder"));
    assert_eq!(format!("{:?}", Providers::read(&file, folder.path()).unwrap()), "[\"x\"]");
}
