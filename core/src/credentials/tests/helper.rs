use std::sync::Arc;
use std::time::{Duration, Instant};

use rstest::rstest;
use tempfile::TempDir;

use super::{SECRET, basic, program, registry, runs, timing};
use crate::credentials::helper::{Timing, find_on};
use crate::credentials::{Credential, HelperError, HelperName, Helpers, ProcessError};

fn name(text: &str) -> HelperName {
    text.parse().unwrap()
}

/// Runs a helper with these lines for a registry.
async fn run(lines: &str, host: &str) -> Result<Option<Credential>, Arc<HelperError>> {
    let folder = TempDir::new().unwrap();
    program(folder.path(), "docker-credential-test", lines);
    let helpers = Helpers::with_timing(Some(folder.path().to_owned()), timing());
    helpers.get(&name("test"), &registry(host)).await
}

#[rstest]
#[case::basic(r#"echo '{"ServerURL":"x","Username":"me","Secret":"geheim"}'"#, Some(basic("me", "geheim")))]
#[case::identity_token(r#"echo '{"ServerURL":"x","Username":"<token>","Secret":"t"}'"#, Credential::refresh_token("t".to_owned()).ok())]
#[case::does_not_read(r#"exec <&-; echo '{"Username":"me","Secret":"geheim"}'"#, Some(basic("me", "geheim")))]
#[case::nothing("echo 'credentials not found in native keychain'; exit 1", None)]
#[case::empty(r#"echo '{"ServerURL":"","Username":"","Secret":""}'"#, None)]
#[case::argument(r#"echo "{\"Username\":\"$*\",\"Secret\":\"x\"}""#, Some(basic("get", "x")))]
#[tokio::test]
async fn the_answer_is_parsed(#[case] lines: &str, #[case] expected: Option<Credential>) {
    assert_eq!(run(lines, "ghcr.io").await, Ok(expected));
}

#[rstest]
#[case("ghcr.io", "ghcr.io")]
#[case("kind-registry:5000", "kind-registry:5000")]
#[case("docker.io", "https-index.docker.io-v1-")]
#[tokio::test]
async fn the_server_address_is_on_stdin(#[case] host: &str, #[case] address: &str) {
    let lines = r#"printf '{"Username":"me","Secret":"%s"}' "$(cat | sed 's,://,-,; s,/,-,g')""#;
    assert_eq!(run(lines, host).await, Ok(Some(basic("me", address))));
}

#[rstest]
#[case::exit("echo hunter2-geheim; echo hunter2-geheim >&2; exit 1", "exit status: 1")]
#[case::signal("echo hunter2-geheim >&2; kill -9 $$", "signal: 9")]
#[case::not_found_with_success("echo 'credentials not found in native keychain'", "not the JSON")]
#[case::not_json("echo hunter2-geheim", "not the JSON")]
#[case::other_shape(r#"echo '{"Username":"me","Secret":["hunter2-geheim"]}'"#, "not the JSON")]
#[case::secret_is_a_number(r#"echo '{"Username":"me","Secret":424242}'"#, "not the JSON")]
#[case::cut(r#"printf '{"Username":"me","Secret":"hunter2-geheim'"#, "not the JSON")]
#[case::line_break(
    r#"printf '%s' '{"Username":"me","Secret":"hunter2-geheim\r\nX-Evil: 1"}'"#,
    "control character"
)]
#[case::line_break_in_the_name(
    r#"printf '%s' '{"Username":"hunter2-geheim\n","Secret":"x"}'"#,
    "control character"
)]
#[case::line_break_in_the_token(
    r#"printf '%s' '{"Username":"<token>","Secret":"hunter2-geheim\n"}'"#,
    "control character"
)]
#[case::endless("while :; do echo hunter2-geheimhunter2-geheimhunter2-geheim; done", "more than 65536 bytes")]
#[tokio::test]
async fn errors_do_not_contain_the_output(#[case] lines: &str, #[case] words: &str) {
    let error = run(lines, "ghcr.io").await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(error.to_string().starts_with("credential helper test failed for ghcr.io"), "{error}");
    assert!(!shown.contains(SECRET) && !shown.contains("424242"), "{shown}");
}

#[tokio::test]
async fn a_hanging_helper_is_killed_with_its_children() {
    let folder = TempDir::new().unwrap();
    let lines =
        format!("sleep 1000 & echo $! > {0}/child; echo $$ > {0}/self; wait", folder.path().display());
    program(folder.path(), "docker-credential-slow", &lines);
    let timing = Timing { timeout: Duration::from_secs(2), ..timing() };
    let helpers = Helpers::with_timing(Some(folder.path().to_owned()), timing);
    let begun = Instant::now();
    let error = helpers.get(&name("slow"), &registry("ghcr.io")).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let killed = matches!(&*error, HelperError::Process { source: ProcessError::Timeout(_), .. });
    assert!(killed, "{error}");
    for file in ["self", "child"] {
        let id = std::fs::read_to_string(folder.path().join(file)).unwrap();
        let status = format!("/proc/{}/stat", id.trim());
        let gone = || std::fs::read_to_string(&status).map_or(true, |stat| stat.contains(") Z "));
        let ended = async {
            while !gone() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), ended).await.expect(file);
    }
}

