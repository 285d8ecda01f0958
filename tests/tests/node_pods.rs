//! Pods on a real node: admitted by the webhook, mounted by the driver, both of them pods of the image of this
//! build and running nowhere else.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

use std::time::{Duration, Instant};

use oras_csi_core::digest::Digest;
use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::node::{
    Node, PRIVATE, apply, events, logs, logs_of_finished, mounts, on_this_node, phase, refused, until,
};
use oras_csi_tests::parts::repository;
use oras_csi_tests::process::{run, try_run};
use oras_csi_tests::registry::Login;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(2);

fn pod(name: &str, annotations: &Value, script: &str) -> Value {
    on_this_node(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": "busybox", "command": ["sh", "-c", script]}]}}))
}

fn uid(pod: &str) -> String {
    run(&mut kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]))
}

fn delete(pod: &str) {
    run(&mut kubectl(&["delete", "pod", pod, "--wait=true", "--timeout=60s"]));
}

/// Deletes a pod, after which nothing of it is mounted on the node any more, nor is its volume's folder there.
fn goes_without_a_trace(pod: &str) {
    let uid = &uid(pod);
    delete(pod);
    until("the volume is unmounted", PATIENCE, || mounts(&[uid]).is_empty().then_some(()));
    let kubelet = std::env::var("ORAS_CSI_KUBELET_DIR").expect("run this by `make test-node`");
    let folder = std::path::Path::new(&kubelet).join("pods").join(uid);
    until("kubelet has removed the pod's folder", PATIENCE, || (!folder.exists()).then_some(()));
}

#[test]
fn a_pod_reads_exactly_what_was_pushed_and_cannot_write() {
    let node = Node::get();
    let jar = "PK a jar, as far as anybody here can tell";
    // Tags are remembered for a while: each test has its own.
    node.push("server:v1", &[("HelloWorldServer.jar", jar), ("config/server.properties", "port=8080\n")]);
    let script = "cd /mnt/oras && find . -type f | sort | xargs sha256sum; touch /mnt/oras/new; rm HelloWorldServer.jar; true";
    let started = Instant::now();
    let words = apply(&pod("reads", &json!({"oras.land/artifact": "kind-registry:5000/server:v1"}), script));
    assert!(words.contains("Warning:") && words.contains("@sha256:") || words.contains("sha256:"), "{words}");
    let logs = logs_of_finished("reads");
    eprintln!("from apply to the end of the pod: {:?}\n{words}{logs}", started.elapsed());
    let sum = |text: &str| Digest::sha256_of(text.as_bytes()).hex().to_owned();
    assert!(logs.contains(&format!("{}  ./HelloWorldServer.jar", sum(jar))), "{logs}");
    assert!(logs.contains(&format!("{}  ./config/server.properties", sum("port=8080\n"))), "{logs}");
    assert_eq!(logs.matches("Read-only file system").count(), 2, "{logs}");
    goes_without_a_trace("reads");
}

#[test]
fn the_node_sees_the_mount_read_only_and_it_outlives_the_driver() {
    let node = Node::get();
    node.push("java-app:v2", &[("file", "two")]);
    let script = "while true; do cat /mnt/oras/file; echo; sleep 1; done";
    apply(&pod("stays", &json!({"oras.land/artifact": "kind-registry:5000/java-app:v2"}), script));
    until("stays runs", PATIENCE, || (phase("stays") == "Running").then_some(()));
    let uid = uid("stays");
    let check = || {
        let found = mounts(&[&uid, "kubernetes.io~csi"]);
        assert_eq!(found.len(), 1, "{found:?}");
        let flags = found[0].split(' ').nth(5).expect("flags").split(',').collect::<Vec<_>>();
        for flag in ["ro", "nosuid", "nodev"] {
            assert!(flags.contains(&flag), "{found:?}");
        }
    };
    check();

    let selector = "app.kubernetes.io/component=driver";
    let driver = || {
        run(&mut kubectl(&[
            "get",
            "pods",
            "-n",
            "oras-csi-system",
            "-l",
            selector,
            "-o",
            "jsonpath={.items[*].metadata.uid}",
        ]))
    };
    let before = driver();
    run(&mut kubectl(&[
        "delete",
        "pod",
        "-n",
        "oras-csi-system",
        "-l",
        selector,
        "--force",
        "--grace-period=0",
    ]));
    check();
    until("another driver is ready", PATIENCE, || {
        let ready = run(&mut kubectl(&[
            "get",
            "pods",
            "-n",
            "oras-csi-system",
            "-l",
            selector,
            "-o",
            "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}",
        ]));
        (driver() != before && ready == "True").then_some(())
    });
    check();
    assert!(logs("stays").contains("two"));
    assert_eq!(run(&mut kubectl(&["exec", "stays", "--", "cat", "/mnt/oras/file"])), "two");

    // The driver that never mounted it unmounts it.
    goes_without_a_trace("stays");
}

