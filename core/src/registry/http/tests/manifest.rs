use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rstest::rstest;

use super::*;

#[tokio::test]
async fn a_tag_is_resolved_with_one_head_request() {
    let server = Server::start(|_| manifest_answer()).await;
    let descriptor = client(&server).resolve(&reference(&server)).await.unwrap();
    let bytes = manifest_bytes();
    assert_eq!(
        descriptor,
        Descriptor::new(media::OCI_MANIFEST, Digest::sha256_of(&bytes), bytes.len() as u64)
    );
    assert_eq!(server.lines(), ["HEAD /v2/team/app/manifests/v1"]);
    let accept = server.requests()[0].header("accept").to_owned();
    for media_type in [media::OCI_MANIFEST, media::OCI_INDEX, media::DOCKER_MANIFEST, media::DOCKER_LIST] {
        assert!(accept.contains(media_type), "{accept}");
    }
}

/// After a HEAD response without the needed headers, the client sends GET. The digest is then the hash of the body.
#[rstest]
#[case::no_digest(answer(200, &[("Content-Type", media::OCI_MANIFEST)], &manifest_bytes()))]
#[case::an_empty_digest(answer(200, &[("Content-Type", media::OCI_MANIFEST), ("Docker-Content-Digest", "")], &manifest_bytes()))]
#[case::no_type(answer(200, &[("Docker-Content-Digest", &Digest::sha256_of(&manifest_bytes()).to_string())], &manifest_bytes()))]
#[case::a_page(answer(200, &[("Content-Type", "text/html"), ("Docker-Content-Digest", &Digest::sha256_of(b"").to_string())], b"x"))]
#[case::no_length(vec![head(200, &[("Content-Type", media::OCI_MANIFEST), ("Docker-Content-Digest", &Digest::sha256_of(b"").to_string())])])]
#[case::not_allowed(answer(405, &[], b""))]
#[case::forbidden(answer(403, &[], b""))]
#[case::not_implemented(answer(501, &[], b""))]
#[tokio::test]
async fn an_incomplete_head_response_is_followed_by_get(#[case] on_head: Vec<Part>) {
    let server = Server::start(move |request| {
        let empty = [("Docker-Content-Digest", "")];
        if request.method == "HEAD" { on_head.clone() } else { answer(200, &empty, &manifest_bytes()) }
    })
    .await;
    let descriptor = client(&server).resolve(&reference(&server)).await.unwrap();
    assert_eq!(*descriptor.digest(), Digest::sha256_of(&manifest_bytes()));
    assert_eq!(descriptor.media_type(), media::OCI_MANIFEST);
    assert_eq!(server.lines(), ["HEAD /v2/team/app/manifests/v1", "GET /v2/team/app/manifests/v1"]);
}

/// A cache that fetches from another registry can know a tag only after it was asked with GET.
#[rstest]
#[case(404, 1)]
#[case(500, 2)]
#[case(503, 2)]
#[tokio::test]
async fn a_tag_that_head_does_not_find_is_asked_for_with_get(#[case] status: u16, #[case] heads: usize) {
    let server =
        Server::start(
            move |request| {
                if request.method == "HEAD" { answer(status, &[], b"") } else { manifest_answer() }
            },
        )
        .await;
    let descriptor = client(&server).resolve(&reference(&server)).await.unwrap();
    assert_eq!(*descriptor.digest(), Digest::sha256_of(&manifest_bytes()));
    let line = |method: &str| format!("{method} /v2/team/app/manifests/v1");
    assert_eq!(server.lines(), [vec![line("HEAD"); heads], vec![line("GET")]].concat());
}

