//! A driver that preloads a cluster set, with the permissions that the chart grants, on a real API server
//! and from a real registry.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::{Client, Config, ResourceExt as _};
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::seal::{Holder, SealKey};
use oras_csi_core::volume::CanonicalVolume;
use oras_csi_driver::preload::object::{NodeArtifacts, SetOnNode, SetState};
use oras_csi_tests::cluster::{client, eventually, kubectl};
use oras_csi_tests::driver::{Driver, cannot_mount};
use oras_csi_tests::parts::{repository, testbed};
use oras_csi_tests::process::run;
use oras_csi_tests::registry::{Configuration, Distribution, Login, Oras, write_hosts_toml};
use oras_csi_tests::throttle::Throttle;
use oras_csi_tests::webhook::install_definitions;
use serde_json::{Value, json};

const NAME: &str = "kind-registry:5000";
const NAMESPACE: &str = "preload";
const NODE: &str = "node1";
const PATIENCE: Duration = Duration::from_mins(1);
/// The bytes per second of a slow connection.
const LINE: usize = 8 << 20;

fn apply(text: &str) {
    use std::io::Write as _;
    let mut child = kubectl(&["apply", "-f", "-"]).stdin(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().unwrap().write_all(text.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "{text}");
}

/// Installs the permissions of the driver. Both tests need them, and two concurrent `kubectl apply` would both create them.
async fn install(client: &Client) {
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}).to_string());
    let mut helm = Command::new(testbed("helm"));
    helm.args(["template", "oras-csi"]).arg(repository().join("deploy/chart"));
    helm.args(["--namespace", NAMESPACE, "--set", "clusterSets.pullSecrets={robot}"]);
    helm.args(["--set", "image.repository=localhost/oras-csi"]);
    apply(&run(helm.args(["--show-only", "templates/driver-rbac.yaml"])));
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "oras-csi-driver", "namespace": NAMESPACE}});
    apply(&account.to_string());
    install_definitions(client).await;
}

/// Returns a kubeconfig with a token like that of the driver's pod on a node.
fn kubeconfig_of(node: &str, folder: &std::path::Path) -> std::path::PathBuf {
    let bound = [format!("--bound-object-name={node}"), format!("--namespace={NAMESPACE}")];
    let mut token = kubectl(&["create", "token", "oras-csi-driver", "--bound-object-kind=Node"]);
    let token = run(token.args(bound));
    let whole = run(&mut kubectl(&["config", "view", "--raw", "-o", "json"]));
    let mut config: Value = serde_json::from_str(&whole).expect("JSON");
    config["users"][0]["user"] = json!({"token": token.trim()});
    let path = folder.join(format!("{node}.conf"));
    std::fs::write(&path, config.to_string()).expect("writes");
    path
}

async fn client_of(kubeconfig: &std::path::Path) -> Client {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).expect("reads");
    let mut config = Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default())
        .await
        .expect("a configuration");
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

fn volume(repository: &str, digest: &str) -> CanonicalVolume {
    let reference = Reference::parse(&format!("{NAME}/{repository}")).expect("a reference");
    let pinned = reference.pin(digest.parse().expect("a digest"));
    let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(pinned))]).expect("a recipe");
    CanonicalVolume::new(Some("models"), recipe).expect("it fits")
}

/// Writes a set for nodes with a label, with the status that the webhook would write.
async fn put_set(client: &Client, name: &str, gpu: &str, secret: Option<&str>, volume: &CanonicalVolume) {
    apply(
        &json!({"apiVersion": "oras.land/v1alpha1", "kind": "ClusterArtifactSet", "metadata": {"name": name},
            "spec": {"namespaceSelector": {}, "preload": true, "nodeSelector": {"gpu": gpu},
                "pullSecret": secret.map(|name| json!({"name": name})),
                "recipe": [{"add": format!("{NAME}/precious:v1")}]}})
        .to_string(),
    );
    let resource = kube::api::ApiResource::from_gvk_with_plural(
        &kube::core::GroupVersionKind::gvk("oras.land", "v1alpha1", "ClusterArtifactSet"),
        "clusterartifactsets",
    );
    let sets: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let generation = sets.get(name).await.expect("it is there").metadata.generation;
    let status = json!({"observedGeneration": generation, "id": volume.id().as_str(),
        "recipe": volume.recipe().to_json(), "recipeGeneration": generation});
    let patch = Patch::Merge(json!({"status": status}));
    sets.patch_status(name, &PatchParams::default(), &patch).await.expect("a status");
}

