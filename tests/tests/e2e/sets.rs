//! Sets on a real node: named by pods, preloaded, and changed by the tools that users have.

use std::path::Path;
use std::process::Command;

use oras_csi_tests::node::{Node, apply, logs, logs_of_finished, on_this_node, phase, until};
use oras_csi_tests::parts::{oras_csi, repository};
use oras_csi_tests::process::run;
use serde_json::{Value, json};

use super::workloads::have_printed;
use super::{PATIENCE, SYSTEM, delete, pod, restart_every_webhook, says};

const NAME: &str = "kind-registry:5000";

/// The documents of a manifest of `examples/workflows`.
fn example(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(repository().join("examples/workflows").join(file)).expect("reads");
    serde_saphyr::from_multiple(&text).expect("YAML")
}

/// Applies as a GitOps tool does: by server-side apply with its own field manager.
fn apply_from_git(documents: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": documents});
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), list.to_string()).expect("writes");
    let path = file.path().display().to_string();
    says(&["apply", "--server-side", "--field-manager=gitops", "-f", &path]);
}

fn is_ready(set: &str) {
    says(&["wait", "--for=condition=Ready", set, "--timeout=60s"]);
}

/// Returns the fields of an object that a GitOps tool compares.
fn version(object: &str) -> String {
    says(&["get", object, "-o", "jsonpath={.metadata.generation} {.spec}"])
}

#[test]
fn a_change_of_a_set_rolls_a_deployment_and_running_pods_keep_their_files() {
    let node = Node::get();
    node.push("site:v1", &[("file", "one")]);
    node.push("site:v2", &[("file", "two")]);
    let mut documents: Vec<Value> = example("gitops.yaml");
    documents[1] = on_this_node(documents[1].clone());
    // Both at once, as a tool does: pods wait for the set by themselves.
    apply_from_git(&documents);
    have_printed("site", &["one"]);
    let watches = "while true; do cat /mnt/oras/file; echo; sleep 1; done";
    apply(&pod("site-watcher", &json!({"oras.land/artifact-set": "site"}), watches));
    until("the watcher runs", PATIENCE, || (phase("site-watcher") == "Running").then_some(()));
    until("the watcher reads", PATIENCE, || logs("site-watcher").ends_with("one\n").then_some(()));

    // Applying the same again changes nothing.
    let before = ["artifactset/site", "deployment/site"].map(version);
    apply_from_git(&documents);
    assert_eq!(["artifactset/site", "deployment/site"].map(version), before);

    documents[0]["spec"]["recipe"][0]["add"] = json!(format!("{NAME}/site:v2"));
    documents[1]["spec"]["template"]["metadata"]["annotations"]["example.org/artifact"] = json!("v2");
    apply_from_git(&documents);
    says(&["rollout", "status", "deployment/site", "--timeout=120s"]);
    have_printed("site", &["two"]);
    assert!(logs("site-watcher").trim_end().ends_with("one"), "{}", logs("site-watcher"));
    let before = ["artifactset/site", "deployment/site"].map(version);
    apply_from_git(&documents);
    assert_eq!(["artifactset/site", "deployment/site"].map(version), before);
    delete("site-watcher");
    says(&["delete", "deployment/site", "artifactset/site", "--wait=true", "--timeout=60s"]);
}

/// A preloaded cluster set for all namespaces.
fn preloaded(name: &str, reference: &str) -> Value {
    json!({"apiVersion": "oras.land/v1alpha1", "kind": "ClusterArtifactSet", "metadata": {"name": name},
        "spec": {"recipe": [{"add": reference}], "namespaceSelector": {}, "preload": true}})
}

#[test]
fn preloaded_pods_start_without_the_registry() {
    let node = Node::get();
    let digest = node.push("preloaded:v1", &[("file", "ahead")]);
    apply(&preloaded("ahead", &format!("{NAME}/preloaded:v1")));
    is_ready("clusterartifactset/ahead");
    says(&["wait", "--for=condition=Preloaded", "clusterartifactset/ahead", "--timeout=60s"]);
    let counted = says(&[
        "get",
        "clusterartifactset/ahead",
        "-o",
        "jsonpath={.status.nodes.ready}/{.status.nodes.desired}",
    ]);
    assert_eq!(counted, "1/1");
    let told = says(&["get", "nodeartifacts", "-o", "jsonpath={.items[*].status.sets[*].state}"]);
    assert!(told.split(' ').any(|state| state == "Ready"), "{told}");

    node.registry().stop();
    restart_every_webhook();
    let driver = ["-n", SYSTEM, "daemonset/oras-csi-driver"];
    says(&[&["rollout", "restart"], &driver[..]].concat());
    says(&[&["rollout", "status", "--timeout=120s"], &driver[..]].concat());
    let words =
        apply(&pod("by-name", &json!({"oras.land/artifact-set": "ahead"}), "cat /mnt/oras/file; echo"));
    assert_eq!(logs_of_finished("by-name"), "ahead\n", "{words}");
    let pinned =
        says(&["get", "pod", "by-name", "-o", "jsonpath={.metadata.annotations.oras\\.land/pinned}"]);
    assert!(pinned.contains(&digest), "{pinned}");
    delete("by-name");
    node.registry().start_again();
    says(&["delete", "clusterartifactset", "ahead"]);
    let gone = || {
        says(&["get", "nodeartifacts", "-o", "jsonpath={.items[*].status.sets[?(@.name==\"ahead\")].name}"])
    };
    until("the node no longer tells of it", PATIENCE, || gone().is_empty().then_some(()));
}

