//! Disks that are full, read-only or out of inodes, and file systems with a limit of hard links.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use oras_csi_store::Limits;
use oras_csi_store::{Reserve, Store};
use tonic::Code;

use crate::calls::{Running, mounts, request, until};
use crate::namespace::{entered, in_memory, mount};
use crate::registry::{Artifact, FakeRegistry, add, recipe};
use crate::trees::Bench;

async fn on(disk: tempfile::TempDir) -> Running {
    let limits = Limits::default().with_reserve(Reserve::bytes(64 << 10)).with_minimum_age(Duration::ZERO);
    Running::start_with(Arc::new(disk), FakeRegistry::new(), |settings| settings.with_limits(limits)).await
}

#[tokio::test]
async fn reports_a_full_disk_and_recovers() {
    if !entered("disks::reports_a_full_disk_and_recovers") {
        return;
    }
    let driver = on(in_memory("size=8m")).await;
    let (first, second) = (driver.target("a"), driver.target("b"));
    let small = driver.artifact(b"jar");
    driver.publish(request("csi-a", &first, &small)).await.unwrap();
    // Bytes of another program.
    let other = driver.folder.path().join("other");
    let others = |bytes: usize| fs::write(&other, vec![0; bytes]).unwrap();
    others(5 << 20);
    let noise: Vec<u8> = (0..4_u32 << 20).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let file = Artifact::new(&driver.registry).file("f", &noise).push();
    let directory = Artifact::new(&driver.registry).directory("d", &[("f", &noise)]).push();
    for digest in [&file, &directory] {
        let status = driver.publish(request("csi-b", &second, digest)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("Free space on it"), "{status}");
        assert!(!second.exists() && driver.records() == 1);
        assert_eq!(fs::read(first.join("app.jar")).unwrap(), b"jar", "mounted volumes are not affected");
    }
    // Without a free block, an unpublish still succeeds.
    let _ = fs::write(driver.folder.path().join("rest"), vec![0; 4 << 20]);
    driver.unpublish("csi-a", &first).await.unwrap();
    fs::remove_file(driver.folder.path().join("rest")).unwrap();
    others(0);
    for digest in [&file, &directory] {
        // Retries as kubelet does. The size of an archive is known only while it is unpacked; the next attempt frees more space.
        until("there is space again", async || {
            driver.publish(request("csi-b", &second, digest)).await.is_ok()
        })
        .await;
        let path = if digest == &file { "f" } else { "d/f" };
        assert!(fs::read(second.join(path)).unwrap() == noise);
        driver.unpublish("csi-b", &second).await.unwrap();
    }
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn reports_a_disk_without_inodes() {
    if !entered("disks::reports_a_disk_without_inodes") {
        return;
    }
    let driver = on(in_memory("size=64m,nr_inodes=120")).await;
    let target = driver.target("a");
    let files: Vec<String> = (0..200).map(|number| format!("file-{number}")).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    let many = Artifact::new(&driver.registry).directory("d", &files).push();
    let few = Artifact::new(&driver.registry).directory("d", &files[..10]).push();
    let status = driver.publish(request("csi-a", &target, &many)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("(--keep-free-inodes)"), "{status}");
    assert!(!target.exists() && driver.records() == 0);
    driver.publish(request("csi-a", &target, &few)).await.unwrap();
    assert_eq!(fs::read(target.join("d/file-9")).unwrap(), b"file-9");
    // With more inodes, the next attempt succeeds.
    driver.unpublish("csi-a", &target).await.unwrap();
    mount(&["-o", "remount,nr_inodes=2000"], driver.folder.path());
    driver.publish(request("csi-a", &target, &many)).await.unwrap();
    assert_eq!(fs::read(target.join("d/file-199")).unwrap(), b"file-199");
    driver.unpublish("csi-a", &target).await.unwrap();
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn reports_a_read_only_disk() {
    if !entered("disks::reports_a_read_only_disk") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    fs::create_dir(folder.path().join("store")).unwrap();
    mount(&["-t", "tmpfs", "-o", "size=64m", "tmpfs"], &folder.path().join("store"));
    let limits = Limits::default().with_reserve(Reserve::bytes(0));
    let driver =
        Running::start_with(folder, FakeRegistry::new(), |settings| settings.with_limits(limits)).await;
    let (first, second) = (driver.target("a"), driver.target("b"));
    let (one, two) = (driver.artifact(b"one"), driver.artifact(b"two"));
    driver.publish(request("csi-a", &first, &one)).await.unwrap();
    mount(&["-o", "remount,ro"], &driver.store());
    let status = driver.publish(request("csi-b", &second, &two)).await.unwrap_err();
    assert!(status.message().contains("the disk with the store is read-only"), "{status}");
    assert!(!second.exists());
    assert_eq!(fs::read(first.join("app.jar")).unwrap(), b"one");
    assert_eq!(mounts(&first).len(), 1);
    mount(&["-o", "remount,rw"], &driver.store());
    driver.publish(request("csi-b", &second, &two)).await.unwrap();
    assert_eq!(fs::read(second.join("app.jar")).unwrap(), b"two");
    for (volume, target) in [("csi-a", &first), ("csi-b", &second)] {
        driver.unpublish(volume, target).await.unwrap();
    }
    driver.stop().await.unwrap();

    // An existing store can be opened, because its content can be mounted. A new one cannot be created.
    let disk = in_memory("size=4m");
    drop(Store::open(&disk.path().join("s"), Limits::default()).unwrap());
    mount(&["-o", "remount,ro"], disk.path());
    Store::open(&disk.path().join("s"), Limits::default()).unwrap();
    let error = Store::open(&disk.path().join("new"), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
}

/// ext4 gives a file 65,000 names; where the temporary directory is on something that gives more, there is nothing
/// to test.
#[tokio::test]
async fn a_blob_with_the_maximum_of_hard_links_is_copied() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("f", b"a file").push();
    let first = bench.pull(&recipe([add(&digest)])).await.unwrap();
    let blob = bench.root(&first).join("f");
    let links = bench.folder.path().join("links");
    fs::create_dir(&links).unwrap();
    let refused = (0..66_000).any(|number| fs::hard_link(&blob, links.join(number.to_string())).is_err());
    if !refused {
        println!("SKIPPED: a file may have more than 66,000 names here");
        return;
    }
    let other = recipe([add(&digest).at("beneath".parse().unwrap())]);
    let second = bench.pull(&other).await.unwrap();
    assert_eq!(fs::read(bench.root(&second).join("beneath/f")).unwrap(), b"a file");
    // A copy belongs to its tree, and is verified with it.
    let store = bench.fetcher.store().clone();
    let copy = bench.root(&second).join("beneath/f");
    let schedule = oras_csi_store::scrub::Schedule::default();
    let scrub = || {
        let stop = tokio_util::sync::CancellationToken::new();
        oras_csi_store::scrub::scrub(&store, &schedule, stop, &|| ()).unwrap()
    };
    assert_eq!(scrub().damaged, 0);
    assert!(Command::new("chmod").arg("644").arg(&copy).status().unwrap().success());
    fs::write(&copy, "a fill").unwrap();
    assert!(Command::new("chmod").arg("444").arg(&copy).status().unwrap().success());
    assert_eq!(scrub().damaged, 1);
    assert!(!bench.root(&second).exists() && bench.root(&first).exists());
}
