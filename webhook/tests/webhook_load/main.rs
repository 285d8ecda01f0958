//! A load test of the webhook, in a binary of its own: beside other tests its requests would wait for the CPU until they
//! count as stalled.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

#[path = "../webhook/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use oras_csi_webhook::ResolverSettings;
use support::{Bench, default_digest, pod};
use tokio::time::Instant;

/// Each wave has nearly as many requests as may wait in total, and the cache time is so short that lookups end, expire and
/// begin again all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_parallel_requests_never_swap_digests() {
    const WAVE: usize = 12_500;
    let settings = ResolverSettings { tag_ttl: Duration::from_millis(50), ..ResolverSettings::default() };
    let bench = Arc::new(Bench::with(&[], settings));
    bench.registry.set_delay(Duration::from_millis(5));
    let mut right = 0;
    for _ in 0..8 {
        let mut wave = tokio::task::JoinSet::new();
        for number in 0..WAVE {
            let bench = Arc::clone(&bench);
            wave.spawn(async move {
                let reference = format!("r.io/a:{}", number % 100);
                let soon = Instant::now() + Duration::from_mins(1);
                let outcome =
                    bench.admission.admit_pod(&pod(&[("artifact", &reference)]), "team", soon).await.unwrap();
                let wanted = format!("{reference}@{}\"", default_digest(&reference));
                assert!(outcome.pinned().unwrap().contains(&wanted), "{reference}: {:?}", outcome.pinned());
            });
        }
        while let Some(one) = wave.join_next().await {
            one.unwrap();
            right += 1;
        }
    }
    assert_eq!(right, 100_000);
    let asked = bench.registry.resolves.load(Ordering::SeqCst);
    assert!((800..20_000).contains(&asked), "{asked} lookups: each wave's ran out, and were shared");
}
