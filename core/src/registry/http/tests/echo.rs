//! Registries that repeat what the client sent: no secret appears in the client's errors.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use rstest::rstest;

use super::*;
use crate::credentials::Credential;
use crate::display::Printable;

const PASSWORD: &str = "s3cr&t \"päss\"/w+rd";
const TOKEN: &str = "eyJhbGciOiJub25lIn0.e30.";

fn person() -> Credential {
    Credential::basic("alice".to_owned(), PASSWORD.to_owned()).unwrap()
}

fn decoded(header: &str) -> String {
    let encoded = header.strip_prefix("Basic ").unwrap_or_default();
    String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap()
}

fn unauthorized(challenge: &str) -> Vec<Part> {
    answer(401, &[("WWW-Authenticate", challenge)], b"")
}

/// Messages in which a server repeats the password in some encoding, and that encoding.
fn echoes() -> Vec<(String, String)> {
    let pair = format!("alice:{PASSWORD}");
    let json = serde_json::to_string(PASSWORD).unwrap();
    let go = json.trim_matches('"').replace('&', "\\u0026");
    let form: String = url::form_urlencoded::byte_serialize(PASSWORD.as_bytes()).collect();
    [
        PASSWORD.to_owned(),
        pair.clone(),
        json.trim_matches('"').to_owned(),
        go,
        form.clone(),
        form.replace('+', "%20"),
        STANDARD.encode(&pair),
        STANDARD_NO_PAD.encode(&pair),
        URL_SAFE_NO_PAD.encode(&pair),
        STANDARD.encode(PASSWORD),
    ]
    .map(|echo| (format!("user {echo} is not known"), echo))
    .into()
}

#[tokio::test]
async fn errors_do_not_contain_a_password_that_a_server_repeats() {
    for (text, echo) in echoes() {
        // The second text is cut in the middle of the password.
        for text in [text.clone(), format!("{} {text}", "x".repeat(Printable::MAX_CHARS - 12))] {
            for by_tokens in [true, false] {
                let body = text.clone();
                let server = Server::start(move |request| {
                    let host = request.header("host");
                    match (request.target.starts_with("/token"), request.header("authorization")) {
                        (_, given) if given.starts_with("Basic ") => {
                            assert_eq!(decoded(given), format!("alice:{PASSWORD}"));
                            answer(403, &[], body.as_bytes())
                        }
                        _ if by_tokens => unauthorized(&format!("Bearer realm=\"http://{host}/token\"")),
                        _ => unauthorized("Basic realm=\"x\""),
                    }
                })
                .await;
                let client = Arc::new(client(&server)).with_credential(person());
                let error = client.resolve(&reference(&server)).await.unwrap_err();
                let words = error.to_string();
                assert!(words.contains("refused with 403"), "{words}");
                let shown: String = echo.chars().take(8).collect();
                assert!(!words.contains(&shown) && words.contains('…'), "{echo}: {words}");
                assert!(by_tokens || words.contains("/team/app"), "{words}");
            }
        }
    }
}

#[rstest]
#[case::body("body")]
#[case::path("path")]
#[case::host("host")]
#[case::digest("digest")]
#[case::scheme("scheme")]
#[tokio::test]
async fn errors_do_not_contain_a_token_that_a_server_repeats(#[case] place: &'static str) {
    let server = Server::start(move |request| {
        let host = request.header("host");
        match request.header("authorization").strip_prefix("Bearer ") {
            None if request.target.starts_with("/token") => {
                answer(200, &[], format!("{{\"token\":\"{TOKEN}\"}}").as_bytes())
            }
            None if request.target.starts_with("/v2/") && !request.target.contains("eyJ") => {
                unauthorized(&format!("Bearer realm=\"http://{host}/token\""))
            }
            None => answer(404, &[], b""),
            Some(token) => match place {
                "body" => answer(403, &[], format!("denied: {token}").as_bytes()),
                "path" => answer(307, &[("Location", &format!("http://localhost:{}/{token}/x", 1))], b""),
                "host" => answer(307, &[("Location", &format!("gopher+{token}://x/"))], b""),
                "digest" => answer(200, &[("Docker-Content-Digest", token)], b"{}"),
                _ => answer(307, &[("Location", &format!("https://{token}@x/"))], b""),
            },
        }
    })
    .await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    let text = format!("{error} {error:?}").to_lowercase();
    assert!(!text.contains(&TOKEN.to_lowercase()[..12]), "{text}");
}

#[tokio::test]
async fn errors_do_not_contain_a_password_that_a_challenge_repeats() {
    for challenge in [
        "Bearer realm=\"s3cret-word\"",
        "Bearer realm=\"s3cret-word://x/\"",
        "Bearer realm=\"=, s3cret-word",
        "Bearer realm=\"https://s3cret-word.test/token\"",
        "Bearer realm=\"http://localhost:1/s3cret-word/token\"",
    ] {
        let server = Server::start(move |_| unauthorized(challenge)).await;
        let credential = Credential::basic("alice".to_owned(), "s3cret-word".to_owned()).unwrap();
        let client = Arc::new(client(&server)).with_credential(credential);
        let error = client.resolve(&reference(&server)).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret-word"), "{error}");
    }
}

#[tokio::test]
async fn a_request_url_keeps_a_word_that_is_also_the_password() {
    let server = Server::start(|request| match request.header("authorization") {
        "" => unauthorized("Basic realm=\"x\""),
        _ => answer(403, &[], b"app: wrong password app"),
    })
    .await;
    let credential = Credential::basic("team".to_owned(), "app".to_owned()).unwrap();
    let client = Arc::new(client(&server)).with_credential(credential);
    let words = client.resolve(&reference(&server)).await.unwrap_err().to_string();
    assert!(words.contains("/v2/team/app/manifests/v1: refused with 403: …: wrong password …"), "{words}");
}
