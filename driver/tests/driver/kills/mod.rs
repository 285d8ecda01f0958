//! Kills the driver at every system call that changes a file, one run for each, and checks that the next start finds an
//! intact store.

mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use oras_csi_core::digest::Digest;
use oras_csi_core::platform::Platform;
use oras_csi_driver::NodeRoots;
use oras_csi_store::Limits;
use oras_csi_store::gc::{Goal, collect};
use oras_csi_store::{Inventory, Layout, PreloadEntry, Store, TreeKey, Unpaced, read_preload_index};
use oras_csi_store::{Verdict, verify_blob, verify_layer, verify_tree};

use self::trace::{Ended, READY};
use crate::calls::{Running, mounts, names, request};
use crate::namespace::{entered_once, in_memory, this};
use crate::registry::{Artifact, FakeRegistry, add, recipe};

/// The environment variable with the folder of the killed program.
const FOLDER: &str = "ORAS_CSI_TEST_KILLED";
/// How many programs run at once.
const AT_ONCE: u64 = 2;

fn artifact(registry: &FakeRegistry) -> Digest {
    Artifact::new(registry)
        .file("app.jar", b"jar")
        .directory("conf", &[("a.yaml", b"a"), ("b.yaml", b"b"), ("sub/c.yaml", b"c")])
        .push()
}

/// A second artifact, which shares a layer with the first.
fn other_artifact(registry: &FakeRegistry) -> Digest {
    Artifact::new(registry)
        .file("other.jar", b"other")
        .directory("conf", &[("a.yaml", b"a"), ("b.yaml", b"b"), ("sub/c.yaml", b"c")])
        .push()
}

/// In the killed program: waits until it is traced.
fn wait_to_begin() -> Option<PathBuf> {
    let folder = std::env::var_os(FOLDER)?;
    println!("{READY}");
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    Some(folder.into())
}

fn tempdir_at(path: &Path) -> Arc<tempfile::TempDir> {
    fs::create_dir_all(path).unwrap();
    // The folder is kept, because another process reads it afterwards.
    let folder = tempfile::Builder::new().prefix("driver").rand_bytes(0).tempdir_in(path);
    let mut folder = folder.unwrap_or_else(|_| {
        fs::rename(path.join("driver"), path.join("driver.kept")).unwrap();
        let made = tempfile::Builder::new().prefix("driver").rand_bytes(0).tempdir_in(path).unwrap();
        fs::remove_dir(made.path()).unwrap();
        fs::rename(path.join("driver.kept"), made.path()).unwrap();
        made
    });
    folder.disable_cleanup(true);
    Arc::new(folder)
}

/// Not a test: publishes and unpublishes a volume.
#[tokio::test]
async fn a_process_that_publishes() {
    let Some(folder) = wait_to_begin() else { return };
    let registry = FakeRegistry::new();
    let digest = artifact(&registry);
    let driver = Running::start_in(tempdir_at(&folder), registry, Duration::from_secs(20)).await;
    let target = driver.target("a");
    driver.publish(request("csi-a", &target, &digest)).await.unwrap();
    driver.unpublish("csi-a", &target).await.unwrap();
    driver.stop().await.unwrap();
}

/// Not a test: collects all content.
#[test]
fn a_process_that_collects() {
    let Some(folder) = wait_to_begin() else { return };
    let store = Store::open(&folder.join("driver/store"), Limits::default()).unwrap();
    let store = store.with_garbage_collection(Arc::new(NodeRoots));
    let done = collect(&store, Goal::All, Duration::ZERO).unwrap();
    assert_eq!((done.trees, done.layers), (2, 1));
}

fn wanted(set: &str) -> PreloadEntry {
    let recipe = recipe([add(&artifact(&FakeRegistry::new()))]);
    let key = TreeKey::of(&recipe, &Platform::node());
    PreloadEntry::new(set, "models-1", &recipe, &key)
}

/// Not a test: writes the index of preloaded sets three times.
#[test]
fn a_process_that_writes_the_preload_index() {
    let Some(folder) = wait_to_begin() else { return };
    let store = Store::open(&folder.join("driver/store"), Limits::default()).unwrap();
    store.write_preload_index(&[wanted("first")]).unwrap();
    store.write_preload_index(&[wanted("first"), wanted("second")]).unwrap();
    store.write_preload_index(&[]).unwrap();
}

