//! `oras-csi status` and `oras-csi why` on a real API server with a real webhook. There is no kubelet, so the test writes what
//! kubelet, the driver and a controller would write.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use oras_csi_tests::admission::{Cluster, pod};
use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::parts::{oras_csi, testbed};
use oras_csi_tests::process::{run, signal, try_run};
use serde_json::{Value, json};

/// The namespace, and the name of the node. Other tests have others.
const NAMESPACE: &str = "seen";
const NODE: &str = "seen-node";

fn apply(folder: &Path, object: &Value) {
    let file = folder.join("object.json");
    std::fs::write(&file, object.to_string()).expect("writes");
    run(kubectl(&["apply", "-f"]).arg(file));
}

fn patch_status(what: &str, name: &str, status: &Value) {
    let patch = json!({"status": status}).to_string();
    run(&mut kubectl(&[
        "patch",
        what,
        name,
        "-n",
        NAMESPACE,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ]));
}

fn now() -> String {
    run(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])).trim().to_owned()
}

/// Writes an event, as kubelet and controllers do.
fn event(folder: &Path, name: &str, about: &Value, reason: &str, message: &str) {
    apply(
        folder,
        &json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": NAMESPACE},
            "involvedObject": about, "reason": reason, "message": message, "type": "Warning", "lastTimestamp": now()}),
    );
}

fn about(object: &Value) -> Value {
    json!({"kind": object["kind"], "name": object["metadata"]["name"], "namespace": NAMESPACE, "uid": object["metadata"]["uid"]})
}

