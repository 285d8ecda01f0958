//! Mirrors that do not answer, or answer with an error while the registry itself cannot be reached.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use rstest::rstest;

use super::*;
use crate::registry::guard::HostResolver;

/// A resolver that never answers, so that no connection to a host name is made.
#[derive(Debug)]
struct SilentResolver;

#[async_trait]
impl HostResolver for SilentResolver {
    async fn resolve_host(&self, _: &str) -> io::Result<Vec<SocketAddr>> {
        std::future::pending().await
    }
}

/// Timeouts as they are in production relative to each other: a mirror alone could use up the time of the caller.
fn patient() -> Settings {
    settings()
        .with_connect_timeout(Duration::from_mins(5))
        .with_mirror_connect_timeout(SHORT)
        .with_answer_timeout(Duration::from_mins(5))
        .with_idle_timeout(Duration::from_mins(5))
        .with_metadata_deadline(Duration::from_mins(5))
        .with_caller_deadline(Duration::from_secs(2))
        .with_resolver(Arc::new(SilentResolver))
}

fn with_mirrors(server: &str, mirrors: &[&str]) -> String {
    let mut toml = format!("server = \"http://{server}\"\n");
    toml.extend(mirrors.iter().map(|mirror| format!("[host.\"http://{mirror}\"]\n")));
    toml
}

/// Returns an address at which no server listens.
async fn closed() -> String {
    Server::start(|_| Vec::new()).await.host()
}

fn any_reference() -> Reference {
    "registry.example/team/app:v1".parse().unwrap()
}

fn any_pinned() -> PinnedReference {
    any_reference().pin(Digest::sha256_of(&manifest_bytes()))
}

/// Answers with the manifest, or with the blob `abc`.
fn manifest_or_blob(request: &Request) -> Vec<Part> {
    if request.target.contains("/blobs/") { answer(200, &[], b"abc") } else { manifest_answer() }
}

/// A caller waits for a part of the time of the operation. The mirror must leave time of that part.
#[tokio::test]
async fn a_mirror_that_does_not_answer_leaves_the_caller_time_for_the_registry() {
    let stalled = Server::start(|_| vec![Part::Hang]).await;
    let good = Server::start(manifest_or_blob).await;
    let (client, _folder) = client_with_settings(&with_mirrors(&good.host(), &[&stalled.host()]), patient());
    let started = Instant::now();
    client.resolve(&any_reference()).await.unwrap();
    assert!(started.elapsed() < Duration::from_mins(1), "{:?}", started.elapsed());
}

/// The timeout is paid once, and not for each layer of a pull.
#[rstest]
#[case::accepts_and_never_answers(true)]
#[case::cannot_be_connected_to(false)]
#[tokio::test]
async fn a_mirror_that_does_not_answer_is_waited_for_once(#[case] is_connected: bool) {
    let stalled = Server::start(|_| vec![Part::Hang]).await;
    let good = Server::start(manifest_or_blob).await;
    let mirror = if is_connected { stalled.host() } else { "mirror.example".to_owned() };
    let (client, _folder) = client_with_settings(&with_mirrors(&good.host(), &[&mirror]), patient());
    let started = Instant::now();
    client.resolve(&any_reference()).await.unwrap();
    client.manifest(&any_pinned()).await.unwrap();
    let blob = Descriptor::new("text/plain", Digest::sha256_of(b"abc"), 3);
    for _ in 0..200 {
        assert_eq!(collect(client.blob(&any_pinned(), &blob, 0).await.unwrap()).await.0, b"abc");
    }
    assert_eq!(stalled.lines().len(), usize::from(is_connected));
    // Without the memory, 202 requests take at least 60 s.
    assert!(started.elapsed() < Duration::from_secs(50), "{:?}", started.elapsed());
}

/// A mirror that fills one repository slowly is not avoided for another one, nor is another mirror at the same address.
#[tokio::test]
async fn a_mirror_that_is_slow_for_one_repository_is_used_for_others() {
    let mirror =
        Server::start(
            |request| {
                if request.target.contains("team/app") { vec![Part::Hang] } else { manifest_answer() }
            },
        )
        .await;
    let good = Server::start(manifest_or_blob).await;
    let (client, _folder) = client_with_settings(&with_mirrors(&good.host(), &[&mirror.host()]), patient());
    client.resolve(&any_reference()).await.unwrap();
    let other: Reference = any_reference().to_string().replace("team/app", "team/other").parse().unwrap();
    client.resolve(&other).await.unwrap();
    let asked = mirror.lines();
    assert!(asked.iter().any(|line| line.contains("team/other")), "{asked:?}");
    let asked = good.lines();
    assert!(asked.iter().all(|line| !line.contains("team/other")), "{asked:?}");
}

/// Only the order changes: what the other endpoints lack is still requested from the mirror.
#[tokio::test]
async fn a_mirror_that_did_not_answer_is_tried_last() {
    let count = AtomicUsize::new(0);
    let mirror = Server::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => vec![Part::Hang],
        _ => manifest_answer(),
    })
    .await;
    let registry = Server::start(|request| match request.method.as_str() {
        "HEAD" => manifest_answer(),
        _ => answer(404, &[], b""),
    })
    .await;
    let (client, _folder) =
        client_with_settings(&with_mirrors(&registry.host(), &[&mirror.host()]), patient());
    client.resolve(&any_reference()).await.unwrap();
    assert_eq!((mirror.lines().len(), registry.lines().len()), (1, 1));
    client.manifest(&any_pinned()).await.unwrap();
    assert_eq!((mirror.lines().len(), registry.lines().len()), (2, 2));
    // It answered, so it is in its place again.
    client.manifest(&any_pinned()).await.unwrap();
    assert_eq!((mirror.lines().len(), registry.lines().len()), (3, 2));
}

