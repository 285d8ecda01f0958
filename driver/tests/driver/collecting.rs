//! Garbage collection: deletes unused content, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use oras_csi_core::digest::Digest;
use oras_csi_driver::OwnPod;
use oras_csi_driver::mount::Target;
use oras_csi_driver::proto::pod_resources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use oras_csi_driver::proto::pod_resources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, GetPodResourcesRequest,
    GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use oras_csi_driver::volume_records::{Record, Records};
use oras_csi_store::Limits;
use oras_csi_store::gc::{Goal, Watermarks, collect};
use oras_csi_store::pull::PullErrorKind;
use oras_csi_store::{Item, Reserve, Tree};
use tokio_stream::wrappers::UnixListenerStream;

use crate::calls::{Running, mounts, names, request, until};
use crate::namespace::{entered, entered_once, in_memory};
use crate::registry::{Artifact, FakeRegistry, add, recipe};
use crate::trees::Bench;

/// Pulls an artifact with a file of its own and a directory that all share.
async fn pull(bench: &Bench, name: &str, bytes: usize) -> (Digest, Tree) {
    let own = vec![name.as_bytes()[0]; bytes];
    let digest = Artifact::new(&bench.registry).file(name, &own).directory("shared", &[("s", b"s")]).push();
    let tree = bench.pull(&recipe([add(&digest)])).await.unwrap();
    (digest, tree)
}

/// Sets the last use of a tree to this many hours ago.
fn used(bench: &Bench, tree: &Tree, hours: u64) {
    let note = bench.root(tree).parent().unwrap().join("tree.json");
    let time = SystemTime::now() - Duration::from_hours(hours);
    fs::File::open(note).unwrap().set_modified(time).unwrap();
}

fn all(bench: &Bench) -> (u64, u64, u64) {
    let done = collect(bench.fetcher.store(), Goal::All, Duration::ZERO).unwrap();
    (done.trees, done.layers, done.blobs)
}

#[tokio::test]
async fn evicts_the_least_recently_used_content_first() {
    let bench = Bench::new();
    let (_, a) = pull(&bench, "a", 100_000).await;
    let (_, b) = pull(&bench, "b", 200_000).await;
    let (_, c) = pull(&bench, "c", 300_000).await;
    for (tree, hours) in [(&a, 2), (&b, 3), (&c, 1)] {
        used(&bench, tree, hours);
    }
    let store = bench.fetcher.store().clone();
    let there = |tree: &Tree| store.tree(tree.key()).unwrap().is_some();
    let done = collect(&store, Goal::MaxBytes(550_000), Duration::ZERO).unwrap();
    assert_eq!((done.trees, done.layers, done.blobs), (1, 0, 2), "a tree, its file and its manifest");
    assert!(there(&a) && !there(&b) && there(&c));
    assert!(done.bytes >= 200_000, "{done:?}");
    // Content below the minimum age is not collected.
    let done = collect(&store, Goal::MaxBytes(0), Duration::from_hours(5)).unwrap();
    assert_eq!((done.trees, done.blobs), (0, 0));
    let done = collect(&store, Goal::MaxBytes(0), Duration::from_mins(90)).unwrap();
    assert_eq!(done.trees, 1);
    assert!(!there(&a) && there(&c));
    assert_eq!(fs::read(bench.root(&c).join("shared/s")).unwrap(), b"s");
    assert_eq!(all(&bench), (1, 1, 2));
    for folder in ["trees", "layers", "blobs/sha256", "tmp"] {
        assert_eq!(names(&store.path().join(folder)), [""; 0], "{folder}");
    }
    assert_eq!(store.node_record().collection.unwrap().trees, 1);
}

#[tokio::test]
async fn leased_and_recorded_content_is_not_evicted() {
    let bench = Bench::new();
    let (_, leased) = pull(&bench, "a", 1_000).await;
    let (_, recorded) = pull(&bench, "b", 1_000).await;
    let store = bench.fetcher.store().clone();
    let mut lease = store.lease();
    lease.add([Item::Tree(leased.key().clone())]).await;
    let records = Records::new(store.clone());
    let target = Target::parse("/pods/x/mount").unwrap();
    records.put(&target, &Record::new("csi-1", &target, recorded.key(), "id", "default")).unwrap();
    assert_eq!(all(&bench), (0, 0, 0));
    // Also if it is found damaged in the meantime: the holder of the lease can be about to mount it.
    fs::write(bench.root(&leased).parent().unwrap().join("tree.json"), "").unwrap();
    assert_eq!(store.tree(leased.key()).unwrap(), None);
    all(&bench);
    assert_eq!(names(&store.path().join("set-aside")), [format!("{}.0", leased.key())]);
    drop(lease);
    all(&bench);
    assert_eq!(names(&store.path().join("set-aside")), [""; 0]);
    assert_eq!(names(&store.path().join("trees")), [recorded.key().to_string()]);
    assert_eq!(fs::read(bench.root(&recorded).join("b")).unwrap().len(), 1_000);
    records.remove(&target).unwrap();
    assert_eq!(all(&bench), (1, 1, 2));
}

