//! Archives with many small files, which become EROFS images. These tests need root: an image cannot be mounted in a user
//! namespace.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oras_csi_core::digest::Digest;
use oras_csi_core::path::Glob;
use oras_csi_store::{Inventory, Layout, Limits, Reserve, Unpaced, Verdict, verify_layer, verify_tree};

use crate::calls::{Running, mounts, request, request_for};
use crate::namespace::entered_as_root;
use crate::registry::{Artifact, FakeRegistry, NOISE_SEED, add, gzip, noise, recipe};

/// Whether this kernel has EROFS. CI fails without it, so that these tests are never skipped unseen.
fn has_erofs() -> bool {
    let found = fs::read_to_string("/proc/filesystems").unwrap().lines().any(|line| line.trim() == "erofs");
    if !found {
        eprintln!("SKIPPED: this kernel has no EROFS");
        assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "with CI=true this is a failure");
    }
    found
}

async fn start() -> Running {
    start_in(&Arc::new(tempfile::tempdir().unwrap()), &FakeRegistry::new()).await
}

/// Starts a driver that waits long enough for thousands of files on a loaded machine.
async fn start_in(folder: &Arc<tempfile::TempDir>, registry: &Arc<FakeRegistry>) -> Running {
    Running::start_in(folder.clone(), registry.clone(), Duration::from_mins(5)).await
}

/// A tar archive beneath `d/`.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, size: u64, mode: u32, mtime: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_mtime(mtime);
        header
    }

    fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        let mtime = 1_600_000_000 + data.len() as u64;
        let mut header = Self::header(tar::EntryType::Regular, data.len() as u64, mode, mtime);
        self.0.append_data(&mut header, format!("d/{name}"), data).unwrap();
    }

    fn directory(&mut self, name: &str, mtime: u64) {
        let mut header = Self::header(tar::EntryType::Directory, 0, 0o700, mtime);
        self.0.append_data(&mut header, format!("d/{name}"), &b""[..]).unwrap();
    }

    fn link(&mut self, kind: tar::EntryType, name: &str, target: &str) {
        let mut header = Self::header(kind, 0, 0o777, 1_500_000_000);
        self.0.append_link(&mut header, format!("d/{name}"), target).unwrap();
    }

    fn push(self, registry: &FakeRegistry) -> Digest {
        let plain = self.0.into_inner().unwrap();
        let content = Digest::sha256_of(&plain).to_string();
        let annotations = [
            ("org.opencontainers.image.title", "d"),
            ("io.deis.oras.content.unpack", "true"),
            ("io.deis.oras.content.digest", &content),
        ];
        Artifact::new(registry)
            .layer("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(&plain), &annotations)
            .push()
    }
}

/// Adds files that make the archive an image.
fn add_many(tar: &mut Tar) {
    for number in 0..2_500 {
        tar.file(&format!("many/{}/{number}", number % 7), 0o644, format!("file {number}").as_bytes());
    }
}

/// An archive with what an image can contain.
fn varied() -> Tar {
    let mut tar = Tar::new();
    tar.directory("", 1_400_000_000);
    tar.directory("before", 1_400_000_001);
    tar.file("before/hard", 0o755, b"a file with two names, before the archive becomes an image");
    tar.link(tar::EntryType::Link, "before/hard too", "d/before/hard");
    tar.link(tar::EntryType::Symlink, "before/link", "hard");
    add_many(&mut tar);
    for size in
        [0, 1, 31, 32, 33, 4_031, 4_032, 4_033, 4_095, 4_096, 4_097, 8_191, 8_192, 65_535, 65_537, 300_000]
    {
        tar.file(&format!("sizes/{size}"), 0o640, &noise(NOISE_SEED + size as u64, size));
    }
    // More names than a block has room for, and names that sort around the entries for the directory itself.
    for number in 0..700 {
        tar.file(&format!("wide/{number:0>40}"), 0o444, b"x");
    }
    for name in ["!", "-", ".hidden", "...", "ä", "z", &"n".repeat(255)] {
        tar.file(&format!("names/{name}"), 0o600, name.as_bytes());
    }
    tar.directory("empty", 1_400_000_002);
    tar.file("deep/1/2/3/4/5/6/7/8/9/f", 0o644, b"deep");
    tar.link(tar::EntryType::Symlink, "deep/to-wide", "../wide");
    tar.link(tar::EntryType::Symlink, "long", &"x/".repeat(500));
    tar.link(tar::EntryType::Link, "sizes/linked", "d/sizes/300000");
    tar.link(tar::EntryType::Link, "linked again", "d/sizes/300000");
    tar.directory("before", 1_400_000_003);
    tar
}