#[test]
fn a_private_artifact_is_mounted_with_the_pods_own_secret_and_with_no_other() {
    let node = Node::get();
    node.push_private("team/model:v1", "weights", "of the team");
    let secret = |name: &str, login: &Login| {
        apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": login.docker_config(PRIVATE).to_string()}}));
    };
    secret("team", &Node::private_login());
    secret("strangers", &Login::password("reader", "guessed"));
    let asks = |name: &str, secrets: &[&str]| {
        let mut pod = pod(
            name,
            &json!({"oras.land/artifact": format!("{PRIVATE}/team/model:v1")}),
            "cat /mnt/oras/weights",
        );
        pod["spec"]["imagePullSecrets"] = secrets.iter().map(|name| json!({"name": name})).collect();
        pod
    };
    for (name, secrets) in [("no-secret", &[][..]), ("strange-secret", &["strangers"])] {
        let words = refused(&asks(name, secrets));
        assert!(words.contains("refused with 401") && words.contains("oras.land/pull-secret"), "{words}");
        assert!(!words.contains("guessed"), "{words}");
    }
    apply(&asks("private", &["strangers", "team"]));
    assert_eq!(logs_of_finished("private"), "of the team");
    let named = "jsonpath={.spec.volumes[?(@.csi)].csi.nodePublishSecretRef.name}";
    assert_eq!(run(&mut kubectl(&["get", "pod", "private", "-o", named])), "team");

    goes_without_a_trace("private");
}

#[test]
fn a_tag_that_does_not_exist_is_told_when_the_pod_is_applied() {
    let node = Node::get();
    node.push("untagged:v1", &[("file", "one")]);
    let words =
        refused(&pod("no-tag", &json!({"oras.land/artifact": "kind-registry:5000/untagged:v9"}), "true"));
    eprintln!("{words}");
    assert!(words.contains("kind-registry:5000/untagged:v9") && words.contains("not found"), "{words}");
}

#[test]
fn an_unreachable_registry_is_told_when_the_pod_is_applied() {
    Node::get();
    let words =
        refused(&pod("unreachable", &json!({"oras.land/artifact": "unreachable:5000/java-app:v1"}), "true"));
    eprintln!("{words}");
    assert!(words.contains("unreachable:5000/java-app:v1"), "{words}");
    assert!(words.to_lowercase().contains("refused") || words.contains("connect"), "{words}");
}

#[test]
fn a_registry_that_is_down_when_the_volume_is_mounted_is_told_in_an_event_and_the_pod_starts_once_it_is_back()
{
    let node = Node::get();
    node.push("late:v1", &[("file", "late")]);
    let mut gated =
        pod("late", &json!({"oras.land/artifact": "kind-registry:5000/late:v1"}), "cat /mnt/oras/file");
    gated["spec"]["schedulingGates"] = json!([{"name": "example.org/wait"}]);
    apply(&gated);
    node.registry().stop();
    run(&mut kubectl(&[
        "patch",
        "pod",
        "late",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/spec/schedulingGates"}]"#,
    ]));
    let words = until("an event that says why", PATIENCE, || {
        Some(events("late")).filter(|words| words.contains("FailedMount"))
    });
    eprintln!("{words}");
    assert!(words.contains("kind-registry:5000/late"), "{words}");
    node.registry().start_again();
    assert_eq!(logs_of_finished("late").trim(), "late");
    delete("late");
}

