//! Preloading: the content of cluster sets is in the store before a pod requests it, and stays as long as the sets
//! select the node.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use oras_csi_core::credentials::Credential;
use oras_csi_core::digest::Digest;
use oras_csi_core::seal::{Holder, SealKey};
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_driver::Settings;
use oras_csi_driver::proto::csi::NodePublishVolumeRequest;
use oras_csi_driver::publish::Seals;
use oras_csi_store::Limits;
use oras_csi_store::gc::{Goal, Watermarks, collect};
use oras_csi_store::pull::{PullStatus, Pulls, Tenant, Waiter};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::calls::{Running, request_for, until};
use crate::cluster::Cluster;
use crate::namespace::entered_once;
use crate::registry::{Artifact, FakeRegistry, add, add_from, recipe};
use crate::trees::Bench;

const UID: &str = "c0ffee";

/// A cluster, a registry, a driver between them, and the webhook's key.
struct Scene {
    cluster: Cluster,
    key: SealKey,
    driver: Running,
}

fn settings(settings: Settings, cluster: &Cluster, folder: &TempDir) -> Settings {
    // All unused content is collected at once.
    let nothing = "0".parse().unwrap();
    let marks = Watermarks::default()
        .with_marks(nothing, nothing)
        .with_minimum_age(Duration::ZERO)
        .with_interval(Duration::from_millis(50));
    settings
        .with_seals(Seals::Needed(folder.path().join("keys")))
        .with_watermarks(marks)
        .with_cluster_sets(Some(cluster.sets()))
}

impl Scene {
    async fn open() -> Self {
        let (cluster, key) = (Cluster::default(), SealKey::generate().unwrap());
        let folder = Arc::new(tempfile::tempdir().unwrap());
        fs::create_dir(folder.path().join("keys")).unwrap();
        fs::write(folder.path().join("keys/key.pem"), key.public().to_pem()).unwrap();
        Self::begin(cluster, key, folder, FakeRegistry::new()).await
    }

    async fn begin(
        cluster: Cluster,
        key: SealKey,
        folder: Arc<TempDir>,
        registry: Arc<FakeRegistry>,
    ) -> Self {
        let at = folder.clone();
        let driver = Running::start_with(folder, registry, |before| settings(before, &cluster, &at)).await;
        Self { cluster, key, driver }
    }

    async fn restarted(self) -> Self {
        let (folder, registry) = (self.driver.folder.clone(), self.driver.registry.clone());
        self.driver.stop().await.unwrap();
        Self::begin(self.cluster, self.key, folder, registry).await
    }

    fn artifact(&self, text: &str) -> CanonicalVolume {
        volume(&self.driver.artifact(text.as_bytes()))
    }

    fn put(&self, set: &str, spec: &Value, volume: &CanonicalVolume) {
        self.cluster.put_set(set, 1, spec, &status(volume, 1));
    }

    fn trees(&self) -> usize {
        self.driver.names("trees").len()
    }

    /// Returns the request of kubelet for a volume of a set.
    fn request(&self, name: &str, set: &str, volume: &CanonicalVolume) -> NodePublishVolumeRequest {
        let volume = volume.clone().with_set(set).unwrap().sign(&self.key, Holder::pod("default"));
        let mut request = request_for("csi-1", &self.target(name), volume.recipe().clone());
        let ours = volume.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value));
        request.volume_context.extend(ours);
        request
    }

    fn target(&self, name: &str) -> PathBuf {
        let parent =
            self.driver.folder.path().join(format!("kubelet/pods/{UID}/volumes/kubernetes.io~csi/{name}"));
        fs::create_dir_all(&parent).unwrap();
        parent.join("mount")
    }
}

fn volume(digest: &Digest) -> CanonicalVolume {
    CanonicalVolume::new(Some("models"), recipe([add(digest)])).unwrap()
}

fn status(volume: &CanonicalVolume, generation: i64) -> Value {
    json!({"id": volume.id().as_str(), "recipe": volume.recipe().to_json(), "recipeGeneration": generation})
}

