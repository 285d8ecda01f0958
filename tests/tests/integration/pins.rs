//! One digest for all pods of a revision and one key for all replicas, on a real API server.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::core::Status;
use kube::{Api, Resource as _};
use oras_csi_tests::admission::{Cluster, create_in, pod};
use oras_csi_tests::cluster::{eventually, kubectl};
use oras_csi_tests::process::run;
use oras_csi_tests::registry::{Distribution, oras};
use oras_csi_tests::webhook::Webhook;
use oras_csi_webhook::pins::object::ArtifactPin;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const SEAL: &str = "oras-csi-seal";
/// How often replicas race for a first pin.
const ROUNDS: usize = 20;

/// Starts a webhook with pins and seals for one namespace, as the chart does.
async fn start(name: &str) -> Cluster {
    let cluster = Cluster::start(name, &[&seal_flag(name), "--keep-pins"]).await;
    let probe = pod("sealed", &json!({"oras.land/artifact": "kind-registry:5000/java-app:v1"}));
    admitted(&cluster, &probe).await;
    cluster
}

/// Returns the flag of the chart for the seal key.
fn seal_flag(name: &str) -> String {
    format!("--seal-secret={name}/{SEAL}")
}

/// Waits until the webhook has a key, and admits a pod.
async fn admitted(cluster: &Cluster, pod: &Value) -> Value {
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("the webhook has a key", PATIENCE, async || {
        create_in(&cluster.pods(), pod, &dry).await.map_err(|status| status.message.clone())
    })
    .await
}

fn push(registry: &Distribution, repository_and_tag: &str, content: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), content).expect("writes");
    registry.push(repository_and_tag, folder.path(), &["file"])
}

/// Copies a manifest with its content.
fn copy(from: &Distribution, what: &str, to: &Distribution, tag: &str) {
    let (from, to) = (format!("{}/{what}", from.host()), format!("{}/{tag}", to.host()));
    run(oras().args(["cp", "--from-plain-http", "--to-plain-http", &from, &to]));
}

/// A pod of a controller that does not exist.
fn owned(name: &str, uid: &str, reference: &str) -> Value {
    let mut pod = pod(name, &json!({"oras.land/artifact": reference}));
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "example.org/v1", "kind": "Trainer",
        "name": "trainer", "uid": uid, "controller": true}]);
    pod
}

fn attribute(pod: &Value, key: &str) -> String {
    let volumes = pod["spec"]["volumes"].as_array().expect("volumes");
    let ours = volumes.iter().find(|volume| volume["csi"]["driver"] == "csi.oras.land").expect("ours");
    ours["csi"]["volumeAttributes"][key].as_str().expect("text").to_owned()
}

/// The digest of a pod's one artifact.
fn digest(pod: &Value) -> String {
    let recipe: Value = serde_json::from_str(&attribute(pod, "csi.oras.land/recipe")).expect("JSON");
    recipe[0]["add"].as_str().expect("text").split_once('@').expect("a digest").1.to_owned()
}

/// Which key a pod's volume is sealed with.
fn key_id(pod: &Value) -> String {
    attribute(pod, "csi.oras.land/seal").split('.').nth(1).expect("a key's id").to_owned()
}

