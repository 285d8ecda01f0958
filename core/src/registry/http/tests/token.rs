use std::sync::atomic::{AtomicUsize, Ordering};

use rstest::rstest;

use super::*;

/// A registry with a token service at `/token` whose `n`th response is `tokens(n)`. It accepts only `Bearer good`.
async fn guarded(tokens: impl Fn(usize) -> Vec<Part> + Send + Sync + 'static) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |request| {
        if request.target.starts_with("/token") {
            return tokens(count.fetch_add(1, Ordering::SeqCst));
        }
        if request.header("authorization") == "Bearer good" {
            return manifest_answer();
        }
        let host = request.header("host");
        let challenge = format!(
            "Bearer realm=\"http://{host}/token\",service=\"registry\",scope=\"repository:team/app:pull\""
        );
        answer(401, &[("WWW-Authenticate", "Basic realm=\"x\""), ("WWW-Authenticate", &challenge)], b"")
    })
    .await
}

fn good() -> Vec<Part> {
    answer(200, &[], br#"{"token":"good","expires_in":300}"#)
}

#[tokio::test]
async fn a_token_is_requested_once() {
    let server = guarded(|_| good()).await;
    let client = client(&server);
    for _ in 0..2 {
        client.resolve(&reference(&server)).await.unwrap();
    }
    assert_eq!(
        server.lines(),
        [
            "HEAD /v2/team/app/manifests/v1",
            "GET /token?service=registry&scope=repository%3Ateam%2Fapp%3Apull",
            "HEAD /v2/team/app/manifests/v1",
            "HEAD /v2/team/app/manifests/v1",
        ]
    );
    assert_eq!(server.requests()[1].header("authorization"), "");
}

#[tokio::test]
async fn a_token_that_is_no_longer_accepted_is_renewed() {
    let good = std::sync::Arc::new(AtomicUsize::new(0));
    let taken = good.clone();
    let server = Server::start(move |request| {
        let number = taken.load(Ordering::SeqCst);
        if request.target == "/token?scope=repository%3Ateam%2Fapp%3Apull" {
            return answer(200, &[], format!(r#"{{"access_token":"t{number}"}}"#).as_bytes());
        }
        if request.header("authorization") == format!("Bearer t{number}") {
            return manifest_answer();
        }
        let challenge = format!("Bearer realm=\"http://{}/token\"", request.header("host"));
        answer(401, &[("WWW-Authenticate", &challenge)], b"")
    })
    .await;
    let client = client(&server);
    client.resolve(&reference(&server)).await.unwrap();
    good.fetch_add(1, Ordering::SeqCst);
    client.resolve(&reference(&server)).await.unwrap();
    assert_eq!(server.lines().iter().filter(|line| line.contains("/token")).count(), 2);
}

#[tokio::test]
async fn an_expired_token_is_not_sent_again() {
    let server = guarded(|_| answer(200, &[], br#"{"token":"good","expires_in":0}"#)).await;
    let client = client(&server);
    for _ in 0..2 {
        client.resolve(&reference(&server)).await.unwrap();
    }
    assert_eq!(server.lines().iter().filter(|line| line.contains("/token")).count(), 2);
}

fn endless() -> Vec<Part> {
    vec![head(200, &[]), Part::Forever(b"{\"token\":\"aaaaaaaa".repeat(1_000))]
}

#[rstest]
#[case::new_line(answer(200, &[], br#"{"token":"good\r\nX-Evil: 1"}"#), Kind::Authentication)]
#[case::none(answer(200, &[], b"{}"), Kind::Authentication)]
#[case::page(answer(200, &[], b"<html>"), Kind::Authentication)]
#[case::missing(answer(404, &[], b""), Kind::Authentication)]
#[case::endless(endless(), Kind::Authentication)]
#[case::announced(vec![head(200, &[("Content-Length", "99999999")])], Kind::Authentication)]
#[case::stall(vec![head(200, &[("Content-Length", "9")]), Part::Hang], Kind::Stalled)]
#[case::refused(answer(403, &[], b"\x1b[31mnot you"), Kind::Refused)]
#[case::metadata(answer(302, &[("Location", "http://169.254.169.254/")], b""), Kind::NotAllowed)]
#[case::not_taken(answer(200, &[], br#"{"token":"hunter2"}"#), Kind::Refused)]
#[tokio::test]
async fn a_failing_token_service_gives_an_error_without_secrets(
    #[case] script: Vec<Part>,
    #[case] kind: Kind,
) {
    let server = guarded(move |_| script.clone()).await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    let text = format!("{error}{error:?}");
    assert!(!text.contains('\x1b') && !text.contains("hunter2"), "{text}");
    assert!(server.requests().iter().all(|request| request.header("x-evil").is_empty()));
}

#[tokio::test]
async fn a_token_request_is_retried() {
    let server = guarded(|n| if n == 0 { answer(503, &[], b"") } else { good() }).await;
    client(&server).resolve(&reference(&server)).await.unwrap();
}

#[rstest]
#[case("Bearer realm=\"http://169.254.169.254/token\"", Kind::NotAllowed)]
#[case("Bearer realm=\"http://[::ffff:7f00:2]/token\"", Kind::NotAllowed)]
#[case("Bearer realm=\"http://localhost:1/token\"", Kind::NotAllowed)]
#[case("Bearer realm=\"file:///etc/passwd\"", Kind::Authentication)]
#[case("Bearer realm=\"http://u:hunter2@10.0.0.1/token\"", Kind::Authentication)]
#[case("Bearer realm=\"/token\"", Kind::Authentication)]
#[case("Bearer service=\"x\"", Kind::Authentication)]
#[case("Basic realm=\"x\"", Kind::Refused)]
#[case("Negotiate", Kind::Authentication)]
#[case("", Kind::Refused)]
#[tokio::test]
async fn a_realm_at_a_forbidden_address_is_rejected(#[case] challenge: &'static str, #[case] kind: Kind) {
    let server = Server::start(move |_| answer(401, &[("WWW-Authenticate", challenge)], b"")).await;
    let error = client(&server).manifest(&pinned(&server, &Digest::sha256_of(b""))).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let is_unsupported =
        error.to_string().contains("scheme Negotiate, and only Basic and Bearer are supported");
    assert_eq!(is_unsupported, challenge == "Negotiate", "{error}");
}

/// More requests at once than the host may have in progress, each of which needs a token from that host.
#[tokio::test]
async fn a_burst_at_a_registry_that_issues_its_own_tokens_completes() {
    const BURST: usize = 200;
    let server = Server::start(|request| {
        let pause = Part::Wait(Duration::from_millis(20));
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host"));
        let rest = match request.header("authorization") {
            _ if request.target.starts_with("/token") => good(),
            "Bearer good" => manifest_answer(),
            _ => answer(401, &[("WWW-Authenticate", &realm)], b""),
        };
        [vec![pause], rest].concat()
    })
    .await;
    let hosts = HostsConfig::load(None).unwrap().with_plain_http(server.host().parse().unwrap());
    let patient = settings()
        .with_connect_timeout(Duration::from_secs(15))
        .with_answer_timeout(Duration::from_secs(15))
        .with_metadata_deadline(Duration::from_secs(15));
    let client = HttpRegistry::new(hosts, patient);
    let references: Vec<Reference> =
        (0..BURST).map(|number| format!("{}/team/app{number}:v1", server.host()).parse().unwrap()).collect();
    let started = std::time::Instant::now();
    for result in futures_util::future::join_all(references.iter().map(|one| client.resolve(one))).await {
        result.unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(server.requests().len(), 3 * BURST);
    assert!(server.most_at_once() <= 64, "{} at once", server.most_at_once());
    assert!(server.most_at_once() > 32, "{} at once", server.most_at_once());
}

/// An unusable challenge does not hide a usable one.
#[rstest]
#[case("file:///etc/passwd")]
#[case("ftp://127.0.0.1/token")]
#[case("http://user:hunter2@127.0.0.1/token")]
#[case("token")]
#[tokio::test]
async fn the_usable_one_of_two_challenges_is_used(#[case] useless: &'static str) {
    let server = Server::start(move |request| match request.header("authorization") {
        _ if request.target.starts_with("/token") => good(),
        "Bearer good" => manifest_answer(),
        _ => {
            let first = format!("Bearer realm=\"{useless}\"");
            let second = format!("Bearer realm=\"http://{}/token\"", request.header("host"));
            answer(401, &[("WWW-Authenticate", &first), ("WWW-Authenticate", &second)], b"")
        }
    })
    .await;
    client(&server).resolve(&reference(&server)).await.unwrap();
}

/// A registry can name several token services, of which some are gone.
#[rstest]
#[case::not_found("/v2/gone")]
#[case::no_token("/v2/page")]
#[case::unreachable(":1/token")]
#[case::stalled("/v2/stalled")]
#[tokio::test]
async fn the_next_challenge_is_used_if_a_token_service_fails(#[case] dead: &'static str) {
    let server = Server::start(move |request| match request.header("authorization") {
        _ if request.target.starts_with("/token") => good(),
        _ if request.target.starts_with("/v2/gone") => answer(404, &[], b""),
        _ if request.target.starts_with("/v2/stalled") => vec![Part::Hang],
        _ if request.target.starts_with("/v2/page") => answer(200, &[], b"<html>"),
        "Bearer good" => manifest_answer(),
        _ => {
            let host = request.header("host");
            let dead = if dead.starts_with(':') { "127.0.0.1".to_owned() } else { host.to_owned() } + dead;
            let challenge = format!("Bearer realm=\"http://{dead}\", Bearer realm=\"http://{host}/token\"");
            answer(401, &[("WWW-Authenticate", &challenge)], b"")
        }
    })
    .await;
    client(&server).resolve(&reference(&server)).await.unwrap();
}

/// If all fail, the error is that of the first one, and not one request is sent for each of hundreds.
#[tokio::test]
async fn the_token_services_of_one_answer_are_limited() {
    let server = Server::start(|request| {
        if request.target.starts_with("/token") {
            return answer(404, &[], request.target.as_bytes());
        }
        let realm = |number| format!("Bearer realm=\"http://{}/token{number}\"", request.header("host"));
        let challenges: Vec<_> = (0..100).map(realm).collect();
        answer(401, &[("WWW-Authenticate", &challenges.join(", "))], b"")
    })
    .await;
    let error = client(&server).manifest(&pinned(&server, &Digest::sha256_of(b""))).await.unwrap_err();
    assert!(error.to_string().contains("/token0"), "{error}");
    assert_eq!(server.lines().iter().filter(|line| line.contains("/token")).count(), 4);
}

/// A token with the groups of a user is long. The limit is that of the answer of the token service.
#[rstest]
#[case(20 << 10, true)]
#[case(63 << 10, true)]
#[case(65 << 10, false)]
#[tokio::test]
async fn a_long_token_is_used(#[case] length: usize, #[case] is_accepted: bool) {
    let token = "a".repeat(length);
    let server = Server::start(move |request| match request.header("authorization") {
        _ if request.target.starts_with("/token") => {
            answer(200, &[], format!("{{\"token\":\"{token}\"}}").as_bytes())
        }
        given if given.strip_prefix("Bearer ") == Some(&token) => manifest_answer(),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host"));
            answer(401, &[("WWW-Authenticate", &realm)], b"")
        }
    })
    .await;
    let result = client(&server).resolve(&reference(&server)).await;
    assert_eq!(result.is_ok(), is_accepted, "{result:?}");
}
