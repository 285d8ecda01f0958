//! What the pulls of one namespace can do to those of another, and what a registry learns about the node.

use std::fs;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use oras_csi_core::credentials::Credential;
use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::{Descriptor, VerifiedManifest};
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::reference::{PinnedReference, Reference, RegistryHost};
use oras_csi_core::registry::{BlobStream, Registry, RegistryError};
use oras_csi_store::pull::{Fetcher, NoProgress, Progress, PullStatus, Pulls, Tenant, Waiter};
use oras_csi_store::{Limits, Reserve, Store};
use oras_csi_testkit::client::Behaviour;
use rstest::rstest;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::calls::{Running, request, until};
use crate::namespace::entered;
use crate::registry::{Artifact, FakeRegistry, NOISE_SEED, add, add_from, add_of, noise, recipe};
use crate::trees::Bench;

const SECOND: Duration = Duration::from_secs(1);
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// A chunk of 8 KiB ten times a second: 80 KB/s, which is too fast to count as slow.
const DRIP: (usize, Duration) = (8 * KIB, Duration::from_millis(100));

/// Returns bytes that no other call returns.
fn content(name: &str, length: usize) -> Vec<u8> {
    let seed =
        name.bytes().fold(NOISE_SEED, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    noise(seed, length)
}

/// Returns an artifact with this number of blobs of its own.
fn artifact(registry: &FakeRegistry, name: &str, blobs: usize, length: usize) -> Digest {
    let names = (0..blobs).map(|number| format!("{name}-{number}"));
    names.fold(Artifact::new(registry), |artifact, name| artifact.file(&name, &content(&name, length))).push()
}

/// Pulls for pods, with a clock that the test moves.
struct Node {
    bench: Bench,
    pulls: Arc<Pulls>,
    tasks: JoinSet<()>,
}

impl Node {
    fn new() -> Self {
        let bench = Bench::new();
        let pulls = Arc::new(Pulls::new(bench.fetcher.clone(), CancellationToken::new()));
        tokio::time::pause();
        Self { bench, pulls, tasks: JoinSet::new() }
    }

    /// A pod of `namespace` waits for a volume.
    fn publish(&mut self, namespace: &str, volume: &str, recipe: PinnedRecipe) {
        let (pulls, fetcher) = (self.pulls.clone(), self.bench.fetcher.clone());
        let waiter = Waiter::new(Tenant::of_namespace(namespace), volume);
        self.tasks.spawn(async move {
            while let PullStatus::Pulling(_) = pulls.wait_for(&recipe, &fetcher, &waiter, 110 * SECOND).await
            {
            }
        });
    }

    /// Moves the clock. Threads that hash and write need real time, so each step takes some. With short steps, the clock
    /// does not run far ahead of these threads.
    async fn pass(&self, step: Duration) {
        tokio::time::advance(step).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        std::thread::sleep(Duration::from_millis(4));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// Returns how long the pull of an artifact takes.
    async fn time_to_pull(&mut self, namespace: &str, recipe: PinnedRecipe) -> Duration {
        let began = Instant::now();
        let key = self.bench.fetcher.key(&recipe);
        self.publish(namespace, &format!("/{namespace}/{key}"), recipe);
        while self.bench.fetcher.store().tree(&key).unwrap().is_none() {
            self.pass(Duration::from_millis(10)).await;
            assert!(began.elapsed() < 60 * SECOND, "not pulled in a minute");
        }
        began.elapsed()
    }
}

/// Two namespaces flood the node with blobs at 80 KB/s, from registries of their own. The artifact of another
/// namespace is pulled within five seconds, whether its blobs are small or large.
#[rstest]
#[case::large_blobs(2 * MIB)]
#[case::small_blobs(800 * KIB)]
#[tokio::test]
async fn flooding_namespaces_delay_another_by_seconds(#[case] length: usize) {
    let mut node = Node::new();
    let registry = node.bench.registry.clone();
    let fast = (4 * MIB, Duration::ZERO);
    registry.slow_hosts.lock().unwrap().insert("kind-registry".to_owned(), fast);
    for (namespace, host) in [("red", "r-a"), ("red", "r-b"), ("blue", "b-a"), ("blue", "b-b")] {
        registry.slow_hosts.lock().unwrap().insert(host.to_owned(), DRIP);
        for number in 0..2 {
            let name = format!("{host}-{number}");
            let slow = artifact(&registry, &name, 4, length);
            node.publish(namespace, &format!("/{name}"), recipe([add_from(&format!("{host}:5000"), &slow)]));
        }
    }
    for _ in 0..40 {
        node.pass(Duration::from_millis(50)).await;
    }
    assert!(registry.streams.max() >= 8, "the node is busy: {} streams", registry.streams.max());
    for (name, blobs, length) in
        [("tiny", 1, 12), ("small", 1, MIB), ("several", 4, 100_000), ("large", 1, 3 * MIB)]
    {
        let wanted = recipe([add(&artifact(&registry, name, blobs, length))]);
        let took = node.time_to_pull("team", wanted).await;
        eprintln!("{name}: {took:?}");
        assert!(took <= 5 * SECOND, "{name}: {took:?}");
    }
    node.tasks.abort_all();
}

/// The downloads of the flood continue in their turns, also without ranges.
#[tokio::test]
async fn downloads_whose_turns_end_are_completed() {
    let mut node = Node::new();
    let registry = node.bench.registry.clone();
    let mut wanted = Vec::new();
    for number in 0..12 {
        let (namespace, host) = (format!("ns-{number}"), format!("h-{number}"));
        registry.slow_hosts.lock().unwrap().insert(host.clone(), (128 * KIB, Duration::from_secs(1)));
        // Blobs of twelve namespaces that each take longer than a turn.
        let slow = recipe([add_from(&format!("{host}:5000"), &artifact(&registry, &namespace, 1, 2 * MIB))]);
        node.publish(&namespace, &format!("/{namespace}"), slow.clone());
        wanted.push(slow);
    }
    let began = Instant::now();
    let store = node.bench.fetcher.store().clone();
    while wanted.iter().any(|recipe| store.tree(&node.bench.fetcher.key(recipe)).unwrap().is_none()) {
        node.pass(Duration::from_millis(250)).await;
        assert!(began.elapsed() < 240 * SECOND, "not complete");
    }
    assert_eq!(registry.blob_requests.load(Ordering::SeqCst), 12, "each on one connection");
}

#[tokio::test]
async fn a_blob_of_a_flood_is_downloaded_next_when_another_namespace_needs_it() {
    let mut node = Node::new();
    let registry = node.bench.registry.clone();
    registry.slow_hosts.lock().unwrap().insert("r".to_owned(), DRIP);
    let last = content("last", 2 * MIB);
    for number in 0..4 {
        let name = format!("flood-{number}");
        let flood = artifact(&registry, &name, 4, 2 * MIB);
        node.publish("red", &format!("/{name}"), recipe([add_from("r:5000", &flood)]));
    }
    // The others are in the queue before it.
    for _ in 0..40 {
        node.pass(Duration::from_millis(10)).await;
    }
    let of_flood = Artifact::new(&registry).file("f", &last).push();
    node.publish("red", "/last", recipe([add_from("r:5000", &of_flood)]));
    for _ in 0..40 {
        node.pass(Duration::from_millis(50)).await;
    }
    let layer = Digest::sha256_of(&last);
    assert_eq!(registry.requests_for(&layer), 0, "it waits behind the others of its namespace");
    // Another artifact with the same blob, from the same registry.
    let other = Artifact::new(&registry).file("g", &last).push();
    node.publish("team", "/team", recipe([add_from("r:5000", &other)]));
    let began = Instant::now();
    while registry.requests_for(&layer) == 0 {
        node.pass(Duration::from_millis(50)).await;
        assert!(began.elapsed() < 5 * SECOND, "not requested in five seconds");
    }
    node.tasks.abort_all();
}

/// Requests for manifests that the registry does not answer are few, so that other namespaces can send theirs to the
/// same registry.
#[tokio::test]
async fn manifests_that_stall_do_not_delay_another_namespace() {
    let mut node = Node::new();
    let registry = node.bench.registry.clone();
    for namespace in ["red", "blue"] {
        for number in 0..60 {
            let name = format!("{namespace}-{number}");
            let stalled = add_of(&format!("kind-registry:5000/{name}"), &artifact(&registry, &name, 1, 12));
            registry.set(&stalled.reference().to_string(), Behaviour::Hangs);
            node.publish(namespace, &format!("/{name}"), recipe([stalled]));
        }
    }
    for _ in 0..40 {
        node.pass(Duration::from_millis(50)).await;
    }
    // Eight of each namespace, of 64 that the client sends to one registry.
    assert_eq!(registry.manifest_requests.load(Ordering::SeqCst), 16);
    let took = node.time_to_pull("team", recipe([add(&artifact(&registry, "team", 1, MIB))])).await;
    assert!(took <= 5 * SECOND, "{took:?}");
    node.tasks.abort_all();
}

/// The plan of an artifact with thousands of layers is large. A namespace keeps a few of them in memory.
#[tokio::test]
async fn a_namespace_plans_a_limited_number_of_layers() {
    const LAYERS: usize = 4_096;
    let bench = Bench::new();
    let registry = bench.registry.clone();
    let pulls = Arc::new(Pulls::new(bench.fetcher.clone(), CancellationToken::new()));
    let gate = registry.close_gate();
    // All layers of an artifact are the same blob, under different titles.
    let wanted: Vec<_> = (0..6)
        .map(|number| {
            let mut artifact = Artifact::new(&registry);
            let bytes = content(&format!("blob-{number}"), 12);
            for layer in 0..LAYERS {
                artifact = artifact.file(&format!("{layer}"), &bytes);
            }
            recipe([add(&artifact.push())])
        })
        .collect();
    let planned = async |recipe: &PinnedRecipe, namespace: &str| {
        let waiter = Waiter::new(Tenant::of_namespace(namespace), format!("/{namespace}"));
        match pulls.wait_for(recipe, &bench.fetcher, &waiter, Duration::ZERO).await {
            PullStatus::Pulling(progress) => progress.total() > 0,
            other => panic!("{other:?}"),
        }
    };
    let count = async || {
        let mut count = 0;
        for recipe in &wanted {
            count += usize::from(planned(recipe, "red").await);
        }
        count
    };
    until("four are planned", async || count().await == 4).await;
    let small = recipe([add(&artifact(&registry, "team", 1, 12))]);
    until("the artifact of another namespace is planned", async || planned(&small, "team").await).await;
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(count().await, 4, "the others wait until these are pulled");
    gate.add_permits(10_000);
    *registry.gate.lock().unwrap() = None;
    for recipe in &wanted {
        let waiter = Waiter::new(Tenant::of_namespace("red"), "/red");
        let pulled = pulls.wait_for(recipe, &bench.fetcher, &waiter, 60 * SECOND).await;
        assert!(matches!(pulled, PullStatus::Ready(_)), "{pulled:?}");
    }
}

/// A namespace that pulls from a repository of its own, which stalls, does not delay another namespace that needs the
/// same blob of another repository of that registry.
#[rstest]
#[case::streamed(MIB)]
#[case::kept_in_partial(17 * MIB)]
#[tokio::test]
async fn a_repository_that_stalls_does_not_delay_another_with_the_same_blob(#[case] length: usize) {
    let mut node = Node::new();
    let registry = node.bench.registry.clone();
    let public = artifact(&registry, "public", 1, length);
    let gate = registry.close_gate();
    node.publish("red", "/red", recipe([add_of("kind-registry:5000/red", &public)]));
    let blob = Digest::sha256_of(&content("public-0", length));
    let began = Instant::now();
    while registry.requests_for(&blob) == 0 {
        node.pass(Duration::from_millis(10)).await;
        assert!(began.elapsed() < 5 * SECOND, "not requested in five seconds");
    }
    // Requests from now on are answered. The one of red waits at the gate.
    *registry.gate.lock().unwrap() = None;
    let took = node.time_to_pull("team", recipe([add_of("kind-registry:5000/team", &public)])).await;
    assert!(took <= 5 * SECOND, "{took:?}");
    drop(gate);
    node.tasks.abort_all();
}

#[tokio::test]
async fn a_pull_for_a_deleted_pod_is_cancelled_after_a_minute() {
    if !entered("tenants::a_pull_for_a_deleted_pod_is_cancelled_after_a_minute") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    // The registry sends nothing for longer than the driver would wait.
    let driver = Running::start_with(folder, FakeRegistry::new(), |settings| {
        let limits = *settings.limits();
        let limits = limits.with_slow_download_times(Duration::from_secs(10), Duration::from_mins(10));
        settings.with_publish_wait(Duration::from_millis(300)).with_limits(limits)
    });
    let driver = driver.await;
    let bytes = vec![7; 40_960];
    let digest = Artifact::new(&driver.registry).file("f", &bytes).push();
    let layer = Digest::sha256_of(&bytes);
    let gate = driver.registry.close_gate();
    for (is_deleted, requests) in [(false, 1), (true, 2)] {
        let target = driver.target("a");
        let wanted = request("csi-1", &target, &digest);
        let status = driver.publish(wanted.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted, "{status}");
        if is_deleted {
            driver.unpublish("csi-1", &target).await.unwrap();
        }
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(61)).await;
        tokio::time::resume();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let status = driver.publish(wanted).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted, "{status}");
        for _ in 0..400 {
            if driver.registry.requests_for(&layer) >= requests {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(driver.registry.requests_for(&layer), requests, "{is_deleted}");
    }
    gate.add_permits(1_000);
    let target = driver.target("a");
    let wanted = request("csi-1", &target, &digest);
    while let Err(status) = driver.publish(wanted.clone()).await {
        assert_eq!(status.code(), Code::Aborted, "{status}");
    }
    assert_eq!(fs::read(target.join("f")).unwrap(), bytes);
    driver.stop().await.unwrap();
}

/// A registry that records the requests for blobs of one host.
struct Recording {
    registry: Arc<FakeRegistry>,
    host: &'static str,
    log: Mutex<Vec<String>>,
}

impl Recording {
    fn record(&self, registry: &RegistryHost, text: String) {
        if registry.host() == self.host {
            self.log.lock().unwrap().push(text);
        }
    }
}

#[async_trait]
impl Registry for Recording {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        self.record(reference.registry(), "HEAD manifest".to_owned());
        self.registry.resolve(reference).await
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        self.record(reference.registry(), "GET manifest".to_owned());
        self.registry.manifest(reference).await
    }

    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        self.record(reference.registry(), format!("GET blob from {offset}"));
        self.registry.blob(reference, blob, offset).await
    }

    async fn part(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        self.record(reference.registry(), format!("GET blob {range:?}"));
        self.registry.part(reference, blob, range).await
    }

    fn with_credential(self: Arc<Self>, _: Credential) -> Arc<dyn Registry> {
        self
    }
}

