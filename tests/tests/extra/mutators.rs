//! Admission controllers that change the same pods, before and after the webhook. The API server calls mutating webhooks
//! in the order of the names of their configurations.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oras_csi_tests::admission::Cluster;
use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::parts::testbed;
use oras_csi_tests::process::{Running, free_port, listens, run, try_run};
use oras_csi_tests::registry::tls::Authority;
use rstest::rstest;
use serde_json::{Value, json};

use crate::manifests::{manifests, move_tag, move_tag_back};
use crate::programs::{
    PATIENCE, apply, delete, install_definitions, stored, text, try_apply, wait_until, wait_until_served,
};

/// Selects the namespaces for whose pods the API server calls a controller.
const LABEL: &str = "oras-csi-test-mutated";
/// The container that each controller adds.
const SIDECAR: &str = "sidecar";
/// The image pull policy that each controller sets.
const PULL: &str = "IfNotPresent";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    /// With a `ClusterPolicy`.
    Kyverno,
    /// With a `MutatingPolicy`, the kind of policy that replaces it.
    KyvernoCel,
    Gatekeeper,
}

/// A controller that runs, with its policies.
struct Started {
    controller: Controller,
    running: Option<Running>,
    _folder: tempfile::TempDir,
}

impl Drop for Started {
    fn drop(&mut self) {
        // It would write its configurations again, and without it the API server must not call it.
        drop(self.running.take());
        let configurations = "mutatingwebhookconfigurations,validatingwebhookconfigurations";
        for label in ["webhook.kyverno.io/managed-by=kyverno", "gatekeeper.sh/system=yes"] {
            let _ = try_run(&mut kubectl(&["delete", configurations, "--selector", label]));
        }
        for policy in self.controller.policies() {
            delete(&policy);
        }
    }
}

fn namespace(name: &str) {
    apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}), &[]);
}

impl Controller {
    fn start(self) -> Started {
        let (running, folder) = match self {
            Self::Gatekeeper => start_gatekeeper(),
            Self::Kyverno | Self::KyvernoCel => start_kyverno(),
        };
        Started { controller: self, running: Some(running), _folder: folder }
    }

    /// The policies, which add a label and a container to each pod and set the image pull policy.
    fn policies(self) -> Vec<Value> {
        match self {
            Self::Kyverno => vec![json!({"apiVersion": "kyverno.io/v1", "kind": "ClusterPolicy",
                "metadata": {"name": "pods"},
                "spec": {"rules": [{"name": "pods", "match": {"any": [{"resources": {"kinds": ["Pod"]}}]},
                    "mutate": {"patchStrategicMerge": {
                        "metadata": {"labels": {"policy": "applied"}},
                        "spec": {"containers": [{"(name)": "*", "imagePullPolicy": PULL},
                            {"name": SIDECAR, "image": "none", "imagePullPolicy": PULL}]}}}}]}})],
            Self::KyvernoCel => {
                let expression = format!(
                    "Object{{metadata: Object.metadata{{labels: Object.metadata.labels{{policy: \"applied\"}}}}, \
                     spec: Object.spec{{containers: [Object.spec.containers{{name: \"{SIDECAR}\", image: \"none\", \
                     imagePullPolicy: \"{PULL}\"}}, Object.spec.containers{{name: \"app\", imagePullPolicy: \"{PULL}\"}}]}}}}"
                );
                let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
                    "resources": ["pods"]});
                vec![json!({"apiVersion": "policies.kyverno.io/v1", "kind": "MutatingPolicy",
                    "metadata": {"name": "pods"},
                    "spec": {"matchConstraints": {"resourceRules": [rule]}, "reinvocationPolicy": "IfNeeded",
                        "mutations": [{"patchType": "ApplyConfiguration",
                            "applyConfiguration": {"expression": expression}}]}})]
            }
            Self::Gatekeeper => {
                let pods = json!([{"groups": [""], "versions": ["v1"], "kinds": ["Pod"]}]);
                let assign = |name: &str, location: &str, value: &str| {
                    json!({"apiVersion": "mutations.gatekeeper.sh/v1", "kind": "Assign", "metadata": {"name": name},
                        "spec": {"applyTo": pods, "match": {"scope": "Namespaced"}, "location": location,
                            "parameters": {"assign": {"value": value}}}})
                };
                vec![
                    json!({"apiVersion": "mutations.gatekeeper.sh/v1", "kind": "AssignMetadata",
                        "metadata": {"name": "label"},
                        "spec": {"match": {"scope": "Namespaced", "kinds": [{"apiGroups": [""], "kinds": ["Pod"]}]},
                            "location": "metadata.labels.policy",
                            "parameters": {"assign": {"value": "applied"}}}}),
                    assign("sidecar", &format!("spec.containers[name:{SIDECAR}].image"), "none"),
                    assign("pull", "spec.containers[name:*].imagePullPolicy", PULL),
                ]
            }
        }
    }
}

