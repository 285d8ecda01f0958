//! Large blobs: downloads in parts, interrupted and resumed downloads, and the same blob from two registries at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_driver::NodeRoots;
use oras_csi_store::Limits;
use oras_csi_store::pull::{Fetcher, NoProgress, Progress, PullError, PullErrorKind};
use oras_csi_store::{Reserve, Store, Tree};
use rstest::rstest;

use crate::registry::{Artifact, FakeRegistry, NOISE_SEED, add, add_from, add_of, noise, recipe};

const MIB: usize = 1 << 20;

fn open(folder: &Path, registry: &Arc<FakeRegistry>) -> Arc<Fetcher> {
    let store =
        Store::open(&folder.join("store"), Limits::default().with_reserve(Reserve::bytes(0))).unwrap();
    let store = store.with_garbage_collection(Arc::new(NodeRoots));
    Arc::new(Fetcher::new(Arc::new(store), registry.clone()))
}

async fn pull(fetcher: &Arc<Fetcher>, recipe: &PinnedRecipe) -> Result<Tree, PullError> {
    let progress: Arc<dyn Progress> = Arc::new(NoProgress);
    fetcher.tree(recipe, &progress).await
}

fn file(folder: &Path, tree: &Tree, name: &str) -> Vec<u8> {
    fs::read(folder.join("store/trees").join(tree.key().as_str()).join("files").join(name)).unwrap()
}

fn partials(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder.join("store/partial")).map(|entries| entries.map(|entry| entry.unwrap().path()));
    entries.map(Iterator::collect).unwrap_or_default()
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_mins(1), "not {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[rstest]
#[case::in_parts(true)]
#[case::in_one(false)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_is_downloaded_in_parts_if_the_registry_supports_ranges(#[case] in_parts: bool) {
    let (folder, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::new());
    let bytes = noise(NOISE_SEED, 100 * MIB + 17);
    let digest = Artifact::new(&registry).file("f", &bytes).push();
    registry.supports_ranges.store(in_parts, Ordering::SeqCst);
    // Slower than the disk and the hasher, so that spare slots are used.
    let slow = (256 << 10, Duration::from_millis(10));
    registry.slow_hosts.lock().unwrap().insert("kind-registry".to_owned(), slow);
    let tree = pull(&open(folder.path(), &registry), &recipe([add(&digest)])).await.unwrap();
    assert!(file(folder.path(), &tree, "f") == bytes);
    // One short request, and three of at most 32 MiB.
    let asked = registry.requests_for(&Digest::sha256_of(&bytes));
    assert_eq!(asked, if in_parts { 5 } else { 1 });
    assert_eq!(registry.sent.load(Ordering::SeqCst), bytes.len(), "no byte twice");
    assert_eq!(registry.streams.max() > 1, in_parts);
    assert_eq!(partials(folder.path()), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_parts_are_resumed() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::new());
    let bytes = noise(NOISE_SEED, 80 * MIB);
    let digest = Artifact::new(&registry).file("f", &bytes).push();
    registry.supports_ranges.store(true, Ordering::SeqCst);
    registry.cut_after.store(9 * MIB, Ordering::SeqCst);
    let tree = pull(&open(folder.path(), &registry), &recipe([add(&digest)])).await.unwrap();
    assert!(file(folder.path(), &tree, "f") == bytes);
    assert_eq!(registry.sent.load(Ordering::SeqCst), bytes.len(), "no byte twice");
}

