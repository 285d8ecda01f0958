//! Registries that are slow, fail or serve wrong content.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use oras_csi_core::digest::Digest;
use oras_csi_store::Limits;
use oras_csi_store::pull::{NoProgress, Progress, PullErrorKind};
use serde_json::json;

use crate::registry::{Artifact, add, add_from, gzip, recipe, tar};
use crate::trees::Bench;

fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[tokio::test]
async fn resumes_a_broken_connection() {
    let bench = Bench::new();
    let bytes = noise(200_000);
    let digest = Artifact::new(&bench.registry).file("f", &bytes).directory("d", &[("g", &bytes)]).push();
    bench.registry.cut_after.store(50_000, Ordering::SeqCst);
    let tree = bench.pull(&recipe([add(&digest)])).await.unwrap();
    assert_eq!(fs::read(bench.root(&tree).join("f")).unwrap(), bytes);
    assert_eq!(fs::read(bench.root(&tree).join("d/g")).unwrap(), bytes);
    assert!(bench.registry.requests_for(&Digest::sha256_of(&bytes)) >= 4);
}

#[tokio::test]
async fn a_registry_that_is_down_is_unavailable() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("f", b"x").push();
    bench.registry.is_down.store(true, Ordering::SeqCst);
    let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unavailable);
    assert!(error.to_string().contains("kind-registry:5000/java-app@sha256:"), "{error}");
    bench.registry.is_down.store(false, Ordering::SeqCst);
    bench.pull(&recipe([add(&digest)])).await.unwrap();
}

#[tokio::test]
async fn wrong_content_is_reported_as_corrupt() {
    let bytes = noise(100_000);
    let mut flipped = bytes.clone();
    flipped[50_000] ^= 1;
    let longer = [&bytes[..], b"x"].concat();
    for wrong in [flipped, longer, bytes[..99_000].to_vec()] {
        let bench = Bench::new();
        let digest = Artifact::new(&bench.registry).file("ok", b"ok").file("f", &bytes).push();
        bench.registry.corrupt(&Digest::sha256_of(&bytes), &wrong);
        let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
        // The real registry client reports a stream that ends early; the one in memory just ends it.
        let expected =
            if wrong.len() < bytes.len() { PullErrorKind::Stopped } else { PullErrorKind::Corrupt };
        assert_eq!(error.kind(), expected, "{error}");
    }
}

#[tokio::test]
async fn a_missing_layer_is_named() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("ok", b"ok").file("f", b"lost").push();
    bench.registry.remove_blob(&Digest::sha256_of(b"lost"));
    let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NotFound);
    assert!(error.to_string().contains(Digest::sha256_of(b"lost").hex()), "{error}");
}

#[tokio::test]
async fn a_missing_manifest_is_not_found() {
    let bench = Bench::new();
    let error = bench.pull(&recipe([add(&Digest::sha256_of(b"never"))])).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NotFound);
}

#[tokio::test]
async fn recipes_that_share_a_blob_download_it_once() {
    let bench = Bench::new();
    let bytes = noise(500_000);
    let one = Artifact::new(&bench.registry).file("a", &bytes).push();
    let two = Artifact::new(&bench.registry).file("b", &bytes).push();
    let (one, two) = (recipe([add(&one)]), recipe([add(&two)]));
    let (first, second) = tokio::join!(bench.pull(&one), bench.pull(&two));
    assert_ne!(first.unwrap().key(), second.unwrap().key());
    assert_eq!(bench.registry.requests_for(&Digest::sha256_of(&bytes)), 1);
}

/// Returns an artifact with four layers of its own.
fn of_four(bench: &Bench, name: &str) -> Digest {
    let layer = |number: usize| [format!("{name} {number} ").as_bytes(), &noise(50_000)].concat();
    let layers = (0..4).map(layer).collect::<Vec<_>>();
    let files = layers.iter().zip(["a", "b", "c", "d"]);
    files.fold(Artifact::new(&bench.registry), |artifact, (bytes, title)| artifact.file(title, bytes)).push()
}

