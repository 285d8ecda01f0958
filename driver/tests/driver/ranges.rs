//! Registries that refuse range requests: the blob is requested as a whole, in the same pull.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::media;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::registry::{HostsConfig, HttpRegistry, Settings};
use oras_csi_driver::NodeRoots;
use oras_csi_store::pull::{Fetcher, NoProgress, Progress, PullError, PullErrorKind};
use oras_csi_store::{Limits, Reserve, Store, Tree};
use oras_csi_testkit::scripted::tricks::parts;
use oras_csi_testkit::scripted::{Answer, Content, Part, Request, Script, Scripted, Security};
use rstest::rstest;
use serde_json::json;

use crate::registry::{NOISE_SEED, add_of, noise, recipe};

const MIB: usize = 1 << 20;

/// What the registry does with a blob.
type Serve = dyn Fn(&Request, Answer) -> Vec<Part> + Send + Sync;

/// A registry over HTTP with one file, and a node that pulls it.
struct Pulls {
    folder: tempfile::TempDir,
    server: Scripted,
    fetcher: Arc<Fetcher>,
    wanted: PinnedRecipe,
    bytes: Vec<u8>,
}

impl Pulls {
    fn new(size: usize, serve: impl Fn(&Request, Answer) -> Vec<Part> + Send + Sync + 'static) -> Self {
        Self::with_serve(size, Box::new(serve))
    }

    fn with_serve(size: usize, serve: Box<Serve>) -> Self {
        let bytes = noise(NOISE_SEED, size);
        let blob = Digest::sha256_of(&bytes).to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "config": {"mediaType": media::EMPTY, "digest": Digest::sha256_of(b"{}").to_string(), "size": 2},
            "layers": [{
                "mediaType": "application/octet-stream", "digest": blob, "size": size,
                "annotations": {"org.opencontainers.image.title": "f"},
            }],
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::sha256_of(&manifest);
        let content = Content::default()
            .with_manifest("v1", &digest.to_string(), media::OCI_MANIFEST, manifest)
            .with_blob(&blob, bytes.clone());
        let script = Script::default().on("/blobs/", parts(serve));
        let server = Scripted::start("127.0.0.1", Security::Plain, Arc::new(content), script);
        let wanted = recipe([add_of(&format!("{}/app", server.host()), &digest)]);
        let folder = tempfile::tempdir().unwrap();
        let fetcher = fetcher(folder.path(), &server);
        Self { folder, server, fetcher, wanted, bytes }
    }

    async fn pull(&self) -> Result<Tree, PullError> {
        let progress: Arc<dyn Progress> = Arc::new(NoProgress);
        self.fetcher.tree(&self.wanted, &progress).await
    }

    /// Pulls the file, and compares its bytes.
    async fn pull_right_bytes(&self) {
        let tree = self.pull().await.unwrap();
        let path = format!("store/trees/{}/files/f", tree.key().as_str());
        assert!(std::fs::read(self.folder.path().join(path)).unwrap() == self.bytes);
        assert_eq!(self.partials(), Vec::<PathBuf>::new());
    }

    fn partials(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("store/partial"));
        entries.map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
    }

    /// Returns the `Range` header of each request for the blob.
    fn ranges(&self) -> Vec<String> {
        let requests = self.server.requests();
        let blobs = requests.iter().filter(|request| request.target.contains("/blobs/"));
        blobs.map(|request| request.header("range").to_owned()).collect()
    }
}

fn fetcher(folder: &Path, server: &Scripted) -> Arc<Fetcher> {
    let hosts = HostsConfig::load(None).unwrap().with_plain_http(server.host().parse().unwrap());
    let settings = Settings::default().with_proxies(false).with_tries(1);
    let limits = Limits::default().with_reserve(Reserve::bytes(0));
    let store = Store::open(&folder.join("store"), limits).unwrap();
    let store = store.with_garbage_collection(Arc::new(NodeRoots));
    Arc::new(Fetcher::new(Arc::new(store), Arc::new(HttpRegistry::new(hosts, settings))))
}

