//! The largest number of volumes that a node can have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::calls::{Running, request};
use crate::namespace::{entered_once, in_memory};
use crate::registry::FakeRegistry;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_recovers_two_thousand_volumes_in_seconds() {
    const VOLUMES: usize = 2_000;
    if !entered_once("many::a_restart_recovers_two_thousand_volumes_in_seconds") {
        return;
    }
    let disk = Arc::new(in_memory("size=1g"));
    let driver = Running::start_in(disk.clone(), FakeRegistry::new(), Duration::from_secs(20)).await;
    let digests = [driver.artifact(b"one"), driver.artifact(b"two")];
    let target = |driver: &Running, number: usize| driver.target(&format!("pod-{number}"));
    let begun = Instant::now();
    for number in 0..VOLUMES {
        let wanted = request(&format!("csi-{number}"), &target(&driver, number), &digests[number % 2]);
        driver.publish(wanted).await.unwrap();
    }
    let published = begun.elapsed();
    let registry = driver.registry.clone();
    driver.stop().await.unwrap();

    let begun = Instant::now();
    let driver = Running::start_in(disk, registry, Duration::from_secs(20)).await;
    let started = begun.elapsed();
    println!(
        "measured: {VOLUMES} volumes published in {published:?} ({:?} each), taken over in {started:?}",
        published / u32::try_from(VOLUMES).unwrap()
    );
    assert!(started < Duration::from_secs(10), "{started:?}");
    assert!(driver.metrics_text().await.contains("oras_csi_driver_volumes 2000"));
    // The volumes are unchanged, and one more publish takes no longer.
    let last = VOLUMES - 1;
    driver.publish(request(&format!("csi-{last}"), &target(&driver, last), &digests[1])).await.unwrap();
    let one_more = target(&driver, VOLUMES);
    driver.publish(request("csi-more", &one_more, &digests[0])).await.unwrap();
    assert_eq!(std::fs::read(one_more.join("app.jar")).unwrap(), b"one");
    driver.stop().await.unwrap();
}
