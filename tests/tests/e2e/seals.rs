//! A volume mounts only in the namespace that it was admitted for.

use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::node::{
    Node, apply, logs_of_finished, refused, try_apply, until, wait_until_admitted, work,
};
use oras_csi_tests::process::try_run;
use serde_json::{Value, json};

use super::{PATIENCE, SYSTEM, delete, pod, says};

fn persistent(name: &str, namespace: &str, attributes: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": "",
            "claimRef": {"namespace": namespace, "name": name},
            "csi": {"driver": "csi.oras.land", "volumeHandle": name, "readOnly": true,
                "volumeAttributes": attributes}}})
}

fn claim(name: &str, namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace},
        "spec": {"accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": name,
            "resources": {"requests": {"storage": "1Gi"}}}})
}

/// A pod with the volume of a claim at `/data`.
fn claims(name: &str, namespace: &str, claim: &str, script: &str) -> Value {
    let mut pod = pod(name, &json!({}), script);
    pod["metadata"]["namespace"] = json!(namespace);
    pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    pod
}

/// The volume that the webhook wrote into a pod of the default namespace.
fn volume_of(pod: &str) -> Value {
    let volume = says(&["get", "pod", pod, "-o", "jsonpath={.spec.volumes[?(@.csi)]}"]);
    serde_json::from_str(&volume).expect("JSON")
}

#[test]
fn a_persistent_volume_is_published_through_its_claim_and_to_no_other_namespace() {
    let node = Node::get();
    node.push("shared:v1", &[("file", "of a claim")]);
    apply(&persistent(
        "shared",
        "default",
        &json!({"oras.artifact.reference": "kind-registry:5000/shared:v1"}),
    ));
    apply(&claim("shared", "default"));
    apply(&claims("claims", "default", "shared", "cat /data/file; touch /data/new; true"));
    let logs = logs_of_finished("claims");
    assert!(logs.contains("of a claim") && logs.contains("Read-only file system"), "{logs}");
    let attributes = says(&["get", "pv", "shared", "-o", "jsonpath={.spec.csi.volumeAttributes}"]);
    assert!(attributes.contains("csi.oras.land/seal") && attributes.contains("@sha256:"), "{attributes}");

    // The same attributes inline are another volume, which was not admitted.
    let mut copied = pod("copied-claim", &json!({}), "cat /data/file");
    let attributes: Value = serde_json::from_str(&attributes).expect("JSON");
    copied["metadata"]["namespace"] = json!(SYSTEM);
    copied["spec"]["volumes"] = json!([{"name": "data", "csi": {"driver": "csi.oras.land", "readOnly": true,
        "volumeAttributes": attributes}}]);
    copied["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    does_not_mount(&copied);
    delete("claims");
    says(&["delete", "pvc", "shared", "--wait=true", "--timeout=60s"]);
    says(&["delete", "pv", "shared", "--wait=true", "--timeout=60s"]);
}

/// Returns the driver's message for a pod whose volume it refuses, and deletes the pod.
fn refusal(namespace: &str, name: &str) -> String {
    let selector = format!("involvedObject.name={name},reason=FailedMount");
    let words = until("an event that says why", PATIENCE, || {
        let all = ["get", "events", "-n", namespace, "--field-selector", &selector];
        let words = says(&[&all[..], &["-o", "jsonpath={.items[*].message}"]].concat());
        Some(words).filter(|words| words.contains("PermissionDenied"))
    });
    eprintln!("{words}");
    says(&["delete", "pod", "-n", namespace, name, "--wait=true", "--timeout=60s"]);
    words
}

/// Returns the driver's message for a pod of the release's namespace, for which the webhook is not called.
fn does_not_mount(pod: &Value) {
    apply(pod);
    let words = refusal(SYSTEM, pod["metadata"]["name"].as_str().expect("a name"));
    let wanted = format!("the volume's seal is not valid for this volume in namespace {SYSTEM}");
    assert!(words.contains(&wanted), "{words}");
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
    let volume = volume_of("sealed");
    let mut copied = pod("copied", &json!({}), "cat /mnt/oras/file");
    copied["metadata"]["namespace"] = json!(SYSTEM);
    copied["spec"]["volumes"] = json!([volume]);
    copied["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "oras-artifacts", "mountPath": "/mnt/oras", "readOnly": true}]);
    does_not_mount(&copied);
    // Without a seal it is not admitted.
    copied["spec"]["volumes"][0]["csi"]["volumeAttributes"]
        .as_object_mut()
        .expect("an object")
        .remove("csi.oras.land/seal");
    let words = refused(&copied);
    assert!(words.contains("ValidatingAdmissionPolicy"), "{words}");
    delete("sealed");
}

/// Removes an object of the cluster until this value is dropped.
struct Away(Value);

impl Away {
    fn take(kind: &str, name: &str) -> Self {
        let mut object: Value =
            serde_json::from_str(&says(&["get", kind, name, "-o", "json"])).expect("JSON");
        let metadata = object["metadata"].as_object_mut().expect("an object");
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "labels" | "annotations"));
        says(&["delete", kind, name]);
        Self(object)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        apply(&self.0);
    }
}