async fn pins(cluster: &Cluster) -> Vec<ArtifactPin> {
    let api = Api::<ArtifactPin>::namespaced(cluster.client.clone(), cluster.webhook.namespace());
    api.list(&ListParams::default()).await.expect("a list").items
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_that_see_different_digests_agree_on_the_first_pin() {
    let cluster = start("racing").await;
    // For the other replica the same name is another registry, where the tag has another digest.
    let elsewhere = Distribution::start();
    let (one, two) = (push(&cluster.registry, "raced:v1", "one"), push(&cluster.registry, "raced:v2", "two"));
    copy(&cluster.registry, &format!("raced@{one}"), &elsewhere, "raced:v2");
    copy(&cluster.registry, &format!("raced@{two}"), &elsewhere, "raced:v1");
    let certs = elsewhere.certs_d(&["kind-registry:5000"]);
    let flag = seal_flag("racing");
    let other = cluster.webhook.start_other(&cluster.client, certs.path(), &[&flag, "--keep-pins"]).await;
    let reference = "kind-registry:5000/raced:v1";
    for (seen, wanted) in [
        (pod("a", &json!({"oras.land/artifact": reference})), &one),
        (Webhook::for_other(pod("b", &json!({"oras.land/artifact": reference}))), &two),
    ] {
        assert_eq!(digest(&admitted(&cluster, &seen).await), *wanted, "each sees its own");
    }

    let mut won = [0, 0];
    for round in 0..ROUNDS {
        let uid = format!("00000000-0000-0000-0000-{round:012}");
        let racers = (0..6).map(|number| {
            let racer = owned(&format!("r{round}-{number}"), &uid, reference);
            if (number + round) % 2 == 0 { racer } else { Webhook::for_other(racer) }
        });
        let racers: Vec<Value> = racers.collect();
        let stored = join_all(racers.iter().map(|racer| cluster.create(racer))).await;
        let digests: BTreeSet<String> = stored
            .iter()
            .map(|stored| digest(stored.as_ref().unwrap_or_else(|status| panic!("{}", status.message))))
            .collect();
        assert_eq!(digests.len(), 1, "round {round}: {digests:?}");
        won[usize::from(digests.contains(&two))] += 1;
    }
    eprintln!("of {ROUNDS} first pins {} were this replica's and {} the other's", won[0], won[1]);
    assert_eq!(pins(&cluster).await.len(), ROUNDS, "one pin an owner");
    other.uninstall(&cluster.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_make_one_key() {
    let name = "together";
    let mut cluster = start(name).await;
    let flag = seal_flag(cluster.webhook.namespace());
    let mut other =
        cluster.webhook.start_other(&cluster.client, cluster.certs.path(), &[&flag, "--keep-pins"]).await;
    let secrets = Api::<Secret>::namespaced(cluster.client.clone(), name);
    let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), name);
    let reference = json!({"oras.land/artifact": "kind-registry:5000/java-app:v1"});
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        cluster.webhook.stop();
        other.stop();
        secrets.delete(SEAL, &DeleteParams::default()).await.expect("it was made");
        maps.delete(SEAL, &DeleteParams::default()).await.expect("it was made");
        std::thread::scope(|scope| {
            scope.spawn(|| cluster.webhook.start_again());
            scope.spawn(|| other.start_again());
        });
        let ids = [pod("a", &reference), Webhook::for_other(pod("b", &reference))];
        let ids = [key_id(&admitted(&cluster, &ids[0]).await), key_id(&admitted(&cluster, &ids[1]).await)];
        assert_eq!(ids[0], ids[1]);
        let map = maps.get(SEAL).await.expect("it was made").data.unwrap_or_default();
        assert_eq!(map.keys().cloned().collect::<Vec<_>>(), [format!("{}.pem", ids[0])]);
        assert!(seen.insert(ids[0].clone()), "a key of its own each time");
    }
    other.uninstall(&cluster.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_without_revisions_keeps_a_digest_until_its_tag_is_edited() {
    let mut cluster = start("edited").await;
    let uid = "11111111-0000-0000-0000-000000000000";
    let first = push(&cluster.registry, "edited:v1", "first");
    let create = async |cluster: &Cluster, name: &str, uid: &str, tag: &str| {
        let pod = owned(name, uid, &format!("kind-registry:5000/edited:{tag}"));
        eventually("it is admitted", PATIENCE, async || {
            cluster.create(&pod).await.map_err(|status| status.message.clone())
        })
        .await
    };
    assert_eq!(digest(&create(&cluster, "a", uid, "v1").await), first);
    let moved = push(&cluster.registry, "edited:v1", "moved");
    let second = push(&cluster.registry, "edited:v2", "second");
    // Clears the cache of the webhook.
    cluster.webhook.stop();
    cluster.webhook.start_again();
    assert_eq!(digest(&create(&cluster, "b", uid, "v1").await), first);
    assert_eq!(digest(&create(&cluster, "c", uid, "v2").await), second, "another tag is another wish");
    assert_eq!(digest(&create(&cluster, "d", uid, "v1").await), first, "and back again");
    let another = "22222222-0000-0000-0000-000000000000";
    assert_eq!(digest(&create(&cluster, "e", another, "v1").await), moved, "the twin: another controller");
    assert_eq!(pins(&cluster).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn denies_the_pod_when_the_api_server_refuses_its_pin() {
    let name = "no-pins";
    let cluster = start(name).await;
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": {"failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{"apiGroups": ["oras.land"], "apiVersions": ["*"],
                "resources": ["artifactpins"], "operations": ["CREATE"]}]},
            "validations": [{"expression": "false", "message": "pins are forbidden today"}]}});
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}}});
    let (policies, bindings) = (
        Api::<ValidatingAdmissionPolicy>::all(cluster.client.clone()),
        Api::<ValidatingAdmissionPolicyBinding>::all(cluster.client.clone()),
    );
    let params = PostParams::default();
    policies.create(&params, &serde_json::from_value(policy).unwrap()).await.expect("accepted");
    bindings.create(&params, &serde_json::from_value(binding).unwrap()).await.expect("accepted");
    let asks =
        |name: &str| owned(name, "33333333-0000-0000-0000-000000000000", "kind-registry:5000/java-app:v1");
    let mut number = 0;
    let status: Box<Status> = eventually("pins are refused", PATIENCE, async || {
        number += 1;
        let mut pod = asks(&format!("p{number}"));
        // Each pod has another owner, because a pin from before the policy stays.
        pod["metadata"]["ownerReferences"][0]["uid"] = json!(format!("33333333-0000-0000-0000-{number:012}"));
        match cluster.create(&pod).await {
            Err(status) => Ok(status),
            Ok(_) => Err("admitted".to_owned()),
        }
    })
    .await;
    eprintln!("{} {}", status.code, status.message);
    assert!(status.message.contains("pins are forbidden today"), "{}", status.message);
    assert!(
        status.message.contains("ArtifactPin") && status.message.contains("java-app"),
        "{}",
        status.message
    );
    let left = pins(&cluster).await.len();
    assert_eq!(left + 1, number, "no pin of the refused one");
    // In contrast: a pod without a controller needs no pin, and without the policy the same pod is admitted.
    let alone = pod("alone", &json!({"oras.land/artifact": "kind-registry:5000/java-app:v1"}));
    cluster.create(&alone).await.expect("a pod without a controller");
    bindings.delete(name, &DeleteParams::default()).await.expect("it was made");
    policies.delete(name, &DeleteParams::default()).await.expect("it was made");
    eventually("pins are made again", PATIENCE, async || {
        cluster.create(&asks("later")).await.map(|_| ()).map_err(|status| status.message.clone())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_writes_no_pin() {
    let cluster = start("dry").await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let pod = owned("dry", "44444444-0000-0000-0000-000000000000", "kind-registry:5000/java-app:v1");
    std::fs::write(file.path(), pod.to_string()).expect("writes");
    let path = file.path().to_str().expect("UTF-8");
    let apply = |more: &[&str]| {
        let words = run(kubectl(&["apply", "-n", "dry", "-o", "json", "-f", path]).args(more));
        serde_json::from_str::<Value>(&words).expect("JSON")
    };
    let dry = apply(&["--dry-run=server"]);
    assert_eq!(digest(&dry), cluster.digest, "it says what would be");
    let api = Api::<ArtifactPin>::namespaced(cluster.client.clone(), "dry");
    assert_eq!(api.list(&ListParams::default()).await.expect("a list").items.len(), 0);
    assert_eq!(digest(&apply(&[])), cluster.digest);
    let made = pins(&cluster).await;
    assert_eq!(made.len(), 1, "the twin writes one");
    let owner: &ObjectMeta = made[0].meta();
    assert_eq!(owner.owner_references.as_ref().map(Vec::len), Some(1), "and it goes with its owner");
}
