//! The seal key is replaced while the webhook runs. A new key signs three minutes later, when every node has it.

use std::time::Duration;

use oras_csi_tests::installation::{SYSTEM, restarts, wait_until_ready};
use oras_csi_tests::load::Load;
use oras_csi_tests::node::{Node, on_this_node, try_apply, until};
use serde_json::json;

use crate::says;

const SEAL: &str = "oras-csi-seal";
/// Longer than a new key waits.
const PATIENCE: Duration = Duration::from_mins(6);

/// Returns the key that seals a pod with this artifact that is created now.
fn sealing_key(reference: &str) -> Option<String> {
    let pod = on_this_node(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "probe", "annotations": {"oras.land/artifact": reference}},
        "spec": {"schedulingGates": [{"name": "tests.oras.land/never"}],
            "containers": [{"name": "app", "image": "busybox"}]}}));
    if !try_apply(&pod).status.success() {
        return None;
    }
    let path = "jsonpath={.spec.volumes[?(@.csi)].csi.volumeAttributes.csi\\.oras\\.land/seal}";
    let seal = says(&["get", "pod", "probe", "-o", path]);
    says(&["delete", "pod", "probe", "--grace-period=0"]);
    Some(seal.split('.').nth(1).expect("a seal has a key").to_owned())
}

#[test]
fn a_new_seal_key_replaces_the_old_one_without_a_failed_creation_or_a_delayed_start() {
    let node = Node::get();
    let load = Load::start(node, 2);
    let old = sealing_key(load.reference()).expect("a pod");
    // Another test can have replaced replicas that still end.
    wait_until_ready("webhook", 2);
    let running = restarts("webhook");
    load.during("a new seal key, until it signs", || {
        says(&["delete", "secret", "-n", SYSTEM, SEAL]);
        until("a new key signs", PATIENCE, || sealing_key(load.reference()).filter(|key| *key != old));
    })
    .has_no_failure();
    assert_eq!(restarts("webhook"), running, "no replica was restarted");
    let keys = says(&["get", "configmap", "-n", SYSTEM, SEAL, "-o", "jsonpath={.data}"]);
    assert_eq!(keys.matches(".pem").count(), 2, "seals of both keys are valid: {keys}");
    load.finish();
}
