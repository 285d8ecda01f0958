//! Manifests that are applied again, by the tools that people use: nothing changes as long as the manifest says the same,
//! also if the tag was moved meanwhile.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use oras_csi_tests::admission::{Cluster, push_examples};
use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::parts::testbed;
use rstest::rstest;
use serde_json::{Value, json};

const REFERENCE: &str = "kind-registry:5000/java-app:v1";

/// The manifests of a user, in files.
struct Manifests {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

/// What a user writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    PersistentVolume,
    PodWithInlineVolume,
    PodWithAnnotation,
    PodWithBoth,
}

impl Kind {
    const ALL: [Self; 4] =
        [Self::PersistentVolume, Self::PodWithInlineVolume, Self::PodWithAnnotation, Self::PodWithBoth];

    /// Returns the object. The API server calls the webhook of a test for volumes with its label.
    fn object(self, test: &str, reference: &str) -> Value {
        let csi =
            json!({"driver": "csi.oras.land", "volumeAttributes": {"oras.artifact.reference": reference}});
        let annotations = json!({"oras.land/artifact": reference});
        let name = format!("{test}-{}", format!("{self:?}").to_lowercase());
        let pod = |annotations: Value, volumes: Value, mounts: Value| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": test, "annotations": annotations},
                "spec": {"volumes": volumes, "containers": [{"name": "app", "image": "none", "volumeMounts": mounts}]}})
        };
        // A user may write readOnly: false, which the webhook changes.
        let mounts = json!([{"name": "model", "mountPath": "/model", "readOnly": false}]);
        let volumes = json!([{"name": "scratch", "emptyDir": {}}, {"name": "model", "csi": csi}]);
        match self {
            Self::PersistentVolume => {
                let mut source = csi;
                source["volumeHandle"] = json!(name);
                json!({"apiVersion": "v1", "kind": "PersistentVolume",
                    "metadata": {"name": name, "labels": {"oras-csi-test": test}},
                    "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"],
                        "claimRef": {"namespace": test, "name": "claim"}, "storageClassName": "", "csi": source}})
            }
            Self::PodWithInlineVolume => pod(json!({}), volumes, mounts),
            Self::PodWithAnnotation => pod(annotations, json!([]), json!([])),
            Self::PodWithBoth => pod(annotations, volumes, mounts),
        }
    }
}

/// How a client applies a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    ClientSide,
    ServerSide,
    /// Created by a client-side apply, then taken over.
    TakenOver,
}

impl Tool {
    fn arguments(self, round: usize) -> &'static [&'static str] {
        match self {
            Self::ClientSide => &["apply"],
            Self::TakenOver if round == 0 => &["apply"],
            Self::ServerSide => &["apply", "--server-side"],
            Self::TakenOver => &["apply", "--server-side", "--force-conflicts"],
        }
    }
}

fn output(command: &mut Command) -> Output {
    command.output().expect("it starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

impl Manifests {
    async fn start(test: &str) -> Self {
        let cluster = Cluster::start(test, &[]).await;
        Self { cluster, folder: tempfile::tempdir().expect("a folder") }
    }

    fn test(&self) -> &str {
        self.cluster.webhook.namespace()
    }

    fn write(&self, name: &str, object: &Value) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.json"));
        std::fs::write(&path, object.to_string()).expect("writes");
        path
    }

    /// Pushes other content to the tag.
    fn move_tag(&self) {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("f"), "moved").expect("writes");
        self.cluster.registry.push("java-app:v1", folder.path(), &["f:text/plain"]);
    }
}

fn stored(path: &Path) -> Value {
    let found = output(kubectl(&["get", "-o", "json", "--show-managed-fields=false", "-f"]).arg(path));
    assert!(found.status.success(), "{}", text(&found));
    serde_json::from_slice(&found.stdout).expect("JSON")
}

