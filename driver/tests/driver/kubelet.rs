//! The behaviour that kubelet relies on when calls fail or are cancelled.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use oras_csi_core::digest::Digest;
use tonic::Code;

use crate::calls::{Running, mounts, request};
use crate::namespace::entered;
use crate::registry::{Artifact, FakeRegistry};

async fn impatient(milliseconds: u64) -> Running {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    Running::start_in(folder, FakeRegistry::new(), Duration::from_millis(milliseconds)).await
}

#[tokio::test]
async fn a_cancelled_call_does_not_block_others() {
    if !entered("kubelet::a_cancelled_call_does_not_block_others") {
        return;
    }
    let driver = impatient(1_000).await;
    let bytes = vec![7; 40_960];
    let digest = Artifact::new(&driver.registry).file("f", &bytes).push();
    let gate = driver.registry.close_gate();
    let wanted = request("csi-1", &driver.target("a"), &digest);
    let hung_up = tokio::time::timeout(Duration::from_millis(300), driver.publish(wanted.clone())).await;
    assert!(hung_up.is_err(), "the call waits for the pull");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let status = driver.publish(wanted.clone()).await.unwrap_err();
    assert!(status.code() == Code::Aborted && status.message().contains("pulling java-app"), "{status}");
    gate.add_permits(1_000);
    driver.publish(wanted.clone()).await.unwrap();
    driver.publish(wanted).await.unwrap();
    assert_eq!((mounts(&driver.target("a")).len(), driver.records()), (1, 1));
    assert_eq!(driver.registry.requests_for(&Digest::sha256_of(&bytes)), 1);
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_second_call_for_a_volume_gets_aborted() {
    if !entered("kubelet::a_second_call_for_a_volume_gets_aborted") {
        return;
    }
    let driver = impatient(20_000).await;
    let digest = Artifact::new(&driver.registry).file("f", &vec![7; 40_960]).push();
    let gate = driver.registry.close_gate();
    let target = driver.target("a");
    let wanted = request("csi-1", &target, &digest);
    let (first, ()) = tokio::join!(driver.publish(wanted.clone()), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let second = driver.publish(wanted.clone()).await.unwrap_err();
        assert_eq!(second.code(), Code::Aborted, "{second}");
        let unpublished = driver.unpublish("csi-1", &target).await.unwrap_err();
        assert_eq!(
            unpublished.code(),
            Code::Aborted,
            "an unpublish must not succeed while a publish can still mount"
        );
        gate.add_permits(1_000);
    });
    first.unwrap();
    driver.publish(wanted).await.unwrap();
    assert_eq!((mounts(&target).len(), driver.records()), (1, 1));
    driver.unpublish("csi-1", &target).await.unwrap();
    assert!(!target.exists() && driver.records() == 0);
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_final_error_leaves_nothing_of_earlier_attempts() {
    if !entered("kubelet::a_final_error_leaves_nothing_of_earlier_attempts") {
        return;
    }
    let driver = Running::start().await;
    let digest = driver.artifact(b"jar");
    let target = driver.target("a");
    let wanted = request("csi-1", &target, &digest);
    driver.publish(wanted.clone()).await.unwrap();
    // As after a reboot with a disk that lost its trees, and a registry that lost the artifact.
    assert!(Command::new("umount").arg(&target).status().unwrap().success());
    for folder in ["trees", "layers", "blobs/sha256"] {
        let folder = driver.store().join(folder);
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
    }
    driver.registry.remove_blob(&Digest::sha256_of(b"jar"));
    let status = driver.publish(wanted).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert!(!target.exists() && driver.records() == 0, "kubelet may never unpublish it");
    driver.unpublish("csi-1", &target).await.unwrap();
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn an_unpublish_after_an_error_that_is_not_final_succeeds() {
    if !entered("kubelet::an_unpublish_after_an_error_that_is_not_final_succeeds") {
        return;
    }
    let driver = impatient(300).await;
    let digest = Artifact::new(&driver.registry).file("f", &vec![7; 40_960]).push();
    let target = driver.target("a");
    let wanted = request("csi-1", &target, &digest);
    driver.registry.is_down.store(true, Ordering::SeqCst);
    let status = driver.publish(wanted.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    driver.unpublish("csi-1", &target).await.unwrap();
    driver.registry.is_down.store(false, Ordering::SeqCst);
    let gate = driver.registry.close_gate();
    let status = driver.publish(wanted.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    driver.unpublish("csi-1", &target).await.unwrap();
    // The pod is deleted and its pull has ended: nothing is mounted.
    gate.add_permits(1_000);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!target.exists() && mounts(&target).is_empty() && driver.records() == 0);
    driver.publish(wanted).await.unwrap();
    driver.unpublish("csi-1", &target).await.unwrap();
    assert!(!target.exists() && driver.records() == 0);
    driver.stop().await.unwrap();
}