#[tokio::test]
async fn evicts_unused_blobs_and_partial_blobs() {
    let bench = Bench::new();
    let digest = Artifact::new(&bench.registry).file("ok", b"ok").file("lost", b"lost").push();
    bench.registry.remove_blob(&Digest::sha256_of(b"lost"));
    assert!(bench.pull(&recipe([add(&digest)])).await.is_err());
    let store = bench.fetcher.store().clone();
    let (leased, loose) = (Digest::sha256_of(b"leased"), Digest::sha256_of(b"loose"));
    let partial =
        |digest: &Digest| store.path().join(format!("partial/sha256-{}-0123456789abcdef", digest.hex()));
    for digest in [&leased, &loose] {
        fs::write(partial(digest), "half").unwrap();
    }
    let mut lease = store.lease();
    lease.add([Item::Blob(leased.clone())]).await;
    assert!(all(&bench).2 >= 2, "the bytes of the broken pull, and the part that no pull needs");
    assert!(!partial(&loose).exists());
    assert_eq!(names(&store.path().join("blobs/sha256")), [""; 0]);
    assert!(partial(&leased).exists());
    drop(lease);
    assert_eq!(all(&bench).2, 1);
}

#[tokio::test]
async fn evicts_for_a_pull_only_if_it_can_fit() {
    if !entered("collecting::evicts_for_a_pull_only_if_it_can_fit") {
        return;
    }
    let disk = in_memory("size=24m");
    let limits = Limits::default().with_reserve(Reserve::bytes(1 << 20)).with_minimum_age(Duration::ZERO);
    let bench = Bench::inside(disk, limits);
    let (_, first) = pull(&bench, "a", 10 << 20).await;
    // A manifest can claim any size.
    let digest = Artifact::new(&bench.registry).file("b", &vec![7; 40 << 20]).push();
    let error = bench.fetcher_error(&recipe([add(&digest)])).await;
    assert_eq!(error.kind(), PullErrorKind::DiskFull, "{error}");
    assert!(bench.root(&first).exists(), "nothing was evicted for a pull that cannot fit");
    // The second fits in the place of the first.
    let (_, second) = pull(&bench, "c", 16 << 20).await;
    assert!(!bench.root(&first).exists() && bench.root(&second).exists());
}

