//! Token realms and tokens.

use std::time::SystemTime;

use oras_csi_testkit::scripted::Script;
use oras_csi_testkit::scripted::tricks::{
    answer, challenge, cut, redirect, status, status_with, www_authenticate,
};

use super::{DONE, FAILED, FEW, Tls, always, check, once, row};

#[test]
fn tokens() {
    let realm = |name, realm: &'static str| always(name, FAILED, "/v2/", challenge(realm)).at_most_asked(4);
    let given = |name, body: String| {
        always(name, FAILED, "/token", answer(move |_, answer| answer.body(body.clone()))).private()
    };
    let challenged =
        |name, status, value: String| always(name, status, "/v2/", www_authenticate(value)).at_most_asked(8);
    let elsewhere = |storage: &str| Script::default().on("/v2/", challenge(&format!("{storage}/token")));
    let refused_always = || {
        answer(|request, answer| {
            let realm = format!("Bearer realm=\"{}/token\",service=\"scripted\"", request.base());
            answer.status(401).without("WWW-Authenticate").header("WWW-Authenticate", &realm).body("")
        })
    };
    let new_each_time = answer(|request, answer| {
        let scope = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
        let challenge =
            format!("Bearer realm=\"{}/token\",scope=\"repository:x{scope}:pull\"", request.base());
        answer.status(401).without("WWW-Authenticate").header("WWW-Authenticate", &challenge).body("")
    });
    let nothing = |_: &str| Script::default();
    check(
        FEW,
        vec![
            row("a password is not shown", DONE, nothing)
                .with_password()
                .check("no password in the words", |seen| !seen.words().contains("password")),
            row("a realm elsewhere", DONE, elsewhere).private().storage_sees_no_secrets(),
            row("a realm elsewhere gets no password", DONE, elsewhere)
                .with_password()
                .storage_sees_no_secrets(),
            realm("a realm at the metadata address", "http://169.254.169.254/token"),
            realm("a realm at the metadata address, mapped", "http://[::ffff:a9fe:a9fe]/token"),
            realm("a realm on this machine", "http://localhost:1/token"),
            realm("a realm that is a file", "file:///etc/passwd"),
            realm("a realm with a user", "http://user:password@127.0.0.2:1/token"),
            row("a realm without TLS", FAILED, elsewhere).tls(Tls::Registry).private().storage_is_not_asked(),
            always(
                "a realm that redirects to the metadata address",
                FAILED,
                "/token",
                redirect("http://169.254.169.254/"),
            )
            .private(),
            given("a token with line breaks", r#"{"token":"a\r\nX-Evil: 1"}"#.to_owned()),
            given("a token with spaces", r#"{"token":"a b"}"#.to_owned()),
            given("a token of 20 KiB", format!(r#"{{"token":"{}"}}"#, "a".repeat(20 << 10))),
            given("a token of 60 KiB", format!(r#"{{"token":"{}"}}"#, "a".repeat(60 << 10))),
            given("a token of 10 MB", format!(r#"{{"token":"{}"}}"#, "a".repeat(10 << 20))),
            given("a token that is a number", r#"{"token":5}"#.to_owned()),
            given("a token that is a list", r#"{"token":["a"]}"#.to_owned()),
            given("an answer without a token", "{}".to_owned()),
            given("an answer without anything", String::new()),
            given("a page instead of a token", "<html>\u{1b}[31m</html>".to_owned()),
            given("deep JSON instead of a token", "[".repeat(60_000)),
            once("the token service fails once", DONE, "/token", status(503, "")).private(),
            once("too many tokens once", DONE, "/token", status_with(429, "Retry-After", "1")).private(),
            always("the token service fails", FAILED, "/token", status(500, "\u{1b}[31mno")).private(),
            always("no token service", FAILED, "/token", status(404, "")).private(),
            always("the token service wants a token", FAILED, "/token", refused_always())
                .private()
                .at_most_asked(10),
            row("the token ends in the middle", DONE, move |_| {
                Script::default().once("/blobs/", cut(100_000)).once("/blobs/", refused_always())
            })
            .private(),
            always("401 for ever", FAILED, "/v2/", refused_always()).at_most_asked(12),
            always("another challenge each time", FAILED, "/v2/", new_each_time).at_most_asked(12),
            always("401 without a challenge", FAILED, "/v2/", status(401, "")).at_most_asked(8),
            challenged("a challenge for a password", FAILED, "Basic realm=\"x\"".to_owned()),
            challenged("a thousand challenges", FAILED, vec!["Basic realm=\"x\""; 1_000].join(", ")),
            challenged("a challenge without a realm", FAILED, "Bearer service=\"x\"".to_owned()),
            challenged("a realm that is no address", FAILED, "Bearer realm=\"/token\"".to_owned()),
            challenged("a challenge without an end", FAILED, "Bearer realm=\"http".to_owned()),
            challenged("a challenge of signs", FAILED, "=,=\"".to_owned()),
            challenged(
                "a challenge with terminal codes",
                FAILED,
                "Bearer realm=\"\u{9b}31m\u{202e}\"".to_owned(),
            ),
            challenged(
                "a challenge of 60 KB",
                FAILED,
                format!("Bearer realm=\"http://x/{}\"", "y".repeat(60_000)),
            ),
        ],
    );
}
