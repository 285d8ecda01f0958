//! Pull secrets: which are used, in which order, and which one the driver gets.

use std::sync::Arc;

use crate::support::{Bench, default_digest, inline, patched, pod};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oras_csi_core::credentials::{Administrator, AdministratorSettings};
use oras_csi_core::dns_name::ObjectName;
use oras_csi_webhook::credentials::{
    CredentialSources, ManifestSecrets, NoSecrets, Secret, SecretError, Secrets,
};
use serde_json::{Value, json};

fn docker_config(host: &str, password: &str) -> String {
    json!({"auths": {host: {"username": "u", "password": password}}}).to_string()
}

fn secret_in(namespace: &str, name: &str, password: &str) -> Value {
    let config = STANDARD.encode(docker_config("private.io", password));
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": config}})
}

/// A Secret for another registry.
fn secret_for(host: &str, name: &str) -> Value {
    let mut secret = secret(name, "x");
    secret["data"][".dockerconfigjson"] = json!(STANDARD.encode(docker_config(host, "alice")));
    secret
}

fn secret(name: &str, password: &str) -> Value {
    secret_in("team", name, password)
}

fn account(name: &str, secrets: &[&str]) -> Value {
    let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "team"},
        "imagePullSecrets": secrets})
}

fn pod_with_secrets(reference: &str, pull_secrets: &[&str]) -> Value {
    let mut pod = pod(&[("artifact", reference)]);
    pod["spec"]["imagePullSecrets"] = pull_secrets.iter().map(|name| json!({"name": name})).collect();
    pod
}