async fn on_node(client: &Client, set: &str) -> Result<SetOnNode, String> {
    let object =
        Api::<NodeArtifacts>::all(client.clone()).get(NODE).await.map_err(|error| error.to_string())?;
    let sets = object.status.ok_or("no status")?.sets;
    sets.into_iter().find(|found| found.name == set).ok_or_else(|| format!("nothing about {set}"))
}

async fn until_state(client: &Client, set: &str, state: SetState) -> SetOnNode {
    eventually(set, PATIENCE, async || match on_node(client, set).await? {
        found if found.state == state => Ok(found),
        found => Err(format!("{found:?}")),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preloaded_set_is_mounted_without_the_registry() {
    if cannot_mount().is_some() {
        return;
    }
    let client = client().await;
    install(&client).await;
    for (name, gpu) in [(NODE, "a100"), ("node2", "none")] {
        apply(
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"gpu": gpu}}})
                .to_string(),
        );
    }
    let user = ("robot", "open sesame");
    let mut registry = Distribution::start_with(Configuration::default().with_htpasswd(&[user]));
    let login = Login::password(user.0, user.1);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), "precious").expect("writes");
    let oras = Oras::plain_http().with_login(&registry.host(), &login);
    let digest = oras.push(&format!("{}/precious:v1", registry.host()), folder.path(), &["file"]);
    let volume = volume("precious", &digest);
    for name in ["robot", "secret"] {
        let config = k8s_openapi::ByteString(login.docker_config(NAME).to_string().into_bytes());
        apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE},
            "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": config}})
            .to_string(),
        );
    }

    let key = SealKey::generate().expect("a key");
    let keys = folder.path().join("keys");
    std::fs::create_dir(&keys).expect("a folder");
    std::fs::write(keys.join("key.pem"), key.public().to_pem()).expect("writes");
    let certs = registry.certs_d(&[NAME]);
    let kubeconfig = kubeconfig_of(NODE, folder.path());
    let flags = [
        &format!("--seal-keys={}", keys.display()),
        "--cluster-sets",
        &format!("--namespace={NAMESPACE}"),
        "--gc-high-threshold=0",
        "--gc-low-threshold=0",
        "--gc-minimum-age=0",
    ];
    let mut driver = Driver::start_in_cluster(certs.path(), &flags, Some(&kubeconfig));

    // A Secret that the chart does not list.
    put_set(&client, "preload-models", "a100", Some("secret"), &volume).await;
    let failed = until_state(&client, "preload-models", SetState::Failed).await;
    eprintln!("{}", failed.message);
    assert!(failed.message.contains("clusterSets.pullSecrets"), "{}", failed.message);
    put_set(&client, "preload-models", "a100", Some("robot"), &volume).await;
    let ready = until_state(&client, "preload-models", SetState::Ready).await;
    assert_eq!((ready.id.as_str(), ready.bytes, ready.message.as_str()), (volume.id().as_str(), 8, ""));
    let object = Api::<NodeArtifacts>::all(client.clone()).get(NODE).await.expect("it is there");
    assert_eq!(object.owner_references()[0].kind, "Node");
    eprintln!("{}", run(&mut kubectl(&["get", "na", NODE])));

    // The token of one node cannot write for another.
    let own = client_of(&kubeconfig).await;
    let theirs = client_of(&kubeconfig_of("node2", folder.path())).await;
    let try_write = async |client: Client| {
        let body = json!({"apiVersion": "oras.land/v1alpha1", "kind": "NodeArtifacts",
            "metadata": {"name": NODE}, "status": {"sets": []}});
        let params = PatchParams { dry_run: true, ..PatchParams::apply("oras-csi-driver").force() };
        Api::<NodeArtifacts>::all(client).patch_status(NODE, &params, &Patch::Apply(body)).await
    };
    try_write(own).await.expect("its own");
    eventually("the policy is in force", PATIENCE, async || match try_write(theirs.clone()).await {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            eprintln!("{}", status.message);
            let words = "the driver on the node node2 may not write the NodeArtifacts of node1";
            assert!(status.message.contains(words), "{}", status.message);
            Ok(())
        }
        other => Err(format!("{other:?}")),
    })
    .await;

    // Without the registry, and without the memory of the driver.
    registry.stop();
    driver.kill();
    driver.start_again();
    let sealed = volume.clone().with_set("preload-models").expect("a name").sign(&key, Holder::pod("team"));
    driver.publish_volume("pod", &sealed, None).await.expect("it is on the node");
    assert_eq!(std::fs::read(driver.target("pod").join("file")).expect("it is there"), b"precious");
    driver.unpublish("pod").await.expect("it goes");
    // At least one round of garbage collection: only the set protects the content.
    let evicted = driver.metric("oras_csi_driver_evictions_total");
    driver.kill();
    driver.start_again();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((evicted, driver.metric("oras_csi_driver_evictions_total")), (0.0, 0.0));
    until_state(&client, "preload-models", SetState::Ready).await;

    run(&mut kubectl(&["delete", "clusterartifactset", "preload-models"]));
    eventually("the set is let go of", PATIENCE, async || match on_node(&client, "preload-models").await {
        Err(words) if words.starts_with("nothing about") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // A driver collects garbage when it starts.
    driver.kill();
    driver.start_again();
    eventually("it is collected", PATIENCE, async || {
        match driver.metric("oras_csi_driver_evictions_total") {
            taken if taken > 0.0 => Ok(()),
            taken => Err(format!("{taken}")),
        }
    })
    .await;
    run(&mut kubectl(&["delete", "nodeartifacts", NODE]));
}

/// Returns incompressible bytes.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ length as u64;
    let next = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next(&mut state)).take(length).collect()
}