/// Pulls two artifacts of each slow host, and reports whether an artifact of another host arrives in time.
async fn is_served_beside(bench: &Bench, hosts: &[&str]) -> bool {
    let drip = (17, Duration::from_millis(20));
    bench
        .registry
        .slow_hosts
        .lock()
        .unwrap()
        .extend(hosts.iter().map(|host| (host.trim_end_matches(":5000").to_owned(), drip)));
    for host in hosts {
        for number in 0..2 {
            let wanted = recipe([add_from(host, &of_four(bench, &format!("{host} {number}")))]);
            let fetcher = bench.fetcher.clone();
            tokio::spawn(async move {
                let progress: std::sync::Arc<dyn Progress> = std::sync::Arc::new(NoProgress);
                fetcher.tree(&wanted, &progress).await
            });
        }
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let honest = recipe([add(&of_four(bench, "honest"))]);
    tokio::time::timeout(Duration::from_secs(5), bench.pull(&honest)).await.is_ok_and(|tree| tree.is_ok())
}

#[tokio::test]
async fn a_slow_registry_delays_only_its_own_pulls() {
    assert!(is_served_beside(&Bench::new(), &["slow:5000"]).await);
}

#[tokio::test]
async fn slow_registries_give_up_their_slots_to_others() {
    let limits =
        Limits::default().with_slow_download_times(Duration::from_millis(300), Duration::from_mins(2));
    assert!(is_served_beside(&Bench::with(limits), &["slow-a:5000", "slow-b:5000"]).await);
}

/// Any number of layers and artifacts can need the blob: a pull that waits for the same blob uses no download slot.
#[tokio::test]
async fn a_slow_blob_takes_one_download_slot() {
    let bench = Bench::new();
    let archive = gzip(&tar(&[("a/b/c/d/f".to_owned(), &noise(50_000))]));
    let digest = bench.registry.put_blob(&archive);
    let layer = |title: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest.to_string(),
            "size": archive.len(),
            "annotations": {"org.opencontainers.image.title": title, "io.deis.oras.content.unpack": "true"},
        })
    };
    let mut manifest = Artifact::new(&bench.registry).manifest();
    manifest["layers"] = ["a", "a/b", "a/b/c", "a/b/c/d"].map(layer).into_iter().collect();
    let dripping = bench.registry.put_manifest(&manifest);
    bench.registry.slow_hosts.lock().unwrap().insert("one".to_owned(), (17, Duration::from_millis(20)));
    let wanted = recipe([add_from("one:5000", &dripping)]);
    let fetcher = bench.fetcher.clone();
    let waiting = tokio::spawn(async move {
        let progress: std::sync::Arc<dyn Progress> = std::sync::Arc::new(NoProgress);
        fetcher.tree(&wanted, &progress).await
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    bench.registry.slow_hosts.lock().unwrap().clear();
    assert_eq!(bench.registry.requests_for(&digest), 1, "of four layers of it");
    // The same host serves another artifact.
    let honest = recipe([add_from("one:5000", &of_four(&bench, "honest"))]);
    let served = tokio::time::timeout(Duration::from_secs(5), bench.pull(&honest)).await;
    assert!(served.is_ok_and(|tree| tree.is_ok()));
    assert!(!waiting.is_finished());
}

#[tokio::test]
async fn gives_up_on_a_blob_that_is_too_slow() {
    let limits =
        Limits::default().with_slow_download_times(Duration::from_millis(100), Duration::from_millis(600));
    let bench = Bench::with(limits);
    let drip = (17, Duration::from_millis(20));
    bench.registry.slow_hosts.lock().unwrap().insert("slow".to_owned(), drip);
    let wanted = recipe([add_from("slow:5000", &of_four(&bench, "slow"))]);
    let pulled = tokio::time::timeout(Duration::from_secs(5), bench.pull(&wanted)).await;
    let error = pulled.unwrap().unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unavailable);
    let text = error.to_string();
    assert!(text.contains("slow:5000/java-app: no 4 KiB a second (received "), "{text}");
}
