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