/// The pull of a pod takes as long beside a preload as it does alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_preload_does_not_slow_down_the_pull_of_a_pod() {
    if cannot_mount().is_some() {
        return;
    }
    let client = client().await;
    install(&client).await;
    apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node3", "labels": {"gpu": "slow"}}}).to_string());
    let registry = Distribution::start();
    let push = |name: &str, length: usize| {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("file"), noise(length)).expect("writes");
        volume(name, &registry.push(&format!("{name}:v1"), folder.path(), &["file"]))
    };
    let (big, first, second) =
        (push("big", 16 * LINE), push("first", 2 * LINE), push("second", 2 * LINE + 8));
    let line = Throttle::start("127.0.0.1", &registry.host(), LINE as u64);
    let certs = tempfile::tempdir().expect("a folder");
    write_hosts_toml(certs.path(), NAME, &format!("http://{}", line.host()));
    let kubeconfig = kubeconfig_of("node3", certs.path());
    let flags = ["--node-id=node3", "--cluster-sets", &format!("--namespace={NAMESPACE}")];
    let driver = Driver::start_in_cluster(certs.path(), &flags, Some(&kubeconfig));
    let timed = async |pod: &str, volume: &CanonicalVolume| {
        let begun = Instant::now();
        driver.publish_volume(pod, volume, None).await.expect("it is mounted");
        begun.elapsed()
    };
    let alone = timed("first", &first).await;
    put_set(&client, "preload-slow", "slow", None, &big).await;
    let before = line.came();
    eventually("it is being fetched ahead", PATIENCE, async || match line.came() - before {
        came if came > 2 * LINE as u64 => Ok(()),
        came => Err(format!("{came} bytes")),
    })
    .await;
    let beside = timed("second", &second).await;
    eprintln!(
        "measured: a pod's pull of 16 MiB over 8 MiB/s takes {alone:?} alone and {beside:?} beside a preload"
    );
    assert!(beside < alone * 2, "{beside:?} beside a preload, {alone:?} alone");
    assert!(driver.metric("oras_csi_driver_preload_sets_ready") == 0.0, "it was under way all the while");
    for pod in ["first", "second"] {
        driver.unpublish(pod).await.expect("it goes");
    }
    // The rest needs no slow line.
    line.set(32 * LINE as u64);
    eventually("it is there in the end", PATIENCE, async || {
        match driver.metric("oras_csi_driver_preload_sets_ready") {
            ready if ready > 0.0 => Ok(()),
            ready => Err(format!("{ready}")),
        }
    })
    .await;
    run(&mut kubectl(&["delete", "clusterartifactset", "preload-slow"]));
}