#[tokio::test]
async fn a_preloaded_set_starts_without_registry_and_api_server() {
    if !entered_once("preload::a_preloaded_set_starts_without_registry_and_api_server") {
        return;
    }
    let scene = Scene::open().await;
    let wanted = scene.artifact("precious");
    let other = scene.artifact("not asked for");
    scene.put("models", &json!({"preload": true}), &wanted);
    scene.put("others", &json!({}), &other);
    let cluster = scene.cluster.clone();
    until("the set is ready on the node", async || cluster.has_told("models", "Ready")).await;
    let told = cluster.told("models").unwrap();
    assert_eq!((told["id"].as_str().unwrap(), &told["bytes"]), (wanted.id().as_str(), &json!(12)));
    assert_eq!(told["bytes"], told["totalBytes"]);
    let artifacts = cluster.artifacts().unwrap();
    assert_eq!(artifacts["metadata"]["ownerReferences"][0]["uid"], "uid-of-node-1");
    assert_eq!(
        (&artifacts["status"]["ready"], &artifacts["status"]["store"]["damaged"]),
        (&json!("1/1"), &json!(0))
    );
    assert_eq!((scene.trees(), cluster.told("others")), (1, None));
    let text = scene.driver.metrics_text().await;
    for line in ["preloads_total{outcome=\"done\"} 1", "preload_sets_wanted 1", "preload_sets_ready 1"] {
        assert!(text.contains(&format!("oras_csi_driver_{line}")), "{line}\n{text}");
    }
    // Without a change nothing is written.
    let writes = cluster.writes();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.writes(), writes);

    cluster.go_down();
    scene.driver.registry.is_down.store(true, Ordering::SeqCst);
    let scene = scene.restarted().await;
    // Garbage collection runs in the meantime.
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.driver.publish(scene.request("v", "models", &wanted)).await.unwrap();
    assert_eq!(fs::read(scene.target("v").join("app.jar")).unwrap(), b"precious");
    scene.driver.unpublish("csi-1", &scene.target("v")).await.unwrap();
    assert_eq!(scene.trees(), 1);
    let status = scene.driver.publish(scene.request("v", "others", &other)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    // The set was deleted in the meantime, and nothing else needs its content.
    cluster.drop_set("models");
    cluster.come_back();
    let driver = &scene.driver;
    until("the content is collected", async || driver.names("trees").is_empty()).await;
    until("the status reports that", async || cluster.artifacts().unwrap()["status"]["sets"] == json!([]))
        .await;
    scene.driver.stop().await.unwrap();
}