/// A file is resumed by any later process. The compressed bytes of an archive are not kept
/// (docs/decisions/archives-are-written-once.md).
#[rstest]
#[case::a_file(40, false, false)]
#[case::a_file_in_parts(80, false, true)]
#[case::an_archive(40, true, false)]
#[case::an_archive_in_parts(80, true, true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_costs_no_bytes_of_a_file_and_the_download_of_an_archive(
    #[case] size: usize,
    #[case] is_archive: bool,
    #[case] in_parts: bool,
) {
    let (folder, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::new());
    let bytes = noise(NOISE_SEED, size * MIB);
    let artifact = Artifact::new(&registry);
    let artifact =
        if is_archive { artifact.directory("d", &[("f", &bytes)]) } else { artifact.file("f", &bytes) };
    let wanted = recipe([add(&artifact.push())]);
    registry.supports_ranges.store(in_parts, Ordering::SeqCst);
    let gate = registry.close_gate();
    // Chunks are a 256th of the request: all of the first part, and some of the following parts.
    gate.add_permits(if in_parts { 450 } else { 150 });
    let running = tokio::spawn({
        let (fetcher, wanted) = (open(folder.path(), &registry), wanted.clone());
        async move { pull(&fetcher, &wanted).await }
    });
    until("half of the blob was sent", || gate.available_permits() == 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let before = registry.sent.load(Ordering::SeqCst);
    assert!(before > 16 * MIB && before < size * MIB, "{before}");
    until("the store is closed", || Store::open(&folder.path().join("store"), Limits::default()).is_ok())
        .await;

    gate.add_permits(10_000);
    let tree = pull(&open(folder.path(), &registry), &wanted).await.unwrap();
    assert!(file(folder.path(), &tree, if is_archive { "d/f" } else { "f" }) == bytes);
    let sent = registry.sent.load(Ordering::SeqCst);
    // The bytes in the channel, and those that no journal entry covers.
    let again = if is_archive { before } else { 0 };
    assert!(sent <= size * MIB + again + 12 * MIB, "{sent} bytes for {size} MiB");
    assert_eq!(partials(folder.path()), Vec::<PathBuf>::new());
}

/// The thread that unpacks waits for the next pull.
#[rstest]
#[case::outage(true)]
#[case::cancelled(false)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_of_an_archive_is_downloaded_twice_by_one_process(#[case] is_outage: bool) {
    let (folder, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::new());
    // More ranges than are requested at the same time, so that some are requested after the outage has begun.
    let size = 200 * MIB;
    let bytes = noise(NOISE_SEED, size);
    let wanted = recipe([add(&Artifact::new(&registry).directory("d", &[("f", &bytes)]).push())]);
    registry.supports_ranges.store(true, Ordering::SeqCst);
    let gate = registry.close_gate();
    gate.add_permits(450);
    let fetcher = open(folder.path(), &registry);
    let running = tokio::spawn({
        let (fetcher, wanted) = (fetcher.clone(), wanted.clone());
        async move { pull(&fetcher, &wanted).await }
    });
    until("half of the blob was sent", || gate.available_permits() == 0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    if is_outage {
        registry.is_down.store(true, Ordering::SeqCst);
        registry.cut_after.store(1, Ordering::SeqCst);
        gate.add_permits(10_000);
        let error = running.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), PullErrorKind::Unavailable, "{error}");
        registry.is_down.store(false, Ordering::SeqCst);
        registry.cut_after.store(0, Ordering::SeqCst);
    } else {
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        gate.add_permits(10_000);
    }
    let before = registry.sent.load(Ordering::SeqCst);
    assert!(before > 16 * MIB && before < size, "{before}");
    assert_eq!(partials(folder.path()), Vec::<PathBuf>::new());
    let tree = pull(&fetcher, &wanted).await.unwrap();
    assert!(file(folder.path(), &tree, "d/f") == bytes);
    let sent = registry.sent.load(Ordering::SeqCst);
    // What was in the connection and the channel when the pull was cancelled.
    assert!(sent <= size + 12 * MIB, "{sent} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_damaged_in_the_meantime_are_downloaded_again() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::new());
    let bytes = noise(NOISE_SEED, 40 * MIB);
    let wanted = recipe([add(&Artifact::new(&registry).file("f", &bytes).push())]);
    registry.cut_after.store(20 * MIB, Ordering::SeqCst);
    let fetcher = open(folder.path(), &registry);
    let running = tokio::spawn({
        let (fetcher, wanted, registry) = (fetcher.clone(), wanted.clone(), registry.clone());
        async move {
            let pulled = pull(&fetcher, &wanted);
            tokio::select! {
                pulled = pulled => pulled.map(drop),
                // The registry fails in the middle of the download.
                () = async {
                    until("cut", || registry.sent.load(Ordering::SeqCst) >= 19 * MIB).await;
                    registry.is_down.store(true, Ordering::SeqCst);
                    std::future::pending::<()>().await;
                } => Ok(()),
            }
        }
    });
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unavailable, "{error}");
    registry.is_down.store(false, Ordering::SeqCst);
    registry.cut_after.store(0, Ordering::SeqCst);
    let partials = partials(folder.path());
    let data = partials.iter().find(|path| path.extension().is_none()).expect("the partial blob stays");
    let mut damaged = fs::read(data).unwrap();
    damaged[5 * MIB] ^= 1;
    fs::write(data, damaged).unwrap();
    let tree = pull(&fetcher, &wanted).await.unwrap();
    assert!(file(folder.path(), &tree, "f") == bytes);
}