/// Creates the ConfigMap with the registry of the node that the example mounts.
fn name_the_registry(namespace: &str, host: &str) {
    let hosts = format!("server = \"http://{host}\"\n");
    apply(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "registries", "namespace": namespace},
        "data": {"kind-registry_5000_": hosts}}),
    );
}

#[test]
fn a_job_and_a_batch_script_publish_a_patch_through_a_set() {
    let node = Node::get();
    node.push("java-app:v1", &[("HelloWorldServer.jar", "PK"), ("config/port", "8080")]);
    node.push("acme/config:v1", &[("config/port", "8443")]);
    let namespace = "workflow";
    says(&["create", "namespace", namespace]);
    let (host, certs) = {
        let registry = node.registry();
        (registry.host(), registry.certs_d(&[NAME]))
    };
    name_the_registry(namespace, &host);
    for mut document in example("patch-job.yaml") {
        document["metadata"]["namespace"] = json!(namespace);
        if document["kind"] == "RoleBinding" {
            document["subjects"][0]["namespace"] = json!(namespace);
        }
        if document["kind"] == "Job" {
            let container = &mut document["spec"]["template"]["spec"]["containers"][0];
            container["image"] = json!("localhost/oras-csi:dev");
            container["imagePullPolicy"] = json!("Never");
        }
        apply(&document);
    }
    says(&["wait", "-n", namespace, "--for=condition=Complete", "job/patch-java-app", "--timeout=120s"]);
    says(&["wait", "-n", namespace, "--for=condition=Ready", "artifactset/java-app", "--timeout=60s"]);
    assert_eq!(port_in(namespace, "after-the-job"), "8443\n");

    // Back to the first recipe, and the same again with the batch script.
    let back = json!({"spec": {"recipe": [{"add": format!("{NAME}/java-app:v1")}]}}).to_string();
    says(&["patch", "artifactset/java-app", "-n", namespace, "--type=merge", "-p", &back]);
    ready_again(namespace);
    assert_eq!(port_in(namespace, "before-the-batch"), "8080\n");
    batch(namespace, certs.path());
    ready_again(namespace);
    assert_eq!(port_in(namespace, "after-the-batch"), "8443\n");
    says(&["delete", "namespace", namespace, "--wait=false"]);
}

/// Waits until the recipe of the set is that of its current generation.
fn ready_again(namespace: &str) {
    let both = "jsonpath={.metadata.generation} {.status.recipeGeneration}";
    until("the set is resolved", PATIENCE, || {
        let both = says(&["get", "artifactset/java-app", "-n", namespace, "-o", both]);
        let (wanted, there) = both.split_once(' ').expect("two numbers");
        (wanted == there).then_some(())
    });
}

/// Returns what a pod of the set reads.
fn port_in(namespace: &str, name: &str) -> String {
    let mut pod =
        pod(name, &json!({"oras.land/artifact-set": "java-app"}), "cat /mnt/oras/config/port; echo");
    pod["metadata"]["namespace"] = json!(namespace);
    apply(&pod);
    says(&[
        "wait",
        "-n",
        namespace,
        "--for=jsonpath={.status.phase}=Succeeded",
        &format!("pod/{name}"),
        "--timeout=60s",
    ]);
    says(&["logs", "-n", namespace, name])
}

/// Runs the batch script as a scheduler does: with a shell and the tools of the node.
fn batch(namespace: &str, certs: &Path) {
    let bin = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(oras_csi(), bin.path().join("oras-csi")).expect("a link");
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").expect("a PATH"));
    let script = repository().join("examples/workflows/flux-batch.sh");
    let mut bash = Command::new("bash");
    bash.arg(script).env("PATH", path).env("SET", format!("{namespace}/java-app")).env("CERTS_DIR", certs);
    run(&mut bash);
}

#[test]
fn applying_a_pod_reports_a_missing_or_forbidden_set() {
    Node::get();
    let by = |set: &str| pod("refused", &json!({"oras.land/artifact-set": set}), "true");
    let words = oras_csi_tests::node::refused(&by("not-there"));
    assert!(words.contains("not-there") && words.contains("NotFound"), "{words}");
    let mut others = preloaded("others", &format!("{NAME}/java-app:v1"));
    others["spec"]["namespaceSelector"] = json!({"matchLabels": {"team": "others"}});
    others["spec"]["preload"] = json!(false);
    apply(&others);
    let words = oras_csi_tests::node::refused(&by("others"));
    assert!(words.contains("others") && words.contains("Forbidden"), "{words}");
    says(&["delete", "clusterartifactset", "others"]);
}