fn volumes(object: &Value) -> (Value, Value) {
    (object["spec"]["csi"].clone(), object["spec"]["volumes"].clone())
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn the_same_manifest_changes_nothing(
    #[values(Tool::ClientSide, Tool::ServerSide, Tool::TakenOver)] tool: Tool,
) {
    let test = format!("apply-{tool:?}").to_lowercase();
    let manifests = Manifests::start(&test).await;
    for kind in Kind::ALL {
        let path = manifests.write("object", &kind.object(&test, REFERENCE));
        let mut first = Value::Null;
        let mut version = Value::Null;
        for round in 0..4 {
            let applied = output(kubectl(tool.arguments(round)).arg("-f").arg(&path));
            assert!(applied.status.success(), "{kind:?}, round {round}: {}", text(&applied));
            let found = stored(&path);
            if round == 0 {
                manifests.move_tag();
                first = found.clone();
            }
            assert_eq!(volumes(&found), volumes(&first), "{kind:?}, round {round}");
            assert_eq!(
                found["metadata"]["annotations"]["oras.land/written"],
                first["metadata"]["annotations"]["oras.land/written"]
            );
            // Taking over changes the managed fields once.
            let is_settled = round > usize::from(tool == Tool::TakenOver);
            assert!(
                !is_settled || found["metadata"]["resourceVersion"] == version,
                "{kind:?}, round {round}: it was written"
            );
            version = found["metadata"]["resourceVersion"].clone();
        }
        let server = if tool == Tool::ClientSide { &[][..] } else { &["--server-side", "--force-conflicts"] };
        let dry = output(kubectl(&["apply", "--dry-run=server"]).args(server).arg("-f").arg(&path));
        assert!(dry.status.success(), "{kind:?}: {}", text(&dry));
        let diff = output(kubectl(&["diff"]).args(server).arg("-f").arg(&path));
        assert_eq!(diff.status.code(), Some(0), "{kind:?}: {}", text(&diff));
        // The tag is at its old digest for the next kind.
        push_examples(&manifests.cluster.registry);
    }
    manifests.cluster.webhook.uninstall(&manifests.cluster.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_can_be_replaced_by_the_same() {
    let manifests = Manifests::start("apply-replace").await;
    let object = Kind::PersistentVolume.object(manifests.test(), REFERENCE);
    let path = manifests.write("object", &object);
    let created = output(kubectl(&["create", "-f"]).arg(&path));
    assert!(created.status.success(), "{}", text(&created));
    let first = stored(&path);
    for _ in 0..2 {
        let replaced = output(kubectl(&["replace", "-f"]).arg(&path));
        assert!(replaced.status.success(), "{}", text(&replaced));
        assert_eq!(volumes(&stored(&path)), volumes(&first));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_reference_is_denied_with_what_to_do() {
    let manifests = Manifests::start("apply-changed").await;
    let other = "kind-registry:5000/java-app:latest";
    for (kind, words) in [
        (
            Kind::PersistentVolume,
            "delete the PersistentVolume and create it again, or write a new one with another name",
        ),
        (Kind::PodWithInlineVolume, "delete the pod and create it again"),
    ] {
        for (name, server) in [("client", &[][..]), ("server", &["--server-side"])] {
            let manifest = |reference: &str| {
                let mut object = kind.object(manifests.test(), reference);
                object["metadata"]["name"] = json!(format!("{name}-{kind:?}").to_lowercase());
                manifests.write("object", &object)
            };
            let apply = |path: &Path| output(kubectl(&["apply"]).args(server).arg("-f").arg(path));
            let created = apply(&manifest(REFERENCE));
            assert!(created.status.success(), "{}", text(&created));
            let answer = apply(&manifest(other));
            let answer_text = text(&answer);
            assert!(!answer.status.success() && answer_text.contains(words), "{kind:?}: {answer_text}");
            let (before, now) = (format!("was \"{REFERENCE}\""), format!("is \"{other}\" now"));
            assert!(answer_text.contains(&before) && answer_text.contains(&now), "{answer_text}");
        }
    }
}

/// `kubectl` recreates an object only if the API server answers `Invalid`.
#[tokio::test(flavor = "multi_thread")]
async fn apply_with_force_recreates_a_pod() {
    let manifests = Manifests::start("apply-force").await;
    let path = manifests.write("object", &Kind::PodWithInlineVolume.object(manifests.test(), REFERENCE));
    let created = output(kubectl(&["apply", "-f"]).arg(&path));
    assert!(created.status.success(), "{}", text(&created));
    let first = stored(&path);
    let other = "kind-registry:5000/acme/tokenizer:v3";
    manifests.write("object", &Kind::PodWithInlineVolume.object(manifests.test(), other));
    let forced = output(kubectl(&["apply", "--force", "--grace-period=0", "-f"]).arg(&path));
    assert!(forced.status.success(), "{}", text(&forced));
    let second = stored(&path);
    assert_ne!(second["metadata"]["uid"], first["metadata"]["uid"]);
    assert!(second["spec"]["volumes"].to_string().contains("acme/tokenizer"), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chart_can_be_upgraded() {
    let manifests = Manifests::start("apply-helm").await;
    let chart = manifests.folder.path().join("chart");
    std::fs::create_dir_all(chart.join("templates")).expect("a folder");
    std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: models\nversion: 1.0.0\n")
        .expect("writes");
    let objects: Vec<Value> = Kind::ALL.map(|kind| kind.object(manifests.test(), REFERENCE)).into();
    for (number, object) in objects.iter().enumerate() {
        std::fs::write(chart.join(format!("templates/{number}.yaml")), object.to_string()).expect("writes");
    }
    let helm = |arguments: &[&str]| {
        let mut command = Command::new(testbed("helm"));
        output(command.args(arguments).arg(&chart).args(["--namespace", manifests.test()]))
    };
    let installed = helm(&["install", "models"]);
    assert!(installed.status.success(), "{}", text(&installed));
    let pv = manifests.write("object", &objects[0]);
    let first = stored(&pv);
    manifests.move_tag();
    for _ in 0..2 {
        let upgraded = helm(&["upgrade", "models"]);
        assert!(upgraded.status.success(), "{}", text(&upgraded));
        assert_eq!(volumes(&stored(&pv)), volumes(&first));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_of_a_pod_that_exists_gives_a_warning() {
    let manifests = Manifests::start("apply-warning").await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain", "namespace": manifests.test()},
        "spec": {"containers": [{"name": "app", "image": "none"}]}});
    let path = manifests.write("object", &pod);
    let created = output(kubectl(&["apply", "-f"]).arg(&path));
    assert!(created.status.success(), "{}", text(&created));
    let annotate =
        |words: &[&str]| text(&output(kubectl(&["annotate", "--overwrite", "-f"]).arg(&path).args(words)));
    let answer = annotate(&["oras.land/artifact=kind-registry:5000/java-app:v1"]);
    assert!(
        answer.contains("Warning: annotation oras.land/artifact has no effect on a pod that exists"),
        "{answer}"
    );
    assert!(!annotate(&["example.org/a=b"]).contains("Warning"));
}

/// The webhook is called for no update that would succeed without it.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_affects_no_other_update() {
    let mut manifests = Manifests::start("apply-outage").await;
    let mut paths = Vec::new();
    for kind in Kind::ALL {
        let path = manifests.write(&format!("{kind:?}"), &kind.object(manifests.test(), REFERENCE));
        let created = output(kubectl(&["apply", "-f"]).arg(&path));
        assert!(created.status.success(), "{}", text(&created));
        paths.push(path);
    }
    // A pod that is older than the webhook, as from the earlier driver: its mount is not read-only.
    let mut older = Kind::PodWithInlineVolume.object(manifests.test(), REFERENCE);
    older["metadata"] =
        json!({"name": "older", "namespace": manifests.test(), "labels": {"oras-csi-test-replica": "other"}});
    let older = manifests.write("older", &older);
    let created = output(kubectl(&["create", "-f"]).arg(&older));
    assert!(created.status.success(), "{}", text(&created));
    manifests.cluster.webhook.stop();
    let changed = output(kubectl(&["label", "oras-csi-test-replica-", "-f"]).arg(&older));
    assert!(changed.status.success(), "{}", text(&changed));
    paths.push(older);
    for path in &paths {
        for words in [&["label", "team=ml"][..], &["annotate", "example.org/a=b"]] {
            let changed = output(kubectl(&words[..1]).arg("-f").arg(path).args(&words[1..]));
            assert!(changed.status.success(), "{}", text(&changed));
        }
    }
    let image = json!({"spec": {"containers": [{"name": "app", "image": "other"}]}}).to_string();
    for path in &paths[1..] {
        let changed = output(kubectl(&["patch", "-p", &image, "-f"]).arg(path));
        assert!(changed.status.success(), "{}", text(&changed));
    }
}