/// An answer to HEAD has no body. The error has the words that the registry sends for GET, which is sent once.
#[rstest]
#[case(404, Kind::NotFound)]
#[case(429, Kind::RateLimited)]
#[case(500, Kind::Unavailable)]
#[case(503, Kind::Unavailable)]
#[tokio::test]
async fn an_error_of_head_gets_the_words_of_get(#[case] status: u16, #[case] kind: Kind) {
    let server =
        Server::start(move |_| answer(status, &[], br#"{"errors":[{"code":"X","message":"the cause"}]}"#))
            .await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().ends_with("X: the cause"), "{error}");
    assert_eq!(server.requests().iter().filter(|request| request.method == "GET").count(), 1);
}

/// GET may give another error, or none in time. A digest is the same for all registries, so it is not asked for twice.
#[tokio::test]
async fn the_error_of_head_stays_if_get_says_less() {
    let server = Server::start(|request| match request.method.as_str() {
        "HEAD" => answer(404, &[], b""),
        _ => vec![Part::Hang],
    })
    .await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert_eq!(server.lines().len(), 2);
    let error = client(&server).resolve(&pinned(&server, &Digest::sha256_of(b"")).into()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert_eq!(server.lines().len(), 3);
}

#[tokio::test]
async fn a_reference_with_a_digest_is_requested_by_digest() {
    let server = Server::start(|_| manifest_answer()).await;
    let digest = Digest::sha256_of(&manifest_bytes());
    let both: Reference = format!("{}/team/app:v1@{digest}", server.host()).parse().unwrap();
    assert_eq!(*client(&server).resolve(&both).await.unwrap().digest(), digest);
    assert_eq!(server.lines(), [format!("HEAD /v2/team/app/manifests/{digest}")]);
    let other = Digest::sha256_of(b"other");
    let error = client(&server).resolve(&pinned(&server, &other).into()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untruthful, "{error}");
}

/// Nexus and proxies send such headers. The digest is that of the bytes.
#[rstest]
#[case::short("sha256:abc")]
#[case::in_quotes("\"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\"")]
#[case::upper_case("sha256:44136FA355B3678A1146AD16F7E8649E94FB4FC21FE77E8310C060F61CAAFF8A")]
#[case::another_hash("md5:99914b932bd37a50b983c5e7c90ae93b")]
#[case::no_ascii("sha256:abc\u{202e}")]
#[tokio::test]
async fn a_digest_header_that_is_no_digest_is_ignored(#[case] header: &'static str) {
    let server = Server::start(move |_| {
        answer(
            200,
            &[("Content-Type", media::OCI_MANIFEST), ("Docker-Content-Digest", header)],
            &manifest_bytes(),
        )
    })
    .await;
    let digest = Digest::sha256_of(&manifest_bytes());
    let client = client(&server);
    assert_eq!(*client.resolve(&reference(&server)).await.unwrap().digest(), digest);
    assert_eq!(server.lines(), ["HEAD /v2/team/app/manifests/v1", "GET /v2/team/app/manifests/v1"]);
    assert_eq!(client.manifest(&pinned(&server, &digest)).await.unwrap().bytes(), &manifest_bytes());
    let error = client.manifest(&pinned(&server, &Digest::sha256_of(b"x"))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untruthful, "the bytes are verified: {error}");
}

/// A header that is no digest does not hide one that contradicts another.
#[tokio::test]
async fn different_digest_headers_are_rejected() {
    let server = Server::start(|_| {
        let digests = [b"a", b"b"].map(|text| Digest::sha256_of(text).to_string());
        let [first, second] = &digests;
        let name = "Docker-Content-Digest";
        answer(200, &[(name, first), (name, "none"), (name, second)], &manifest_bytes())
    })
    .await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untruthful, "{error}");
}

#[tokio::test]
async fn different_content_for_head_and_get_is_detected() {
    let promised = Digest::sha256_of(b"something else");
    let header = promised.to_string();
    let server = Server::start(move |request| {
        let bytes = manifest_bytes();
        let headers = [("Content-Type", media::OCI_MANIFEST), ("Docker-Content-Digest", header.as_str())];
        answer(200, if request.method == "HEAD" { &headers } else { &headers[..1] }, &bytes)
    })
    .await;
    let client = client(&server);
    let descriptor = client.resolve(&reference(&server)).await.unwrap();
    assert_eq!(*descriptor.digest(), promised);
    let error = client.manifest(&pinned(&server, &promised)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untruthful, "{error}");
}

/// The digest header of a GET by tag must match the body.
#[tokio::test]
async fn a_wrong_digest_header_of_a_get_is_rejected() {
    let server = Server::start(|request| match request.method.as_str() {
        "HEAD" => answer(405, &[], b""),
        _ => {
            answer(200, &[("Docker-Content-Digest", &Digest::sha256_of(b"x").to_string())], &manifest_bytes())
        }
    })
    .await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untruthful, "{error}");
}