/// What `stat`, `read` and `readlink` return for everything beneath a folder.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, u64, Vec<u8>)> {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = waiting.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let (links, content) = if stat.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            (0, Vec::new())
        } else if stat.is_symlink() {
            (stat.nlink(), fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
        } else {
            // The store has links of its own to files.
            (0, fs::read(&path).unwrap())
        };
        let size = if stat.is_dir() { 0 } else { stat.len() };
        assert_eq!((stat.uid(), stat.gid()), (0, 0), "{}", path.display());
        let name = path.strip_prefix(root).unwrap().to_owned();
        found.insert(name, (stat.mode(), size, stat.mtime(), links.min(1), content));
    }
    found
}

fn image_of_only_tree(driver: &Running) -> PathBuf {
    let trees = driver.names("trees");
    assert_eq!(trees.len(), 1, "{trees:?}");
    driver.store().join("trees").join(&trees[0]).join("image")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_has_the_same_content_as_files() {
    if !entered_as_root("images::an_image_has_the_same_content_as_files") || !has_erofs() {
        return;
    }
    let driver = start().await;
    let digest = varied().push(&driver.registry);
    let (image, files) = (driver.target("image"), driver.target("files"));
    driver.publish(request("csi-image", &image, &digest)).await.unwrap();
    assert!(image_of_only_tree(&driver).exists());
    assert!(mounts(&image)[0].starts_with("ro,nosuid,nodev"), "{:?}", mounts(&image));
    // A filter that excludes nothing: such trees are composed of hard links.
    let filtered = add(&digest).excluding(vec!["no/such/file".parse::<Glob>().unwrap()]);
    driver.publish(request_for("csi-files", &files, recipe([filtered]))).await.unwrap();
    let (found, mut wanted) = (snapshot(&image), snapshot(&files));
    // Directories that no entry names have the time at which they were created.
    for (path, entry) in &mut wanted {
        if entry.2 > 1_700_000_000 {
            assert!(found[path].2 > 1_700_000_000, "{}", path.display());
            entry.2 = found[path].2;
        }
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (path, entry) in &wanted {
        assert!(
            found[path] == *entry,
            "{}: {:?}",
            path.display(),
            (found[path].0, found[path].1, found[path].2)
        );
    }
    let linked = |name: &str| fs::metadata(image.join("d").join(name)).unwrap();
    assert_eq!(linked("sizes/300000").ino(), linked("linked again").ino());
    assert_eq!(linked("sizes/300000").nlink(), 3);
    assert_eq!(linked("before/hard").nlink(), 2);
    assert!(fs::write(image.join("d/new"), "x").is_err());
    let image_bytes = driver.stats("csi-image", image.to_str().unwrap()).await.unwrap();
    let files_bytes = driver.stats("csi-files", files.to_str().unwrap()).await.unwrap();
    assert!(image_bytes.0 < files_bytes.0 / 2, "{image_bytes:?} {files_bytes:?}");
    driver.unpublish("csi-image", &image).await.unwrap();
    driver.unpublish("csi-files", &files).await.unwrap();
    assert!(mounts(&image).is_empty());
    driver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_one_image_share_its_cache_and_survive_the_driver() {
    if !entered_as_root("images::volumes_of_one_image_share_its_cache_and_survive_the_driver") || !has_erofs()
    {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let registry = FakeRegistry::new();
    let driver = start_in(&folder, &registry).await;
    let mut tar = Tar::new();
    add_many(&mut tar);
    let digest = tar.push(&registry);
    let targets: Vec<PathBuf> = (0..3).map(|number| driver.target(&number.to_string())).collect();
    for (number, target) in targets.iter().enumerate() {
        driver.publish(request(&format!("csi-{number}"), target, &digest)).await.unwrap();
    }
    let device = |target: &Path| fs::metadata(target.join("d")).unwrap().dev();
    assert!(targets.iter().all(|target| device(target) == device(&targets[0])));
    // The volume that the others were cloned from ends.
    driver.unpublish("csi-0", &targets[0]).await.unwrap();
    driver.publish(request("csi-0", &targets[0], &digest)).await.unwrap();
    assert_eq!(fs::read(targets[0].join("d/many/3/3")).unwrap(), b"file 3");
    driver.stop().await.unwrap();
    assert_eq!(fs::read(targets[1].join("d/many/3/10")).unwrap(), b"file 10");

    let driver = start_in(&folder, &registry).await;
    // Kubelet calls again for a volume that is mounted.
    let asked = registry.requests();
    driver.publish(request("csi-1", &targets[1], &digest)).await.unwrap();
    let further = driver.target("further");
    driver.publish(request("csi-further", &further, &digest)).await.unwrap();
    assert!(registry.requests() - asked <= 2, "the image is not downloaded again");
    assert_eq!(snapshot(&further), snapshot(&targets[1]));
    for (volume, target) in
        [("csi-0", &targets[0]), ("csi-1", &targets[1]), ("csi-2", &targets[2]), ("csi-further", &further)]
    {
        driver.unpublish(volume, target).await.unwrap();
        assert!(mounts(target).is_empty());
    }
    assert_eq!(driver.records(), 0);
    driver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_an_image_cannot_represent_is_unpacked_into_files() {
    if !entered_as_root("images::an_archive_that_an_image_cannot_represent_is_unpacked_into_files")
        || !has_erofs()
    {
        return;
    }
    let driver = start().await;
    let (mut replaced, mut upward, mut large) = (Tar::new(), Tar::new(), Tar::new());
    add_many(&mut replaced);
    replaced.file("many/3/3", 0o644, b"the last entry of a name counts");
    add_many(&mut upward);
    upward.link(tar::EntryType::Symlink, "link", "many/../many");
    add_many(&mut large);
    large.file("large", 0o644, &vec![7; (16 << 20) + 1]);
    for (name, tar, content) in [
        ("large", large, &b"file 3"[..]),
        ("replaced", replaced, b"the last entry of a name counts"),
        ("upward", upward, b"file 3"),
    ] {
        let digest = tar.push(&driver.registry);
        let target = driver.target(name);
        driver.publish(request(name, &target, &digest)).await.unwrap();
        assert!(!image_of_only_tree(&driver).exists());
        assert_eq!(fs::read(target.join("d/many/3/3")).unwrap(), content);
        assert_eq!(fs::read(target.join("d/many/4/4")).unwrap(), b"file 4");
        driver.unpublish(name, &target).await.unwrap();
        fs::remove_dir_all(driver.store().join("trees").join(&driver.names("trees")[0])).unwrap();
    }
    driver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_or_large_files_do_not_become_an_image() {
    if !entered_as_root("images::few_or_large_files_do_not_become_an_image") {
        return;
    }
    let driver = start().await;
    let mut few = Tar::new();
    for number in 0..2_000 {
        few.file(&number.to_string(), 0o644, b"x");
    }
    let mut large = Tar::new();
    let data = vec![7; 130 << 10];
    for number in 0..2_100 {
        large.file(&number.to_string(), 0o644, &data);
    }
    for (name, tar) in [("few", few), ("large", large)] {
        let digest = tar.push(&driver.registry);
        let target = driver.target(name);
        driver.publish(request(name, &target, &digest)).await.unwrap();
        assert!(fs::read(target.join("d/1999")).is_ok());
    }
    for tree in driver.names("trees") {
        assert!(!driver.store().join("trees").join(tree).join("image").exists());
    }
    for name in ["few", "large"] {
        driver.unpublish(name, &driver.target(name)).await.unwrap();
    }
    driver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_image_is_found_and_replaced() {
    if !entered_as_root("images::a_damaged_image_is_found_and_replaced") || !has_erofs() {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let registry = FakeRegistry::new();
    let driver = start_in(&folder, &registry).await;
    let mut tar = Tar::new();
    add_many(&mut tar);
    let digest = tar.push(&registry);
    let target = driver.target("a");
    driver.publish(request("csi-a", &target, &digest)).await.unwrap();
    driver.unpublish("csi-a", &target).await.unwrap();
    let image = image_of_only_tree(&driver);
    driver.stop().await.unwrap();

    let layout = Layout::new(folder.path().join("store"));
    let verdicts = || {
        let found = Inventory::read(&layout).unwrap();
        let layer = verify_layer(&layout, found.layers()[0].key(), &mut Unpaced).unwrap();
        (layer, verify_tree(&layout, &found.trees()[0], &mut Unpaced).unwrap())
    };
    assert_eq!(verdicts(), (Verdict::Good, Verdict::Good));
    let file = fs::File::options().read(true).write(true).open(&image).unwrap();
    let at = fs::metadata(&image).unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    assert!(matches!(verdicts().0, Verdict::Damaged(_)));
    // A shorter image is found before it is mounted.
    file.set_len(at).unwrap();
    let driver = start_in(&folder, &registry).await;
    driver.publish(request("csi-a", &target, &digest)).await.unwrap();
    assert_eq!(fs::read(target.join("d/many/0/2499")).unwrap(), b"file 2499");
    assert!(!driver.names("set-aside").is_empty());
    driver.unpublish("csi-a", &target).await.unwrap();
    driver.stop().await.unwrap();
}

/// Entries that were unpacked into files before they were written into an image count once, and so do those of an archive
/// that is unpacked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_on_entries_counts_each_entry_once() {
    if !entered_as_root("images::the_limit_on_entries_counts_each_entry_once") || !has_erofs() {
        return;
    }
    let (folder, registry) = (Arc::new(tempfile::tempdir().unwrap()), FakeRegistry::new());
    let limits = Limits::default().with_reserve(Reserve::bytes(0)).with_entries(2_520);
    let driver = Running::start_with(folder, registry, |settings| {
        settings.with_publish_wait(Duration::from_mins(5)).with_limits(limits)
    })
    .await;
    let (mut fits, mut replaced, mut too_many) = (Tar::new(), Tar::new(), Tar::new());
    for tar in [&mut fits, &mut replaced, &mut too_many] {
        add_many(tar);
    }
    replaced.file("many/3/3", 0o644, b"again");
    for number in 0..30 {
        too_many.file(&format!("more/{number}"), 0o644, b"x");
    }
    for (name, tar, is_allowed) in
        [("fits", fits, true), ("replaced", replaced, true), ("more", too_many, false)]
    {
        let digest = tar.push(&driver.registry);
        let target = driver.target(name);
        let published = driver.publish(request(name, &target, &digest)).await;
        assert_eq!(published.is_ok(), is_allowed, "{name}: {published:?}");
        if is_allowed {
            driver.unpublish(name, &target).await.unwrap();
        }
    }
    driver.stop().await.unwrap();
}

/// 100,000 files are one file on the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_files_cost_few_inodes_and_a_warm_publish_does_not_depend_on_them() {
    if !entered_as_root("images::many_files_cost_few_inodes_and_a_warm_publish_does_not_depend_on_them")
        || !has_erofs()
    {
        return;
    }
    let driver = start().await;
    let mut tar = Tar::new();
    for number in 0..100_000 {
        tar.file(&format!("{}/{number}", number % 100), 0o644, format!("{number:0>280}").as_bytes());
    }
    let digest = tar.push(&driver.registry);
    let target = driver.target("first");
    let begun = Instant::now();
    driver.publish(request("csi-first", &target, &digest)).await.unwrap();
    println!("measured: 100,000 files mounted after {:?}", begun.elapsed());
    let image = fs::metadata(image_of_only_tree(&driver)).unwrap();
    assert!(image.len() < 48 << 20, "{}", image.len());
    let stats = driver.stats("csi-first", target.to_str().unwrap()).await.unwrap();
    assert!(stats.1 < 20, "{stats:?}");
    assert_eq!(fs::read_dir(target.join("d/42")).unwrap().count(), 1_000);
    assert_eq!(fs::read(target.join("d/42/99942")).unwrap(), format!("{:0>280}", 99_942).as_bytes());
    driver.unpublish("csi-first", &target).await.unwrap();
    driver.stop().await.unwrap();
}