/// Pulls an artifact from "evil", and returns the requests that it sees and the outcome. If `is_stored`, the node has
/// the content from another registry.
async fn seen_by_a_registry(
    is_stored: bool,
    is_archive: bool,
    length: usize,
    prepare: fn(&FakeRegistry),
) -> (Vec<String>, Result<(), String>) {
    let folder = tempfile::tempdir().unwrap();
    let registry = FakeRegistry::new();
    let bytes = content("secret", length);
    let artifact = Artifact::new(&registry);
    let artifact =
        if is_archive { artifact.directory("d", &[("f", &bytes)]) } else { artifact.file("f", &bytes) };
    let digest = artifact.push();
    registry.supports_ranges.store(true, Ordering::SeqCst);
    let recording = Arc::new(Recording { registry: registry.clone(), host: "evil", log: Mutex::default() });
    let limits = Limits::default().with_reserve(Reserve::bytes(0));
    let store = Store::open(&folder.path().join("store"), limits).unwrap();
    let fetcher = Arc::new(Fetcher::new(Arc::new(store), recording.clone()));
    let progress: Arc<dyn Progress> = Arc::new(NoProgress);
    if is_stored {
        fetcher.tree(&recipe([add(&digest)]), &progress).await.unwrap();
    }
    prepare(&registry);
    let wanted = recipe([add_from("evil:5000", &digest)]);
    let mut pulled = fetcher.tree(&wanted, &progress).await;
    if pulled.as_ref().is_err_and(|error| error.kind() == oras_csi_store::PullErrorKind::Unavailable) {
        // The registry failed in the middle. The next attempt resumes.
        registry.is_down.store(false, Ordering::SeqCst);
        registry.cut_after.store(0, Ordering::SeqCst);
        pulled = fetcher.tree(&wanted, &progress).await;
    }
    let mut log = recording.log.lock().unwrap().clone();
    // Ranges are requested in parallel.
    log.sort();
    (log, pulled.map(drop).map_err(|error| error.to_string()))
}

fn honest(_: &FakeRegistry) {}

fn refusing_ranges(registry: &FakeRegistry) {
    registry.refuses_ranges.store(true, Ordering::SeqCst);
}

fn corrupting(registry: &FakeRegistry) {
    registry.corrupting_hosts.lock().unwrap().insert("evil".to_owned());
}

#[rstest]
#[case::small(100_000, honest)]
#[case::kept_in_partial(17 * MIB, honest)]
#[case::in_ranges(65 * MIB, honest)]
#[case::refused_ranges(65 * MIB, refusing_ranges)]
#[case::wrong_bytes(100_000, corrupting)]
#[case::many_wrong_bytes(17 * MIB, corrupting)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_cannot_tell_whether_the_node_has_the_content(
    #[case] length: usize,
    #[case] prepare: fn(&FakeRegistry),
    #[values(false, true)] is_archive: bool,
) {
    let absent = seen_by_a_registry(false, is_archive, length, prepare).await;
    let stored = seen_by_a_registry(true, is_archive, length, prepare).await;
    assert_eq!(absent, stored);
    assert!(absent.0.len() >= 2, "{absent:?}");
}