#[tokio::test]
async fn a_manifest_is_fetched_and_verified() {
    let server = Server::start(|_| manifest_answer()).await;
    let digest = Digest::sha256_of(&manifest_bytes());
    let document = client(&server).manifest(&pinned(&server, &digest)).await.unwrap();
    assert_eq!(document.bytes(), &manifest_bytes());
    let garbage = Server::start(|_| answer(200, &[], b"not json")).await;
    let digest = Digest::sha256_of(b"not json");
    let error = client(&garbage).manifest(&pinned(&garbage, &digest)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
}

/// A login page of a proxy, or a body that a proxy encoded, says nothing about the artifact.
#[rstest]
#[case(&[], b"\n<html>login</html>", "it is an HTML page, and no manifest")]
#[case(&[("Content-Encoding", "br")], b"not json", "the body is encoded as \"br\"")]
#[tokio::test]
async fn a_body_that_the_registry_did_not_store_is_no_invalid_manifest(
    #[case] headers: &'static [(&'static str, &'static str)],
    #[case] body: &'static [u8],
    #[case] words: &str,
) {
    let server = Server::start(move |_| answer(200, headers, body)).await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert!(error.kind() == Kind::Untruthful && error.to_string().contains(words), "{error}");
}

/// Go programs answer so at a port for TLS.
#[rstest]
#[case(b"Client sent an HTTP request to an HTTPS server.\n", true)]
#[case(b"", true)]
#[case(b"bad scope", false)]
#[tokio::test]
async fn a_refused_plain_request_suggests_https(#[case] body: &'static [u8], #[case] is_suggested: bool) {
    let server = Server::start(move |_| answer(400, &[], body)).await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert_eq!(error.to_string().contains("set server = \"https://HOST:PORT\""), is_suggested, "{error}");
}

fn endless(request: &Request) -> Vec<Part> {
    match request.method.as_str() {
        "HEAD" => vec![head(200, &[("Content-Type", media::OCI_MANIFEST)])],
        _ => vec![
            head(200, &[("Content-Type", media::OCI_MANIFEST), ("Transfer-Encoding", "chunked")]),
            Part::Forever([b"4000\r\n", [b' '; 0x4000].as_slice(), b"\r\n"].concat()),
        ],
    }
}

#[rstest]
#[case::endless(endless)]
#[case::announced(|_: &Request| vec![head(200, &[("Content-Type", media::OCI_MANIFEST), ("Content-Length", "5000000000")])])]
#[tokio::test]
async fn a_manifest_above_the_limit_is_rejected(#[case] script: fn(&Request) -> Vec<Part>) {
    let server = Server::start(script).await;
    let registry = client(&server);
    let error = registry.resolve(&reference(&server)).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { limit: 4_194_304, .. }), "{error}");
    let error = registry.manifest(&pinned(&server, &Digest::sha256_of(b""))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge, "{error}");
}

#[tokio::test]
async fn a_manifest_of_exactly_the_limit_is_accepted() {
    let bytes = [manifest_bytes(), vec![b' '; 100]].concat();
    let limit = bytes.len() as u64;
    let body = bytes.clone();
    let server = Server::start(move |_| answer(200, &[], &body)).await;
    let hosts = HostsConfig::load(None).unwrap().with_plain_http(server.host().parse().unwrap());
    let digest = Digest::sha256_of(&bytes);
    for (limit, fine) in [(limit, true), (limit - 1, false)] {
        let settings = settings().with_limits(Limits::default().with_manifest(limit));
        let registry = HttpRegistry::new(hosts.clone(), settings);
        assert_eq!(registry.manifest(&pinned(&server, &digest)).await.is_ok(), fine);
    }
}