/// Nobody sees the denial of a controller's pods but in its events, so whoever applies it is told at once.
#[test]
fn a_deployment_whose_pods_are_denied_says_so_when_it_is_applied_and_in_its_replica_sets_events() {
    let node = Node::get();
    node.push("attic/java-app:v1", &[("file", "old")]);
    run(&mut kubectl(&["create", "namespace", "no-attic"]));
    apply(
        &json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPolicy", "metadata": {"name": "no-attic"},
        "spec": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "no-attic"}},
            "registries": {"deny": ["kind-registry:5000/attic/**"]}}}),
    );
    run(&mut kubectl(&["wait", "--for=condition=Accepted", "artifactpolicy/no-attic", "--timeout=30s"]));
    for (name, reference, wanted) in [
        (
            "forbidden",
            "kind-registry:5000/attic/java-app:v1",
            "ArtifactPolicy no-attic, rule registries.deny",
        ),
        ("missing", "kind-registry:5000/java-app:v404", "does not exist"),
    ] {
        let template = pod("", &json!({"oras.land/artifact": reference}), "sleep 1000000");
        let mut template = json!({"metadata": template["metadata"], "spec": template["spec"]});
        template["metadata"]["labels"] = json!({"app": name});
        template["metadata"].as_object_mut().expect("an object").remove("name");
        template["spec"]["restartPolicy"] = json!("Always");
        let words = apply(&json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "no-attic"},
            "spec": {"selector": {"matchLabels": {"app": name}}, "template": template}}));
        eprintln!("{words}");
        assert!(words.contains("Warning: pods of this Deployment would be denied"), "{words}");
        assert!(words.contains(wanted) && words.contains(reference), "{words}");
        let selector = "involvedObject.kind=ReplicaSet,reason=FailedCreate";
        let words = until("the ReplicaSet says why it has no pod", PATIENCE, || {
            let words = run(&mut kubectl(&[
                "get",
                "events",
                "-n",
                "no-attic",
                "--field-selector",
                selector,
                "-o",
                "jsonpath={range .items[*]}{.involvedObject.name}: {.message}{\"\\n\"}{end}",
            ]));
            words.lines().find(|line| line.starts_with(&format!("{name}-"))).map(str::to_owned)
        });
        eprintln!("{words}");
        assert!(words.contains("pods.csi.oras.land") && words.contains(wanted), "{words}");
        assert!(words.contains(reference), "{words}");
    }
    run(&mut kubectl(&["delete", "artifactpolicy", "no-attic"]));
    run(&mut kubectl(&["delete", "namespace", "no-attic", "--wait=false"]));
}

/// What each of a Deployment's running pods has printed.
fn printed(app: &str) -> Vec<String> {
    let selector = format!("app={app}");
    let names = run(&mut kubectl(&[
        "get",
        "pods",
        "-l",
        &selector,
        "--field-selector=status.phase=Running",
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ]));
    // One may go in between.
    let logs = |name| try_run(&mut kubectl(&["logs", name]));
    names
        .split_whitespace()
        .map(|name| String::from_utf8_lossy(&logs(name).stdout).trim().to_owned())
        .collect()
}

fn rollout(arguments: &[&str]) {
    run(kubectl(&["rollout"]).args(arguments));
}

