//! Flux: its source-controller pulls manifests from a registry, its kustomize-controller applies them.

use std::path::Path;
use std::process::Command;

use oras_csi_tests::admission::Cluster;
use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::parts::testbed;
use oras_csi_tests::process::{Running, free_port, listens, run};
use oras_csi_tests::registry::Oras;
use serde_json::{Value, json};

use crate::manifests::{all_stored, manifests, move_tag, write};
use crate::programs::{PATIENCE, apply, install_definitions, stored, try_stored, wait_until};

/// How often the same manifests are reconciled after they were applied.
const ROUNDS: usize = 3;

/// Both controllers. They act on every namespace.
struct Flux {
    kustomize: Running,
    source: Running,
    _folder: tempfile::TempDir,
}

impl Flux {
    fn start() -> Self {
        install_definitions("source-controller.yaml");
        install_definitions("kustomize-controller.yaml");
        let folder = tempfile::tempdir().expect("a folder");
        let start = |name: &str, arguments: &[String]| {
            let mut command = Command::new(testbed(name));
            command.args(["--metrics-addr=0", "--log-level=debug"]).args(arguments);
            command.env("RUNTIME_NAMESPACE", "default").env("HOME", folder.path());
            Running::start(&mut command, name, folder.path())
        };
        let (files, health) = (free_port(), free_port());
        let mut source = start(
            "source-controller",
            &[
                format!("--health-addr=127.0.0.1:{health}"),
                format!("--storage-path={}", folder.path().display()),
                format!("--storage-addr=127.0.0.1:{files}"),
                format!("--storage-adv-addr=127.0.0.1:{files}"),
            ],
        );
        source.wait_until("serving", PATIENCE, || listens(files));
        let health = free_port();
        let kustomize = start("kustomize-controller", &[format!("--health-addr=127.0.0.1:{health}")]);
        Self { kustomize, source, _folder: folder }
    }

    /// Returns what each server-side apply did, by object (`Pod/team/name`).
    fn applied(&self) -> Vec<Value> {
        let is_apply = |line: &Value| line["msg"] == "server-side apply completed";
        lines(&self.kustomize).into_iter().filter(is_apply).map(|line| line["output"].clone()).collect()
    }

    /// Returns the errors in the logs.
    fn errors(&self) -> Vec<String> {
        let all = [&self.source, &self.kustomize].map(lines).into_iter().flatten();
        all.filter(|line| line["level"] == "error").map(|line| line.to_string()).collect()
    }
}

fn lines(program: &Running) -> Vec<Value> {
    program.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Pushes the files of a folder as `flux push artifact` does.
fn push_manifests(host: &str, folder: &Path) {
    let packed = tempfile::tempdir().expect("a folder");
    run(Command::new("tar").arg("-C").arg(folder).arg("-czf").arg(packed.path().join("layer")).arg("."));
    std::fs::write(packed.path().join("config"), "{}").expect("writes");
    let mut push = Oras::plain_http().command(&["push", &format!("{host}/manifests:v1")]);
    push.args(["--config", "config:application/vnd.cncf.flux.config.v1+json"]);
    push.arg("layer:application/vnd.cncf.flux.content.v1.tar+gzip");
    run(push.current_dir(packed.path()));
}

/// The source of the manifests, and what applies them.
fn objects(test: &str, host: &str) -> [Value; 2] {
    let metadata = json!({"name": "models", "namespace": test});
    [
        json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "OCIRepository", "metadata": metadata,
            "spec": {"interval": "10m", "url": format!("oci://{host}/manifests"), "ref": {"tag": "v1"},
                "insecure": true}}),
        json!({"apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization", "metadata": metadata,
            "spec": {"interval": "10m", "retryInterval": "2s", "prune": true,
                "sourceRef": {"kind": "OCIRepository", "name": "models"}}}),
    ]
}

/// Returns the condition `Ready` of the current generation.
fn ready(object: &Value) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let is_current = |condition: &Value| {
        condition["type"] == "Ready" && condition["observedGeneration"] == object["metadata"]["generation"]
    };
    conditions.into_iter().find(is_current).unwrap_or_default()
}

fn wait_until_ready(kind: &str, test: &str, status: &str) -> Value {
    wait_until(&format!("{kind} is Ready={status}"), || {
        let object = stored(kind, test, "models");
        if ready(&object)["status"] == status { Ok(object) } else { Err(object["status"].to_string()) }
    })
}

