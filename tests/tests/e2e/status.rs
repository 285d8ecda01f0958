//! `oras-csi status` and `oras-csi why` on a real node, and the events of the driver beside those of kubelet.

use std::process::{Command, Output};

use oras_csi_tests::node::{Node, SLOW, apply, events, on_this_node, phase, until};
use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::try_run;
use serde_json::json;

use super::{PATIENCE, STAYS, goes_without_a_trace, pod, says, template};

fn command(words: &[&str]) -> Output {
    try_run(Command::new(oras_csi()).args(words))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The row of a pod in the output of `status`.
fn row(name: &str) -> String {
    let output = command(&["status", "-n", "default"]);
    let words = text(&output);
    assert!(output.status.success(), "{words}");
    let row = words.lines().find(|line| line.split_whitespace().next() == Some(name));
    row.unwrap_or_default().to_owned()
}

/// The exit status and the output of `why`.
fn why(target: &str) -> (Option<i32>, String) {
    let output = command(&["why", target, "-n", "default"]);
    (output.status.code(), text(&output))
}

#[test]
fn a_mounted_a_pulling_and_a_refused_pod_are_shown_with_what_to_do() {
    let node = Node::get();
    let digest = node.push("seen:v1", &[("file", "seen")]);
    apply(&pod("seen", &json!({"oras.land/artifact": "kind-registry:5000/seen:v1"}), STAYS));
    until("the pod runs", PATIENCE, || (phase("seen") == "Running").then_some(()));
    let found = row("seen");
    assert!(found.contains("kind-registry:5000/seen:v1") && found.ends_with("mounted"), "{found}");
    let (status, words) = why("seen");
    eprintln!("{words}");
    assert_eq!(status, Some(0), "{words}");
    assert!(words.contains("done        mount") && words.contains("has its volumes"), "{words}");
    let words = until("the events of the driver", PATIENCE, || {
        Some(events("seen")).filter(|words| words.contains("Mounted: "))
    });
    eprintln!("{words}");
    let artifact = format!("kind-registry:5000/seen@{digest}");
    for event in [
        format!("Pulling: Pulling {artifact}"),
        format!("Pulled: Pulled {artifact}"),
        format!("Mounted: Mounted {artifact}"),
    ] {
        assert_eq!(words.matches(&event).count(), 1, "{event}\n{words}");
    }
    // A driver without sets reports within half a minute after its start.
    let status = until("the driver of the node reports", PATIENCE, || {
        let output = command(&["status", "-n", "default", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        status["nodes"][0]["freeBytes"].as_i64().is_some_and(|free| free > 0).then_some(status)
    });
    assert_eq!(
        (&status["nodes"][0]["registered"], &status["hidden"]),
        (&json!(true), &json!([])),
        "{status}"
    );

    let large = "fedcba9876543210".repeat(6 << 20);
    node.push("seen-slow:v1", &[("file", &large)]);
    apply(&pod("seen-slow", &json!({"oras.land/artifact": format!("{SLOW}/seen-slow:v1")}), "true"));
    let found = until("the report has the pull", PATIENCE, || {
        Some(row("seen-slow")).filter(|row| row.contains("pulling ") && row.contains("% of 96.0 MiB"))
    });
    eprintln!("{found}");
    let (status, words) = why("seen-slow");
    eprintln!("{words}");
    assert_eq!(status, Some(0), "{words}");
    assert!(words.contains("waiting     pull        the driver downloads "), "{words}");
    assert!(words.contains("status -n default --watch"), "{words}");

    let template = template("seen-refused", "kind-registry:5000/seen:v9", "Always");
    apply(&on_this_node(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "seen-refused"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "seen-refused"}}, "template": template}}),
    ));
    eprintln!("{}", text(&command(&["status", "-n", "default"])));
    let words = until("the denial is found", PATIENCE, || {
        let (status, words) = why("deploy/seen-refused");
        (status == Some(1)).then_some(words)
    });
    eprintln!("{words}");
    assert!(words.contains("failed      digest      annotation oras.land/artifact"), "{words}");
    assert!(words.contains("explain kind-registry:5000/seen:v9"), "{words}");

    says(&["delete", "deployment", "seen-refused", "--wait=true"]);
    goes_without_a_trace("seen");
    goes_without_a_trace("seen-slow");
}
