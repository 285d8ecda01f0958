//! Pods with `hostUsers: false`, whose volumes are mounted with mapped ids.

use oras_csi_tests::node::{Node, apply, events, logs_of_finished, on_this_node, until};
use serde_json::{Value, json};

use super::{PATIENCE, delete, goes_without_a_trace, pod, says};

/// Reports whether a handler of the container runtime supports user namespaces.
fn supports_user_namespaces(handler: &str) -> bool {
    let node: Value = serde_json::from_str(&says(&["get", "node", "node1", "-o", "json"])).expect("a node");
    let handlers = node["status"]["runtimeHandlers"].as_array().cloned().unwrap_or_default();
    let of_name = handlers.iter().find(|known| known["name"] == handler);
    of_name.is_some_and(|known| known["features"]["userNamespaces"] == true)
}

fn in_user_namespace(name: &str, script: &str) -> Value {
    let annotations = json!({"oras.land/artifact": "kind-registry:5000/userns:v1",
        "oras.land/artifact.more": "kind-registry:5000/userns:v1", "oras.land/mount-path.more": "/more"});
    let mut pod = pod(name, &annotations, script);
    pod["spec"]["hostUsers"] = json!(false);
    pod
}

#[test]
fn a_pod_in_a_user_namespace_reads_its_volumes() {
    let node = Node::get();
    if !supports_user_namespaces("userns") {
        eprintln!(
            "SKIPPED: pods in user namespaces. The container runtime reports no support for the handler `userns` \
             (kubectl get node node1 -o jsonpath='{{.status.runtimeHandlers}}'). It needs runc-userns \
             (tests/testbed/build e2e) and a kernel with id-mapped mounts for the file systems of the node"
        );
        return;
    }
    node.push("userns:v1", &[("file", "mapped"), ("conf/a", "a")]);
    apply(&json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "userns"},
        "handler": "userns"}));
    let script = "cat /proc/self/uid_map; cat /mnt/oras/file /more/conf/a; echo; stat -c %u:%g /mnt/oras/file \
                  /more/conf/a; touch /mnt/oras/new; touch /more/new; grep -cE ' (/mnt/oras|/more) [^ ]*idmapped' \
                  /proc/self/mountinfo";
    let mut mapped = in_user_namespace("mapped", script);
    mapped["spec"]["runtimeClassName"] = json!("userns");
    // A second container that is no root in its user namespace.
    let mut other = mapped["spec"]["containers"][0].clone();
    other["name"] = json!("other");
    other["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000});
    other["command"] = json!(["sh", "-c", "id -u; cat /mnt/oras/file /more/file; echo"]);
    mapped["spec"]["containers"].as_array_mut().expect("a list").push(other);
    apply(&on_this_node(mapped));
    let words = logs_of_finished("mapped");
    eprintln!("{words}");
    // Either container can be the first in the output.
    let numbers = |line: &str| -> Option<Vec<u64>> {
        line.split_whitespace().map(|number| number.parse().ok()).collect()
    };
    let map = words.lines().filter_map(numbers).find(|map| map.len() == 3).expect("the map of ids");
    assert!(map[0] == 0 && map[1] >= 65_536, "the pod is in the user namespace of the node: {map:?}");
    // Standard output and errors reach the log in any order.
    let output: String = words
        .lines()
        .filter(|line| !line.starts_with("touch: "))
        .fold(String::new(), |all, line| all + line + "\n");
    assert!(output.contains("mappeda\n0:0\n0:0\n"), "{words}");
    assert!(words.contains("1000\nmappedmapped\n"), "{words}");
    assert_eq!(words.matches("Read-only file system").count(), 2, "{words}");
    assert!(words.contains("\n2\n"), "both mounts have mapped ids: {words}");
    goes_without_a_trace("mapped");
}

#[test]
fn an_event_says_that_the_runtime_has_no_user_namespaces() {
    let node = Node::get();
    if supports_user_namespaces("") {
        eprintln!("SKIPPED: the default runtime of this node supports user namespaces");
        return;
    }
    node.push("userns:v1", &[("file", "mapped"), ("conf/a", "a")]);
    apply(&in_user_namespace("unmapped", "cat /mnt/oras/file"));
    let words = until("an event that says why", PATIENCE, || {
        Some(events("unmapped")).filter(|words| words.contains("FailedCreatePodSandBox"))
    });
    assert!(words.contains("runtime does not support user namespaces"), "{words}");
    delete("unmapped");
}
