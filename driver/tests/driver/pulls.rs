//! Registries that are slow, broken or lie.

use std::fs;
use std::sync::atomic::Ordering;

use oras_csi_core::digest::Digest;
use oras_csi_driver::pull::PullErrorKind;

use crate::registry::{Artifact, add, recipe};
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
async fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let bench = Bench::new();
    let bytes = noise(200_000);
    let digest = Artifact::new(&bench.registry).file("f", &bytes).directory("d", &[("g", &bytes)]).push();
    bench.registry.cut_after.store(50_000, Ordering::SeqCst);
    let tree = bench.pull(&recipe([add(&digest)])).await.unwrap();
    assert_eq!(fs::read(bench.root(&tree).join("f")).unwrap(), bytes);
    assert_eq!(fs::read(bench.root(&tree).join("d/g")).unwrap(), bytes);
    assert!(bench.registry.asked_for(&Digest::sha256_of(&bytes)) >= 4);
}

#[tokio::test]
async fn a_registry_that_is_down_is_unavailable() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("f", b"x").push();
    bench.registry.down.store(true, Ordering::SeqCst);
    let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unavailable);
    assert!(error.to_string().contains("kind-registry:5000/java-app@sha256:"), "{error}");
    bench.registry.down.store(false, Ordering::SeqCst);
    bench.pull(&recipe([add(&digest)])).await.unwrap();
}

#[tokio::test]
async fn other_bytes_are_corrupt() {
    let bytes = noise(100_000);
    let mut flipped = bytes.clone();
    flipped[50_000] ^= 1;
    let longer = [&bytes[..], b"x"].concat();
    for wrong in [flipped, longer, bytes[..99_000].to_vec()] {
        let bench = Bench::new();
        let digest = Artifact::new(&bench.registry).file("ok", b"ok").file("f", &bytes).push();
        bench.registry.corrupt(&Digest::sha256_of(&bytes), &wrong);
        let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
        // A stream that ends early is an error of the registry's client; here the memory one just stops.
        let expected =
            if wrong.len() < bytes.len() { PullErrorKind::Stopped } else { PullErrorKind::Corrupt };
        assert_eq!(error.kind(), expected, "{error}");
    }
}

#[tokio::test]
async fn a_missing_layer_is_named() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("ok", b"ok").file("f", b"lost").push();
    bench.registry.drop_blob(&Digest::sha256_of(b"lost"));
    let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NotFound);
    assert!(error.to_string().contains(Digest::sha256_of(b"lost").hex()), "{error}");
}

#[tokio::test]
async fn a_manifest_that_is_not_there_is_not_found() {
    let bench = Bench::new();
    let error = bench.pull(&recipe([add(&Digest::sha256_of(b"never"))])).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NotFound);
}

#[tokio::test]
async fn recipes_that_share_a_blob_fetch_it_once() {
    let bench = Bench::new();
    let bytes = noise(500_000);
    let one = Artifact::new(&bench.registry).file("a", &bytes).push();
    let two = Artifact::new(&bench.registry).file("b", &bytes).push();
    let (one, two) = (recipe([add(&one)]), recipe([add(&two)]));
    let (first, second) = tokio::join!(bench.pull(&one), bench.pull(&two));
    assert_ne!(first.unwrap().key(), second.unwrap().key());
    assert_eq!(bench.registry.asked_for(&Digest::sha256_of(&bytes)), 1);
}