#[tokio::test]
async fn kept_content_follows_the_set_and_the_labels_of_the_node() {
    if !entered_once("preload::kept_content_follows_the_set_and_the_labels_of_the_node") {
        return;
    }
    let scene = Scene::open().await;
    let (cluster, driver) = (scene.cluster.clone(), &scene.driver);
    let (first, second) = (scene.artifact("first"), scene.artifact("second"));
    let spec = json!({"preload": true, "nodeSelector": {"gpu": "a100"}});
    scene.put("models", &spec, &first);
    until("a node that no set selects reports its driver", async || {
        cluster
            .artifacts()
            .is_some_and(|artifacts| artifacts["status"]["version"] == env!("CARGO_PKG_VERSION"))
    })
    .await;
    let told = cluster.artifacts().unwrap()["status"].clone();
    assert_eq!((&told["sets"], &told["ready"], &told["volumes"]), (&json!([]), &json!("0/0"), &json!(0)));
    let store = |key: &str| told["store"][key].as_i64().unwrap();
    assert!(store("freeBytes") > 0 && store("capacityBytes") >= store("freeBytes"), "{told}");
    assert!(told["reported"].is_string() && told.get("pulls").is_none(), "{told}");
    assert_eq!(scene.trees(), 0);
    cluster.label("gpu", "a100");
    until("the set is ready", async || cluster.has_told("models", "Ready")).await;

    // The set changed and is not resolved yet: the earlier content stays.
    cluster.put_set("models", 2, &spec, &status(&first, 1));
    until("the set is waiting", async || cluster.has_told("models", "Waiting")).await;
    assert!(cluster.told("models").unwrap()["message"].as_str().unwrap().contains("is being resolved"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(scene.trees(), 1);
    cluster.put_set("models", 2, &spec, &status(&second, 2));
    until("the new content is stored", async || {
        let told = cluster.told("models").unwrap();
        told["state"] == "Ready" && told["id"] == second.id().as_str()
    })
    .await;
    until("the old content is collected", async || driver.names("trees").len() == 1).await;

    // The disk lost the content: it is downloaded again.
    let tree = driver.store().join("trees").join(&driver.names("trees")[0]);
    fs::remove_dir_all(&tree).unwrap();
    until("the content is downloaded again", async || tree.join("tree.json").exists()).await;

    cluster.label("gpu", "none");
    until("the content is collected", async || driver.names("trees").is_empty()).await;
    until("the status reports that", async || cluster.told("models").is_none()).await;
    scene.driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_set_is_pulled_with_its_own_secret() {
    if !entered_once("preload::a_set_is_pulled_with_its_own_secret") {
        return;
    }
    let scene = Scene::open().await;
    let (cluster, driver) = (scene.cluster.clone(), &scene.driver);
    let (wanted, other) = (scene.artifact("private"), scene.artifact("private as well"));
    let credential = Credential::basic("robot".to_owned(), "of today".to_owned()).unwrap();
    *driver.registry.accepted.lock().unwrap() = Some(vec![credential]);
    let spec = json!({"preload": true, "pullSecret": {"name": "robot"}});
    scene.put("models", &spec, &wanted);
    let message = || cluster.told("models").unwrap()["message"].as_str().unwrap().to_owned();
    until("the set has failed", async || cluster.has_told("models", "Failed")).await;
    assert!(
        message().contains(
            "pull secret robot of the ClusterArtifactSet models is not in the namespace oras-csi-system"
        ),
        "{}",
        message()
    );
    cluster.put_secret("robot", "robot", "of yesterday");
    until("the secret is read", async || !message().contains("is not in the namespace")).await;
    assert!(!message().contains("yesterday") && message().contains("denied"), "{}", message());
    // The Secret is rotated.
    cluster.put_secret("robot", "robot", "of today");
    until("the set is ready", async || cluster.has_told("models", "Ready")).await;

    // A pod's volume of a set that is not preloaded.
    scene.put("others", &json!({"pullSecret": {"name": "robot"}}), &other);
    cluster.go_down();
    let wish = scene.request("v", "others", &other);
    let status = driver.publish(wish.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("cannot read the pull secret"), "{status}");
    cluster.come_back();
    driver.publish(wish).await.unwrap();
    assert_eq!(fs::read(scene.target("v").join("app.jar")).unwrap(), b"private as well");
    driver.unpublish("csi-1", &scene.target("v")).await.unwrap();
    // A volume that names a set without a valid seal gets no content of the set.
    let mut forged = scene.request("v", "models", &wanted);
    forged.volume_context.remove("csi.oras.land/seal");
    let asked = cluster.asked().len();
    let status = driver.publish(forged).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let secrets = |asked: &[String]| asked.iter().filter(|line| line.contains("/secrets/")).count();
    assert_eq!(secrets(&cluster.asked()[asked..]), 0);
    scene.driver.stop().await.unwrap();
}

/// A set can name the digest of content that a pod pulled from a private registry, for example when a tag of the set is
/// moved. The set grants only what its own registry serves.
#[tokio::test]
async fn a_set_does_not_grant_content_that_only_another_registry_served() {
    if !entered_once("preload::a_set_does_not_grant_content_that_only_another_registry_served") {
        return;
    }
    let scene = Scene::open().await;
    let (cluster, driver) = (scene.cluster.clone(), &scene.driver);
    let digest = driver.artifact(b"private");
    let own = volume(&digest).sign(&scene.key, Holder::pod("default"));
    let mut request = request_for("csi-own", &scene.target("own"), own.recipe().clone());
    request
        .volume_context
        .extend(own.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value)));
    driver.publish(request).await.unwrap();
    assert_eq!(scene.trees(), 1);

    driver.registry.missing.lock().unwrap().insert(("elsewhere".to_owned(), digest.clone()));
    let moved = CanonicalVolume::new(Some("models"), recipe([add_from("elsewhere:5000", &digest)])).unwrap();
    scene.put("models", &json!({}), &moved);
    let status = driver.publish(scene.request("v", "models", &moved)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    // The tree is in the store, and does not count as preloaded either.
    scene.put("models", &json!({"preload": true}), &moved);
    until("the set has failed", async || cluster.has_told("models", "Failed")).await;
    // The registry of the set has the content as well now.
    driver.registry.missing.lock().unwrap().clear();
    until("the set is ready", async || cluster.has_told("models", "Ready")).await;
    driver.registry.is_down.store(true, Ordering::SeqCst);
    driver.publish(scene.request("v", "models", &moved)).await.unwrap();
    assert_eq!(fs::read(scene.target("v").join("app.jar")).unwrap(), b"private");
    scene.driver.stop().await.unwrap();
}

/// Without `--cluster-sets` no controller would release the content of sets.
#[tokio::test]
async fn a_stand_alone_driver_keeps_nothing_for_sets() {
    if !entered_once("preload::a_stand_alone_driver_keeps_nothing_for_sets") {
        return;
    }
    let scene = Scene::open().await;
    let wanted = scene.artifact("precious");
    scene.put("models", &json!({"preload": true}), &wanted);
    let cluster = scene.cluster.clone();
    until("the set is ready on the node", async || cluster.has_told("models", "Ready")).await;
    let (folder, registry, at) =
        (scene.driver.folder.clone(), scene.driver.registry.clone(), scene.driver.folder.clone());
    scene.driver.stop().await.unwrap();
    let asked = cluster.asked().len();
    let driver = Running::start_with(folder, registry, |before| {
        settings(before, &cluster, &at).with_cluster_sets(None)
    })
    .await;
    until("the content is collected", async || driver.names("trees").is_empty()).await;
    assert_eq!(cluster.asked().len(), asked, "Kubernetes is asked nothing");
    driver.stop().await.unwrap();
}

/// A volume of a pod that waits.
fn waiter() -> Waiter {
    Waiter::new(Tenant::of_namespace("team"), "/pods/a/mount")
}

/// Returns an artifact with one layer of its own, and the digest of the layer.
fn of_one(bench: &Bench, text: &str) -> (CanonicalVolume, Digest) {
    let bytes = [text.as_bytes(), &vec![7; 40_960]].concat();
    let digest = Artifact::new(&bench.registry).file("f", &bytes).push();
    (volume(&digest), Digest::sha256_of(&bytes))
}

#[tokio::test]
async fn a_pod_overtakes_preloads() {
    let bench = Bench::new();
    let pulls = Arc::new(Pulls::new(bench.fetcher.clone(), CancellationToken::new()));
    let gate = bench.registry.close_gate();
    // A host has four download slots, and preloads can use three of them.
    let ahead: Vec<_> = (0..8).map(|number| of_one(&bench, &format!("ahead {number}"))).collect();
    let begun = || ahead.iter().filter(|(_, layer)| bench.registry.requests_for(layer) > 0).count();
    let mut tasks = tokio::task::JoinSet::new();
    for (volume, _) in &ahead {
        let (pulls, fetcher, recipe) = (pulls.clone(), bench.fetcher.clone(), volume.recipe().clone());
        tasks.spawn(async move { pulls.start_in_background(&recipe, &fetcher).wait().await });
    }
    until("three preloads are in progress", async || begun() == 3).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(begun(), 3);
    // A pod that requests other content gets the fourth.
    let (other, layer) = of_one(&bench, "a pod's");
    let wait = Duration::from_millis(100);
    let waited = pulls.wait_for(other.recipe(), &bench.fetcher, &waiter(), wait).await;
    assert!(matches!(waited, PullStatus::Pulling(_)), "{waited:?}");
    until("the layer is requested", async || bench.registry.requests_for(&layer) == 1).await;
    // A pod that requests a queued preload takes the slot of a preload that no pod needs.
    let (last, layer) = ahead.iter().find(|(_, layer)| bench.registry.requests_for(layer) == 0).unwrap();
    let waited = pulls.wait_for(last.recipe(), &bench.fetcher, &waiter(), wait).await;
    assert!(matches!(waited, PullStatus::Pulling(_)), "{waited:?}");
    until("the layer is requested", async || bench.registry.requests_for(layer) == 1).await;
    assert_eq!(begun(), 4);
    gate.add_permits(1_000);
    for (volume, layer) in ahead.iter().map(|(volume, layer)| (volume, layer)) {
        let waited = pulls.wait_for(volume.recipe(), &bench.fetcher, &waiter(), Duration::from_mins(1)).await;
        assert!(matches!(waited, PullStatus::Ready(_)), "{waited:?}");
        assert_eq!(bench.registry.requests_for(layer), 1, "each layer is downloaded once");
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_preload_that_is_not_needed_any_more_is_cancelled() {
    let bench = Bench::new();
    let pulls = Pulls::new(bench.fetcher.clone(), CancellationToken::new());
    let gate = bench.registry.close_gate();
    let ((dropped, first), (joined, second)) = (of_one(&bench, "dropped"), of_one(&bench, "joined"));
    let ahead = (
        pulls.start_in_background(dropped.recipe(), &bench.fetcher),
        pulls.start_in_background(joined.recipe(), &bench.fetcher),
    );
    until("both preloads are in progress", async || {
        [&first, &second].iter().all(|layer| bench.registry.requests_for(layer) == 1)
    })
    .await;
    let waited = pulls.wait_for(joined.recipe(), &bench.fetcher, &waiter(), Duration::ZERO).await;
    assert!(matches!(waited, PullStatus::Pulling(_)), "{waited:?}");
    drop(ahead);
    gate.add_permits(1_000);
    let waited = pulls.wait_for(joined.recipe(), &bench.fetcher, &waiter(), Duration::from_mins(1)).await;
    assert!(matches!(waited, PullStatus::Ready(_)), "{waited:?}");
    assert_eq!(bench.registry.requests_for(&second), 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let store = bench.fetcher.store();
    assert_eq!(store.tree(&bench.fetcher.key(dropped.recipe())).unwrap(), None);
    // A pod that requests it now starts a new pull, and gets no error of the old one.
    let waited = pulls.wait_for(dropped.recipe(), &bench.fetcher, &waiter(), Duration::from_mins(1)).await;
    assert!(matches!(waited, PullStatus::Ready(_)), "{waited:?}");
}

/// Kubelet's call ends before the pull, and the report and the events say how far it is.
#[tokio::test]
async fn a_pull_of_a_pod_is_reported_and_its_events_are_written_once() {
    if !entered_once("preload::a_pull_of_a_pod_is_reported_and_its_events_are_written_once") {
        return;
    }
    let (cluster, key) = (Cluster::default(), SealKey::generate().unwrap());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    fs::create_dir(folder.path().join("keys")).unwrap();
    fs::write(folder.path().join("keys/key.pem"), key.public().to_pem()).unwrap();
    let at = folder.clone();
    let driver = Running::start_with(folder, FakeRegistry::new(), |before| {
        settings(before, &cluster, &at)
            .with_publish_wait(Duration::from_millis(500))
            .with_pod_events(Some(cluster.pod_events()))
    })
    .await;
    let scene = Scene { cluster: cluster.clone(), key, driver };
    let content = vec![b'x'; 300_000];
    let digest = Artifact::new(&scene.driver.registry).file("app.jar", &content).push();
    let own = volume(&digest).sign(&scene.key, Holder::pod("default"));
    let mut request = request_for("csi-own", &scene.target("own"), own.recipe().clone());
    request
        .volume_context
        .extend(own.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value)));
    let gate = scene.driver.registry.close_gate();
    let began = std::time::Instant::now();
    let status = scene.driver.publish(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    let writes = cluster.writes();
    until("the pull is reported", async || {
        let pulls =
            cluster.artifacts().map(|artifacts| artifacts["status"]["pulls"].clone()).unwrap_or_default();
        pulls[0]["id"] == own.id().as_str()
            && pulls[0]["totalBytes"].as_i64().is_some_and(|total| total >= 300_000)
    })
    .await;
    // A pull that does not progress causes no more writes than its interval allows: one each two intervals of a report.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let allowed = 2 + began.elapsed().as_millis() / 1_000;
    assert!(
        u128::try_from(cluster.writes() - writes).unwrap() <= allowed,
        "{} writes",
        cluster.writes() - writes
    );

    // Kubelet calls again and again.
    for _ in 0..2 {
        let status = scene.driver.publish(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted, "{status}");
    }
    gate.add_permits(1_000);
    until("the volume is published", async || scene.driver.publish(request.clone()).await.is_ok()).await;
    scene.driver.publish(request).await.unwrap();
    until("the report has the volume and no pull", async || {
        let status = cluster.artifacts().map(|artifacts| artifacts["status"].clone()).unwrap_or_default();
        status["volumes"] == json!(1) && status.get("pulls").is_none()
    })
    .await;
    until("the events are written", async || cluster.events().len() == 3).await;
    let reasons: Vec<_> = cluster.events().iter().map(|event| event["reason"].clone()).collect();
    assert_eq!(reasons, [json!("Pulling"), json!("Pulled"), json!("Mounted")]);
    let pulled = cluster.events()[1]["note"].as_str().unwrap().to_owned();
    assert!(pulled.contains(&digest.to_string()) && pulled.contains("from the network"), "{pulled}");
    assert_eq!(cluster.events()[2]["regarding"]["uid"], "c0ffee");

    // The content is in the cache now.
    let mut again = request_for("csi-again", &scene.target("again"), own.recipe().clone());
    again.volume_context.extend(own.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value)));
    scene.driver.publish(again).await.unwrap();
    until("the events are written", async || cluster.events().len() == 5).await;
    let found = cluster.events()[3]["note"].as_str().unwrap().to_owned();
    assert!(
        found.ends_with("in the cache of the node: 292.9 KiB of files, nothing from the network"),
        "{found}"
    );
    scene.driver.stop().await.unwrap();
}

/// With crds.install=false, the chart does not upgrade the custom resource definition.
#[tokio::test]
async fn an_earlier_definition_of_the_object_gets_only_its_fields() {
    if !entered_once("preload::an_earlier_definition_of_the_object_gets_only_its_fields") {
        return;
    }
    let cluster = Cluster::default();
    cluster.refuse_newer_fields();
    let folder = Arc::new(tempfile::tempdir().unwrap());
    fs::create_dir(folder.path().join("keys")).unwrap();
    let at = folder.clone();
    let driver =
        Running::start_with(folder, FakeRegistry::new(), |before| settings(before, &cluster, &at)).await;
    until("the driver reports", async || {
        cluster.artifacts().is_some_and(|artifacts| artifacts["status"]["ready"] == "0/0")
    })
    .await;
    let status = cluster.artifacts().unwrap()["status"].clone();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&status), ["sets", "ready", "store"]);
    assert_eq!(keys(&status["store"]), ["bytes", "damaged"]);
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn gc_roots_are_read_from_the_disk() {
    let bench = Bench::with(Limits::default());
    let (wanted, _) = of_one(&bench, "wanted");
    let tree = bench.pull(wanted.recipe()).await.unwrap();
    let store = bench.fetcher.store();
    let root = oras_csi_store::PreloadEntry::new("models", wanted.id().as_str(), wanted.recipe(), tree.key());
    store.write_preload_index(&[root]).unwrap();
    assert_eq!(collect(store, Goal::All, Duration::ZERO).unwrap().trees, 0);
    // An index that cannot be read, as on a failing disk, keeps everything; a malformed index keeps nothing.
    let file = store.path().join("preload.json");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(collect(store, Goal::All, Duration::ZERO).is_err());
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "from the future").unwrap();
    assert_eq!(collect(store, Goal::All, Duration::ZERO).unwrap().trees, 1);
}