/// In a network without access to the registry itself, a slow mirror gets the rest of the time.
#[tokio::test]
async fn a_slow_mirror_is_tried_again_if_the_registry_cannot_be_reached() {
    let count = AtomicUsize::new(0);
    let mirror = Server::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => vec![Part::Hang],
        _ => manifest_answer(),
    })
    .await;
    let toml = with_mirrors(&closed().await, &[&mirror.host()]);
    let (client, _folder) =
        client_with_settings(&toml, patient().with_caller_deadline(Duration::from_secs(4)));
    client.resolve(&any_reference()).await.unwrap();
    assert_eq!(mirror.lines().len(), 2);
}

/// The error names the mirror as well, whatever the registry answered.
#[rstest]
#[case::it_failed(500, Kind::Unavailable)]
#[case::it_lacks_the_artifact(404, Kind::NotFound)]
#[tokio::test]
async fn the_error_names_a_mirror_that_did_not_answer(#[case] status: u16, #[case] kind: Kind) {
    let stalled = Server::start(|_| vec![Part::Hang]).await;
    let failing = Server::start(move |_| answer(status, &[], b"the cause")).await;
    let toml = with_mirrors(&failing.host(), &[&stalled.host()]);
    let (client, _folder) = client_with_settings(&toml, patient().with_caller_deadline(SHORT));
    let error = client.manifest(&any_pinned()).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    let expected = format!("the cause; mirror http://{}: no answer within 0.", stalled.host());
    assert!(error.to_string().contains(&expected), "{error}");
}

/// Neither answers: the error is that of the registry, at once for the caller, and has the mirror beside its request.
#[tokio::test]
async fn the_error_names_all_endpoints_that_did_not_answer() {
    let stalled = Server::start(|_| vec![Part::Hang]).await;
    let toml = with_mirrors("registry.example", &[&stalled.host()]);
    let settings = patient().with_caller_deadline(Duration::from_secs(1)).with_connect_timeout(SHORT);
    let (client, _folder) = client_with_settings(&toml, settings);
    let started = Instant::now();
    let error = client.manifest(&any_pinned()).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_mins(1), "{:?}", started.elapsed());
    assert_eq!(error.kind(), Kind::Stalled, "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("mirror http://{}: no answer within", stalled.host())), "{text}");
    assert!(text.starts_with("GET http://registry.example/"), "{text}");
    assert!(text.ends_with("no connection within 0.3 s"), "{text}");
}

/// In an air gap, the last endpoint is the registry, which is never reached. Only the mirror says what is wrong.
#[rstest]
#[case(401, "refused with 401: UNAUTHORIZED: log in")]
#[case(403, "refused with 403: UNAUTHORIZED: log in")]
#[case(404, "not found: UNAUTHORIZED: log in")]
#[case(500, "the registry failed with 500: UNAUTHORIZED: log in")]
#[tokio::test]
async fn the_error_has_the_words_of_the_mirror_if_the_registry_cannot_be_reached(
    #[case] status: u16,
    #[case] words: &str,
    #[values(true, false)] is_refused: bool,
) {
    let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"log in"}]}"#;
    let mirror = Server::start(move |_| answer(status, &[], body)).await;
    let registry = if is_refused { closed().await } else { "registry.example".to_owned() };
    let toml = with_mirrors(&registry, &[&mirror.host()]);
    // The time for a connection to the registry is short, because the mirror has answered.
    let (client, _folder) = client_with_settings(&toml, patient());
    let started = Instant::now();
    let error = client.resolve(&any_reference()).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_mins(1), "{:?}", started.elapsed());
    let kind = if is_refused { Kind::Unreachable } else { Kind::Stalled };
    assert_eq!(error.kind(), kind, "the registry itself did not refuse: {error}");
    assert!(error.to_string().contains(&format!("mirror http://{}: {words}", mirror.host())), "{error}");
    assert!(
        error.to_string().contains(&format!("HEAD http://{registry}/v2/team/app/manifests/v1")),
        "{error}"
    );
}

/// Long messages are cut, so that each endpoint is named. Secrets of the mirror are not in them.
#[tokio::test]
async fn a_long_message_leaves_room_for_the_mirrors() {
    let long = |request: &Request| {
        answer(500, &[], format!("{} {}", request.header("x-key"), "x".repeat(400)).as_bytes())
    };
    let servers = [
        Server::start(long).await,
        Server::start(long).await,
        Server::start(long).await,
        Server::start(long).await,
    ];
    let [registry, mirrors @ ..] = servers.each_ref().map(Server::host);
    let mut toml = format!("server = \"http://{registry}\"\n");
    toml.extend(
        mirrors
            .iter()
            .map(|mirror| format!("[host.\"http://{mirror}\"]\nheader = {{x-key = \"hunter2-hunter2\"}}\n")),
    );
    let (client, _folder) = client_with(&toml);
    let error = client.manifest(&any_pinned()).await.unwrap_err().to_string();
    assert!(error.contains("the registry failed with 500: … x"), "{error}");
    for mirror in &mirrors[..2] {
        assert!(
            error.contains(&format!("…; mirror http://{mirror}: the registry failed with 500: … x")),
            "{error}"
        );
    }
    assert!(error.ends_with("; and 1 more") && !error.contains("hunter2"), "{error}");
}