/// Starts kyverno, which writes its certificates and its webhook configurations itself.
fn start_kyverno() -> (Running, tempfile::TempDir) {
    install_definitions("kyverno.yaml");
    namespace("kyverno");
    let selector = json!({"namespaceSelector": {"matchExpressions": [{"key": LABEL, "operator": "Exists"}]}});
    for (name, data) in
        [("kyverno", json!({"webhooks": selector.to_string()})), ("kyverno-metrics", json!({}))]
    {
        apply(
            &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "kyverno"},
                "data": data}),
            &[],
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let mut command = Command::new(testbed("kyverno"));
    let kubeconfig = std::env::var("KUBECONFIG").expect("it is set");
    command.arg(format!("--kubeconfig={kubeconfig}")).arg(format!("--serverIP=127.0.0.1:{port}"));
    command.args(["--webhookServerHost=127.0.0.1", &format!("--webhookServerPort={port}")]);
    command.args(["--caSecretName=kyverno-ca", "--tlsSecretName=kyverno-tls", "--loggingFormat=json"]);
    command.args(["--disableMetrics", "--controllerRuntimeMetricsAddress=0", "--admissionReports=false"]);
    let account = |name: &str| format!("--{name}ServiceAccountName=system:serviceaccount:kyverno:{name}");
    command.args([account("background"), account("reports")]);
    command.envs([("KYVERNO_NAMESPACE", "kyverno"), ("KYVERNO_SERVICEACCOUNT_NAME", "kyverno")]);
    command.envs([("KYVERNO_DEPLOYMENT", "kyverno"), ("KYVERNO_POD_NAME", "kyverno")]);
    command.envs([("KYVERNO_SVC", "kyverno-svc"), ("KYVERNO_ROLE_NAME", "kyverno")]);
    command.envs([("INIT_CONFIG", "kyverno"), ("METRICS_CONFIG", "kyverno-metrics")]);
    command.env("HOME", folder.path()).current_dir(folder.path());
    let mut running = Running::start(&mut command, "kyverno", folder.path());
    running.wait_until("serving", PATIENCE, || listens(port));
    // The webhook that checks policies must be there before a policy is.
    let names = ["kyverno-policy-mutating-webhook-cfg", "kyverno-resource-mutating-webhook-cfg"];
    for name in names {
        wait_until(name, || {
            let found = try_run(&mut kubectl(&["get", "mutatingwebhookconfiguration", name]));
            if found.status.success() { Ok(()) } else { Err(text(&found)) }
        });
    }
    (running, folder)
}

/// Starts gatekeeper with a certificate of the test, and installs its webhook configuration.
fn start_gatekeeper() -> (Running, tempfile::TempDir) {
    let manifests = std::fs::read_to_string(testbed("gatekeeper.yaml")).expect("reads");
    let manifests: Vec<Value> = serde_saphyr::from_multiple(&manifests).expect("YAML");
    let of_kind = |kind: &'static str| manifests.iter().filter(move |object| object["kind"] == kind);
    for definition in of_kind("CustomResourceDefinition") {
        apply(definition, &["--server-side"]);
    }
    wait_until_served();
    namespace("gatekeeper-system");
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("gatekeeper");
    let identity = authority.server(&["127.0.0.1"]);
    std::fs::copy(identity.certificate(), folder.path().join("tls.crt")).expect("copies");
    std::fs::copy(identity.key(), folder.path().join("tls.key")).expect("copies");
    let (port, health) = (free_port(), free_port());
    let mut command = Command::new(testbed("gatekeeper"));
    command.args([
        "--host=127.0.0.1",
        &format!("--port={port}"),
        &format!("--health-addr=127.0.0.1:{health}"),
    ]);
    command.arg(format!("--cert-dir={}", folder.path().display()));
    command.args(["--disable-cert-rotation", "--debug-use-fake-pod", "--enable-external-data=false"]);
    command.args(["webhook", "status", "controller"].map(|name| format!("--operation=mutation-{name}")));
    let mut running = Running::start(&mut command, "gatekeeper", folder.path());
    running.wait_until("serving", PATIENCE, || listens(port));
    let mut configuration = of_kind("MutatingWebhookConfiguration").next().expect("one").clone();
    let ca = STANDARD.encode(std::fs::read(authority.certificate()).expect("reads"));
    let hook = &mut configuration["webhooks"][0];
    hook["clientConfig"] = json!({"url": format!("https://127.0.0.1:{port}/v1/mutate"), "caBundle": ca});
    hook["namespaceSelector"] = json!({"matchExpressions": [{"key": LABEL, "operator": "Exists"}]});
    // Its own policy lets a pod through if gatekeeper does not answer in one second.
    (hook["failurePolicy"], hook["timeoutSeconds"]) = (json!("Fail"), json!(10));
    apply(&configuration, &[]);
    (running, folder)
}

