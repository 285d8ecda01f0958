//! Reviews of new pods: the reader of one pass agrees with the general decoder on every body that it reads.

#![no_main]
// A fuzz target reports a failure by a panic.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod pieces;

use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target};
use oras_csi_webhook::review::{Hook, Review};

/// What stands around the object in most inputs, as the API server writes it.
const HEAD: &str = r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u",
    "resource":{"group":"","version":"v1","resource":"pods"},"operation":"CREATE","object":"#;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let is_review = compare(bytes);
    // An input that is no review is an object: most changes of its bytes then still reach the fields of the pod.
    let wrapped = [HEAD.as_bytes(), bytes, b"}}"].concat();
    let is_object = compare(&wrapped);
    if is_review || is_object { Corpus::Keep } else { Corpus::Reject }
});

fuzz_mutator!(|data: &mut [u8], size: usize, longest: usize, seed: u32| {
    pieces::mutate(data, size, longest, seed)
});

/// Fails unless both decoders give the same; reports whether the one of one pass reads the body.
fn compare(body: &[u8]) -> bool {
    let Some(one_pass) = Review::decode_new_pod(body) else { return false };
    let general =
        Review::decode_any(Hook::Volumes, body).expect("the general decoder reads what the other one reads");
    // The text of a value has every field of it, and tells -0 from 0.
    assert_eq!(format!("{one_pass:?}"), format!("{general:?}"));
    let chosen = Review::decode(Hook::Volumes, body).expect("it is read");
    assert_eq!(format!("{chosen:?}"), format!("{general:?}"));
    true
}