/// A pull from the honest registry, while the same content is requested from another registry.
#[rstest]
#[case::small(100_000)]
#[case::big(20 * MIB)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_does_not_wait_for_a_registry_that_it_does_not_name(#[case] size: usize) {
    let (folder, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::new());
    let bytes = noise(NOISE_SEED, size);
    let digest = Artifact::new(&registry).file("f", &bytes).directory("d", &[("g", &bytes)]).push();
    registry.slow_hosts.lock().unwrap().insert("slow".to_owned(), (1_024, Duration::from_millis(500)));
    let fetcher = open(folder.path(), &registry);
    let slow = tokio::spawn({
        let (fetcher, wanted) = (fetcher.clone(), recipe([add_from("slow:5000", &digest)]));
        async move { pull(&fetcher, &wanted).await }
    });
    until("asked for", || registry.requests() >= 3).await;
    let began = Instant::now();
    let honest = recipe([add(&digest)]);
    let tree = tokio::time::timeout(Duration::from_secs(30), pull(&fetcher, &honest)).await.unwrap().unwrap();
    assert!(file(folder.path(), &tree, "f") == bytes && file(folder.path(), &tree, "d/g") == bytes);
    eprintln!("beside a slow registry: {:?}", began.elapsed());
    // The pull from the slow registry does not get the bytes of the other registry.
    assert!(!slow.is_finished());
    slow.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_of_one_registry_do_not_affect_other_downloads() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::new());
    let bytes = noise(NOISE_SEED, 20 * MIB);
    let digest = Artifact::new(&registry).file("f", &bytes).push();
    registry.corrupting_hosts.lock().unwrap().insert("liar".to_owned());
    let fetcher = open(folder.path(), &registry);
    let lied = recipe([add_from("liar:5000", &digest)]);
    let error = pull(&fetcher, &lied).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Corrupt, "{error}");
    assert_eq!(partials(folder.path()), Vec::<PathBuf>::new());
    let honest = recipe([add(&digest)]);
    let (_, pulled) = tokio::join!(pull(&fetcher, &lied), pull(&fetcher, &honest));
    assert!(file(folder.path(), &pulled.unwrap(), "f") == bytes);
}

/// What one repository has served belongs to it: another repository of the same registry that does not have the blob
/// gets none of its bytes, and does not delete them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_without_the_blob_neither_uses_nor_deletes_what_another_served() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::new());
    let bytes = noise(NOISE_SEED, 20 * MIB);
    let digest = Artifact::new(&registry).file("f", &bytes).push();
    let fetcher = open(folder.path(), &registry);
    registry.cut_after.store(9 * MIB, Ordering::SeqCst);
    let first = recipe([add_of("kind-registry:5000/first", &digest)]);
    let stopped = tokio::spawn({
        let (fetcher, first) = (fetcher.clone(), first.clone());
        async move { pull(&fetcher, &first).await }
    });
    until("half of it has arrived", || registry.sent.load(Ordering::SeqCst) >= 8 * MIB).await;
    stopped.abort();
    until("stopped", || stopped.is_finished()).await;
    registry.cut_after.store(0, Ordering::SeqCst);

    let blob = Digest::sha256_of(&bytes);
    registry.missing.lock().unwrap().insert(("kind-registry/second".to_owned(), blob.clone()));
    let second = recipe([add_of("kind-registry:5000/second", &digest)]);
    let error = pull(&fetcher, &second).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NotFound, "{error}");
    let tree = pull(&fetcher, &first).await.unwrap();
    assert!(file(folder.path(), &tree, "f") == bytes);
    let sent = registry.sent.load(Ordering::SeqCst);
    assert!(sent < 22 * MIB, "the second attempt resumes: {sent} bytes sent");
}
