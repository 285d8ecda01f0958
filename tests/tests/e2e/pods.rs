//! Pods with annotations, with available and unavailable registries.

use std::time::Instant;

use oras_csi_core::digest::Digest;
use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::node::{
    Node, PRIVATE, SLOW, apply, events, logs, logs_of_finished, mounts, phase, refused, until,
};
use oras_csi_tests::process::run;
use oras_csi_tests::registry::Login;
use serde_json::json;

use super::{PATIENCE, delete, goes_without_a_trace, pod, uid};

#[test]
fn a_pod_reads_exactly_what_was_pushed_and_cannot_write() {
    let node = Node::get();
    let jar = "PK the beginning of a jar";
    // The webhook caches tags, so each test has its own.
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

    // A driver that did not mount the volume unmounts it.
    goes_without_a_trace("stays");
}

#[test]
fn a_private_artifact_is_mounted_only_with_the_secret_of_the_pod() {
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
fn applying_a_pod_reports_a_missing_tag() {
    let node = Node::get();
    node.push("untagged:v1", &[("file", "one")]);
    let words =
        refused(&pod("no-tag", &json!({"oras.land/artifact": "kind-registry:5000/untagged:v9"}), "true"));
    eprintln!("{words}");
    assert!(words.contains("kind-registry:5000/untagged:v9") && words.contains("not found"), "{words}");
}

#[test]
fn applying_a_pod_reports_an_unreachable_registry() {
    Node::get();
    let words =
        refused(&pod("unreachable", &json!({"oras.land/artifact": "unreachable:5000/java-app:v1"}), "true"));
    eprintln!("{words}");
    assert!(words.contains("unreachable:5000/java-app:v1"), "{words}");
    assert!(words.to_lowercase().contains("refused") || words.contains("connect"), "{words}");
}

#[test]
fn an_event_reports_an_unavailable_registry_and_the_pod_starts_when_it_is_back() {
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

#[test]
fn events_report_the_progress_of_a_slow_pull() {
    let node = Node::get();
    let large = "0123456789abcdef".repeat(2 << 20);
    node.push("slow:v1", &[("file", &large)]);
    let asks = json!({"oras.land/artifact": format!("{SLOW}/slow:v1")});
    apply(&pod("slow", &asks, "sha256sum /mnt/oras/file"));
    let words = until("an event that says how far it is", PATIENCE, || {
        Some(events("slow")).filter(|words| words.contains("The pull continues in the background"))
    });
    eprintln!("{words}");
    assert!(words.contains(" of 32.0 MiB (") && words.contains(" %), about "), "{words}");
    let sum = Digest::sha256_of(large.as_bytes());
    assert!(logs_of_finished("slow").starts_with(sum.hex()));
    goes_without_a_trace("slow");
}
