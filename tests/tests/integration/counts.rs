//! Counts that do not depend on the speed or the load of a machine: registry requests, bytes to the disk, system calls
//! and files. `benches/` measures times, which no test asserts.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_tests::archive::{archive, entry, gzip, zstd_of};
use oras_csi_tests::driver::{Driver, cannot_mount};
use oras_csi_tests::process::{Running, run, signal, try_run};
use oras_csi_tests::registry::Distribution;
use oras_csi_tests::registry::raw::Raw;
use serde_json::json;

const NAME: &str = "kind-registry:5000";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The size of the files of a volume.
const BYTES: u32 = 32 << 20;
/// The most bytes that a raw layer causes to be written, for each byte of its file.
const WRITTEN_RAW: f64 = 1.01;
/// The same for archives, in bytes of the unpacked files.
const WRITTEN_ARCHIVE: f64 = 1.05;

fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..BYTES / 8).flat_map(|_| next()).collect()
}

fn recipe(repository: &str, digest: &str) -> PinnedRecipe {
    let reference = Reference::parse(&format!("{NAME}/{repository}")).expect("a reference");
    let pinned = reference.pin(digest.parse().expect("a digest"));
    PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).expect("a recipe")
}

/// Pushes a file.
fn push_file(registry: &Distribution, repository: &str, bytes: &[u8]) -> PinnedRecipe {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), bytes).expect("writes");
    recipe(repository, &registry.push(&format!("{repository}:v1"), folder.path(), &["file"]))
}

/// Pushes an archive as a layer without a title, so that it is unpacked. `oras` gives each layer a title.
fn push_archive(registry: &Distribution, repository: &str, packing: &str, bytes: &[u8]) -> PinnedRecipe {
    let to = Raw::new(&registry.host(), repository);
    let (config, layer) = (to.blob(b"{}"), to.blob(bytes));
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.to_string(), "size": 2},
        "layers": [{"mediaType": format!("application/vnd.oci.image.layer.v1.{packing}"),
            "digest": layer.to_string(), "size": bytes.len()}]});
    let digest = to.manifest(MANIFEST, manifest.to_string().as_bytes()).expect("it is accepted");
    recipe(repository, &digest.to_string())
}

/// Returns the bytes that a process has given to a file system with a device (proc(5), `write_bytes`).
fn written(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/io")).expect("the driver runs");
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("it is counted");
    line.parse().expect("a number")
}

