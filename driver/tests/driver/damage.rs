//! Disks that return other bytes than were written, and stores that an earlier version wrote.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use oras_csi_core::digest::Digest;
use oras_csi_driver::Settings;
use oras_csi_store::Limits;
use oras_csi_store::gc::Watermarks;
use oras_csi_store::pull::{Fetcher, NoProgress, Progress};
use oras_csi_store::scrub::{Schedule, scrub};
use oras_csi_store::{Inventory, NodeRecord, Store};
use tokio_util::sync::CancellationToken;

use crate::calls::{Running, mounts, names, request, until};
use crate::namespace::entered;
use crate::registry::{Artifact, FakeRegistry, add, recipe};
use crate::trees::Bench;

type BreaksTree = fn(&Path);
type BreaksTreeOrLayer = fn(&Path, &Path);

/// Flips one bit of a file, without a change of its modification time.
fn flip(path: &Path) {
    let found = fs::metadata(path).unwrap();
    // Root can write to any file. A change of the mode would also be detected.
    if !rustix::process::geteuid().is_root() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, found.len() / 2).unwrap();
    file.write_all_at(&[byte[0] ^ 4], found.len() / 2).unwrap();
    file.sync_all().unwrap();
    file.set_modified(found.modified().unwrap()).unwrap();
    file.set_permissions(found.permissions()).unwrap();
}

fn with_fast_scrubs(settings: Settings) -> Settings {
    settings
        .with_scrubbing(
            Schedule::default().with_interval(Duration::from_millis(50)).with_bytes_per_second(1 << 40),
        )
        .with_watermarks(Watermarks::default().with_interval(Duration::from_millis(50)))
}

async fn start_with_fast_scrubs(folder: Arc<tempfile::TempDir>, registry: Arc<FakeRegistry>) -> Running {
    Running::start_with(folder, registry, with_fast_scrubs).await
}

fn the_only(folder: &Path) -> PathBuf {
    let names = names(folder);
    assert_eq!(names.len(), 1, "{names:?}");
    folder.join(&names[0])
}

