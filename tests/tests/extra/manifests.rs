//! The manifests of a user in a repository.

use std::path::Path;

use oras_csi_tests::admission::Cluster;
use oras_csi_tests::process::run;
use oras_csi_tests::registry::Oras;
use serde_json::{Value, json};

use crate::programs::{stored, text, try_apply, wait_until};

/// The reference in all manifests. The tests move its tag.
pub(crate) const REFERENCE: &str = "kind-registry:5000/java-app:v1";

/// Everything that a user can write to mount an artifact: a PersistentVolume with its claim, pods with an inline volume
/// and with an annotation, and a Deployment. `test` is the namespace and the name of the webhook configuration.
pub(crate) fn manifests(test: &str) -> Vec<Value> {
    let csi = json!({"driver": "csi.oras.land", "volumeAttributes": {"oras.artifact.reference": REFERENCE}});
    let mut of_volume = csi.clone();
    of_volume["volumeHandle"] = json!(test);
    let annotations = json!({"oras.land/artifact": REFERENCE});
    let containers = json!([{"name": "app", "image": "none"}]);
    vec![
        json!({"apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": test, "labels": {"oras-csi-test": test}},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": "",
                "claimRef": {"namespace": test, "name": "claim"}, "csi": of_volume}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim", "namespace": test},
            "spec": {"accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": test,
                "resources": {"requests": {"storage": "1Gi"}}}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "inline", "namespace": test},
            "spec": {"volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "model", "csi": csi}],
                "containers": [{"name": "app", "image": "none",
                    "volumeMounts": [{"name": "model", "mountPath": "/model", "readOnly": false}]}]}}),
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "annotation", "namespace": test, "annotations": annotations},
            "spec": {"containers": containers}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app", "namespace": test},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "app"}},
                "template": {"metadata": {"labels": {"app": "app"}, "annotations": annotations},
                    "spec": {"containers": containers}}}}),
    ]
}

/// Writes objects into a folder, one file each.
pub(crate) fn write(objects: &[Value], folder: &Path) {
    for (number, object) in objects.iter().enumerate() {
        // JSON is YAML, too.
        std::fs::write(folder.join(format!("{number}.yaml")), object.to_string()).expect("writes");
    }
}

/// Returns the objects as the API server stores them, with their versions and field managers.
pub(crate) fn all_stored(objects: &[Value]) -> Vec<Value> {
    let word = |object: &Value, pointer: &str| {
        object.pointer(pointer).and_then(Value::as_str).unwrap_or("default").to_owned()
    };
    let find = |object| {
        stored(&word(object, "/kind"), &word(object, "/metadata/namespace"), &word(object, "/metadata/name"))
    };
    objects.iter().map(find).collect()
}

/// Pushes other content to the tag, and checks that a new pod gets it.
pub(crate) fn move_tag(cluster: &mut Cluster, content: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("f"), content).expect("writes");
    let digest = cluster.registry.push("java-app:v1", folder.path(), &["f:text/plain"]);
    assert_ne!(digest, cluster.digest);
    wait_until_resolved(cluster, &digest);
}

/// Moves the tag back to the digest of the cluster.
pub(crate) fn move_tag_back(cluster: &mut Cluster) {
    let image = format!("{}/java-app@{}", cluster.registry.host(), cluster.digest);
    run(&mut Oras::plain_http().command(&["tag", &image, "v1"]));
    let digest = cluster.digest.clone();
    wait_until_resolved(cluster, &digest);
}

/// Starts the webhook again, because it caches the digest of a tag for 30 seconds, and waits until new pods get the digest.
fn wait_until_resolved(cluster: &mut Cluster, digest: &str) {
    cluster.webhook.stop();
    cluster.webhook.start_again();
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "new", "namespace": cluster.webhook.namespace(),
            "annotations": {"oras.land/artifact": REFERENCE}},
        "spec": {"containers": [{"name": "app", "image": "none"}]}});
    wait_until("new pods get the digest", || {
        let output = try_apply(&pod, &["--dry-run=server", "-o", "json"]);
        if text(&output).contains(digest) { Ok(()) } else { Err(text(&output)) }
    });
}
