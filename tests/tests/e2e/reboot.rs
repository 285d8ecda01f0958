//! The node reboots: kubelet publishes volumes again, with their old seals.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::node::{
    Node, apply, kubelet_dir, mounts, phase, reboot, until, wait_until_admitted, without_kubelet, work,
};
use oras_csi_tests::process::try_run;
use serde_json::{Value, json};

use super::{PATIENCE, STAYS, SYSTEM, delete, goes_without_a_trace, pod, restart_every_webhook, says, uid};

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
        let keys = std::fs::read_dir(kubelet_dir().join(format!("pods/{pod}/volumes/{folder}"))).ok()?;
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

/// Returns the volume's folder in kubelet's folder.
fn volume_folder(uid: &str) -> PathBuf {
    kubelet_dir().join("pods").join(uid).join("volumes/kubernetes.io~csi/oras-artifacts")
}

/// Reports whether a record of the store has the pod's volume.
fn is_recorded(uid: &str) -> bool {
    let records = std::fs::read_dir(work().join("store/volumes")).expect("the store has records");
    let texts = records.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    texts.into_iter().any(|text| text.contains(uid))
}

/// <https://github.com/kubernetes/kubernetes/issues/60987>
#[test]
fn a_volume_that_kubelet_can_no_longer_unpublish_is_unmounted_when_its_pod_is_deleted() {
    let node = Node::get();
    node.push("reboot:v2", &[("file", "lasting"), ("conf/a", "a")]);
    // The pod `stays` has lost the same file, and exists. The driver must not touch its volume.
    for name in ["goes", "stays"] {
        let annotations = json!({"oras.land/artifact": "kind-registry:5000/reboot:v2",
            "oras.land/artifact.more": "kind-registry:5000/reboot:v2", "oras.land/mount-path.more": "/more"});
        apply(&pod(name, &annotations, STAYS));
        until(&format!("{name} runs"), PATIENCE, || (phase(name) == "Running").then_some(()));
    }
    let (goes, stays) = (uid("goes"), uid("stays"));
    let lose_description = |uid: &str| {
        std::fs::remove_file(volume_folder(uid).join("vol_data.json")).expect("kubelet has written it");
    };
    assert_eq!(mounts(&[&goes, "/volume-subpaths/"]).len(), 1);
    without_kubelet(|| {
        lose_description(&goes);
        says(&["delete", "pod", "goes", "--grace-period=0", "--force"]);
    });
    // Kubelet writes the file of a pod that exists again, when it starts.
    until("kubelet publishes again", PATIENCE, || {
        volume_folder(&stays).join("vol_data.json").exists().then_some(())
    });
    lose_description(&stays);

    let begun = Instant::now();
    until("the volume is unmounted", 2 * PATIENCE, || mounts(&[&goes]).is_empty().then_some(()));
    eprintln!("unmounted after {:?}", begun.elapsed());
    assert!(!is_recorded(&goes));
    let folder = kubelet_dir().join("pods").join(&goes);
    until("kubelet has removed the pod's folder", PATIENCE, || (!folder.exists()).then_some(()));
    // By then, the driver has found the volume of `stays` at least once.
    std::thread::sleep(Duration::from_secs(90).saturating_sub(begun.elapsed()));
    assert_eq!(mounts(&[&stays, "kubernetes.io~csi"]).len(), 1);
    assert!(is_recorded(&stays));
    assert_eq!(says(&["exec", "stays", "--", "cat", "/more/conf/a"]), "a");

    // At its next start, kubelet repairs what it lost.
    without_kubelet(|| ());
    until("kubelet publishes again", PATIENCE, || {
        volume_folder(&stays).join("vol_data.json").exists().then_some(())
    });
    goes_without_a_trace("stays");
    assert!(!is_recorded(&stays));
    // The next test can create pods.
    let annotations = json!({"oras.land/artifact": "kind-registry:5000/reboot:v2"});
    wait_until_admitted(&pod("admitted", &annotations, STAYS));
}