/// Returns and prints why bytes to the disk cannot be counted; `None` if they can.
fn cannot_count_bytes(folder: &Path) -> Option<()> {
    let kind = run(Command::new("stat").args(["--file-system", "--format=%T"]).arg(folder));
    (kind.trim() == "tmpfs").then(|| {
        assert!(std::env::var("CI").is_err(), "SKIPPED: {} is in memory: set TMPDIR", folder.display());
        eprintln!("SKIPPED: {} is in memory: set TMPDIR to a folder of a disk", folder.display());
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_pull_writes_the_bytes_of_the_files_once() {
    if cannot_mount().is_some() {
        return;
    }
    let registry = Distribution::start();
    let certs = registry.certs_d(&[NAME]);
    let driver = Driver::start(certs.path(), &[]);
    if cannot_count_bytes(&driver.store()).is_some() {
        return;
    }
    let noise = noise();
    let tar = archive(&[entry("file", b'0', "", &noise)]);
    let mut cases = vec![("raw", push_file(&registry, "raw", &noise), WRITTEN_RAW)];
    for (name, packing, bytes) in [
        ("tar", "tar", tar.clone()),
        ("gzip", "tar+gzip", gzip(&tar)),
        ("zstd", "tar+zstd", zstd_of(&[&tar], 0)),
    ] {
        cases.push((name, push_archive(&registry, name, packing, &bytes), WRITTEN_ARCHIVE));
    }
    let mut too_many = Vec::new();
    for (name, recipe, most) in &cases {
        let before = written(driver.id());
        driver.publish(name, recipe, None).await.expect("it is mounted");
        let ratio = (written(driver.id()) - before) / f64::from(BYTES);
        assert_eq!(
            std::fs::metadata(driver.target(name).join("file")).expect("a file").len(),
            u64::from(BYTES)
        );
        eprintln!("{name}: {ratio:.4} bytes to the disk for each byte of the file");
        assert!(ratio >= 1.0, "{name}: {ratio} bytes for each byte are too few: is the disk counted?");
        if ratio > *most {
            too_many.push(format!("{name}: {ratio:.4}, the most is {most}"));
        }
    }
    assert!(too_many.is_empty(), "bytes to the disk for each byte of the file: {too_many:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_pull_sends_one_request_for_each_blob() {
    if cannot_mount().is_some() {
        return;
    }
    let registry = Distribution::start();
    let folder = tempfile::tempdir().expect("a folder");
    let files = ["one", "two", "three"];
    for file in files {
        std::fs::write(folder.path().join(file), file).expect("writes");
    }
    let digest = registry.push("three:v1", folder.path(), &files);
    let certs = registry.certs_d(&[NAME]);
    let driver = Driver::start(certs.path(), &[]);
    let before = registry.requests().len();
    driver.publish("first", &recipe("three", &digest), None).await.expect("it is mounted");
    // The access log is written after the answer.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let requests = registry.requests().split_off(before);
    assert_eq!(requests.len(), 1 + files.len(), "the manifest and each file, once: {requests:#?}");

    // A further pod with the same credentials needs no request: the permission is cached.
    let before = registry.requests().len();
    driver.publish("second", &recipe("three", &digest), None).await.expect("it is mounted");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let requests = registry.requests().split_off(before);
    assert!(requests.is_empty(), "{requests:#?}");

    // Each file is stored once, and the tree has hard links to it.
    let mut find = Command::new("find");
    let inodes = run(find.arg(driver.store()).args(["-type", "f", "-links", "+1", "-printf", "%i\\n"]));
    let mut inodes: Vec<&str> = inodes.lines().collect();
    inodes.sort_unstable();
    inodes.dedup();
    assert_eq!(inodes.len(), files.len(), "inodes with more than one name");
}

/// Traces the system calls of a process while `work` runs; returns a line for each. `None` if tracing is not allowed.
async fn trace(process: u32, folder: &Path, work: impl Future<Output = ()>) -> Option<Vec<String>> {
    let output = folder.join("calls");
    if try_run(Command::new("strace").args(["-o", "/dev/null", "true"])).status.code() != Some(0) {
        assert!(std::env::var("CI").is_err(), "SKIPPED: strace cannot trace here");
        eprintln!("SKIPPED: strace cannot trace here");
        return None;
    }
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-p", &process.to_string(), "-o"]).arg(&output);
    let running = Running::start(&mut strace, "strace", folder);
    // It reports nothing with -qq; a process that is traced says so itself.
    let is_traced = || {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
        tasks.flatten().all(|task| {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        })
    };
    while !is_traced() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    work.await;
    signal(running.id(), "INT");
    while is_traced() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let text = std::fs::read_to_string(output).expect("it was written");
    Some(text.lines().map(str::to_owned).collect())
}

/// Returns how many system calls are not those of threads that wait for each other, and how many open mountinfo.
fn count(calls: &[String]) -> (usize, usize) {
    let waits = ["futex(", "epoll_wait(", "restart_syscall(", "sched_yield(", " resumed>", "+++", "---"];
    let calls = calls.iter().filter(|call| !waits.iter().any(|wait| call.contains(wait)));
    let reads = calls.clone().filter(|call| call.contains("/proc/self/mountinfo")).count();
    (calls.count(), reads)
}

/// Mountinfo grows with each volume of the node, so each read makes a call slower than the one before.
#[tokio::test(flavor = "multi_thread")]
async fn a_warm_publish_reads_no_mountinfo_and_makes_few_system_calls() {
    const PUBLISH: (usize, usize) = (72, 0);
    const UNPUBLISH: (usize, usize) = (56, 0);
    if cannot_mount().is_some() {
        return;
    }
    let registry = Distribution::start();
    let recipe = push_file(&registry, "warm", b"file");
    let certs = registry.certs_d(&[NAME]);
    let driver = Driver::start(certs.path(), &[]);
    for pod in ["first", "second"] {
        driver.publish(pod, &recipe, None).await.expect("it is mounted");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let publish = async { driver.publish("third", &recipe, None).await.expect("it is mounted") };
    let Some(calls) = trace(driver.id(), folder.path(), publish).await else { return };
    assert!(calls.iter().any(|call| call.contains("move_mount(")), "no mount was traced: {calls:#?}");
    let published = count(&calls);
    eprintln!("publish: (system calls, reads of mountinfo) = {published:?}");
    assert!(
        published.0 <= PUBLISH.0 && published.1 <= PUBLISH.1,
        "{published:?}, not {PUBLISH:?}: {calls:#?}"
    );

    let unpublish = async { driver.unpublish("third").await.expect("it goes") };
    let Some(calls) = trace(driver.id(), folder.path(), unpublish).await else { return };
    assert!(calls.iter().any(|call| call.contains("umount2(")), "no unmount was traced: {calls:#?}");
    let unpublished = count(&calls);
    eprintln!("unpublish: (system calls, reads of mountinfo) = {unpublished:?}");
    assert!(
        unpublished.0 <= UNPUBLISH.0 && unpublished.1 <= UNPUBLISH.1,
        "{unpublished:?}, not {UNPUBLISH:?}: {calls:#?}"
    );
}
