//! Pods on a real node: admitted by the webhook and mounted by the driver, which both run as pods of the image of this
//! build.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

mod examples;
mod lifecycle;
mod pages;
mod patches;
mod pods;
mod reboot;
mod seals;
mod sets;
mod startup_taint;
mod status;
mod user_namespaces;
mod workloads;

use std::time::Duration;

use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::node::{kubelet_dir, mounts, on_this_node, until};
use oras_csi_tests::process::run;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(2);
/// Where the chart is installed.
const SYSTEM: &str = "oras-csi-system";
/// A container that runs until SIGTERM, and then ends at once.
const STAYS: &str = "cat /mnt/oras/file; echo; trap 'exit 0' TERM; sleep 1000000 & wait";

/// Returns the output of `kubectl`.
fn says(words: &[&str]) -> String {
    run(&mut kubectl(words))
}

fn pod(name: &str, annotations: &Value, script: &str) -> Value {
    on_this_node(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": "busybox", "command": ["sh", "-c", script]}]}}))
}

/// The template of a controller's pods, with the label `app`.
fn template(app: &str, reference: &str, restart: &str) -> Value {
    let pod = pod("", &json!({"oras.land/artifact": reference}), STAYS);
    let mut template = json!({"metadata": {"annotations": pod["metadata"]["annotations"], "labels": {"app": app}},
        "spec": pod["spec"]});
    template["spec"]["restartPolicy"] = json!(restart);
    template
}

fn uid(pod: &str) -> String {
    says(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"])
}

fn delete(pod: &str) {
    says(&["delete", "pod", pod, "--wait=true", "--timeout=60s"]);
}

/// Deletes a pod, and waits until its volume is unmounted and its folder removed.
fn goes_without_a_trace(pod: &str) {
    let uid = &uid(pod);
    delete(pod);
    until("the volume is unmounted", PATIENCE, || mounts(&[uid]).is_empty().then_some(()));
    let folder = kubelet_dir().join("pods").join(uid);
    until("kubelet has removed the pod's folder", PATIENCE, || (!folder.exists()).then_some(()));
}

fn restart_every_webhook() {
    let system = ["-n", SYSTEM, "deployment/oras-csi-webhook"];
    says(&[&["rollout", "restart"], &system[..]].concat());
    says(&[&["rollout", "status", "--timeout=120s"], &system[..]].concat());
}