fn killed(test: &str, folder: &Path, at: u64) -> Ended {
    let mut command = Command::new(this());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stderr(Stdio::null());
    trace::run(&mut command, folder, at)
}

/// Returns every path of a store with its size, except for files that contain times.
fn listing(store: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![store.to_owned()];
    while let Some(folder) = waiting.pop() {
        for name in names(&folder) {
            let path = folder.join(name);
            let metadata = fs::symlink_metadata(&path).unwrap();
            let size = if metadata.is_dir() { 0 } else { metadata.len() };
            found.insert(path.strip_prefix(store).unwrap().to_owned(), size);
            if metadata.is_dir() {
                waiting.push(path);
            }
        }
    }
    found.remove(Path::new("state.json"));
    // The provenance records: their number of lines varies.
    found.retain(|path, _| path.iter().all(|name| name != "served-by"));
    found
}

/// Checks that all visible content is intact, before any repair.
fn check_intact(store: &Path, at: u64) {
    let layout = Layout::new(store);
    if !store.join("format").exists() {
        return;
    }
    let inventory = Inventory::read(&layout).unwrap();
    for blob in inventory.blobs() {
        assert_eq!(verify_blob(&layout, blob.digest(), &mut Unpaced), Verdict::Good, "killed at {at}");
    }
    for layer in inventory.layers() {
        assert_eq!(
            verify_layer(&layout, layer.key(), &mut Unpaced).unwrap(),
            Verdict::Good,
            "killed at {at}"
        );
    }
    for tree in inventory.trees() {
        assert_eq!(verify_tree(&layout, tree, &mut Unpaced).unwrap(), Verdict::Good, "killed at {at}");
    }
    let aside = store.join("set-aside");
    assert!(!aside.exists() || names(&aside).is_empty(), "killed at {at}");
}

/// Runs `one` for every number of calls, until the program ends before that call. Returns how many calls it made.
fn for_every_call(one: impl Fn(u64) -> Ended + Sync) -> u64 {
    let calls = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for first in 1..=AT_ONCE {
            let (one, calls) = (&one, &calls);
            scope.spawn(move || {
                let mut at = first;
                loop {
                    if let Ended::ByItself(count) = one(at) {
                        calls.fetch_max(count, Ordering::SeqCst);
                        return;
                    }
                    at += AT_ONCE;
                }
            });
        }
    });
    calls.into_inner()
}

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Starts the driver again after it was killed during a publish. Returns the paths of the store at the end.
fn publish_after(folder: &Path, at: u64) -> BTreeMap<PathBuf, u64> {
    check_intact(&folder.join("driver/store"), at);
    on_a_runtime(async {
        let registry = FakeRegistry::new();
        let digest = artifact(&registry);
        let driver = Running::start_in(tempdir_at(folder), registry, Duration::from_secs(20)).await;
        let (store, target) = (driver.store(), driver.target("a"));
        assert_eq!(driver.names("tmp"), [""; 0], "killed at {at}");
        driver.publish(request("csi-a", &target, &digest)).await.unwrap();
        assert_eq!(mounts(&target).len(), 1, "killed at {at}");
        for (name, wanted) in
            [("app.jar", "jar"), ("conf/a.yaml", "a"), ("conf/b.yaml", "b"), ("conf/sub/c.yaml", "c")]
        {
            assert_eq!(fs::read_to_string(target.join(name)).unwrap(), wanted, "killed at {at}");
        }
        driver.unpublish("csi-a", &target).await.unwrap();
        assert!(mounts(&target).is_empty() && !target.exists() && driver.records() == 0, "killed at {at}");
        driver.stop().await.unwrap();
        listing(&store)
    })
}

#[test]
fn killed_at_every_call_of_a_publish() {
    if !entered_once("kills::killed_at_every_call_of_a_publish") {
        return;
    }
    let begun = Instant::now();
    let disk = in_memory("size=512m");
    let untouched = publish_after(&disk.path().join("untouched"), 0);
    let calls = for_every_call(|at| {
        let folder = disk.path().join(at.to_string());
        fs::create_dir(&folder).unwrap();
        let ended = killed("kills::a_process_that_publishes", &folder, at);
        assert_eq!(
            publish_after(&folder, at),
            untouched,
            "killed at {at}: it takes as much as one that was not"
        );
        fs::remove_dir_all(&folder).unwrap();
        ended
    });
    println!("measured: killed at each of {calls} calls, in {:?}", begun.elapsed());
    assert!(calls > 50, "{calls}");
}