#[test]
fn all_pods_of_a_revision_have_one_digest_while_the_tag_moves_and_every_webhook_restarts() {
    let node = Node::get();
    node.push("rollout:v1", &[("file", "one")]);
    let template = pod(
        "",
        &json!({"oras.land/artifact": "kind-registry:5000/rollout:v1"}),
        "cat /mnt/oras/file; echo; sleep 1000000",
    );
    let mut template = json!({"metadata": template["metadata"], "spec": template["spec"]});
    template["metadata"]["labels"] = json!({"app": "rollout"});
    template["metadata"].as_object_mut().expect("an object").remove("name");
    template["spec"]["restartPolicy"] = json!("Always");
    apply(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "rollout"},
        "spec": {"selector": {"matchLabels": {"app": "rollout"}}, "template": template}}));
    until("the first pod has run", PATIENCE, || (printed("rollout") == ["one"]).then_some(()));
    let pins = || run(&mut kubectl(&["get", "artifactpins", "-o", "jsonpath={.items[*].spec.reference}"]));
    assert_eq!(pins(), "kind-registry:5000/rollout:v1");

    node.push("rollout:v1", &[("file", "two")]);
    let system = ["-n", "oras-csi-system", "deployment/oras-csi-webhook"];
    rollout(&[&["restart"], &system[..]].concat());
    rollout(&[&["status", "--timeout=120s"], &system[..]].concat());
    run(&mut kubectl(&["scale", "deployment/rollout", "--replicas=2"]));
    until("a second pod has run", PATIENCE, || (printed("rollout") == ["one", "one"]).then_some(()));

    rollout(&["restart", "deployment/rollout"]);
    rollout(&["status", "deployment/rollout", "--timeout=120s"]);
    until("the next revision has the new bytes", PATIENCE, || {
        (printed("rollout") == ["two", "two"]).then_some(())
    });
    run(&mut kubectl(&["delete", "deployment", "rollout", "--wait=true", "--timeout=60s"]));
    until("the pins went with the workload", PATIENCE, || pins().is_empty().then_some(()));
}

