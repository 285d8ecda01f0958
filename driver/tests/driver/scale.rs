//! Many simultaneous pods and artifacts.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use oras_csi_core::digest::Digest;

use crate::calls::{Running, request};
use crate::namespace::entered;
use crate::registry::Artifact;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_pods_at_once_cause_one_download() {
    if !entered("scale::a_hundred_pods_at_once_cause_one_download") {
        return;
    }
    let driver = Arc::new(Running::start().await);
    let bytes = vec![7; 400_000];
    let digest = Artifact::new(&driver.registry).file("f", &bytes).directory("d", &[("g", &bytes)]).push();
    let manifest = digest.clone();
    let mut pods = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (driver, digest) = (driver.clone(), digest.clone());
        pods.spawn(async move {
            let target = driver.target(&format!("pod-{number}"));
            driver.publish(request(&format!("csi-{number}"), &target, &digest)).await.unwrap();
            assert_eq!(fs::metadata(target.join("f")).unwrap().len(), 400_000);
            target
        });
    }
    let targets = pods.join_all().await;
    assert_eq!(driver.registry.requests_for(&Digest::sha256_of(&bytes)), 1);
    assert_eq!(driver.registry.requests_for(&manifest), 1);
    assert_eq!(driver.registry.requests(), 3);
    assert_eq!(
        driver.registry.resolves.load(Ordering::SeqCst),
        0,
        "one check serves all pods with the same credentials"
    );
    assert_eq!(driver.records(), 100);
    // Each target is a volume of its own: after one is unpublished, the others stay.
    for target in &targets {
        let name = target.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let volume = name.replace("pod", "csi");
        driver.unpublish(&volume, target).await.unwrap();
    }
    assert_eq!(driver.records(), 0);
    Arc::into_inner(driver).unwrap().stop().await.unwrap();
}

/// Returns how many files this process has open, for the driver and its callers.
fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Returns the present memory of this process in KiB.
fn memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_artifacts_at_once_use_few_streams() {
    if !entered("scale::two_hundred_artifacts_at_once_use_few_streams") {
        return;
    }
    let driver = Arc::new(Running::start().await);
    let bytes = |number: usize| format!("artifact {number} ").repeat(6_000).into_bytes();
    let digests = (0..200).map(|number| Artifact::new(&driver.registry).file("f", &bytes(number)).push());
    let digests = digests.collect::<Vec<_>>();
    let (files_before, memory_before) = (open_files(), memory());
    let (most_files, most_memory) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let done = Arc::new(AtomicBool::new(false));
    let watching = std::thread::spawn({
        let (most_files, most_memory, done) = (most_files.clone(), most_memory.clone(), done.clone());
        move || {
            while !done.load(Ordering::SeqCst) {
                most_files.fetch_max(open_files(), Ordering::SeqCst);
                most_memory.fetch_max(memory(), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let mut pods = tokio::task::JoinSet::new();
    for (number, digest) in digests.into_iter().enumerate() {
        let (driver, bytes) = (driver.clone(), bytes(number));
        pods.spawn(async move {
            let target = driver.target(&format!("pod-{number}"));
            driver.publish(request(&format!("csi-{number}"), &target, &digest)).await.unwrap();
            assert!(fs::read(target.join("f")).unwrap() == bytes);
        });
    }
    pods.join_all().await;
    done.store(true, Ordering::SeqCst);
    watching.join().unwrap();
    let streams = driver.registry.streams.max();
    let files = most_files.load(Ordering::SeqCst) - files_before;
    let grown = most_memory.load(Ordering::SeqCst).saturating_sub(memory_before);
    eprintln!("200 artifacts: {streams} streams, {files} files, {grown} KiB at most");
    assert!(streams <= 16, "{streams}: eight, and as many slow ones");
    assert!(files < 150, "{files}");
    assert!(grown < 64 << 10, "{grown} KiB");
    assert_eq!(driver.records(), 200);
    Arc::into_inner(driver).unwrap().stop().await.unwrap();
}