/// Reconciles the source, then the manifests, as `flux reconcile kustomization --with-source` does.
fn reconcile(test: &str, round: &str) {
    for kind in ["OCIRepository", "Kustomization"] {
        let request = format!("reconcile.fluxcd.io/requestedAt={round}");
        run(&mut kubectl(&["annotate", "--overwrite", kind, "models", "--namespace", test, &request]));
        wait_until(&format!("{kind} was reconciled"), || {
            let object = stored(kind, test, "models");
            let is_done = object["status"]["lastHandledReconcileAt"] == round;
            let has_settled = ["True", "False"].iter().any(|status| ready(&object)["status"] == *status);
            if is_done && has_settled { Ok(()) } else { Err(object["status"].to_string()) }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flux_reconciles_without_drift() {
    let test = "flux";
    let mut cluster = Cluster::start(test, &[]).await;
    let host = cluster.registry.host();
    let user = manifests(test);
    let folder = tempfile::tempdir().expect("a folder");
    write(&user, folder.path());
    push_manifests(&host, folder.path());
    let flux = Flux::start();
    let [source, kustomization] = objects(test, &host);
    apply(&source, &[]);
    wait_until_ready("OCIRepository", test, "True");
    apply(&kustomization, &[]);
    wait_until_ready("Kustomization", test, "True");

    let first = all_stored(&user);
    let created = flux.applied();
    assert!(created.iter().any(|output| output[format!("Pod/{test}/inline")] == "created"), "{created:?}");
    assert!(first[0]["spec"]["csi"].to_string().contains(&cluster.digest), "{}", first[0]);
    for round in 1..=ROUNDS {
        move_tag(&mut cluster, &format!("moved {round}"));
        let added = format!("round-{round}");
        if round == ROUNDS {
            // The same manifests in another revision, with one more object.
            let more = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": added, "namespace": test}});
            std::fs::write(folder.path().join("more.yaml"), more.to_string()).expect("writes");
            push_manifests(&host, folder.path());
        }
        let before = flux.applied().len();
        reconcile(test, &added);
        wait_until_ready("Kustomization", test, "True");
        wait_until("the manifests were applied", || {
            let is_there = round < ROUNDS || try_stored("ConfigMap", test, &added).is_some();
            let count = flux.applied().len();
            if count > before && is_there { Ok(()) } else { Err(format!("{count} times")) }
        });
        wait_until_ready("Kustomization", test, "True");
        for (now, before) in all_stored(&user).iter().zip(&first) {
            assert_eq!(now, before, "round {round}");
        }
        for output in &flux.applied()[before..] {
            for (object, action) in output.as_object().expect("objects") {
                let expected = if object.starts_with("ConfigMap/") { "created" } else { "unchanged" };
                assert!(action == "unchanged" || action == expected, "round {round}: {object} was {action}");
            }
        }
    }
    let events = run(&mut kubectl(&["get", "events", "--namespace", test, "-o", "json"]));
    let events: Value = serde_json::from_str(&events).expect("JSON");
    let messages: Vec<&Value> =
        events["items"].as_array().expect("a list").iter().map(|event| &event["message"]).collect();
    let has =
        |words: &str| messages.iter().any(|message| message.as_str().unwrap_or_default().contains(words));
    assert!(has("created") && !has("configured"), "{messages:#?}");
    assert_eq!(flux.errors(), Vec::<String>::new());
    cluster.webhook.uninstall(&cluster.client).await;
}

/// The API server lets no client change the source of a volume. The user must read why, and can let Flux recreate the pod.
#[tokio::test(flavor = "multi_thread")]
async fn flux_recreates_a_pod_if_it_is_allowed_to() {
    let test = "flux-force";
    let cluster = Cluster::start(test, &[]).await;
    let host = cluster.registry.host();
    let mut pod =
        manifests(test).into_iter().find(|object| object["metadata"]["name"] == "inline").expect("it");
    let folder = tempfile::tempdir().expect("a folder");
    let push = |pod: &Value| {
        write(std::slice::from_ref(pod), folder.path());
        push_manifests(&host, folder.path());
    };
    push(&pod);
    let _flux = Flux::start();
    for object in objects(test, &host) {
        apply(&object, &[]);
        wait_until_ready(object["kind"].as_str().expect("a kind"), test, "True");
    }
    let first = stored("pod", test, "inline");
    let other = "kind-registry:5000/acme/tokenizer:v3";
    pod["spec"]["volumes"][1]["csi"]["volumeAttributes"]["oras.artifact.reference"] = json!(other);
    push(&pod);
    reconcile(test, "changed");
    let message = ready(&wait_until_ready("Kustomization", test, "False"))["message"].to_string();
    assert!(message.contains("delete the pod and create it again") && message.contains(other), "{message}");
    assert_eq!(stored("pod", test, "inline"), first);

    pod["metadata"]["annotations"] = json!({"kustomize.toolkit.fluxcd.io/force": "enabled"});
    push(&pod);
    reconcile(test, "forced");
    wait_until_ready("Kustomization", test, "True");
    let second = stored("pod", test, "inline");
    assert_ne!(second["metadata"]["uid"], first["metadata"]["uid"]);
    assert!(second["spec"]["volumes"].to_string().contains("acme/tokenizer"), "{second}");
    cluster.webhook.uninstall(&cluster.client).await;
}
