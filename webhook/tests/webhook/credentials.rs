//! Pull secrets: which are used, in which order, and what the driver is told.

use std::sync::Arc;

use crate::support::{Bench, default_digest, inline, patched, pod};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oras_csi_core::credentials::{Administrator, AdministratorSettings};
use oras_csi_webhook::credentials::{
    CredentialSources, NoSecrets, Secret, SecretError, Secrets, StatedSecrets,
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

fn secret(name: &str, password: &str) -> Value {
    secret_in("team", name, password)
}

fn account(name: &str, secrets: &[&str]) -> Value {
    let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "team"},
        "imagePullSecrets": secrets})
}

fn asks(reference: &str, pull_secrets: &[&str]) -> Value {
    let mut pod = pod(&[("artifact", reference)]);
    pod["spec"]["imagePullSecrets"] = pull_secrets.iter().map(|name| json!({"name": name})).collect();
    pod
}

/// `nodePublishSecretRef` of the volume of the annotations.
async fn handed_to_the_driver(bench: &Bench, pod: &Value) -> Value {
    let admitted = bench.admitted(pod).await;
    let again = bench.admit(&admitted).await.unwrap();
    assert!(again.patch().0.is_empty(), "twice is once: {:?}", again.patch());
    let volumes = admitted["spec"]["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["csi"]["driver"] == "csi.oras.land").unwrap();
    volume["csi"]["nodePublishSecretRef"].clone()
}

#[tokio::test]
async fn the_secret_that_worked_is_named_for_the_driver() {
    let bench = Bench::with_secrets(&[
        secret("alices", "alice"),
        secret("bobs", "bob"),
        account("default", &["bobs"]),
        account("robot", &["alices"]),
    ]);
    let alice = "private.io/alice/model:v1";
    assert_eq!(handed_to_the_driver(&bench, &asks(alice, &["alices"])).await, json!({"name": "alices"}));
    assert_eq!(
        handed_to_the_driver(&bench, &asks(alice, &["bobs", "alices"])).await,
        json!({"name": "alices"})
    );
    let by_account = "private.io/bob/model:v1";
    assert_eq!(handed_to_the_driver(&bench, &asks(by_account, &[])).await, json!({"name": "bobs"}));
    let mut robot = asks(alice, &[]);
    robot["spec"]["serviceAccountName"] = json!("robot");
    assert_eq!(handed_to_the_driver(&bench, &robot).await, json!({"name": "alices"}));
    let mut named = asks(alice, &[]);
    named["metadata"]["annotations"]["oras.land/pull-secret"] = json!("alices");
    assert_eq!(handed_to_the_driver(&bench, &named).await, json!({"name": "alices"}));
    // What needs none gets none, whatever the pod has.
    assert_eq!(handed_to_the_driver(&bench, &asks("r.io/public:v1", &["alices"])).await, Value::Null);
    let digest = default_digest(alice);
    let by_digest = asks(&format!("private.io/alice/model@{digest}"), &["alices"]);
    assert_eq!(handed_to_the_driver(&bench, &by_digest).await, json!({"name": "alices"}));
    let mut by_digest_alone = by_digest.clone();
    by_digest_alone["spec"]["imagePullSecrets"] = json!([]);
    assert!(bench.admit(&by_digest_alone).await.is_err(), "a digest that is known is no right to it");
}

#[tokio::test]
async fn an_inline_volume_keeps_or_loses_the_secret_that_it_named() {
    let bench = Bench::with_secrets(&[secret("alices", "alice"), secret("bobs", "bob")]);
    let volume = |reference: &str, name: &str| {
        let mut pod = inline(&json!({"oras.artifact.reference": reference}));
        pod["spec"]["volumes"][0]["csi"]["nodePublishSecretRef"] = json!({"name": name});
        pod
    };
    let alice = "private.io/alice/model:v1";
    assert_eq!(handed_to_the_driver(&bench, &volume(alice, "alices")).await, json!({"name": "alices"}));
    assert_eq!(handed_to_the_driver(&bench, &volume("r.io/public:v1", "alices")).await, Value::Null);
    let mut both = volume(alice, "bobs");
    both["spec"]["imagePullSecrets"] = json!([{"name": "alices"}]);
    assert_eq!(handed_to_the_driver(&bench, &both).await, json!({"name": "alices"}));
    // A canonical volume is not asked about again: what it came with stays.
    let admitted = bench.admitted(&volume(alice, "alices")).await;
    let elsewhere = Bench::with_secrets(&[]);
    let outcome = elsewhere.admit(&admitted).await.unwrap();
    assert_eq!(patched(&admitted, &outcome), admitted);
    assert_eq!(elsewhere.registry.calls(), 0);
}

#[tokio::test]
async fn a_refusal_says_whose_credentials_were_tried_and_what_to_do() {
    let bench = Bench::with_secrets(&[
        secret("bobs", "bob"),
        json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "opaque", "namespace": "team"}, "data": {"x": "eA=="}}),
    ]);
    let said = async |pod: Value| bench.admit(&pod).await.unwrap_err();
    let denial = said(asks("private.io/alice/model:v1", &[])).await;
    assert_eq!(denial.code().number(), 403, "{denial}");
    assert!(denial.message().contains("asked with no credentials"), "{denial}");
    assert!(
        denial.message().contains("name a Secret with credentials for it in oras.land/pull-secret"),
        "{denial}"
    );
    // Somebody was let in, and found nothing there: that is the better word.
    let denial = said(asks("private.io/alice/model:v1", &["bobs", "opaque"])).await;
    assert_eq!(denial.code().number(), 404, "{denial}");
    assert!(denial.message().contains("asked with secret bobs, no credentials"), "{denial}");
    assert!(
        denial.message().contains("secret opaque was passed over: it has no .dockerconfigjson"),
        "{denial}"
    );

    let mut named = asks("r.io/a:v1", &[]);
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
async fn a_cluster_tells_what_is_missing_and_what_is_out_of_reach() {
    struct Cluster;
    #[async_trait::async_trait]
    impl Secrets for Cluster {
        async fn secret(&self, _: &str, name: &str) -> Result<Secret, SecretError> {
            match name {
                "forbidden" => Err(SecretError::Forbidden("no right".into())),
                "slow" => std::future::pending().await,
                _ => Ok(Secret::Missing),
            }
        }

        async fn of_service_account(&self, _: &str, _: &str) -> Result<Vec<String>, SecretError> {
            Err(SecretError::Forbidden("no right".into()))
        }
    }
    let bench =
        Bench::with_credentials(CredentialSources { secrets: Box::new(Cluster), administrator: None });
    // Those that are merely there are passed over, as kubelet does.
    bench.admit(&asks("r.io/a:v1", &["none", "forbidden"])).await.unwrap();
    for (name, code, words) in [
        (
            "none",
            404,
            "does not exist in the pod's namespace: make it: kubectl create secret docker-registry none",
        ),
        ("forbidden", 403, "the webhook has no right to read it (no right)"),
    ] {
        let mut named = asks("r.io/a:v1", &[]);
        named["metadata"]["annotations"]["oras.land/pull-secret"] = json!(name);
        let denial = bench.admit(&named).await.unwrap_err();
        assert_eq!(denial.code().number(), code, "{denial}");
        assert!(denial.message().contains(words), "{denial}");
    }
    let soon = tokio::time::Instant::now() + std::time::Duration::from_millis(100);
    let mut slow = asks("r.io/a:v1", &[]);
    slow["metadata"]["annotations"]["oras.land/pull-secret"] = json!("slow");
    let denial = bench.admission.admit_pod(&slow, "team", soon).await.unwrap_err();
    assert_eq!(denial.code().number(), 503, "{denial}");
    let none = CredentialSources { secrets: Box::new(NoSecrets), administrator: None };
    let denial = Bench::with_credentials(none).admit(&slow).await.unwrap_err();
    assert!(denial.message().contains("--read-pull-secrets"), "{denial}");
}

