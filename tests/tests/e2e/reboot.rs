//! The node reboots: kubelet publishes volumes again, with their old seals.

use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::node::{Node, apply, mounts, reboot, until};
use oras_csi_tests::process::try_run;
use serde_json::{Value, json};

use super::{PATIENCE, STAYS, SYSTEM, delete, pod, restart_every_webhook, says, uid};

const SEAL: &str = "oras-csi-seal";

/// A pod that runs until it is deleted, and restarts its containers.
fn keeps_running(name: &str) {
    let mut pod = pod(name, &json!({"oras.land/artifact": "kind-registry:5000/reboot:v1"}), STAYS);
    pod["spec"]["restartPolicy"] = json!("Always");
    apply(&pod);
    until(&format!("{name} runs"), PATIENCE, || runs(name, 0).then_some(()));
}

/// Reports whether its container runs with its volume, after at least so many restarts.
fn runs(name: &str, restarts: u32) -> bool {
    let status =
        "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running}";
    let found = says(&["get", "pod", name, "-o", status]);
    let Some((count, running)) = found.split_once(' ') else { return false };
    let has_run = count.parse::<u32>().is_ok_and(|count| count >= restarts) && !running.is_empty();
    has_run
        && mounts(&[&uid(name), "kubernetes.io~csi"]).len() == 1
        && String::from_utf8_lossy(&try_run(&mut kubectl(&["logs", name])).stdout).trim() == "lasting"
}

fn key_of(name: &str) -> String {
    let path = "jsonpath={.spec.volumes[?(@.csi)].csi.volumeAttributes.csi\\.oras\\.land/seal}";
    let seal = says(&["get", "pod", name, "-o", path]);
    seal.split('.').nth(1).expect("a seal has a key").to_owned()
}

/// Kubelet updates a mounted ConfigMap when it syncs the pod: about every minute, or when the pod changes.
fn driver_sees(what: &str, wanted: impl Fn(&[String]) -> bool) {
    let folder = "kubernetes.io~configmap/seal-keys";
    let mut touched = 0;
    until(what, PATIENCE, || {
        touched += 1;
        let note = format!("tests.oras.land/touched={touched}");
        let driver = "app.kubernetes.io/component=driver";
        says(&["annotate", "pod", "-n", SYSTEM, "-l", driver, "--overwrite", &note]);
        let pod =
            says(&["get", "pod", "-n", SYSTEM, "-l", driver, "-o", "jsonpath={.items[0].metadata.uid}"]);
        let kubelet = std::env::var("ORAS_CSI_KUBELET_DIR").expect("run `make test-e2e`");
        let keys = std::fs::read_dir(format!("{kubelet}/pods/{pod}/volumes/{folder}")).ok()?;
        let keys = keys.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        wanted(&keys.filter(|name| name.strip_suffix(".pem").is_some()).collect::<Vec<_>>()).then_some(())
    });
}

#[test]
fn pods_of_an_old_key_are_published_again_after_a_reboot_until_the_key_is_dropped() {
    let node = Node::get();
    node.push("reboot:v1", &[("file", "lasting")]);
    keeps_running("old");
    let old = key_of("old");

    says(&["delete", "secret", "-n", SYSTEM, SEAL]);
    // A pod that starts now does not wait until every node has the new key.
    restart_every_webhook();
    until("a new key seals", PATIENCE, || {
        let mut probe = pod("probe", &json!({"oras.land/artifact": "kind-registry:5000/reboot:v1"}), "true");
        probe["spec"]["schedulingGates"] = json!([{"name": "example.org/wait"}]);
        apply(&probe);
        let key = key_of("probe");
        delete("probe");
        (key != old).then_some(())
    });
    driver_sees("both keys are on the node", |keys| keys.len() == 2);
    keeps_running("new");
    assert_ne!(key_of("new"), old);

    reboot();
    for name in ["old", "new"] {
        until(&format!("{name} runs again"), PATIENCE, || runs(name, 1).then_some(()));
    }

    let entry = json!({"data": {format!("{old}.pem"): Value::Null}}).to_string();
    says(&["patch", "configmap", "-n", SYSTEM, SEAL, "--type=merge", "-p", &entry]);
    driver_sees("one key is on the node", |keys| keys.len() == 1 && keys[0] != format!("{old}.pem"));
    reboot();
    until("new runs once more", PATIENCE, || runs("new", 2).then_some(()));
    let selector = "involvedObject.name=old,reason=FailedMount";
    let words = until("an event that says why", PATIENCE, || {
        let words =
            says(&["get", "events", "--field-selector", selector, "-o", "jsonpath={.items[*].message}"]);
        Some(words).filter(|words| words.contains("PermissionDenied"))
    });
    eprintln!("{words}");
    assert!(words.contains(&old), "{words}");
    assert!(mounts(&[&uid("old"), "kubernetes.io~csi"]).is_empty());
    delete("old");
    delete("new");
}