/// Storage services and proxies name an encoding that the body does not have. The digest decides.
#[rstest]
#[case("gzip")]
#[case("x-gzip")]
#[case("aws-chunked")]
#[tokio::test]
async fn an_encoding_is_blamed_only_if_the_digest_is_wrong(#[case] encoding: &'static str) {
    let server = Server::start(move |request| {
        let digest = Digest::sha256_of(&manifest_bytes()).to_string();
        let body = if request.target.contains("other") { b"\x1f\x8b".to_vec() } else { manifest_bytes() };
        let headers = [("Docker-Content-Digest", digest.as_str()), ("Content-Encoding", encoding)];
        answer(200, &[&headers[..], &[("Content-Type", media::OCI_MANIFEST)]].concat(), &body)
    })
    .await;
    let digest = Digest::sha256_of(&manifest_bytes());
    let client = client(&server);
    assert_eq!(client.manifest(&pinned(&server, &digest)).await.unwrap().bytes(), &manifest_bytes());
    let resolved = client.resolve(&reference(&server)).await.unwrap();
    assert_eq!((resolved.digest(), resolved.size()), (&digest, manifest_bytes().len() as u64));
    assert!(server.requests().iter().all(|request| request.header("accept-encoding") == "identity"));
    let other = format!("{}/team/other@{digest}", server.host()).parse().unwrap();
    let error = client.manifest(&other).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untruthful, "{error}");
    assert!(error.to_string().contains(&format!("encoded as \"{encoding}\"")), "{error}");
}

/// A server that stops sending is given up after a bounded time.
#[rstest]
#[case::no_answer(vec![Part::Hang], "answer")]
#[case::half_a_head(vec![Part::Bytes(b"HTTP/1.1 200 OK\r\nA: ".to_vec()), Part::Hang], "answer")]
#[case::no_body(vec![head(200, &[("Content-Length", "10")]), Part::Hang], "more bytes")]
#[tokio::test]
async fn a_stalled_response_ends_with_an_error(#[case] script: Vec<Part>, #[case] waited_for: &str) {
    let server = Server::start(move |_| script.clone()).await;
    let started = Instant::now();
    let error = client(&server).manifest(&pinned(&server, &Digest::sha256_of(b""))).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Stalled { what, .. } if what.as_str() == waited_for), "{error}");
    // Many times the timeouts of these tests, for a loaded machine; without a limit the response never ends.
    assert!(started.elapsed() < Duration::from_mins(1));
}

/// The HTTP client drops interim answers (RFC 9110, 15.2) and has no limit for them. Without one of our own, it reads
/// gigabytes in the time for an answer.
#[tokio::test]
async fn endless_interim_answers_are_cut_off() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let interim = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100);
        let mut sent = 0;
        while stream.write_all(&interim).is_ok() {
            sent += interim.len();
        }
        sent
    });
    let hosts = HostsConfig::load(None).unwrap().with_plain_http(host.parse().unwrap());
    let minute = Duration::from_mins(1);
    let registry =
        HttpRegistry::new(hosts, settings().with_answer_timeout(minute).with_metadata_deadline(minute));
    let pinned = format!("{host}/team/app@{}", Digest::sha256_of(b"")).parse().unwrap();
    let error = registry.manifest(&pinned).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untruthful, "{error}");
    assert!(error.to_string().ends_with("more than 64 KiB of interim answers (status 1xx)"), "{error}");
    // The connection is closed. The buffers of both sockets have some megabytes.
    let sent = tokio::task::spawn_blocking(move || server.join()).await.unwrap().unwrap();
    assert!(sent < 32 << 20, "{sent} bytes");
}

/// Each request of a connection may have some.
#[tokio::test]
async fn some_interim_answers_are_skipped() {
    let server = Server::start(|_| {
        let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(1_000);
        [vec![Part::Bytes(interim)], manifest_answer()].concat()
    })
    .await;
    let client = client(&server);
    for _ in 0..5 {
        client.manifest(&pinned(&server, &Digest::sha256_of(&manifest_bytes()))).await.unwrap();
    }
}

