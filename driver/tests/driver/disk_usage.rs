//! What the disk is charged for content, compared with what an ext4 file system uses for it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_store::pull::PullErrorKind;
use oras_csi_store::{Inventory, Limits, Reserve, Usage};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rstest::{Context, rstest};

use crate::calls::{Running, request, until};
use crate::namespace::{entered_as_root, entered_once, ext4, in_memory, unmount};
use crate::registry::{Artifact, FakeRegistry, add, gzip, noise, recipe, tar};
use crate::trees::Bench;

const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The disk may use more than was charged by one part in so many (extents of large files), and by a constant: the
/// marks and folders of the store itself.
const MARGIN: u64 = 64;
const CONSTANT: Usage = Usage { bytes: 128 << 10, inodes: 16 };

fn used(path: &Path) -> Usage {
    rustix::fs::syncfs(fs::File::open(path).unwrap()).unwrap();
    let found = rustix::fs::statvfs(path).unwrap();
    Usage { bytes: (found.f_blocks - found.f_bfree) * found.f_frsize, inodes: found.f_files - found.f_ffree }
}

/// An entry of a random archive.
#[derive(Clone, Debug)]
enum Random {
    File { name: String, bytes: usize },
    Files { folder: u8, count: usize, length: usize },
    Directories { count: usize, length: usize },
    Symlink { name: String, target: usize },
    HardLinks { count: usize, length: usize },
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[a-c]{1,2}(/[d-f]{1,2}){0,3}",
        1 => "[x-z]{100}/[x-z]{60,90}",
    ]
}

fn entries() -> impl Strategy<Value = Vec<Random>> {
    let entry = prop_oneof![
        6 => (name(), prop_oneof![Just(0), 1..5_000_usize, Just(4_096), 0..300_000_usize])
            .prop_map(|(name, bytes)| Random::File { name: format!("{name}.file"), bytes }),
        2 => (0..3_u8, 1..1_500_usize, 5..90_usize)
            .prop_map(|(folder, count, length)| Random::Files { folder, count, length }),
        2 => (1..600_usize, 5..90_usize).prop_map(|(count, length)| Random::Directories { count, length }),
        3 => (name(), 1..300_usize)
            .prop_map(|(name, target)| Random::Symlink { name: format!("{name}.link"), target }),
        2 => (1..1_500_usize, 5..90_usize).prop_map(|(count, length)| Random::HardLinks { count, length }),
    ];
    proptest::collection::vec(entry, 1..12)
}

fn archive(entries: &[Random]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut append = |kind: tar::EntryType, name: &str, link: Option<&str>, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        match link {
            Some(link) => builder.append_link(&mut header, name, link).unwrap(),
            None => builder.append_data(&mut header, name, data).unwrap(),
        }
    };
    append(tar::EntryType::Regular, "first", None, b"a file");
    for (position, entry) in entries.iter().enumerate() {
        let numbered = |number: usize, length: usize| format!("{position}-{number:0length$}");
        match entry {
            Random::File { name, bytes } => {
                append(tar::EntryType::Regular, name, None, &vec![7; *bytes]);
            }
            Random::Files { folder, count, length } => {
                for number in 0..*count {
                    let name = format!("many-{folder}/{}", numbered(number, *length));
                    append(tar::EntryType::Regular, &name, None, b"x");
                }
            }
            Random::Directories { count, length } => {
                for number in 0..*count {
                    append(tar::EntryType::Directory, &format!("d-{}", numbered(number, *length)), None, b"");
                }
            }
            Random::Symlink { name, target } => {
                append(tar::EntryType::Symlink, name, Some(&"t".repeat(*target)), b"");
            }
            Random::HardLinks { count, length } => {
                for number in 0..*count {
                    let name = format!("links/{}", numbered(number, *length));
                    append(tar::EntryType::Link, &name, Some("first"), b"");
                }
            }
        }
    }
    builder.into_inner().unwrap()
}

/// A store on a new ext4 file system.
fn bench(megabytes: u64, options: &[&str], limits: Limits) -> (Bench, Usage) {
    let bench = Bench::inside(ext4(megabytes << 20, options), limits);
    let before = used(bench.folder.path());
    (bench, before)
}

/// Unmounts the file system, so that its loop device is free again.
fn close(bench: Bench) {
    let Bench { folder, fetcher, .. } = bench;
    drop(fetcher);
    unmount(folder.path());
}

fn charged(bench: &Bench) -> Usage {
    Inventory::read(bench.fetcher.store().layout()).unwrap().usage()
}