#[tokio::test]
async fn concurrent_lookups_run_a_helper_once_for_each_address() {
    let folder = TempDir::new().unwrap();
    let lines = format!(
        r#"echo x >> {}/runs; sleep 0.3; echo '{{"Username":"me","Secret":"x"}}'"#,
        folder.path().display()
    );
    program(folder.path(), "docker-credential-test", &lines);
    let helpers = Helpers::with_timing(Some(folder.path().to_owned()), timing());
    let (test, ghcr, quay) = (name("test"), registry("ghcr.io"), registry("quay.io"));
    let asked = (0..20).map(|_| helpers.get(&test, &ghcr));
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(answer, Ok(Some(basic("me", "x"))));
    }
    // A cancelled caller does not cancel the lookup for later callers.
    let hurried = tokio::time::timeout(Duration::from_millis(20), helpers.get(&test, &quay)).await;
    assert!(hurried.is_err());
    assert!(helpers.get(&test, &quay).await.is_ok());
    assert_eq!(runs(folder.path()), 2);
}

#[rstest]
#[case::answer(
    r#"echo '{"Username":"me","Secret":"x"}'"#,
    Duration::from_millis(500),
    Duration::from_mins(1)
)]
#[case::failure("exit 1", Duration::from_mins(1), Duration::from_millis(500))]
#[tokio::test]
async fn answers_and_failures_are_cached(
    #[case] last: &str,
    #[case] success_lifetime: Duration,
    #[case] failure_lifetime: Duration,
) {
    let folder = TempDir::new().unwrap();
    program(
        folder.path(),
        "docker-credential-test",
        &format!("echo x >> {}/runs; {last}", folder.path().display()),
    );
    let timing = Timing { success_lifetime, failure_lifetime, ..timing() };
    let helpers = Helpers::with_timing(Some(folder.path().to_owned()), timing);
    let (test, ghcr) = (name("test"), registry("ghcr.io"));
    let first = helpers.get(&test, &ghcr).await;
    assert_eq!(helpers.get(&test, &ghcr).await, first);
    assert_eq!(runs(folder.path()), 1);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(helpers.get(&test, &ghcr).await, first);
    assert_eq!(runs(folder.path()), 2);
}

#[tokio::test]
async fn a_missing_helper_is_reported_with_the_searched_folder() {
    let folder = TempDir::new().unwrap();
    let helpers = Helpers::with_timing(Some(folder.path().to_owned()), timing());
    let error =
        helpers.get(&name("nowhere-to-be-found"), &registry("ghcr.io")).await.unwrap_err().to_string();
    assert!(error.contains("docker-credential-nowhere-to-be-found in /"), "{error}");
    let error = Helpers::new(None).get(&name("nowhere-to-be-found"), &registry("ghcr.io")).await;
    assert!(error.unwrap_err().to_string().contains("in PATH: install it there"));
}

#[test]
fn path_is_searched_in_order_and_skips_other_files() {
    let (first, second) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    std::fs::create_dir(first.path().join("docker-credential-a")).unwrap();
    std::fs::write(first.path().join("docker-credential-b"), "").unwrap();
    program(first.path(), "docker-credential-c", "");
    for name in ["a", "b", "c"] {
        program(second.path(), &format!("docker-credential-{name}"), "");
    }
    let path = std::env::join_paths([first.path(), second.path()]).unwrap();
    for (name, folder) in [("a", &second), ("b", &second), ("c", &first)] {
        let program = format!("docker-credential-{name}");
        assert_eq!(find_on(&path, &program), Some(folder.path().join(program)));
    }
    // Relative folders are not searched.
    for (path, program) in
        [("src", "lib.rs"), (".", "src"), ("", "Cargo.toml"), ("../../../../../../../bin", "sh")]
    {
        assert_eq!(find_on(path.as_ref(), program), None);
    }
}

#[rstest]
fn helper_names_must_not_be_paths(
    #[values("", "../sh", "/bin/sh", "a/b", "A", "a b", "a;b", "a\n", "ä", "$(x)")] text: &str,
) {
    assert!(text.parse::<HelperName>().is_err(), "{text}");
}

#[rstest]
fn names_of_real_helpers_are_accepted(
    #[values("ecr-login", "gcloud", "pass", "osxkeychain", "acr_env.1")] text: &str,
) {
    assert_eq!(name(text).to_string(), text);
}