#[tokio::test]
async fn a_slow_body_ends_at_the_deadline() {
    let server = Server::start(|_| {
        let drip = [chunk(b" "), Part::Wait(Duration::from_millis(100))];
        let mut parts = vec![head(200, &[("Transfer-Encoding", "chunked")])];
        parts.extend(std::iter::repeat_n(drip, 100).flatten());
        parts
    })
    .await;
    let hosts = HostsConfig::load(None).unwrap().with_plain_http(server.host().parse().unwrap());
    let registry = HttpRegistry::new(hosts, settings().with_metadata_deadline(Duration::from_millis(700)));
    let started = Instant::now();
    let error = registry.manifest(&pinned(&server, &Digest::sha256_of(b""))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Stalled, "{error}");
    assert!(started.elapsed() < Duration::from_millis(1_500));
}

#[tokio::test]
async fn endless_headers_are_rejected() {
    let server = Server::start(|_| {
        vec![Part::Bytes(b"HTTP/1.1 200 OK\r\n".to_vec()), Part::Forever(b"A: b\r\n".to_vec())]
    })
    .await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    // Either the size limit or, on a busy machine, the header timeout.
    assert!(matches!(error.kind(), Kind::Unreachable | Kind::Stalled), "{error}");
}

#[rstest]
#[case(404, Kind::NotFound)]
#[case(400, Kind::Refused)]
#[case(403, Kind::Refused)]
#[case(401, Kind::Refused)]
#[case(429, Kind::RateLimited)]
#[case(500, Kind::Unavailable)]
#[case(503, Kind::Unavailable)]
#[case(304, Kind::Untruthful)]
#[case(204, Kind::Untruthful)]
#[tokio::test]
async fn an_error_contains_the_registrys_message_without_control_characters(
    #[case] status: u16,
    #[case] kind: Kind,
) {
    let server = Server::start(move |_| {
        answer(status, &[], b"{\"errors\":[{\"code\":\"X\",\"message\":\"\\u001b[31mred\\u202e words\"}]}")
    })
    .await;
    let error = client(&server).manifest(&pinned(&server, &Digest::sha256_of(b""))).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    if kind != Kind::Untruthful {
        assert!(error.to_string().contains("X: red words"), "{error}");
    }
    assert!(error.to_string().chars().all(|c| !c.is_control() && c != '\u{202e}'), "{error}");
}

#[tokio::test]
async fn an_endless_error_message_is_cut() {
    let server = Server::start(|_| vec![head(404, &[]), Part::Forever(b"words \x1b[2J ".repeat(100))]).await;
    let started = Instant::now();
    let error = client(&server).manifest(&pinned(&server, &Digest::sha256_of(b""))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().len() < 700 && started.elapsed() < Duration::from_secs(1));
}

/// Responds with `status` to the first `failures` requests, then with the manifest.
async fn flaky(status: u16, failures: usize, retry_after: &'static str) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |_| {
        if count.fetch_add(1, Ordering::SeqCst) < failures {
            answer(status, &[("Retry-After", retry_after)], b"slow down")
        } else {
            manifest_answer()
        }
    })
    .await
}

#[rstest]
#[case(429, "1", 900)]
#[case(408, "0", 0)]
#[case(503, "nonsense", 90)]
#[tokio::test]
async fn transient_errors_are_retried(
    #[case] status: u16,
    #[case] retry_after: &'static str,
    #[case] least: u64,
) {
    let server = flaky(status, 1, retry_after).await;
    let started = Instant::now();
    client(&server).resolve(&reference(&server)).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(least));
    assert_eq!(server.lines().len(), 2);
}

#[rstest]
#[case::more_than_the_deadline("10", Some(10))]
#[case::more_than_we_ever_wait("86400", Some(86_400))]
#[tokio::test]
async fn it_does_not_wait_beyond_the_deadline(#[case] retry_after: &'static str, #[case] told: Option<u64>) {
    let server = flaky(429, 1, retry_after).await;
    let error = client(&server).resolve(&reference(&server)).await.unwrap_err();
    assert_eq!(error.retry_after(), told.map(Duration::from_secs));
    assert!(error.to_string().contains("slow down") || error.to_string().contains("wait"), "{error}");
    assert_eq!(server.lines().len(), 1);
}