#[tokio::test]
async fn a_recipe_has_one_secret_or_says_how_to_make_one_of_two() {
    let both = json!({"auths": {
        "private.io/alice": {"username": "u", "password": "alice"},
        "private.io/bob": {"username": "u", "password": "bob"}}});
    let merged = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "merged", "namespace": "team"},
        "stringData": {".dockerconfigjson": both.to_string()}});
    let two = [secret("alices", "alice"), secret("bobs", "bob")];
    let mut pod = asks("private.io/alice/a:1", &["alices", "bobs"]);
    pod["metadata"]["annotations"]["oras.land/artifact.b"] = json!("private.io/bob/b:1");
    pod["metadata"]["annotations"]["oras.land/artifact.c"] = json!("r.io/c:1");
    let denial = Bench::with_secrets(&two).admit(&pod).await.unwrap_err();
    assert_eq!(denial.code().number(), 400, "{denial}");
    assert!(
        denial.message().contains("needs 2 different pull secrets (alices, bobs), and a volume has one"),
        "{denial}"
    );
    assert!(
        denial.message().contains("put the entries of both into the .dockerconfigjson of one Secret"),
        "{denial}"
    );
    // One that comes last and does for all is found.
    let mut three = two.to_vec();
    three.push(merged);
    pod["spec"]["imagePullSecrets"] = json!([{"name": "alices"}, {"name": "merged"}]);
    assert_eq!(handed_to_the_driver(&Bench::with_secrets(&three), &pod).await, json!({"name": "merged"}));
}

#[tokio::test]
async fn where_nobody_can_read_the_secret_ones_own_credentials_stand_in() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, docker_config("private.io", "alice")).unwrap();
    let settings = AdministratorSettings { docker_config: Some(file), ..AdministratorSettings::default() };
    let administrator = Some(Administrator::new(settings).unwrap());
    let bench = Bench::with_credentials(CredentialSources {
        secrets: Box::new(StatedSecrets::default()),
        administrator,
    });
    let alice = "private.io/alice/model:v1";
    // The administrator's are on the nodes as well, so nothing is named.
    assert_eq!(handed_to_the_driver(&bench, &asks(alice, &["unknown"])).await, Value::Null);
    let mut named = asks(alice, &[]);
    named["metadata"]["annotations"]["oras.land/pull-secret"] = json!("in-the-cluster");
    assert_eq!(handed_to_the_driver(&bench, &named).await, json!({"name": "in-the-cluster"}));
}

/// The same references at the same moment, asked for by those who may and those who may not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cache_lets_anybody_in_for_somebody_else() {
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
                let outcome = bench.admit_in(namespace, &asks(&reference, &["pull"])).await;
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