#[test]
fn killed_at_every_call_of_a_collection() {
    if !entered_once("kills::killed_at_every_call_of_a_collection") {
        return;
    }
    let begun = Instant::now();
    let disk = in_memory("size=512m");
    let registry = FakeRegistry::new();
    let digests = [artifact(&registry), other_artifact(&registry)];
    let full = disk.path().join("full");
    let store = on_a_runtime(async {
        let driver = Running::start_in(tempdir_at(&full), registry, Duration::from_secs(20)).await;
        for digest in &digests {
            let target = driver.target("a");
            driver.publish(request("csi-a", &target, digest)).await.unwrap();
            driver.unpublish("csi-a", &target).await.unwrap();
        }
        let store = driver.store();
        driver.stop().await.unwrap();
        store
    });
    let empty = ["blobs", "blobs/sha256", "blobs/sha512", "format", "layers", "lock", "partial", "readonly"];
    let empty = empty.into_iter().chain(["set-aside", "tmp", "trees", "unsynced"]).map(str::to_owned);
    // The folder of unsynced marks of this boot, which is empty.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let marks = format!("unsynced/{}", boot.trim());
    let empty: Vec<String> = empty.chain([marks, "volumes".to_owned()]).collect();
    let calls = for_every_call(|at| {
        let folder = disk.path().join(at.to_string());
        fs::create_dir_all(folder.join("driver")).unwrap();
        // The tree has its hard links.
        let copied =
            Command::new("cp").arg("-a").arg(&store).arg(folder.join("driver/store")).status().unwrap();
        assert!(copied.success());
        let ended = killed("kills::a_process_that_collects", &folder, at);
        let path = folder.join("driver/store");
        check_intact(&path, at);
        let opened = Store::open(&path, Limits::default()).unwrap();
        let opened = opened.with_garbage_collection(Arc::new(NodeRoots));
        assert_eq!(names(&path.join("tmp")), [""; 0], "killed at {at}");
        check_intact(&path, at);
        collect(&opened, Goal::All, Duration::ZERO).unwrap();
        let left: Vec<_> = listing(&path).into_keys().map(|path| path.to_str().unwrap().to_owned()).collect();
        assert_eq!(left, empty, "killed at {at}: nothing leaks");
        drop(opened);
        fs::remove_dir_all(&folder).unwrap();
        ended
    });
    println!("measured: killed at each of {calls} calls, in {:?}", begun.elapsed());
    assert!(calls > 15, "{calls}");
}

#[test]
fn killed_at_every_call_of_writing_the_preload_index() {
    if !entered_once("kills::killed_at_every_call_of_writing_the_preload_index") {
        return;
    }
    let disk = in_memory("size=64m");
    let found = Mutex::new(BTreeSet::new());
    let calls = for_every_call(|at| {
        let folder = disk.path().join(at.to_string());
        fs::create_dir_all(folder.join("driver")).unwrap();
        let ended = killed("kills::a_process_that_writes_the_preload_index", &folder, at);
        let path = folder.join("driver/store");
        let file = path.join("preload.json");
        if file.exists() {
            // The index is complete, before or after the write.
            serde_json::from_slice::<serde_json::Value>(&fs::read(&file).unwrap()).unwrap();
        }
        let before = read_preload_index(&Layout::new(&path)).unwrap();
        let opened = Store::open(&path, Limits::default()).unwrap();
        assert_eq!(names(&path.join("tmp")), [""; 0], "killed at {at}");
        assert_eq!(read_preload_index(opened.layout()).unwrap(), before, "killed at {at}");
        found.lock().unwrap().insert(before.iter().map(|wanted| wanted.set().to_owned()).collect::<Vec<_>>());
        drop(opened);
        fs::remove_dir_all(&folder).unwrap();
        ended
    });
    println!("measured: killed at each of {calls} calls");
    let states: [&[&str]; 3] = [&[], &["first"], &["first", "second"]];
    assert_eq!(
        found.into_inner().unwrap(),
        states.map(|sets| sets.iter().map(ToString::to_string).collect()).into()
    );
}