#[rstest]
#[case::at_once(429, "2", 1)]
#[case::one_wait_and_not_two(429, "1", 2)]
#[case::whatever_the_status(503, "2", 1)]
#[tokio::test]
async fn it_waits_no_longer_in_total_than_configured(
    #[case] status: u16,
    #[case] retry_after: &'static str,
    #[case] requests: usize,
) {
    let server = flaky(status, 10, retry_after).await;
    let settings = settings()
        .with_metadata_deadline(Duration::from_secs(20))
        .with_tries(3)
        .with_max_retry_wait(Duration::from_secs(1));
    let hosts = HostsConfig::load(None).unwrap().with_plain_http(server.host().parse().unwrap());
    let error = HttpRegistry::new(hosts, settings).resolve(&reference(&server)).await.unwrap_err();
    let told = retry_after.parse().map(Duration::from_secs).unwrap();
    assert_eq!(error.retry_after(), (status == 429).then_some(told), "{error}");
    assert_eq!(server.lines().len(), requests);
}

#[tokio::test]
async fn retries_are_limited_and_refusals_are_not_retried() {
    let server = flaky(500, 10, "0").await;
    assert_eq!(client(&server).resolve(&reference(&server)).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(server.lines().len(), 3, "HEAD twice, GET once");
    let server = flaky(404, 10, "0").await;
    assert_eq!(client(&server).resolve(&reference(&server)).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(server.lines().len(), 2, "HEAD once, GET once");
}

#[tokio::test]
async fn a_failing_mirror_is_skipped() {
    let refusing = Server::start(|_| answer(403, &[], b"no")).await;
    let empty = Server::start(|_| answer(404, &[], b"")).await;
    let broken = Server::start(|_| answer(500, &[], b"")).await;
    let blobs_only = Server::start(|_| manifest_answer()).await;
    let good = Server::start(|_| manifest_answer()).await;
    let gone = Server::start(|_| Vec::new()).await.host();
    let hosts = [&refusing.host(), &empty.host(), &broken.host(), &gone];
    let mut toml = format!("server = \"http://{}\"\n", good.host());
    toml.extend(hosts.map(|host| format!("[host.\"http://{host}\"]\n")));
    toml.extend([format!("[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n", blobs_only.host())]);
    let (client, _folder) = client_with(&toml);
    let reference: Reference = "registry.example/team/app:v1".parse().unwrap();
    client.resolve(&reference).await.unwrap();
    let once =
        ["HEAD", "GET"].map(|method| format!("{method} /v2/team/app/manifests/v1?ns=registry.example"));
    assert_eq!((empty.lines(), broken.lines()), (once.to_vec(), once.to_vec()), "a mirror is tried once");
    assert_eq!(blobs_only.lines().len(), 0, "it has no resolve capability");
    assert_eq!(good.lines(), ["HEAD /v2/team/app/manifests/v1?ns=registry.example"]);
    let pinned = reference.pin(Digest::sha256_of(&manifest_bytes()));
    client.manifest(&pinned).await.unwrap();
    assert_eq!((blobs_only.lines().len(), good.lines().len()), (1, 1));
}

#[tokio::test]
async fn a_stalled_mirror_leaves_time_for_the_next_endpoint() {
    let stalled = Server::start(|_| vec![Part::Hang]).await;
    let good = Server::start(|_| manifest_answer()).await;
    let toml = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", good.host(), stalled.host());
    // The mirror alone could use up all of the time.
    let settings =
        settings().with_answer_timeout(Duration::from_secs(5)).with_metadata_deadline(Duration::from_secs(1));
    let (client, _folder) = client_with_settings(&toml, settings);
    client.resolve(&"registry.example/app:v1".parse().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_registry_without_a_pull_endpoint_is_reported() {
    let (client, folder) = client_with("server = \"http://x.example\"\ncapabilities = [\"push\"]\n");
    let reference: Reference = "registry.example/app:v1".parse().unwrap();
    let error = client.resolve(&reference).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotAllowed);
    assert!(error.to_string().contains("capability"), "{error}");
    std::fs::write(folder.path().join("_default/hosts.toml"), "server = 1").unwrap();
    let error = client.resolve(&reference).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Misconfigured);
    assert!(error.to_string().contains("_default/hosts.toml: server"), "{error}");
}
