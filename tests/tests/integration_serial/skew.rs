//! Two versions beside each other: the driver of one with the webhook of the other, and the store and the objects of one
//! under the other. docs/versions.md promises this for neighbouring versions.
//!
//! `make skew COMMIT=…` names the binary of another commit in `ORAS_CSI_OTHER_BIN`. Without it, the other version is a copy
//! of this build in which the version number is another one. That shows that no part compares version numbers, and that the
//! sequence of each test works. It cannot find a change of a format.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_tests::admission::{Cluster, pod, volume_attributes};
use oras_csi_tests::cluster::eventually;
use oras_csi_tests::driver::{Driver, cannot_mount};
use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::run;
use oras_csi_tests::registry::Distribution;
use serde_json::{Value, json};

const NAME: &str = "kind-registry:5000";
const PATIENCE: Duration = Duration::from_mins(1);
const SEAL: &str = "oras-csi-seal";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The binary of the other version.
struct Other {
    path: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

fn other() -> Other {
    if let Some(path) = std::env::var_os("ORAS_CSI_OTHER_BIN").filter(|path| !path.is_empty()) {
        return Other { path: path.into(), _folder: None };
    }
    let mut bytes = std::fs::read(oras_csi()).expect("the binary");
    // Of the same length, so that nothing moves.
    let renamed = VERSION.replace(|character: char| character.is_ascii_digit(), "7");
    let places: Vec<usize> = bytes
        .windows(VERSION.len())
        .enumerate()
        .filter(|(_, window)| *window == VERSION.as_bytes())
        .map(|(place, _)| place)
        .collect();
    for place in places {
        bytes[place..place + VERSION.len()].copy_from_slice(renamed.as_bytes());
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("oras-csi");
    std::fs::write(&path, bytes).expect("writes");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let printed = run(Command::new(&path).arg("--version"));
    assert_eq!(printed.trim(), format!("oras-csi {renamed}"), "the copy reports another version");
    Other { path, _folder: Some(folder) }
}

fn push(registry: &Distribution, repository_and_tag: &str, files: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, content).expect("writes");
    }
    let names: std::collections::BTreeSet<&str> =
        files.iter().filter_map(|(name, _)| name.split('/').next()).collect();
    registry.push(repository_and_tag, folder.path(), &names.into_iter().collect::<Vec<_>>())
}

/// A pod of one revision of a controller that does not exist.
fn owned(name: &str, reference: &str) -> Value {
    let mut pod = pod(name, &json!({"oras.land/artifact": reference}));
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "example.org/v1", "kind": "Trainer",
        "name": "trainer", "uid": "77777777-0000-0000-0000-000000000000", "controller": true}]);
    pod
}

async fn admitted(cluster: &Cluster, pod: &Value) -> HashMap<String, String> {
    let stored = eventually("the pod is admitted", PATIENCE, async || {
        cluster.create(pod).await.map_err(|status| status.message.clone())
    })
    .await;
    volume_attributes(&stored)
}

fn key_id(attributes: &HashMap<String, String>) -> String {
    attributes["csi.oras.land/seal"].split('.').nth(1).expect("a key's id").to_owned()
}

/// Writes the public keys as kubelet mounts them for the driver.
async fn write_keys(cluster: &Cluster, folder: &Path) {
    let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), cluster.webhook.namespace());
    for (name, text) in maps.get(SEAL).await.expect("the public keys").data.unwrap_or_default() {
        std::fs::write(folder.join(name), text).expect("writes");
    }
}

fn content(driver: &Driver, pod: &str, file: &str) -> String {
    let path = driver.target(pod).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The webhook of each version seals volumes that the driver of the other mounts; and what a webhook has kept, its key
/// and its pins, serves the version after it.
#[tokio::test(flavor = "multi_thread")]
async fn each_driver_mounts_what_the_webhook_of_the_other_version_admits() {
    if cannot_mount().is_some() {
        return;
    }
    let (this, other) = (oras_csi(), other());
    for (namespace, webhook, driver) in
        [("skew-upgrade", &other.path, &this), ("skew-rollback", &this, &other.path)]
    {
        let flag = format!("--seal-secret={namespace}/{SEAL}");
        let mut cluster = Cluster::start(namespace, &[&flag, "--keep-pins"]).await;
        // The first version makes key and pins.
        let secrets = Api::<Secret>::namespaced(cluster.client.clone(), namespace);
        let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), namespace);
        cluster.webhook.stop();
        let _ = secrets.delete(SEAL, &DeleteParams::default()).await;
        let _ = maps.delete(SEAL, &DeleteParams::default()).await;
        cluster.webhook.replace(webhook);

        let reference = format!("{NAME}/moving:v1");
        let first = push(&cluster.registry, "moving:v1", &[("file", "first")]);
        let before = admitted(&cluster, &owned("before", &reference)).await;
        assert!(before["csi.oras.land/recipe"].contains(&first), "{before:?}");

        let keys = tempfile::tempdir().expect("a folder");
        write_keys(&cluster, keys.path()).await;
        let seal_keys = format!("--seal-keys={}", keys.path().display());
        let driver = Driver::start_binary(driver, cluster.certs.path(), &[&seal_keys]);
        driver.publish_attributes("before", namespace, before.clone(), None).await.expect("it is mounted");
        assert_eq!(content(&driver, "before", "file"), "first");
        let stolen = driver.publish_attributes("stolen", "elsewhere", before.clone(), None).await;
        assert!(stolen.is_err(), "the seal is for one namespace");

        // The webhook is replaced. It has the key and the pin, so a moved tag changes nothing for the revision.
        push(&cluster.registry, "moving:v1", &[("file", "second")]);
        cluster.webhook.replace(if webhook == &this { &other.path } else { &this });
        let after = admitted(&cluster, &owned("after", &reference)).await;
        assert!(after["csi.oras.land/recipe"].contains(&first), "the pin holds: {after:?}");
        assert_eq!(key_id(&after), key_id(&before), "one key");
        driver.publish_attributes("after", namespace, after, None).await.expect("it is mounted");
        assert_eq!(content(&driver, "after", "file"), "first");
        for pod in ["before", "after"] {
            driver.unpublish(pod).await.expect("it goes");
        }
    }
}