/// What the webhook wrote to a pod: its annotations, its volumes, and the mount of each container.
fn ours(pod: &Value) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let annotations = pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    let annotations: Vec<_> = annotations.into_iter().filter(|(key, _)| key.contains("oras.land/")).collect();
    let volumes: Vec<Value> = list(&pod["spec"]["volumes"])
        .into_iter()
        .filter(|volume| volume["csi"]["driver"] == "csi.oras.land")
        .collect();
    json!({"annotations": annotations, "volumes": volumes})
}

/// Returns the mounts of a container that show a volume of the webhook.
fn mounts(pod: &Value, container: &str) -> Vec<Value> {
    let names: Vec<Value> = ours(pod)["volumes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|volume| volume["name"].clone())
        .collect();
    let containers = pod["spec"]["containers"].as_array().expect("containers");
    let container = containers.iter().find(|found| found["name"] == container);
    let mounts = container.expect("the container")["volumeMounts"].as_array().cloned().unwrap_or_default();
    mounts.into_iter().filter(|mount| names.contains(&mount["name"])).collect()
}

/// Reports whether a pod has what all policies of a controller add.
fn is_mutated(pod: &Value) -> bool {
    let containers = pod["spec"]["containers"].as_array().expect("containers");
    pod["metadata"]["labels"]["policy"] == "applied"
        && containers.iter().any(|container| container["name"] == SIDECAR)
        && containers.iter().all(|container| container["imagePullPolicy"] == PULL)
}

fn dry_run(pod: &Value) -> Value {
    serde_json::from_str(&apply(pod, &["--dry-run=server", "-o", "json"])).expect("JSON")
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn another_controller_changes_the_same_pods(
    #[values(Controller::Kyverno, Controller::KyvernoCel, Controller::Gatekeeper)] controller: Controller,
) {
    let name = format!("{controller:?}").to_lowercase();
    let mut clusters = Vec::new();
    for order in ["a-first", "z-second"] {
        clusters.push(Cluster::start(&format!("{order}-{name}"), &[]).await);
    }
    let pods = |cluster: &Cluster| -> Vec<Value> {
        manifests(cluster.webhook.namespace()).into_iter().filter(|object| object["kind"] == "Pod").collect()
    };
    let alone: Vec<Vec<Value>> =
        clusters.iter().map(|cluster| pods(cluster).iter().map(dry_run).collect()).collect();
    let started = controller.start();
    for policy in controller.policies() {
        wait_until("the policy is accepted", || {
            let output = try_apply(&policy, &[]);
            if output.status.success() { Ok(()) } else { Err(text(&output)) }
        });
    }
    for (cluster, alone) in clusters.iter_mut().zip(&alone) {
        let test = cluster.webhook.namespace().to_owned();
        let test = test.as_str();
        run(&mut kubectl(&["label", "namespace", test, &format!("{LABEL}=yes")]));
        let plain = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain", "namespace": test},
            "spec": {"containers": [{"name": "app", "image": "none"}]}});
        wait_until("the controller applies all policies", || {
            let pod = dry_run(&plain);
            if is_mutated(&pod) { Ok(()) } else { Err(pod.to_string()) }
        });
        for flags in [&[][..], &["--server-side"]] {
            for (mut pod, alone) in pods(cluster).into_iter().zip(alone) {
                let kind = pod["metadata"]["name"].as_str().expect("a name").to_owned();
                let name = format!("{kind}-{}", flags.len());
                pod["metadata"]["name"] = json!(name);
                apply(&pod, flags);
                let first = stored("pod", test, &name);
                let which = format!("{controller:?}, {test}, {name}");
                assert!(is_mutated(&first), "{which}: {first}");
                assert_eq!(ours(&first), ours(alone), "{which}");
                assert!(ours(&first).to_string().contains(&cluster.digest), "{which}");
                assert_eq!(mounts(&first, "app"), mounts(alone, "app"), "{which}");
                assert!(mounts(&first, "app").iter().all(|mount| mount["readOnly"] == true), "{which}");
                // The volume of an annotation is for all containers, also for one that another webhook adds.
                let is_shared = kind == "annotation";
                assert_eq!(mounts(&first, SIDECAR).len(), usize::from(is_shared), "{which}");

                move_tag(cluster, &name);
                for round in 0..2 {
                    apply(&pod, flags);
                    assert_eq!(stored("pod", test, &name), first, "{which}, round {round}");
                }
                run(&mut kubectl(&["label", "pod", &name, "--namespace", test, "team=ml"]));
                assert_eq!(ours(&stored("pod", test, &name)), ours(&first), "{which}");
                move_tag_back(cluster);
            }
        }
    }
    drop(started);
    for cluster in clusters {
        cluster.webhook.uninstall(&cluster.client).await;
    }
}