/// Returns an error if the disk uses more than was charged.
fn check(bench: &Bench, before: Usage) -> Result<(), TestCaseError> {
    let (used, charged) = (used(bench.folder.path()), charged(bench));
    let bytes = used.bytes.saturating_sub(before.bytes);
    let inodes = used.inodes.saturating_sub(before.inodes);
    println!("measured: {bytes} bytes and {inodes} inodes used, {charged:?}");
    prop_assert!(
        bytes <= charged.bytes + charged.bytes / MARGIN + CONSTANT.bytes,
        "{bytes} bytes are used, and {charged:?} was charged"
    );
    prop_assert!(
        inodes <= charged.inodes + CONSTANT.inodes,
        "{inodes} inodes are used, and {charged:?} was charged"
    );
    Ok(())
}

fn pull(bench: &Bench, recipe: &PinnedRecipe) -> oras_csi_store::Tree {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(bench.pull(recipe)).unwrap()
}

#[test]
fn the_disk_uses_no_more_than_was_charged() {
    if !entered_as_root("disk_usage::the_disk_uses_no_more_than_was_charged") {
        return;
    }
    let strategy = (entries(), entries(), proptest::collection::vec(0..20_000_usize, 0..40));
    let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&strategy, |(first, second, files)| {
            let (bench, before) = bench(512, &["-N", "65536"], Limits::default());
            let mut artifact = Artifact::new(&bench.registry)
                .layer(TAR_GZIP, &gzip(&archive(&first)), &[])
                .layer(TAR_GZIP, &gzip(&archive(&second)), &[]);
            for (number, bytes) in files.iter().enumerate() {
                let content = vec![u8::try_from(number).unwrap(); *bytes];
                artifact = artifact.file(&format!("blobs/{number}"), &content);
            }
            let digest = artifact.push();
            let below = add(&digest).at("below/this".parse().unwrap());
            pull(&bench, &recipe([add(&digest), below]));
            let checked = check(&bench, before);
            close(bench);
            checked
        })
        .unwrap();
}

/// Pushes an archive with a file that has more hard links than ext4 allows.
fn push_hard_links(registry: &FakeRegistry, bytes: usize) -> Digest {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", &vec![7; bytes][..]).unwrap();
    for number in 0..65_700 {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        builder.append_link(&mut header, format!("link-{number}"), "file").unwrap();
    }
    let archive = builder.into_inner().unwrap();
    Artifact::new(registry).layer(TAR_GZIP, &gzip(&archive), &[]).push()
}

#[tokio::test]
async fn copies_of_a_file_with_too_many_hard_links_are_charged() {
    if !entered_as_root("disk_usage::copies_of_a_file_with_too_many_hard_links_are_charged") {
        return;
    }
    // The archive has 34 MB, and the names and checksums of the links take less than 10 MiB. 700 copies take 44 MiB.
    let (bench, before) = bench(160, &["-N", "16384"], Limits::default().with_unpacked(40 << 20));
    let digest = push_hard_links(&bench.registry, 64 << 10);
    let error = bench.fetcher_error(&recipe([add(&digest)])).await;
    assert_eq!(error.kind(), PullErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("take more than 41943040 bytes of the disk"), "{error}");
    assert!(error.to_string().contains("(--max-unpacked)"), "{error}");
    let peak = used(bench.folder.path()).bytes - before.bytes;
    assert!(peak < 40 << 20, "{peak}");

    // With a higher limit, the disk is the limit: the tree needs a copy for each link.
    close(bench);
    let limits = Limits::default().with_reserve(Reserve::bytes(16 << 20));
    let (bench, _) = self::bench(160, &["-N", "16384"], limits);
    let digest = push_hard_links(&bench.registry, 4 << 10);
    let error = bench.fetcher_error(&recipe([add(&digest)])).await;
    assert_eq!(error.kind(), PullErrorKind::DiskFull, "{error}");
    let words = error.to_string();
    assert!(words.contains("(--keep-free)") || words.contains("(--keep-free-inodes)"), "{error}");
    let layer = Inventory::read(bench.fetcher.store().layout()).unwrap().layers()[0].usage();
    assert!(layer.bytes >= 700 << 12 && layer.inodes >= 700, "{layer:?}");
    close(bench);
}

fn push_directories(registry: &FakeRegistry, count: usize) -> Digest {
    let archive = archive(&[Random::Directories { count, length: 8 }]);
    Artifact::new(registry).layer(TAR_GZIP, &gzip(&archive), &[]).push()
}