/// Returns `nodePublishSecretRef` of the annotations' volume.
async fn publish_secret(bench: &Bench, pod: &Value) -> Value {
    let admitted = bench.admitted(pod).await;
    let again = bench.admit(&admitted).await.unwrap();
    assert!(again.patch().0.is_empty(), "twice is once: {:?}", again.patch());
    let volumes = admitted["spec"]["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["csi"]["driver"] == "csi.oras.land").unwrap();
    volume["csi"]["nodePublishSecretRef"].clone()
}

#[tokio::test]
async fn the_accepted_secret_is_named_for_the_driver() {
    let bench = Bench::with_secrets(&[
        secret("alices", "alice"),
        secret("bobs", "bob"),
        account("default", &["bobs"]),
        account("robot", &["alices"]),
    ]);
    let alice = "private.io/alice/model:v1";
    assert_eq!(
        publish_secret(&bench, &pod_with_secrets(alice, &["alices"])).await,
        json!({"name": "alices"})
    );
    assert_eq!(
        publish_secret(&bench, &pod_with_secrets(alice, &["bobs", "alices"])).await,
        json!({"name": "alices"})
    );
    let by_account = "private.io/bob/model:v1";
    assert_eq!(publish_secret(&bench, &pod_with_secrets(by_account, &[])).await, json!({"name": "bobs"}));
    let mut robot = pod_with_secrets(alice, &[]);
    robot["spec"]["serviceAccountName"] = json!("robot");
    assert_eq!(publish_secret(&bench, &robot).await, json!({"name": "alices"}));
    let mut named = pod_with_secrets(alice, &[]);
    named["metadata"]["annotations"]["oras.land/pull-secret"] = json!("alices");
    assert_eq!(publish_secret(&bench, &named).await, json!({"name": "alices"}));
    // A public artifact needs no Secret, so the volume names none.
    assert_eq!(publish_secret(&bench, &pod_with_secrets("r.io/public:v1", &["alices"])).await, Value::Null);
    let digest = default_digest(alice);
    let by_digest = pod_with_secrets(&format!("private.io/alice/model@{digest}"), &["alices"]);
    assert_eq!(publish_secret(&bench, &by_digest).await, json!({"name": "alices"}));
    let mut by_digest_alone = by_digest.clone();
    by_digest_alone["spec"]["imagePullSecrets"] = json!([]);
    assert!(bench.admit(&by_digest_alone).await.is_err(), "a digest that is known is no right to it");
}

#[tokio::test]
async fn an_inline_volume_keeps_its_secret_only_if_it_is_needed() {
    let bench = Bench::with_secrets(&[secret("alices", "alice"), secret("bobs", "bob")]);
    let volume = |reference: &str, name: &str| {
        let mut pod = inline(&json!({"oras.artifact.reference": reference}));
        pod["spec"]["volumes"][0]["csi"]["nodePublishSecretRef"] = json!({"name": name});
        pod
    };
    let alice = "private.io/alice/model:v1";
    assert_eq!(publish_secret(&bench, &volume(alice, "alices")).await, json!({"name": "alices"}));
    assert_eq!(publish_secret(&bench, &volume("r.io/public:v1", "alices")).await, Value::Null);
    let mut both = volume(alice, "bobs");
    both["spec"]["imagePullSecrets"] = json!([{"name": "alices"}]);
    assert_eq!(publish_secret(&bench, &both).await, json!({"name": "alices"}));
    // A canonical volume is not resolved again: its Secret stays.
    let admitted = bench.admitted(&volume(alice, "alices")).await;
    let elsewhere = Bench::with_secrets(&[]);
    let outcome = elsewhere.admit(&admitted).await.unwrap();
    assert_eq!(patched(&admitted, &outcome), admitted);
    assert_eq!(elsewhere.registry.calls(), 0);
}

#[tokio::test]
async fn a_denial_names_the_credentials_that_were_tried() {
    let bench = Bench::with_secrets(&[
        secret("bobs", "bob"),
        secret_for("private.io:8443", "port"),
        secret_for("other.io", "other"),
        json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "opaque", "namespace": "team"}, "data": {"x": "eA=="}}),
    ]);
    let said = async |pod: Value| bench.admit(&pod).await.unwrap_err();
    let denial = said(pod_with_secrets("private.io/alice/model:v1", &[])).await;
    assert_eq!(denial.code().number(), 403, "{denial}");
    assert!(denial.message().contains("asked with no credentials"), "{denial}");
    assert!(denial.message().contains("name a Secret that can pull it in oras.land/pull-secret"), "{denial}");
    // One credential was accepted and found nothing there: that error is reported.
    let denial = said(pod_with_secrets("private.io/alice/model:v1", &["bobs", "opaque"])).await;
    assert_eq!(denial.code().number(), 404, "{denial}");
    assert!(denial.message().contains("asked with secret bobs, no credentials"), "{denial}");
    assert!(denial.message().contains("secret opaque was skipped: it has no .dockerconfigjson"), "{denial}");

    assert!(!denial.message().contains("no entry"), "{denial}");
    // The entries are for the same host with a port, and for another host.
    let denial = said(pod_with_secrets("private.io/alice/model:v1", &["port"])).await;
    assert!(denial.message().ends_with("; secret port has no entry for private.io"), "{denial}");
    let denial = said(pod_with_secrets("private.io/alice/model:v1", &["port", "other"])).await;
    let words = "; none of the secrets other, port has an entry for private.io";
    assert!(denial.message().ends_with(words), "{denial}");

    let mut named = pod_with_secrets("r.io/a:v1", &[]);
    named["metadata"]["annotations"]["oras.land/pull-secret"] = json!("opaque");
    let denial = said(named.clone()).await;
    assert!(
        denial.message().starts_with("annotation oras.land/pull-secret: \"opaque\" names a Secret"),
        "{denial}"
    );
    named["metadata"]["annotations"]["oras.land/pull-secret"] = json!("Not/A/Name");
    assert_eq!(said(named).await.code().number(), 400);
}

#[tokio::test]
async fn a_missing_secret_and_an_unreadable_secret_are_denied() {
    struct Cluster;
    #[async_trait::async_trait]
    impl Secrets for Cluster {
        async fn secret(&self, _: &str, name: &ObjectName) -> Result<Secret, SecretError> {
            match name.as_str() {
                "forbidden" => Err(SecretError::Forbidden("no right".into())),
                "slow" => std::future::pending().await,
                _ => Ok(Secret::Missing),
            }
        }

        async fn of_service_account(&self, _: &str, _: &ObjectName) -> Result<Vec<String>, SecretError> {
            Err(SecretError::Forbidden("no right".into()))
        }
    }
    let bench =
        Bench::with_credentials(CredentialSources { secrets: Box::new(Cluster), administrator: None });
    // Unusable imagePullSecrets are skipped, as kubelet does.
    bench.admit(&pod_with_secrets("r.io/a:v1", &["none", "forbidden"])).await.unwrap();
    for (name, code, words) in [
        (
            "none",
            404,
            "does not exist in the pod's namespace: create it: kubectl create secret docker-registry none",
        ),
        ("forbidden", 403, "the webhook has no permission to read it (no right)"),
    ] {
        let mut named = pod_with_secrets("r.io/a:v1", &[]);
        named["metadata"]["annotations"]["oras.land/pull-secret"] = json!(name);
        let denial = bench.admit(&named).await.unwrap_err();
        assert_eq!(denial.code().number(), code, "{denial}");
        assert!(denial.message().contains(words), "{denial}");
    }
    let soon = tokio::time::Instant::now() + std::time::Duration::from_millis(100);
    let mut slow = pod_with_secrets("r.io/a:v1", &[]);
    slow["metadata"]["annotations"]["oras.land/pull-secret"] = json!("slow");
    let denial = bench.admission.admit_pod(&slow, "team", soon).await.unwrap_err();
    assert_eq!(denial.code().number(), 503, "{denial}");
    let none = CredentialSources { secrets: Box::new(NoSecrets), administrator: None };
    let denial = Bench::with_credentials(none).admit(&slow).await.unwrap_err();
    assert!(denial.message().contains("--read-pull-secrets"), "{denial}");
}