/// The status that one version has written for a set is what the other gives to pods.
#[tokio::test(flavor = "multi_thread")]
async fn each_version_reads_the_sets_of_the_other() {
    let (this, other) = (oras_csi(), other());
    for (namespace, first, second) in
        [("skew-sets-up", &other.path, &this), ("skew-sets-down", &this, &other.path)]
    {
        let flags = [format!("--seal-secret={namespace}/{SEAL}"), format!("--sets={namespace}")];
        let mut cluster = Cluster::start(namespace, &[&flags[0], &flags[1], "--keep-pins"]).await;
        cluster.webhook.replace(first);
        let resource = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("oras.land", "v1alpha1", "ArtifactSet"),
            "artifactsets",
        );
        let sets = Api::<DynamicObject>::namespaced_with(cluster.client.clone(), namespace, &resource);
        let set = json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactSet", "metadata": {"name": "app"},
            "spec": {"recipe": [{"add": format!("{NAME}/java-app:v1")}]}});
        sets.patch("app", &PatchParams::apply("git"), &Patch::Apply(&set)).await.expect("it is applied");
        let recipe = eventually("the recipe of the set", PATIENCE, async || {
            let set = sets.get("app").await.map_err(|error| error.to_string())?;
            set.data["status"]["recipe"].as_str().map(str::to_owned).ok_or_else(|| set.data.to_string())
        })
        .await;
        // Only the status can say the digest now.
        cluster.webhook.replace(second);
        cluster.registry.stop();
        let attributes = admitted(&cluster, &pod("uses-it", &json!({"oras.land/artifact-set": "app"}))).await;
        assert_eq!(attributes["csi.oras.land/recipe"], recipe);
        sets.delete("app", &DeleteParams::default()).await.expect("it was made");
    }
}

fn volume(repository: &str, digest: &str) -> HashMap<String, String> {
    let reference = Reference::parse(&format!("{NAME}/{repository}")).expect("a reference");
    let pinned = reference.pin(digest.parse().expect("a digest"));
    let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).expect("a recipe");
    let volume = CanonicalVolume::new(None, recipe).expect("it fits");
    volume.to_attributes().into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Blobs that the registry has sent.
fn sent(registry: &Distribution) -> usize {
    let is_blob =
        |line: &String| line.starts_with("GET ") && line.contains("/blobs/") && !line.ends_with(" 401");
    registry.requests().into_iter().filter(is_blob).count()
}

/// Volumes stay mounted, content is not downloaded again, and each version unpublishes what the other has published.
/// If the formats of the stores differ, the older version says so and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_and_its_volumes_survive_an_upgrade_and_a_rollback() {
    if cannot_mount().is_some() {
        return;
    }
    let (this, other) = (oras_csi(), other());
    let registry = Distribution::start();
    let certs = registry.certs_d(&[NAME]);
    let many: Vec<(String, String)> = (0..200).map(|n| (format!("d/{n}"), format!("content {n}"))).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let kept = volume("kept", &push(&registry, "kept:v1", &many));
    let later = volume("later", &push(&registry, "later:v1", &[("file", "later")]));

    let mut driver = Driver::start_binary(&other.path, certs.path(), &[]);
    for pod in ["stays", "goes"] {
        driver.publish_attributes(pod, "team", kept.clone(), None).await.expect("it is mounted");
    }
    let format = |driver: &Driver| std::fs::read_to_string(driver.store().join("format")).expect("a format");
    let before = format(&driver);
    let downloaded = sent(&registry);
    assert!(downloaded > 0, "{:?}", registry.requests());

    driver.replace(&this);
    assert_eq!(content(&driver, "stays", "d/7"), "content 7", "volumes stay mounted");
    driver.unpublish("goes").await.expect("this version unpublishes what the other has published");
    driver.publish_attributes("again", "team", kept.clone(), None).await.expect("it is mounted");
    assert_eq!(content(&driver, "again", "d/199"), "content 199");
    assert_eq!(
        sent(&registry),
        downloaded,
        "the content of the other version is used: {:?}",
        registry.requests()
    );
    driver.publish_attributes("later", "team", later, None).await.expect("it is mounted");

    let after = format(&driver);
    eprintln!("{:?} becomes {:?}", before.trim(), after.trim());
    if after == before {
        driver.replace(&other.path);
    } else {
        let said = driver.refusal(&other.path);
        assert!(said.contains("format"), "{said}");
        assert_eq!(content(&driver, "stays", "d/7"), "content 7", "the volumes stay");
        driver.replace(&this);
    }
    assert_eq!(content(&driver, "later", "file"), "later");
    let downloaded = sent(&registry);
    driver.publish_attributes("last", "team", kept, None).await.expect("it is mounted");
    assert_eq!(sent(&registry), downloaded, "{:?}", registry.requests());
    for pod in ["stays", "again", "later", "last"] {
        driver.unpublish(pod).await.expect("it goes");
    }
}