#[tokio::test]
async fn directories_are_charged() {
    let bench = Bench::with(Limits::default().with_unpacked(10 << 20));
    let digest = push_directories(&bench.registry, 3_000);
    let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("take more than 10485760 bytes of the disk"), "{error}");
    // The layer fits, and the layer and the tree together do not: a tree has its own directories.
    let digest = push_directories(&bench.registry, 1_500);
    let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
    assert!(error.to_string().contains("would take more than 10485760 bytes of the disk"), "{error}");
    let digest = push_directories(&bench.registry, 1_000);
    let tree = bench.pull(&recipe([add(&digest)])).await.unwrap();
    assert!(tree.usage().bytes > 8_000 << 10 && tree.usage().inodes > 2_000, "{:?}", tree.usage());
}

#[tokio::test]
async fn single_files_are_charged_before_they_are_downloaded() {
    let bench = Bench::with(Limits::default().with_unpacked(1 << 20));
    let large = vec![1; 1 << 20];
    let digest = Artifact::new(&bench.registry).file("large", &large).push();
    let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Refused, "{error}");
    assert_eq!(bench.registry.requests_for(&Digest::sha256_of(&large)), 0);
}

#[tokio::test]
async fn a_reserve_of_inodes_stays_free() {
    if !entered_as_root("disk_usage::a_reserve_of_inodes_stays_free") {
        return;
    }
    let limits = Limits::default().with_inode_reserve(Reserve::inodes(500));
    let (bench, _) = bench(64, &["-N", "2048"], limits);
    let digest = push_directories(&bench.registry, 3_000);
    let error = bench.fetcher_error(&recipe([add(&digest)])).await;
    assert_eq!(error.kind(), PullErrorKind::DiskFull, "{error}");
    assert!(error.to_string().contains("500 are reserved (--keep-free-inodes)"), "{error}");
    // The layer fits, its tree does not.
    let digest = push_directories(&bench.registry, 1_000);
    let error = bench.fetcher_error(&recipe([add(&digest)])).await;
    assert!(error.to_string().contains("500 are reserved (--keep-free-inodes)"), "{error}");
    let digest = push_directories(&bench.registry, 100);
    pull_again(&bench, &recipe([add(&digest)])).await;
    close(bench);
}

/// Watches the free space of a file system, and returns the least of it.
struct Watch(std::thread::JoinHandle<Usage>, Arc<AtomicBool>);

impl Watch {
    fn begin(path: &Path) -> Self {
        let (path, stop) = (path.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let watch = std::thread::spawn(move || {
            let mut least = Usage { bytes: u64::MAX, inodes: u64::MAX };
            while !stopped.load(Ordering::SeqCst) {
                let found = rustix::fs::statvfs(&path).unwrap();
                least.bytes = least.bytes.min(found.f_bavail * found.f_frsize);
                least.inodes = least.inodes.min(found.f_favail);
                std::thread::sleep(Duration::from_micros(200));
            }
            least
        });
        Self(watch, stop)
    }

    fn end(self) -> Usage {
        self.1.store(true, Ordering::SeqCst);
        self.0.join().unwrap()
    }
}

/// Several pulls check the free space before they write. Together they leave the reserve, one is complete, if need be after a
/// retry, and the others fail with an error that says so.
#[rstest]
#[case::files(|registry: &FakeRegistry, number: u64| Artifact::new(registry).file("f", &noise(number + 1, 40 << 20)).push())]
#[case::archives(|registry: &FakeRegistry, number: u64| {
    let files = (0..80).map(|file| (format!("d-{number}/{file}"), vec![7_u8; 500_000]));
    let files: Vec<_> = files.collect();
    let files: Vec<_> = files.iter().map(|(name, data)| (name.clone(), &data[..])).collect();
    Artifact::new(registry).layer(TAR_GZIP, &gzip(&tar(&files)), &[]).push()
})]
#[case::inodes(|registry: &FakeRegistry, number: u64| {
    let files = (0..5_000).map(|file| (format!("d-{number}/{file}"), &b"x"[..]));
    Artifact::new(registry).layer(TAR_GZIP, &gzip(&tar(&files.collect::<Vec<_>>())), &[]).push()
})]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_at_the_same_time_leave_the_reserve(
    #[case] push: fn(&FakeRegistry, u64) -> Digest,
    #[context] context: Context,
) {
    const RESERVE: Usage = Usage { bytes: 24 << 20, inodes: 2_000 };
    let name = format!(
        "disk_usage::pulls_at_the_same_time_leave_the_reserve::case_{}_{}",
        context.case.unwrap() + 1,
        context.description.unwrap()
    );
    if !entered_as_root(&name) {
        return;
    }
    let limits = Limits::default()
        .with_reserve(Reserve::bytes(RESERVE.bytes))
        .with_inode_reserve(Reserve::inodes(RESERVE.inodes))
        .with_minimum_age(Duration::ZERO);
    let (bench, _) = bench(128, &["-N", "16384"], limits);
    let recipes: Vec<_> = (0..6).map(|number| recipe([add(&push(&bench.registry, number))])).collect();
    let watch = Watch::begin(bench.folder.path());
    let mut failures = Vec::new();
    // Rarely, on a busy machine, all of them fail together. Kubelet tries again.
    while failures.len() < 3 && failures.last().is_none_or(|failed| *failed == 6) {
        let mut pulls = tokio::task::JoinSet::new();
        for recipe in recipes.clone() {
            let fetcher = bench.fetcher.clone();
            pulls.spawn(async move {
                let progress: Arc<dyn oras_csi_store::pull::Progress> =
                    Arc::new(oras_csi_store::pull::NoProgress);
                fetcher.tree(&recipe, &progress).await.map(drop)
            });
        }
        let mut failed = 0;
        while let Some(pulled) = pulls.join_next().await {
            if let Err(error) = pulled.unwrap() {
                assert_eq!(error.kind(), PullErrorKind::DiskFull, "{error}");
                failed += 1;
            }
        }
        failures.push(failed);
    }
    let least = watch.end();
    println!("measured: {failures:?} of 6 failed, {least:?} was free");
    // The folders of the store itself are not reserved in advance.
    assert!(least.bytes + (256 << 10) >= RESERVE.bytes, "{least:?}");
    assert!(least.inodes + 64 >= RESERVE.inodes, "{least:?}");
    assert!(failures.last().is_some_and(|failed| *failed < 6), "one of them must be complete: {failures:?}");
    assert!(failures.iter().all(|failed| *failed > 0), "the disk is too small for all");
    close(bench);
}