#[tokio::test]
async fn a_recipe_that_needs_two_secrets_is_denied() {
    let both = json!({"auths": {
        "private.io/alice": {"username": "u", "password": "alice"},
        "private.io/bob": {"username": "u", "password": "bob"}}});
    let merged = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "merged", "namespace": "team"},
        "stringData": {".dockerconfigjson": both.to_string()}});
    let two = [secret("alices", "alice"), secret("bobs", "bob")];
    let mut pod = pod_with_secrets("private.io/alice/a:1", &["alices", "bobs"]);
    pod["metadata"]["annotations"]["oras.land/artifact.b"] = json!("private.io/bob/b:1");
    pod["metadata"]["annotations"]["oras.land/artifact.c"] = json!("r.io/c:1");
    let denial = Bench::with_secrets(&two).admit(&pod).await.unwrap_err();
    assert_eq!(denial.code().number(), 400, "{denial}");
    assert!(
        denial
            .message()
            .contains("needs 2 different pull secrets (alices, bobs), but a volume can have only one"),
        "{denial}"
    );
    assert!(
        denial.message().contains("merge their entries into the .dockerconfigjson of one Secret"),
        "{denial}"
    );
    // The last Secret is used if it is accepted for all references.
    let mut three = two.to_vec();
    three.push(merged);
    pod["spec"]["imagePullSecrets"] = json!([{"name": "alices"}, {"name": "merged"}]);
    assert_eq!(publish_secret(&Bench::with_secrets(&three), &pod).await, json!({"name": "merged"}));
}

#[tokio::test]
async fn the_users_credentials_replace_a_secret_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, docker_config("private.io", "alice")).unwrap();
    let settings = AdministratorSettings { docker_config: Some(file), ..AdministratorSettings::default() };
    let administrator = Some(Administrator::new(settings).unwrap());
    let bench = Bench::with_credentials(CredentialSources {
        secrets: Box::new(ManifestSecrets::default()),
        administrator,
    });
    let alice = "private.io/alice/model:v1";
    // The nodes have the administrator's credentials too, so the volume names no Secret.
    assert_eq!(publish_secret(&bench, &pod_with_secrets(alice, &["unknown"])).await, Value::Null);
    let mut named = pod_with_secrets(alice, &[]);
    named["metadata"]["annotations"]["oras.land/pull-secret"] = json!("in-the-cluster");
    assert_eq!(publish_secret(&bench, &named).await, json!({"name": "in-the-cluster"}));
}

/// Requests with and without permission resolve the same references at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_never_gives_one_credentials_answer_to_another() {
    let bench = Arc::new(Bench::with_secrets(&[
        secret("pull", "alice"),
        secret_in("blue", "pull", "bob"),
        secret_in("green", "pull", "alice"),
    ]));
    bench.registry.set_delay(std::time::Duration::from_millis(2));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..2_000 {
        let bench = Arc::clone(&bench);
        let (namespace, owner) =
            [("team", "alice"), ("blue", "bob"), ("green", "alice"), ("other", "")][number % 4];
        tasks.spawn(async move {
            for (asked_for, tag) in [("alice", number % 5), ("bob", number % 5)] {
                let reference = format!("private.io/{asked_for}/model:{tag}");
                let outcome = bench.admit_in(namespace, &pod_with_secrets(&reference, &["pull"])).await;
                assert_eq!(
                    outcome.is_ok(),
                    owner == asked_for,
                    "{namespace} asked for {reference}: {outcome:?}"
                );
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}