/// The command with a kubeconfig. The user has no docker config.
fn command(program: &Path, kubeconfig: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    try_run(command.args(words).env("KUBECONFIG", kubeconfig).env("DOCKER_CONFIG", "/nonexistent"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The line of a table that begins with a name.
fn line<'a>(text: &'a str, name: &str) -> &'a str {
    let is_it = |line: &&str| line.split_whitespace().next() == Some(name);
    text.lines().find(is_it).unwrap_or_else(|| panic!("no line {name} in:\n{text}"))
}

/// Writes a kubeconfig of a user with other permissions.
fn kubeconfig_of(user: &str, folder: &Path) -> PathBuf {
    let admin = std::env::var_os("KUBECONFIG").expect("run `make test-integration`");
    let admin = std::fs::read_to_string(admin).expect("reads");
    let mut config: Value = serde_saphyr::from_str(&admin).expect("YAML");
    for entry in config["users"].as_array_mut().expect("users") {
        entry["user"]["as"] = json!(user);
    }
    let file = folder.join(format!("{user}.conf"));
    std::fs::write(&file, config.to_string()).expect("writes");
    file
}

/// Gives a user the permission to read pods and events of the namespace, and nothing in the cluster.
fn let_read(user: &str) {
    let role = ["create", "role", user, "-n", NAMESPACE, "--verb=get,list"];
    run(kubectl(&role)
        .args(["--resource=pods,events,replicasets.apps,artifactpins.oras.land,artifactsets.oras.land"]));
    let binding = ["create", "rolebinding", user, "-n", NAMESPACE, "--role", user, "--user", user];
    run(&mut kubectl(&binding));
}

async fn create(cluster: &Cluster, name: &str, artifact: &str) -> Value {
    let mut object = pod(name, &json!({"oras.land/artifact": format!("kind-registry:5000/{artifact}")}));
    object["spec"]["nodeName"] = json!(NODE);
    let mut created = cluster.create(&object).await.expect("it is admitted");
    created["kind"] = json!("Pod");
    created
}

/// Writes what the driver would report about the node: one pull, with so many of its 100 bytes.
fn report(pulling: &Value, bytes: u64) {
    let pull = json!({"id": volume_id(pulling), "bytes": bytes, "totalBytes": 100, "downloadedBytes": bytes, "since": now()});
    let store =
        json!({"bytes": 1_048_576, "capacityBytes": 10_485_760, "freeBytes": 5_242_880, "damaged": 0});
    let status = json!({"sets": [], "ready": "0/0", "version": "0.1.0", "volumes": 1, "reported": now(),
        "store": store, "pulls": [pull]});
    patch_status("nodeartifacts", NODE, &status);
}

fn volume_id(pod: &Value) -> String {
    let volumes = pod["spec"]["volumes"].as_array().expect("volumes");
    let ours = volumes.iter().find(|volume| volume["csi"]["driver"] == "csi.oras.land").expect("ours");
    ours["csi"]["volumeAttributes"]["csi.oras.land/id"].as_str().expect("an id").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_why_show_mounted_pulling_failing_and_refused_pods() {
    let cluster = Cluster::start(NAMESPACE, &[]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let admin = PathBuf::from(std::env::var_os("KUBECONFIG").expect("run `make test-integration`"));
    let binary = oras_csi();
    let certs = cluster.certs.path().to_string_lossy().into_owned();

    let mounted = create(&cluster, "mounted", "java-app:v1").await;
    let pulling = create(&cluster, "pulling", "acme/tokenizer:v3").await;
    let failing = create(&cluster, "failing", "acme/dataset:2024").await;
    let running =
        json!({"phase": "Running", "conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]});
    patch_status("pod", "mounted", &running);
    let failed = "MountVolume.SetUp failed for volume \"oras-artifacts\" : rpc error: code = Unavailable desc = no route to host";
    event(folder, "failing", &about(&failing), "FailedMount", failed);
    apply(
        folder,
        &json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": NODE},
            "spec": {"drivers": [{"name": "csi.oras.land", "nodeID": NODE, "topologyKeys": []}]}}),
    );
    apply(
        folder,
        &json!({"apiVersion": "oras.land/v1alpha1", "kind": "NodeArtifacts", "metadata": {"name": NODE}, "spec": {}}),
    );
    report(&pulling, 25);
    // A controller reports the denial of the webhook.
    let template = json!({"metadata": {"labels": {"app": "refused"}, "annotations": {"oras.land/artifact": "kind-registry:5000/java-app:v9"}},
        "spec": {"containers": [{"name": "app", "image": "none"}]}});
    apply(
        folder,
        &json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "refused", "namespace": NAMESPACE},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "refused"}}, "template": template}}),
    );
    let set = run(&mut kubectl(&["get", "rs", "refused", "-n", NAMESPACE, "-o", "json"]));
    let set: Value = serde_json::from_str(&set).expect("JSON");
    let mut denied = pod("denied", &template["metadata"]["annotations"]);
    denied["metadata"]["labels"] = json!({"app": "refused"});
    let denial = cluster.refusal(&denied).await.message.clone();
    event(folder, "refused", &about(&set), "FailedCreate", &format!("Error creating: {denial}"));

    let output = command(&binary, &admin, &["status", "-n", NAMESPACE]);
    let words = text(&output);
    eprintln!("{words}");
    assert!(output.status.success(), "{words}");
    assert!(line(&words, NODE).contains("0.1.0") && line(&words, NODE).contains("5.0 MiB (50%)"), "{words}");
    let digest = cluster.digest.split_once(':').map(|(_, hex)| &hex[..12]).expect("a digest");
    let row = line(&words, "mounted");
    assert!(
        row.ends_with("mounted") && row.contains("kind-registry:5000/java-app:v1") && row.contains(digest),
        "{words}"
    );
    assert!(line(&words, "pulling").contains("pulling 25% of 100 B"), "{words}");
    assert!(line(&words, "failing").ends_with("failed: no route to host"), "{words}");
    assert!(!words.contains("Note:"), "{words}");

    // The tag is checked only on request, and moves.
    let tags = ["status", "-n", NAMESPACE, "--check-tags", "--certs-dir", &certs];
    let words = text(&command(&binary, &admin, &tags));
    assert!(line(&words, "mounted").contains("   no   "), "{words}");
    let files = tempfile::tempdir().expect("a folder");
    std::fs::write(files.path().join("file"), "another").expect("writes");
    let moved = cluster.registry.push("java-app:v1", files.path(), &["file"]);
    let words = text(&command(&binary, &admin, &tags));
    let short = moved.split_once(':').map(|(_, hex)| &hex[..12]).expect("a digest");
    assert!(line(&words, "mounted").contains(&format!("yes, to {short}")), "{words}");

    // A pipe gets the changes, and SIGTERM is no failure.
    let mut watch = Command::new(&binary);
    watch.args(["status", "-n", NAMESPACE, "--watch", "--interval", "1"]).env("KUBECONFIG", &admin);
    let watch = watch.stdout(Stdio::piped()).spawn().expect("it starts");
    tokio::time::sleep(Duration::from_secs(4)).await;
    report(&pulling, 50);
    tokio::time::sleep(Duration::from_secs(4)).await;
    signal(watch.id(), "TERM");
    let watched = watch.wait_with_output().expect("it ends");
    let words = text(&watched);
    eprintln!("{words}");
    assert!(watched.status.success(), "{words}");
    let count = |part: &str| words.lines().filter(|line| line.contains(part)).count();
    assert_eq!(
        (count("seen/mounted"), count("seen/failing"), count("pulling 25% of 100 B")),
        (1, 1, 1),
        "{words}"
    );
    assert!(count("pulling 50% of 100 B") >= 1, "{words}");
    report(&pulling, 25);

    let json = command(&binary, &admin, &["status", "-A", "-o", "json"]);
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let rows = json["volumes"].as_array().expect("rows").iter();
    let row =
        rows.clone().find(|row| row["namespace"] == NAMESPACE && row["pod"] == "mounted").expect("a row");
    assert_eq!((&row["state"], &row["id"]), (&json!("mounted"), &json!(volume_id(&mounted))));

    for (target, status, parts) in [
        ("mounted", 0, ["has its volumes", "done        pull"]),
        (
            "pulling",
            0,
            ["waiting     pull        the driver downloads 25% of 100 B", "status -n seen --watch"],
        ),
        (
            "failing",
            1,
            [
                "failed      pull        the volume oras-artifacts: no route to host",
                "explain kind-registry:5000/acme/dataset:2024",
            ],
        ),
        (
            "rs/refused",
            1,
            [
                "failed      digest      annotation oras.land/artifact",
                "explain kind-registry:5000/java-app:v9",
            ],
        ),
        ("refused-x7x7x", 1, ["failed      digest      annotation oras.land/artifact", "java-app:v9"]),
        ("nothing", 2, ["pod/nothing does not exist in the namespace seen", "kubectl get pods -n seen"]),
    ] {
        let output = command(&binary, &admin, &["why", target, "-n", NAMESPACE]);
        let words = text(&output);
        eprintln!("{words}");
        assert_eq!(output.status.code(), Some(status), "{target}: {words}");
        assert!(parts.iter().all(|part| words.contains(part)), "{target}: {words}");
    }

    // A user of the namespace sees what RBAC allows, with a line for each thing that is missing.
    let_read("jane");
    let jane = kubeconfig_of("jane", folder);
    let output = command(&binary, &jane, &["status", "-n", NAMESPACE]);
    let words = text(&output);
    eprintln!("{words}");
    assert!(output.status.success(), "{words}");
    for what in ["nodeartifacts.oras.land", "csinodes.storage.k8s.io", "clusterartifactsets.oras.land"] {
        let note = format!("Note: cannot list {what} in the cluster: RBAC does not allow it");
        assert_eq!(words.matches(&note).count(), 1, "{words}");
    }
    assert!(line(&words, "mounted").ends_with("mounted"), "{words}");
    let output = command(&binary, &jane, &["why", "failing", "-n", NAMESPACE]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let output = command(&binary, &jane, &["status", "-n", "default"]);
    let words = text(&output);
    assert!(
        words.contains("Note: cannot list pods in the namespace default: RBAC does not allow it"),
        "{words}"
    );

    // kubectl finds the binary under its other name.
    let plugins = folder.join("plugins");
    std::fs::create_dir(&plugins).expect("makes");
    std::os::unix::fs::symlink(&binary, plugins.join("kubectl-oras_csi")).expect("links");
    let path = std::env::join_paths([plugins, testbed("kubectl").parent().expect("a folder").to_owned()])
        .expect("a path");
    let mut plugin = kubectl(&["oras-csi", "why", "pulling", "-n", NAMESPACE]);
    let words = run(plugin.env("PATH", path).env("KUBECONFIG", &admin));
    assert!(words.contains("  kubectl oras-csi status -n seen --watch"), "{words}");

    for name in ["mounted", "pulling", "failing"] {
        run(&mut kubectl(&["delete", "pod", name, "-n", NAMESPACE, "--force", "--grace-period=0"]));
    }
    run(&mut kubectl(&["delete", "nodeartifacts,csinode", NODE]));
    cluster.webhook.uninstall(&cluster.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_that_cannot_be_used_is_bad_input() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken");
    std::fs::write(&broken, "{").expect("writes");
    for (words, status) in [
        (vec!["status", "--kubeconfig", "/nonexistent"], 2),
        (vec!["why", "pod", "--context", "nowhere"], 2),
        (vec!["why", "service/x"], 2),
        (vec!["status", "--interval", "5"], 2),
    ] {
        let output = command(&oras_csi(), &broken, &words);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {}", text(&output));
    }
    let closed = folder.path().join("closed");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    std::fs::write(&closed, config.to_string()).expect("writes");
    let output = command(&oras_csi(), &closed, &["status"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("refused"), "{}", text(&output));
}