#[tokio::test]
async fn collects_garbage_above_the_high_watermark() {
    if !entered("collecting::collects_garbage_above_the_high_watermark") {
        return;
    }
    let disk = Arc::new(in_memory("size=40m"));
    let marks = Watermarks::default()
        .with_marks("50".parse().unwrap(), "30".parse().unwrap())
        .with_minimum_age(Duration::ZERO)
        .with_interval(Duration::from_millis(50));
    let driver = Running::start_with(disk, FakeRegistry::new(), |settings| {
        settings.with_limits(Limits::default().with_reserve(Reserve::bytes(0))).with_watermarks(marks)
    })
    .await;
    let mut digests = Vec::new();
    for name in ["a", "b", "c"] {
        digests.push(Artifact::new(&driver.registry).file(name, &vec![name.as_bytes()[0]; 8 << 20]).push());
    }
    let target = |name: &str| driver.target(name);
    driver.publish(request("csi-a", &target("a"), &digests[0])).await.unwrap();
    driver.publish(request("csi-b", &target("b"), &digests[1])).await.unwrap();
    driver.unpublish("csi-b", &target("b")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(driver.names("trees").len(), 2, "below the high watermark nothing is collected");
    driver.publish(request("csi-c", &target("c"), &digests[2])).await.unwrap();
    until("unused content is deleted", async || driver.names("trees").len() == 2).await;
    assert!(
        fs::read(target("a").join("a")).unwrap().len() == 8 << 20,
        "mounted content stays, even above the watermark"
    );
    let text = driver.metrics_text().await;
    for line in [
        "oras_csi_driver_evictions_total{kind=\"tree\"} 1",
        "oras_csi_driver_evicted_bytes_total 84",
        "oras_csi_driver_tree_lookups_total{result=\"miss\"} 3",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    until("the store is measured", async || {
        let text = driver.metrics_text().await;
        text.contains("oras_csi_driver_store_objects{kind=\"tree\"} 2")
            && text.contains("oras_csi_driver_mounts 2")
    })
    .await;
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn forgets_the_volume_of_a_deleted_pod() {
    if !entered("collecting::forgets_the_volume_of_a_deleted_pod") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver = Running::start_in(folder.clone(), FakeRegistry::new(), Duration::from_secs(20)).await;
    let digest = driver.artifact(b"jar");
    let volume = |uid: &str| {
        let parent = folder.path().join("kubelet/pods").join(uid).join("volumes/kubernetes.io~csi/v");
        fs::create_dir_all(&parent).unwrap();
        parent.join("mount")
    };
    let targets = [volume("gone"), volume("rebooted"), volume("here")];
    for (number, target) in targets.iter().enumerate() {
        driver.publish(request(&format!("csi-{number}"), target, &digest)).await.unwrap();
    }
    let registry = driver.registry.clone();
    driver.stop().await.unwrap();
    // A reboot; and one pod was deleted while the node was down.
    for target in &targets[..2] {
        assert!(std::process::Command::new("umount").arg(target).status().unwrap().success());
    }
    fs::remove_dir_all(folder.path().join("kubelet/pods/gone")).unwrap();
    let driver = Running::start_in(folder.clone(), registry, Duration::from_secs(20)).await;
    assert_eq!(driver.records(), 2, "the pod that is there gets its volume again");
    assert_eq!(mounts(&targets[2]).len(), 1);
    assert!(driver.metrics_text().await.contains("oras_csi_driver_volumes 2"));
    driver.publish(request("csi-1", &targets[1], &digest)).await.unwrap();
    for (number, target) in targets.iter().enumerate().skip(1) {
        driver.unpublish(&format!("csi-{number}"), target).await.unwrap();
    }
    driver.stop().await.unwrap();
}

/// The pods of a kubelet, behind its socket.
#[derive(Clone, Default)]
struct Pods(Arc<Mutex<Vec<&'static str>>>);

#[tonic::async_trait]
impl PodResourcesLister for Pods {
    async fn list(
        &self,
        _: tonic::Request<ListPodResourcesRequest>,
    ) -> Result<tonic::Response<ListPodResourcesResponse>, tonic::Status> {
        let pods = self.0.lock().unwrap().clone().into_iter();
        let pod = |name: &str| PodResources {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            ..Default::default()
        };
        Ok(tonic::Response::new(ListPodResourcesResponse { pod_resources: pods.map(pod).collect() }))
    }

    async fn get_allocatable_resources(
        &self,
        _: tonic::Request<AllocatableResourcesRequest>,
    ) -> Result<tonic::Response<AllocatableResourcesResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not called"))
    }

    async fn get(
        &self,
        _: tonic::Request<GetPodResourcesRequest>,
    ) -> Result<tonic::Response<GetPodResourcesResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not called"))
    }
}

#[tokio::test]
async fn unmounts_a_volume_that_kubelet_can_no_longer_unpublish() {
    if !entered("collecting::unmounts_a_volume_that_kubelet_can_no_longer_unpublish") {
        return;
    }
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let kubelet = folder.path().join("kubelet");
    let check = Duration::from_millis(20);
    let own = OwnPod::new("default", "oras-csi-driver").with_check_interval(check);
    let driver =
        Running::start_with(folder.clone(), FakeRegistry::new(), |settings| settings.with_own_pod(Some(own)))
            .await;
    let digest = driver.artifact(b"jar");
    // The request names the pod default/pod-1.
    let volume = kubelet.join("pods/uid/volumes/kubernetes.io~csi/v");
    let subpaths = kubelet.join("pods/uid/volume-subpaths/v/app/0");
    fs::create_dir_all(&volume).unwrap();
    fs::create_dir_all(&subpaths).unwrap();
    fs::write(volume.join("vol_data.json"), "{}").unwrap();
    let target = volume.join("mount");
    driver.publish(request("csi-1", &target, &digest)).await.unwrap();
    let mount = |words: &[&std::ffi::OsStr]| {
        assert!(std::process::Command::new("mount").args(words).status().unwrap().success());
    };
    mount(&["--bind".as_ref(), target.join("conf").as_os_str(), subpaths.as_os_str()]);
    // It is still there after many checks.
    let stays = async |why: &str| {
        tokio::time::sleep(check * 15).await;
        assert_eq!((mounts(&target).len(), mounts(&subpaths).len(), driver.records()), (1, 1, 1), "{why}");
    };

    fs::remove_file(volume.join("vol_data.json")).unwrap();
    stays("kubelet does not answer").await;
    let pods = Pods::default();
    fs::create_dir(kubelet.join("pod-resources")).unwrap();
    let listener = tokio::net::UnixListener::bind(kubelet.join("pod-resources/kubelet.sock")).unwrap();
    let server = tonic::transport::Server::builder().add_service(PodResourcesListerServer::new(pods.clone()));
    let serving = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    stays("kubelet has not read its pods").await;
    *pods.0.lock().unwrap() = vec!["oras-csi-driver", "pod-1"];
    stays("kubelet has the pod").await;
    fs::write(volume.join("vol_data.json"), "{}").unwrap();
    *pods.0.lock().unwrap() = vec!["oras-csi-driver", "another"];
    stays("kubelet can unpublish the volume").await;

    fs::remove_file(volume.join("vol_data.json")).unwrap();
    until("the volume is unmounted", async || driver.records() == 0).await;
    assert_eq!((mounts(&target).len(), mounts(&subpaths).len()), (0, 0));
    assert!(!target.exists() && volume.exists(), "kubelet removes its own folders");
    until("the volume is not counted", async || {
        driver.metrics_text().await.contains("oras_csi_driver_volumes 0")
    })
    .await;
    driver.unpublish("csi-1", &target).await.unwrap();
    driver.stop().await.unwrap();
    serving.abort();
}

fn files(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(root, &path, found);
        } else {
            found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
}

/// An artifact, and the expected content of its volume.
type Wanted = (Digest, BTreeMap<PathBuf, Vec<u8>>);

fn artifacts(registry: &FakeRegistry) -> Vec<Wanted> {
    let make = |number: u8| {
        let own = vec![number; 20_000 + usize::from(number)];
        let shared = [&b"shared by some "[..], &[number % 3]].concat();
        let digest = Artifact::new(registry)
            .file("own", &own)
            .file("some", &shared)
            .directory("all", &[("x", b"x"), ("y/z", b"z")])
            .directory("few", &[("n", &shared)])
            .push();
        let files = [
            ("own", own),
            ("some", shared.clone()),
            ("all/x", b"x".to_vec()),
            ("all/y/z", b"z".to_vec()),
            ("few/n", shared),
        ];
        (digest, files.into_iter().map(|(path, bytes)| (path.into(), bytes)).collect())
    };
    (0..8).map(make).collect()
}

/// Publishes, unpublishes and collects from many tasks at once; `ORAS_CSI_TEST_CHURN` says for how many seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mounted_trees_stay_complete_during_garbage_collection() {
    const TASKS: usize = 12;
    if !entered_once("collecting::mounted_trees_stay_complete_during_garbage_collection") {
        return;
    }
    let seconds = std::env::var("ORAS_CSI_TEST_CHURN").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let disk = Arc::new(in_memory("size=512m"));
    let nothing = "0".parse().unwrap();
    let marks = Watermarks::default()
        .with_marks(nothing, nothing)
        .with_minimum_age(Duration::ZERO)
        .with_interval(Duration::from_millis(1));
    let driver =
        Running::start_with(disk, FakeRegistry::new(), |settings| settings.with_watermarks(marks)).await;
    let driver = Arc::new(driver);
    let wanted = Arc::new(artifacts(&driver.registry));
    let (published, ends) = (Arc::new(AtomicUsize::new(0)), Instant::now() + Duration::from_secs(seconds));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (driver, wanted, published) = (driver.clone(), wanted.clone(), published.clone());
        tasks.spawn(async move {
            let (target, volume) = (driver.target(&format!("pod-{task}")), format!("csi-{task}"));
            let mut turn = task;
            loop {
                turn += 7;
                let (digest, files_wanted) = &wanted[turn % wanted.len()];
                driver.publish(request(&volume, &target, digest)).await.unwrap();
                published.fetch_add(1, Ordering::SeqCst);
                let mut found = BTreeMap::new();
                files(&target, &target, &mut found);
                assert!(found == *files_wanted, "{volume} has other files than it should have");
                if Instant::now() > ends {
                    return (target, volume, turn % wanted.len());
                }
                driver.unpublish(&volume, &target).await.unwrap();
            }
        });
    }
    let last = tasks.join_all().await;
    let text = driver.metrics_text().await;
    let evicted =
        text.lines().find(|line| line.starts_with("oras_csi_driver_evictions_total{kind=\"tree\"}"));
    let evicted = evicted.and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).unwrap_or(0);
    println!(
        "measured: {} publishes and {evicted} evicted trees in {seconds} s",
        published.load(Ordering::SeqCst)
    );
    assert!(evicted > 20, "collecting must go on meanwhile: {evicted}");
    // Compares the content of all mounts with its digests.
    for (target, _, number) in &last {
        let mut found = BTreeMap::new();
        files(target, target, &mut found);
        assert!(found == wanted[*number].1);
        assert!(fs::metadata(target.join("own")).unwrap().nlink() > 1, "the blob of a mounted tree stays");
    }
    for (target, volume, _) in &last {
        driver.unpublish(volume, target).await.unwrap();
    }
    until("all unused content is deleted", async || {
        ["trees", "layers", "blobs/sha256", "set-aside", "tmp"]
            .iter()
            .all(|folder| driver.names(folder).is_empty())
    })
    .await;
    Arc::into_inner(driver).unwrap().stop().await.unwrap();
}