#[tokio::test]
async fn a_flipped_bit_is_found_reported_and_never_mounted_again() {
    if !entered("damage::a_flipped_bit_is_found_reported_and_never_mounted_again") {
        return;
    }
    for (kind, file) in [("blob", "app.jar"), ("layer", "conf/a.yaml")] {
        let driver =
            start_with_fast_scrubs(Arc::new(tempfile::tempdir().unwrap()), FakeRegistry::new()).await;
        let digest = driver.artifact(b"a jar of bytes");
        let (first, second) = (driver.target("a"), driver.target("b"));
        driver.publish(request("csi-a", &first, &digest)).await.unwrap();
        let right = fs::read(first.join(file)).unwrap();
        let tree = the_only(&driver.store().join("trees"));
        flip(&tree.join("files").join(file));

        let line = format!("oras_csi_driver_damaged_total{{kind=\"{kind}\"}} 1");
        until("the metric counts the damage", async || driver.metrics_text().await.contains(&line)).await;
        // The pod keeps its mount; the content is downloaded again in the background.
        assert_ne!(fs::read(first.join(file)).unwrap(), right);
        until("the content is downloaded again", async || tree.exists()).await;
        driver.publish(request("csi-b", &second, &digest)).await.unwrap();
        assert_eq!(fs::read(second.join(file)).unwrap(), right);
        // The record of the node has the damage, and the volumes that still use the content.
        let record = NodeRecord::read(&oras_csi_store::Layout::new(driver.store()));
        assert_eq!(record.damage.len(), 1, "{record:?}");
        let damage = &record.damage[0];
        assert!(damage.what.contains(kind) && damage.volumes == ["csi-a"], "{damage:?}");
        assert_eq!(damage.trees, [tree.file_name().unwrap().to_str().unwrap()]);

        let aside = driver.names("set-aside");
        assert!(aside.iter().any(|name| name.starts_with(&damage.trees[0])), "{aside:?}");
        driver.publish(request("csi-a", &first, &digest)).await.unwrap();
        assert!(driver.stats("csi-a", first.to_str().unwrap()).await.unwrap().0 > 14 + 4);
        driver.unpublish("csi-a", &first).await.unwrap();
        assert!(!first.exists());
        until("it is deleted once nothing mounts it", async || driver.names("set-aside").is_empty()).await;
        assert_eq!(fs::read(second.join(file)).unwrap(), right);
        driver.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_tree_that_is_mounted_is_not_deleted() {
    if !entered("damage::a_damaged_tree_that_is_mounted_is_not_deleted") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver = Running::start_in(folder.clone(), FakeRegistry::new(), Duration::from_secs(20)).await;
    let digest = driver.artifact(b"jar");
    let (first, second) = (driver.target("a"), driver.target("b"));
    driver.publish(request("csi-a", &first, &digest)).await.unwrap();
    let tree = the_only(&driver.store().join("trees"));
    for damage in ["", "{}", "not json"] {
        fs::write(tree.join("tree.json"), damage).unwrap();
        driver.publish(request("csi-b", &second, &digest)).await.unwrap();
        assert_eq!(fs::read(first.join("app.jar")).unwrap(), b"jar", "the first pod keeps its files");
        assert_eq!(fs::read(second.join("app.jar")).unwrap(), b"jar");
        driver.unpublish("csi-b", &second).await.unwrap();
    }
    // One bit of a description that still is JSON.
    let text = fs::read_to_string(tree.join("tree.json")).unwrap();
    fs::write(tree.join("tree.json"), text.replacen("\"bytes\":7", "\"bytes\":6", 1)).unwrap();
    driver.publish(request("csi-b", &second, &digest)).await.unwrap();
    assert!(driver.stats("csi-b", second.to_str().unwrap()).await.unwrap().0 > 3 + 4);
    let registry = driver.registry.clone();
    driver.stop().await.unwrap();

    let driver = start_with_fast_scrubs(folder, registry).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        fs::read(first.join("app.jar")).unwrap(),
        b"jar",
        "neither a start nor a collection deletes them"
    );
    assert!(!driver.names("set-aside").is_empty());
    driver.unpublish("csi-a", &first).await.unwrap();
    assert!(mounts(&first).is_empty() && !first.exists());
    until("it is deleted", async || driver.names("set-aside").is_empty()).await;
    driver.unpublish("csi-b", &second).await.unwrap();
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn unsynced_content_is_not_mounted_after_a_power_loss() {
    if !entered("damage::unsynced_content_is_not_mounted_after_a_power_loss") {
        return;
    }
    let driver = Running::start().await;
    let digest = driver.artifact(b"a jar of bytes");
    let target = driver.target("a");
    let tree = |driver: &Running| the_only(&driver.store().join("trees"));
    let breaks: [(&str, BreaksTree); 4] = [
        ("an empty file", |tree| fs::write(tree.join("files/app.jar"), "").unwrap()),
        ("a missing file", |tree| fs::remove_file(tree.join("files/conf/a.yaml")).unwrap()),
        ("no files at all", |tree| fs::remove_dir_all(tree.join("files")).unwrap()),
        ("no description", |tree| fs::remove_file(tree.join("tree.json")).unwrap()),
    ];
    for (name, broken) in breaks {
        driver
            .publish(request("csi-a", &target, &digest))
            .await
            .unwrap_or_else(|status| panic!("{name}: {status}"));
        assert_eq!(fs::read(target.join("app.jar")).unwrap(), b"a jar of bytes", "{name}");
        assert_eq!(fs::read(target.join("conf/a.yaml")).unwrap(), b"yaml", "{name}");
        driver.unpublish("csi-a", &target).await.unwrap();
        broken(&tree(&driver));
    }
    driver.publish(request("csi-a", &target, &digest)).await.unwrap();
    assert_eq!(fs::read(target.join("app.jar")).unwrap(), b"a jar of bytes");
    driver.unpublish("csi-a", &target).await.unwrap();
    driver.stop().await.unwrap();
}

/// Converts a store to format version 1.
fn convert_to_format_one(store: &Path) {
    fs::write(store.join("format"), "oras-csi store 1\n").unwrap();
    let _ = fs::remove_file(store.join("state.json"));
    for folder in ["set-aside", "partial"] {
        fs::remove_dir_all(store.join(folder)).unwrap();
    }
    let strip = |path: &Path, keys: &[&str]| {
        let mut note: serde_json::Map<_, _> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        for key in keys {
            assert!(note.remove(*key).is_some(), "{key} in {}", path.display());
        }
        fs::write(path, serde_json::to_vec(&note).unwrap()).unwrap();
    };
    for (folder, note, keys) in
        [("trees", "tree.json", &["check", "largest"][..]), ("layers", "layer.json", &["check"])]
    {
        for name in names(&store.join(folder)) {
            fs::remove_file(store.join(folder).join(&name).join("sums")).unwrap();
            strip(&store.join(folder).join(&name).join(note), keys);
        }
    }
    for name in names(&store.join("volumes")) {
        strip(&store.join("volumes").join(name), &["recipe"]);
    }
}

#[tokio::test]
async fn a_store_of_format_one_is_taken_over() {
    if !entered("damage::a_store_of_format_one_is_taken_over") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver = Running::start_in(folder.clone(), FakeRegistry::new(), Duration::from_secs(20)).await;
    let digest = driver.artifact(b"jar");
    let (first, second) = (driver.target("a"), driver.target("b"));
    driver.publish(request("csi-a", &first, &digest)).await.unwrap();
    let (store, registry) = (driver.store(), driver.registry.clone());
    driver.stop().await.unwrap();
    convert_to_format_one(&store);

    // Stored content is mounted without a download.
    registry.is_down.store(true, Ordering::SeqCst);
    let driver = Running::start_in(folder.clone(), registry.clone(), Duration::from_secs(20)).await;
    assert_eq!(fs::read_to_string(store.join("format")).unwrap(), "oras-csi store 3\n");
    assert_eq!(driver.records(), 1);
    driver.publish(request("csi-a", &first, &digest)).await.unwrap();
    registry.is_down.store(false, Ordering::SeqCst);
    let jar = Digest::sha256_of(b"jar");
    let asked = registry.requests_for(&jar);
    driver.publish(request("csi-b", &second, &digest)).await.unwrap();
    assert_eq!(fs::read(second.join("app.jar")).unwrap(), b"jar");
    assert_eq!((asked, registry.requests_for(&jar)), (1, 1));
    for (volume, target) in [("csi-a", &first), ("csi-b", &second)] {
        driver.unpublish(volume, target).await.unwrap();
    }
    driver.stop().await.unwrap();

    // The layers have no checksums: the first scrub records them, the second verifies them.
    let store = Store::open(&store, Limits::default()).unwrap();
    let scrub = || scrub(&store, &Schedule::default(), CancellationToken::new(), &|| ()).unwrap();
    assert_eq!((scrub().damaged, scrub().damaged), (0, 0));
    let layer = the_only(&store.path().join("layers"));
    flip(&layer.join("files/a.yaml"));
    assert_eq!(scrub().damaged, 1);
    assert!(Inventory::read(store.layout()).unwrap().trees().is_empty());
}

#[tokio::test]
async fn a_scrub_finds_every_kind_of_damage_and_only_that() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("f", b"file").directory("d", &[("g", b"other")]).push();
    let other = Artifact::new(&bench.registry).file("h", b"healthy").push();
    let (wanted, healthy) = (recipe([add(&digest)]), recipe([add(&other)]));
    let store = bench.fetcher.store().clone();
    let scrub = || scrub(&store, &Schedule::default(), CancellationToken::new(), &|| ()).unwrap();
    bench.pull(&healthy).await.unwrap();
    let breaks: [(&str, BreaksTreeOrLayer); 6] = [
        ("a blob", |tree, _| flip(&tree.join("files/f"))),
        ("a layer", |_, layer| flip(&layer.join("files/g"))),
        ("a mode", |_, layer| {
            fs::set_permissions(layer.join("files/g"), fs::Permissions::from_mode(0o755)).unwrap();
        }),
        ("the sums", |_, layer| flip(&layer.join("sums"))),
        ("a file of a tree", |tree, _| fs::remove_file(tree.join("files/d/g")).unwrap()),
        ("a description", |tree, _| flip(&tree.join("tree.json"))),
    ];
    for (name, broken) in breaks {
        let tree = bench.pull(&wanted).await.unwrap();
        assert_eq!(scrub().damaged, 0, "{name}: before");
        let root = bench.root(&tree);
        broken(root.parent().unwrap(), &the_only(&store.path().join("layers")));
        assert_eq!(scrub().damaged, 1, "{name}");
        assert!(!root.exists(), "{name}: the tree is out of sight");
        let record = store.node_record();
        assert_eq!(record.damage.last().unwrap().trees, [tree.key().as_str()], "{name}");
        let report = scrub();
        assert_eq!(report.damaged, 0, "{name}: afterwards");
        assert_eq!(
            store.tree(&bench.fetcher.key(&healthy)).unwrap().map(|tree| tree.totals().bytes),
            Some(7)
        );
    }
    // Content that is downloaded again is intact.
    let tree = bench.pull(&wanted).await.unwrap();
    assert_eq!(fs::read(bench.root(&tree).join("d/g")).unwrap(), b"other");
    assert_eq!(fs::read(bench.root(&tree).join("f")).unwrap(), b"file");
}

#[tokio::test]
async fn damaged_content_is_not_used_for_new_trees() {
    let Bench { folder, registry, fetcher } = Bench::new();
    let digest = Artifact::new(&registry).file("f", b"file").directory("d", &[("g", b"other")]).push();
    let progress: Arc<dyn Progress> = Arc::new(NoProgress);
    fetcher.tree(&recipe([add(&digest)]), &progress).await.unwrap();
    let path = fetcher.store().path().to_owned();
    drop(fetcher);
    flip(&path.join("blobs/sha256").join(Digest::sha256_of(b"file").hex()));
    flip(&the_only(&path.join("layers")).join("files/g"));

    // As after a start of the driver: another recipe with the same content.
    let store = Arc::new(Store::open(&path, Limits::default()).unwrap());
    let fetcher = Arc::new(Fetcher::new(store.clone(), registry.clone()));
    let elsewhere = recipe([add(&digest).at("beneath".parse().unwrap())]);
    let tree = fetcher.tree(&elsewhere, &progress).await.unwrap();
    let root = store.path().join("trees").join(tree.key().as_str()).join("files/beneath");
    assert_eq!(fs::read(root.join("f")).unwrap(), b"file");
    assert_eq!(fs::read(root.join("d/g")).unwrap(), b"other");
    assert_eq!(registry.requests_for(&Digest::sha256_of(b"file")), 2);
    assert_eq!(store.node_record().damage.len(), 2);
    assert_eq!(
        names(&path.join("trees")),
        [tree.key().as_str()],
        "the tree that was built from it is quarantined too"
    );
    drop(folder);
}

#[tokio::test]
async fn a_scrub_is_throttled_and_can_be_stopped() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("f", &vec![7; 3 << 20]).push();
    bench.pull(&recipe([add(&digest)])).await.unwrap();
    let store = bench.fetcher.store().clone();
    let slow = Schedule::default().with_bytes_per_second(6 << 20);
    let begun = std::time::Instant::now();
    let report = scrub(&store, &slow, CancellationToken::new(), &|| ()).unwrap();
    assert!(
        report.bytes >= 3 << 20 && begun.elapsed() >= Duration::from_millis(450),
        "{:?}",
        begun.elapsed()
    );

    let stop = CancellationToken::new();
    let crawling = Schedule::default().with_bytes_per_second(1);
    let ended = std::thread::spawn({
        let stop = stop.clone();
        move || scrub(&store, &crawling, stop, &|| ()).unwrap()
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(!ended.is_finished());
    stop.cancel();
    assert_eq!(ended.join().unwrap().ended, 0, "a scrub that was stopped has no end time");
}

#[tokio::test]
async fn bytes_are_read_from_the_disk_and_manifests_are_verified() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("f", b"file").push();
    bench.pull(&recipe([add(&digest)])).await.unwrap();
    let store = bench.fetcher.store().clone();
    flip(&store.path().join("blobs/sha256").join(digest.hex()));
    let report = scrub(&store, &Schedule::default(), CancellationToken::new(), &|| ()).unwrap();
    assert_eq!(
        (report.damaged, report.blobs, report.trees),
        (1, 2, 1),
        "a damaged manifest does not affect a tree"
    );
    assert!(!store.path().join("blobs/sha256").join(digest.hex()).exists());
    assert!(store.path().join("blobs/sha256").join(Digest::sha256_of(b"file").hex()).exists());
}