/// Without the webhook and the policies, a user with permission for PersistentVolumes writes the attributes that kubelet
/// adds: with a CSIDriver object kubelet overwrites them, and without it the driver refuses the volume.
#[test]
fn forged_kubelet_attributes_are_refused() {
    let node = Node::get();
    node.push("forged:v1", &[("file", "forged")]);
    let honest = json!({"oras.artifact.reference": "kind-registry:5000/forged:v1"});
    apply(&persistent("forged", "default", &honest));
    let sealed = says(&["get", "pv", "forged", "-o", "jsonpath={.spec.csi.volumeAttributes}"]);
    let mut attributes: Value = serde_json::from_str(&sealed).expect("JSON");
    says(&["delete", "pv", "forged", "--wait=true", "--timeout=60s"]);
    for (key, value) in [("pod.namespace", "default"), ("pod.name", "honest"), ("pod.uid", "0123")] {
        attributes[format!("csi.storage.k8s.io/{key}")] = json!(value);
    }

    let gates = [
        Away::take("mutatingwebhookconfiguration", "oras-csi"),
        Away::take("validatingadmissionpolicybinding", "oras-csi-persistentvolumes"),
    ];
    says(&["create", "namespace", "thief"]);
    let has = |namespace: &str| {
        let volume = persistent("forged", namespace, &attributes);
        until("the policies are gone", PATIENCE, || try_apply(&volume).status.success().then_some(()));
        apply(&claim("forged", namespace));
    };
    let gone = |namespace: &str| {
        says(&["delete", "pvc", "-n", namespace, "forged", "--wait=true", "--timeout=60s"]);
        says(&["delete", "pv", "forged", "--wait=true", "--timeout=60s"]);
    };
    let script = "cat /data/file";
    has("thief");
    until("the namespace has its service account", PATIENCE, || {
        try_run(&mut kubectl(&["get", "serviceaccount", "default", "-n", "thief"]))
            .status
            .success()
            .then_some(())
    });
    apply(&claims("thief", "thief", "forged", script));
    let words = refusal("thief", "thief");
    assert!(words.contains("the volume's seal is not valid for this volume in namespace thief"), "{words}");

    let pod_info = |on: bool| {
        let patch = json!({"spec": {"podInfoOnMount": on}}).to_string();
        says(&["patch", "csidriver", "csi.oras.land", "-p", &patch]);
    };
    pod_info(false);
    apply(&claims("thief-again", "thief", "forged", script));
    let words = refusal("thief", "thief-again");
    pod_info(true);
    assert!(words.contains("csi.storage.k8s.io/ attributes do not come from kubelet"), "{words}");
    gone("thief");

    // The twin differs in its claim.
    has("default");
    apply(&claims("honest", "default", "forged", script));
    assert_eq!(logs_of_finished("honest"), "forged");
    delete("honest");
    gone("default");
    drop(gates);
    says(&["delete", "namespace", "thief", "--wait=false"]);
    // Without its configuration, the webhook is not ready after some seconds. The next test can create pods.
    let annotations = json!({"oras.land/artifact": "kind-registry:5000/forged:v1"});
    wait_until_admitted(&pod("admitted", &annotations, "true"));
}

/// Kubelet runs the pods of a folder on the node without the API server, and refuses CSI volumes there. What it
/// would ask the driver otherwise is for the pod's namespace, as for any other pod.
#[test]
fn kubelet_refuses_csi_volumes_of_static_pods() {
    let node = Node::get();
    node.push("static:v1", &[("file", "static")]);
    let asks = json!({"oras.land/artifact": "kind-registry:5000/static:v1"});
    apply(&pod("admitted", &asks, "cat /mnt/oras/file"));
    assert_eq!(logs_of_finished("admitted"), "static");
    let write = |name: &str, volume: &Value| {
        let mut copy = pod(name, &json!({}), "ls /mnt/oras && echo has run");
        copy["metadata"]["namespace"] = json!("default");
        copy["spec"]["volumes"] = json!([volume]);
        copy["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "oras-artifacts", "mountPath": "/mnt/oras", "readOnly": true}]);
        let file = work().join("static-pods").join(format!("{name}.yaml"));
        std::fs::write(&file, copy.to_string()).expect("kubelet has a folder for static pods");
        file
    };
    let refused = write("sealed-copy", &volume_of("admitted"));
    // The twin differs only in the volume.
    let twin = write("twin", &json!({"name": "oras-artifacts", "emptyDir": {}}));
    assert_eq!(logs_of_finished("twin-node1").trim(), "has run");
    until("kubelet says why", PATIENCE, || {
        let log = std::fs::read_to_string(work().join("log/kubelet.log")).expect("kubelet has a log");
        let words = "static pods may not reference csidrivers";
        log.lines().any(|line| line.contains("sealed-copy.yaml") && line.contains(words)).then_some(())
    });
    let found = try_run(&mut kubectl(&["get", "pod", "sealed-copy-node1"]));
    assert!(!found.status.success(), "it is no pod");
    for file in [refused, twin] {
        std::fs::remove_file(file).expect("it was written");
    }
    until("the static pod is gone", PATIENCE, || {
        let found = try_run(&mut kubectl(&["get", "pod", "twin-node1"]));
        (!found.status.success()).then_some(())
    });
    delete("admitted");
}