/// Bytes that only fill the disk, such as skippable zstd frames, are not part of the content. The limit applies to them
/// as well.
#[tokio::test]
async fn an_archive_above_the_limit_is_not_downloaded() {
    let bench = Bench::with(Limits::default().with_unpacked(1 << 20));
    let padding = [&[0x50, 0x2a, 0x4d, 0x18][..], &(2_u32 << 20).to_le_bytes(), &vec![0; 2 << 20]].concat();
    let tar = tar(&[("f".to_owned(), &b"content"[..])]);
    let bytes = [padding, zstd::encode_all(&tar[..], 1).unwrap()].concat();
    let layer = "application/vnd.oci.image.layer.v1.tar+zstd";
    let digest = Artifact::new(&bench.registry).layer(layer, &bytes, &[]).push();
    let error = bench.pull(&recipe([add(&digest)])).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Refused, "{error}");
    assert_eq!(bench.registry.requests_for(&Digest::sha256_of(&bytes)), 0);
}

/// Pulls while the layers of failed pulls are in the store.
async fn pull_again(bench: &Bench, recipe: &PinnedRecipe) {
    let progress: Arc<dyn oras_csi_store::pull::Progress> = Arc::new(oras_csi_store::pull::NoProgress);
    bench.fetcher.tree(recipe, &progress).await.unwrap();
}

#[tokio::test]
async fn unused_content_is_deleted_for_its_inodes() {
    if !entered_once("disk_usage::unused_content_is_deleted_for_its_inodes") {
        return;
    }
    // In a tmpfs each hard link takes an inode as well.
    let disk = Arc::new(in_memory("size=64m,nr_inodes=700"));
    let limits = Limits::default().with_reserve(Reserve::bytes(64 << 10)).with_minimum_age(Duration::ZERO);
    let driver =
        Running::start_with(disk, FakeRegistry::new(), |settings| settings.with_limits(limits)).await;
    let files: Vec<String> = (0..200).map(|number| format!("file-{number}")).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    let one = Artifact::new(&driver.registry).directory("one", &files).push();
    let two = Artifact::new(&driver.registry).directory("two", &files).push();
    let target = driver.target("a");
    driver.publish(request("csi-a", &target, &one)).await.unwrap();
    driver.unpublish("csi-a", &target).await.unwrap();
    let mut failures = 0;
    until("there are inodes again", async || {
        let published = driver.publish(request("csi-b", &target, &two)).await;
        failures += usize::from(published.is_err());
        published.is_ok()
    })
    .await;
    assert!(failures > 0, "the first content must be in the way");
    assert_eq!(fs::read(target.join("two/file-199")).unwrap(), b"file-199");
    driver.unpublish("csi-b", &target).await.unwrap();
    driver.stop().await.unwrap();
}