fn has_range(request: &Request) -> bool {
    !request.header("range").is_empty()
}

fn refuse(answer: Answer, status: u16) -> Answer {
    answer.status(status).without("Content-Range").body("no")
}

fn with_content_range(answer: Answer, value: &str) -> Answer {
    answer.without("Content-Range").header("Content-Range", value)
}

#[rstest]
#[case::bad_request(|answer| refuse(answer, 400))]
#[case::forbidden(|answer| refuse(answer, 403))]
#[case::not_found(|answer| refuse(answer, 404))]
#[case::not_satisfiable(|answer| refuse(answer, 416))]
#[case::without_content_range(|answer: Answer| answer.without("Content-Range"))]
#[case::another_range(|answer| with_content_range(answer, "bytes 0-0/1"))]
#[case::another_length(|answer: Answer| answer.body("short"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_whose_ranges_are_refused_is_requested_as_a_whole(#[case] change: fn(Answer) -> Answer) {
    let pulls =
        Pulls::new(
            70 * MIB,
            move |request, answer| {
                if has_range(request) { change(answer).parts() } else { answer.parts() }
            },
        );
    pulls.pull_right_bytes().await;
    assert_eq!(pulls.ranges(), ["bytes=0-4194303", ""]);
}

#[rstest]
#[case::bad_request(400)]
#[case::forbidden(403)]
#[case::not_satisfiable(416)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_blob_whose_ranges_are_refused_is_requested_as_a_whole(
    #[case] status: u16,
    #[values(MIB, 20 * MIB)] size: usize,
) {
    let is_cut = AtomicBool::new(false);
    let pulls = Pulls::new(size, move |request, answer| {
        if has_range(request) {
            return refuse(answer, status).parts();
        }
        let length = if is_cut.swap(true, Ordering::SeqCst) { size } else { size / 5 * 2 };
        answer.then(length, [])
    });
    pulls.pull_right_bytes().await;
    let ranges = pulls.ranges();
    assert_eq!((ranges.len(), ranges[0].as_str(), ranges[2].as_str()), (3, "", ""), "{ranges:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_before_a_refused_range_do_not_fail_the_pull() {
    let pulls = Pulls::new(70 * MIB, move |request, mut answer| {
        if request.header("range") == "bytes=0-4194303" {
            answer.body[17] ^= 1;
            return answer.parts();
        }
        if has_range(request) { refuse(answer, 400).parts() } else { answer.parts() }
    });
    pulls.pull_right_bytes().await;
    assert_eq!(pulls.ranges().iter().filter(|range| range.is_empty()).count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_credential_and_an_outage_keep_the_partial_blob() {
    let answered = Arc::new(AtomicUsize::new(0));
    let status = Arc::new(AtomicUsize::new(403));
    let pulls = Pulls::new(20 * MIB, {
        let (answered, status) = (answered.clone(), status.clone());
        move |_, answer| match (answered.fetch_add(1, Ordering::SeqCst), status.load(Ordering::SeqCst)) {
            (0, _) => answer.then(8 * MIB, []),
            (_, 200) => answer.parts(),
            (_, status) => refuse(answer, u16::try_from(status).unwrap()).parts(),
        }
    });
    let error = pulls.pull().await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Denied, "{error}");
    // The whole blob was requested once, and refused with the same status.
    assert_eq!(pulls.ranges().iter().filter(|range| range.is_empty()).count(), 2);
    assert_eq!(pulls.partials().len(), 2);
    // During an outage, nothing is requested as a whole.
    status.store(503, Ordering::SeqCst);
    let error = tokio::time::timeout(Duration::from_mins(1), pulls.pull()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::Unavailable, "{error}");
    assert_eq!(pulls.ranges().iter().filter(|range| range.is_empty()).count(), 2);
    assert_eq!(pulls.partials().len(), 2);
    status.store(200, Ordering::SeqCst);
    pulls.pull_right_bytes().await;
    assert_eq!(pulls.ranges().iter().filter(|range| range.is_empty()).count(), 2);
}