#[tokio::test]
async fn damage_is_reported_as_an_event_and_in_the_node_object() {
    if !entered_once("preload::damage_is_reported_as_an_event_and_in_the_node_object") {
        return;
    }
    let scene = Scene::open().await;
    let wanted = scene.artifact("precious");
    scene.put("models", &json!({"preload": true}), &wanted);
    let cluster = scene.cluster.clone();
    until("the set is ready on the node", async || cluster.has_told("models", "Ready")).await;
    let name = scene.driver.names("trees").remove(0);
    fs::write(scene.driver.store().join("trees").join(&name).join("tree.json"), "no description").unwrap();
    // The scrub finds the damage.
    until("the damage is reported", async || {
        let _ = scene.driver.publish(scene.request("v", "models", &wanted)).await;
        let _ = scene.driver.unpublish("csi-1", &scene.target("v")).await;
        !cluster.events().is_empty()
    })
    .await;
    let event = cluster.events().remove(0);
    assert_eq!((&event["reason"], &event["type"]), (&json!("ArtifactsDamaged"), &json!("Warning")));
    assert_eq!(
        (&event["regarding"]["kind"], &event["regarding"]["name"]),
        (&json!("Node"), &json!("node-1"))
    );
    assert!(event["note"].as_str().unwrap().contains(&name), "{event}");
    until("the node object counts the damage", async || {
        cluster.artifacts().is_some_and(|artifacts| artifacts["status"]["store"]["damaged"] == json!(1))
    })
    .await;
    assert_eq!(cluster.events().len(), 1, "once");
    scene.driver.stop().await.unwrap();
}