#[test]
fn a_persistent_volume_is_published_through_its_claim_and_to_no_other_namespace() {
    let node = Node::get();
    node.push("shared:v1", &[("file", "of a claim")]);
    apply(&json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "shared"},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": "",
            "claimRef": {"namespace": "default", "name": "shared"},
            "csi": {"driver": "csi.oras.land", "volumeHandle": "shared",
                "volumeAttributes": {"oras.artifact.reference": "kind-registry:5000/shared:v1"}}}}));
    apply(&json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": "shared",
            "resources": {"requests": {"storage": "1Gi"}}}}));
    let mut claims = pod("claims", &json!({}), "cat /data/file; touch /data/new; true");
    claims["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "shared"}}]);
    claims["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    apply(&claims);
    let logs = logs_of_finished("claims");
    assert!(logs.contains("of a claim") && logs.contains("Read-only file system"), "{logs}");
    let attributes =
        run(&mut kubectl(&["get", "pv", "shared", "-o", "jsonpath={.spec.csi.volumeAttributes}"]));
    assert!(attributes.contains("csi.oras.land/seal") && attributes.contains("@sha256:"), "{attributes}");

    // The same attributes inline are another volume, which nobody admitted.
    let mut copied = pod("copied-claim", &json!({}), "cat /data/file");
    let attributes: Value = serde_json::from_str(&attributes).expect("JSON");
    copied["metadata"]["namespace"] = json!("oras-csi-system");
    copied["spec"]["volumes"] = json!([{"name": "data", "csi": {"driver": "csi.oras.land", "readOnly": true,
        "volumeAttributes": attributes}}]);
    copied["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    does_not_mount(&copied);
    delete("claims");
    run(&mut kubectl(&["delete", "pvc", "shared", "--wait=true", "--timeout=60s"]));
    run(&mut kubectl(&["delete", "pv", "shared", "--wait=true", "--timeout=60s"]));
}

/// A pod of the release's namespace, for which the webhook is not asked: the driver says why it does not mount.
fn does_not_mount(pod: &Value) {
    apply(pod);
    let name = pod["metadata"]["name"].as_str().expect("a name");
    let selector = format!("involvedObject.name={name},reason=FailedMount");
    let words = until("an event that says why", PATIENCE, || {
        let words = run(&mut kubectl(&[
            "get",
            "events",
            "-n",
            "oras-csi-system",
            "--field-selector",
            &selector,
            "-o",
            "jsonpath={.items[*].message}",
        ]));
        Some(words).filter(|words| words.contains("PermissionDenied"))
    });
    eprintln!("{words}");
    assert!(
        words.contains("the volume's seal is not for this volume in namespace oras-csi-system"),
        "{words}"
    );
    run(&mut kubectl(&["delete", "pod", "-n", "oras-csi-system", name, "--wait=true", "--timeout=60s"]));
}

#[test]
fn a_volume_that_was_admitted_for_another_namespace_does_not_mount() {
    let node = Node::get();
    node.push("sealed:v1", &[("file", "sealed")]);
    apply(&pod(
        "sealed",
        &json!({"oras.land/artifact": "kind-registry:5000/sealed:v1"}),
        "cat /mnt/oras/file",
    ));
    assert_eq!(logs_of_finished("sealed").trim(), "sealed");
    let volume = run(&mut kubectl(&["get", "pod", "sealed", "-o", "jsonpath={.spec.volumes[?(@.csi)]}"]));
    let volume: Value = serde_json::from_str(&volume).expect("JSON");
    let mut copied = pod("copied", &json!({}), "cat /mnt/oras/file");
    copied["metadata"]["namespace"] = json!("oras-csi-system");
    copied["spec"]["volumes"] = json!([volume]);
    copied["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "oras-artifacts", "mountPath": "/mnt/oras", "readOnly": true}]);
    does_not_mount(&copied);
    // Without a seal it does not get as far as the node.
    copied["spec"]["volumes"][0]["csi"]["volumeAttributes"]
        .as_object_mut()
        .expect("an object")
        .remove("csi.oras.land/seal");
    let words = refused(&copied);
    assert!(words.contains("ValidatingAdmissionPolicy"), "{words}");
    delete("sealed");
}

#[test]
fn every_example_runs() {
    let node = Node::get();
    let files = [("HelloWorldServer.jar", "PK jar"), ("notes.txt", "notes")];
    for artifact in [
        "java-app:v1",
        "java-app:latest",
        "acme/model:v1",
        "acme/tokenizer:v3",
        "acme/dataset:2024",
        "acme/config:v1",
    ] {
        node.push(artifact, &files);
    }
    let mut files: Vec<_> = std::fs::read_dir(repository().join("examples"))
        .expect("examples")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    for file in files.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "yaml"))
    {
        let text = std::fs::read_to_string(&file).expect("reads");
        for mut document in serde_saphyr::from_multiple::<Value>(&text).expect("YAML") {
            let namespace = format!("example-{}", file.file_stem().expect("a name").to_string_lossy());
            let _ = try_run(&mut kubectl(&["create", "namespace", &namespace]));
            if document["kind"] == "ArtifactPolicy" {
                eprint!("{}: {}", file.display(), apply(&document));
                continue;
            }
            document["metadata"]["namespace"] = json!(namespace);
            until("the namespace has its service account", PATIENCE, || {
                let found = try_run(&mut kubectl(&["get", "serviceaccount", "default", "-n", &namespace]));
                found.status.success().then_some(())
            });
            if document["kind"] == "Secret" {
                apply(&document);
                continue;
            }
            eprint!("{}: {}", file.display(), apply(&on_this_node(document)));
            until(&format!("{} runs", file.display()), PATIENCE, || {
                let phases = run(&mut kubectl(&[
                    "get",
                    "pods",
                    "-n",
                    &namespace,
                    "-o",
                    "jsonpath={.items[*].status.phase}",
                ]));
                let phases: Vec<&str> = phases.split_whitespace().collect();
                assert!(!phases.contains(&"Failed"), "{}: a pod failed", file.display());
                (!phases.is_empty() && phases.iter().all(|phase| matches!(*phase, "Running" | "Succeeded")))
                    .then_some(())
            });
            run(&mut kubectl(&["delete", "namespace", &namespace, "--wait=false"]));
        }
        run(&mut kubectl(&["delete", "artifactpolicies", "--all"]));
    }
}
