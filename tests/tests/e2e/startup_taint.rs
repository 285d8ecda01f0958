//! The kubelet of the node registers with the startup taint, and the chart is installed with `driver.startupTaint=true`: so
//! every test of this tier shows that the driver removes the taint.

use oras_csi_tests::node::{Node, apply, logs_of_finished, phase, until};
use serde_json::json;

use super::{PATIENCE, STAYS, SYSTEM, delete, pod, says};

/// Returns the taints with the key of the startup taint.
fn startup_taints() -> String {
    says(&["get", "node", "node1", "-o", "jsonpath={.spec.taints[?(@.key==\"oras.land/agent-not-ready\")]}"])
}

#[test]
fn pods_wait_on_a_new_node_until_its_driver_is_registered() {
    let node = Node::get();
    until("the driver has removed the taint of kubelet", PATIENCE, || {
        startup_taints().is_empty().then_some(())
    });
    node.push("tainted:v1", &[("file", "tainted")]);
    let annotations = json!({"oras.land/artifact": "kind-registry:5000/tainted:v1"});
    apply(&pod("evicted", &annotations, STAYS));
    until("evicted runs", PATIENCE, || (phase("evicted") == "Running").then_some(()));

    // The node is as a new one: it has the taint, and its kubelet does not know the driver.
    let absent = r#"{"spec":{"template":{"spec":{"nodeSelector":{"tests.oras.land/absent":""}}}}}"#;
    let driver = ["-n", SYSTEM, "daemonset/oras-csi-driver"];
    says(&[&["patch", "--type=merge", "-p", absent], &driver[..]].concat());
    let registered = || says(&["get", "csinode", "node1", "-o", "jsonpath={.spec.drivers[*].name}"]);
    until("the driver has deregistered", PATIENCE, || registered().is_empty().then_some(()));
    for effect in ["NoExecute", "NoSchedule"] {
        says(&["taint", "node", "node1", &format!("oras.land/agent-not-ready=:{effect}")]);
    }
    says(&["taint", "node", "node1", "tests.oras.land/other=:PreferNoSchedule"]);
    until("a pod without a toleration is evicted", PATIENCE, || phase("evicted").is_empty().then_some(()));
    apply(&pod("waits", &annotations, "cat /mnt/oras/file"));
    let condition = "jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].message}";
    let words = until("the scheduler says why", PATIENCE, || {
        Some(says(&["get", "pod", "waits", "-o", condition])).filter(|words| !words.is_empty())
    });
    assert!(words.contains("untolerated taint"), "{words}");

    let back = r#"[{"op":"remove","path":"/spec/template/spec/nodeSelector/tests.oras.land~1absent"}]"#;
    says(&[&["patch", "--type=json", "-p", back], &driver[..]].concat());
    assert_eq!(logs_of_finished("waits"), "tainted");
    assert_eq!(startup_taints(), "");
    assert!(registered().contains("csi.oras.land"));
    let events = says(&["get", "events", "--field-selector", "involvedObject.name=waits,reason=FailedMount"]);
    assert!(!events.contains("FailedMount"), "the pod started before the driver was registered: {events}");
    let others = "jsonpath={.spec.taints[*].key}";
    assert_eq!(says(&["get", "node", "node1", "-o", others]), "tests.oras.land/other");
    says(&["taint", "node", "node1", "tests.oras.land/other-"]);
    delete("waits");
}
