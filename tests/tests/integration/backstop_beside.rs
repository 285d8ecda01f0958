//! The chart's ValidatingAdmissionPolicies together with the webhook: they admit all that the webhook produces.

use std::time::Duration;

use kube::api::PostParams;
use oras_csi_tests::admission::{Cluster, create_in, example_pods, pod};
use oras_csi_tests::backstop::{Backstop, LABEL};
use oras_csi_tests::cluster::eventually;
use oras_csi_tests::mutator::Mutator;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const REFERENCE: &str = "kind-registry:5000/java-app:v1";

/// Starts the policies and a webhook that signs seals, for one namespace.
async fn start(name: &str) -> (Backstop, Cluster) {
    let backstop = Backstop::install(name).await;
    let cluster =
        Cluster::start(name, &[&format!("--seal-secret={name}/oras-csi-seal"), "--keep-pins"]).await;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("the webhook has a key", PATIENCE, async || {
        let asks = pod("sealed", &json!({"oras.land/artifact": REFERENCE}));
        create_in(&cluster.pods(), &asks, &dry).await.map(|_| ()).map_err(|status| status.message.clone())
    })
    .await;
    (backstop, cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn admits_every_example_and_its_stored_form() {
    let (backstop, cluster) = start("beside-examples").await;
    for (file, pod) in example_pods() {
        let stored = cluster.create(&pod).await.unwrap_or_else(|status| panic!("{file}: {}", status.message));
        let mut again = stored.clone();
        let name = format!("{}-again", pod["metadata"]["name"].as_str().expect("a name"));
        let annotations = stored["metadata"]["annotations"].clone();
        again["metadata"] = json!({"name": name, "annotations": annotations});
        again.as_object_mut().expect("an object").remove("status");
        cluster.create(&again).await.unwrap_or_else(|status| panic!("{file}, again: {}", status.message));
    }
    backstop.uninstall().await;
}

fn annotates(pod: &Value) -> Value {
    if pod["metadata"]["labels"]["team"] == "annotated" && pod["metadata"]["annotations"].is_null() {
        json!([{"op": "add", "path": "/metadata/annotations", "value": {"oras.land/artifact": REFERENCE}}])
    } else {
        json!([])
    }
}

fn adds_a_sidecar(pod: &Value) -> Value {
    let mut names = pod["spec"]["containers"].as_array().expect("containers").iter();
    if names.any(|container| container["name"] == "sidecar") {
        json!([])
    } else {
        json!([{"op": "add", "path": "/spec/containers/-", "value": {"name": "sidecar", "image": "none"}}])
    }
}

fn takes_the_seal_away(pod: &Value) -> Value {
    let path = "/spec/volumes/0/csi/volumeAttributes/csi.oras.land~1seal";
    let sealed = pod["spec"]["volumes"][0]["csi"]["volumeAttributes"]["csi.oras.land/seal"].is_string();
    if sealed { json!([{"op": "remove", "path": path}]) } else { json!([]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_webhooks_before_and_after_ours_cannot_bypass_it() {
    let name = "beside-others";
    let (backstop, cluster) = start(name).await;
    let before = Mutator::start(&cluster.client, name, "a-before-ours", annotates).await;
    let after = Mutator::start(&cluster.client, name, "z-after-ours", adds_a_sidecar).await;
    let mut asks = pod("annotated", &json!({}));
    asks["metadata"] = json!({"name": "annotated", "labels": {"team": "annotated"}});
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let stored = eventually("both are called", PATIENCE, async || {
        let stored =
            create_in(&cluster.pods(), &asks, &dry).await.map_err(|status| status.message.clone())?;
        let both =
            stored["spec"]["containers"][1]["name"] == "sidecar" && stored["spec"]["volumes"].is_array();
        if both { Ok(stored) } else { Err(stored.to_string()) }
    })
    .await;
    let attributes = &stored["spec"]["volumes"][0]["csi"]["volumeAttributes"];
    assert!(attributes["csi.oras.land/seal"].is_string(), "{stored}");
    for container in stored["spec"]["containers"].as_array().expect("containers") {
        assert_eq!(container["volumeMounts"][0]["mountPath"], "/mnt/oras", "the sidecar too: {stored}");
    }
    for (file, pod) in example_pods() {
        let stored = create_in(&cluster.pods(), &pod, &dry).await;
        stored.unwrap_or_else(|status| panic!("{file}: {}", status.message));
    }
    after.uninstall(&cluster.client).await;
    before.uninstall(&cluster.client).await;

    // Another webhook damages the volume after ours: ours is called again and repairs it, or the policies deny the pod.
    let spoils = Mutator::start(&cluster.client, name, "z-spoils", takes_the_seal_away).await;
    let asks = pod("spoilt", &json!({"oras.land/artifact": REFERENCE}));
    let words = eventually("the seal is taken away", PATIENCE, async || {
        match create_in(&cluster.pods(), &asks, &dry).await {
            Err(status) => Ok(status.message.clone()),
            Ok(stored) => Err(stored.to_string()),
        }
    })
    .await;
    eprintln!("{words}");
    assert!(words.contains("ValidatingAdmissionPolicy") && words.contains("csi.oras.land/seal"), "{words}");
    spoils.uninstall(&cluster.client).await;
    backstop.uninstall().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn admits_a_persistent_volume_only_after_the_webhook_has_rewritten_it() {
    let name = "beside-pv";
    let (backstop, _cluster) = start(name).await;
    let volume = |labels: &Value| {
        json!({"apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": name, "labels": labels},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"],
                "claimRef": {"namespace": name, "name": "claim"},
                "csi": {"driver": "csi.oras.land", "volumeHandle": name,
                    "volumeAttributes": {"oras.artifact.reference": REFERENCE}}}})
    };
    let asked = volume(&json!({LABEL: name, "oras-csi-test": name}));
    backstop.admits("a PersistentVolume that the webhook rewrote", &asked).await;
    let not_asked = volume(&json!({LABEL: name}));
    backstop.denies("one that it never saw", &not_asked, "must have").await;
    backstop.uninstall().await;
}
