//! Pods of two tenants of a private registry, on a real API server: whose Secrets are read, which one is named for the
//! driver, and that no pod uses the pull permission of another.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use oras_csi_tests::admission::{create_in, pod};
use oras_csi_tests::cluster::{client, eventually};
use oras_csi_tests::registry::files::{folder, one_file};
use oras_csi_tests::registry::tenants::{behind, push_as_admin, rules};
use oras_csi_tests::registry::{Configuration, Distribution, Login, Oras, TokenService, write_hosts_toml};
use oras_csi_tests::webhook::Webhook;
use serde_json::{Value, json};

const NAME: &str = "private.example:5000";
const MODEL: &str = "private.example:5000/team-a/app:v1";

/// A private registry, and a webhook for one namespace in which there are Secrets of both tenants.
struct Tenants {
    client: Client,
    service: TokenService,
    _registry: Distribution,
    _webhook: Webhook,
    _certs: tempfile::TempDir,
    namespace: String,
    digest: String,
}

impl Tenants {
    async fn start(namespace: &str) -> Self {
        let client = client().await;
        let service = TokenService::start(rules());
        let (registry, files) = (behind(&service), one_file());
        let digest = push_as_admin(&registry, "team-a/app", files.path());
        push_as_admin(&registry, "team-b/app", files.path());
        push_as_admin(&registry, "public/app", files.path());
        let certs = registry.certs_d(&[NAME]);
        let webhook = Webhook::start(&client, namespace, certs.path(), &["--read-pull-secrets"]).await;
        let namespace = namespace.to_owned();
        let tenants = Self {
            client,
            service,
            _registry: registry,
            _webhook: webhook,
            _certs: certs,
            namespace,
            digest,
        };
        tenants.secret("of-a", "a", "secret of a").await;
        tenants.secret("of-b", "b", "secret of b").await;
        tenants.secret("wrong", "a", "guessed").await;
        tenants.secret("not-named", "a", "secret of a").await;
        tenants
    }

    async fn secret(&self, name: &str, user: &str, password: &str) {
        let config = Login::password(user, password).docker_config(NAME).to_string();
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config}});
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let secret = serde_json::from_value(secret).expect("a Secret");
        api.create(&PostParams::default(), &secret).await.expect("it is stored");
    }

    async fn account(&self, name: &str, secrets: &[&str]) {
        let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name},
            "imagePullSecrets": secrets});
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.namespace);
        let account = serde_json::from_value(account).expect("a service account");
        api.create(&PostParams::default(), &account).await.expect("it is stored");
    }

    /// Creates a pod; returns the Secret that is named for the driver, or the denial.
    async fn told(&self, pod: &Value) -> Result<Value, String> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let stored =
            create_in(&pods, pod, &PostParams::default()).await.map_err(|status| status.message.clone())?;
        let csi = &stored["spec"]["volumes"][0]["csi"];
        assert_eq!(csi["driver"], "csi.oras.land", "{stored}");
        let reference = csi["volumeAttributes"].to_string();
        assert!(reference.contains("@sha256:"), "{reference}");
        Ok(csi["nodePublishSecretRef"]["name"].clone())
    }
}

/// With these pull secrets.
fn asks(name: &str, reference: &str, pull_secrets: &[&str]) -> Value {
    let mut pod = pod(name, &json!({"oras.land/artifact": reference}));
    pod["spec"]["imagePullSecrets"] = pull_secrets.iter().map(|name| json!({"name": name})).collect();
    pod
}

/// Returns which Secrets of a namespace were read. The test itself reads none.
fn read(namespace: &str) -> Result<BTreeSet<(String, String)>, String> {
    let folder = std::env::var("ORAS_CSI_TESTBED_WORK").expect("run `make test-integration`");
    let text = std::fs::read_to_string(Path::new(&folder).join("log/audit.log"))
        .map_err(|error| error.to_string())?;
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_secrets = events.filter(|event| {
        let object = &event["objectRef"];
        let here = object["namespace"] == namespace || object["namespace"].is_null();
        let changes =
            ["create", "update", "patch", "delete"].contains(&event["verb"].as_str().unwrap_or_default());
        // The API server watches them for itself.
        object["resource"] == "secrets" && here && !changes && event["user"]["username"] != "system:apiserver"
    });
    Ok(of_secrets.map(|event| (word(&event["verb"]), word(&event["objectRef"]["name"]))).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_the_accepted_secret_and_reads_only_secrets_that_pods_name() {
    let tenants = Tenants::start("tenants-order").await;
    assert_eq!(tenants.told(&asks("own", MODEL, &["of-a"])).await, Ok(json!("of-a")));
    assert_eq!(tenants.told(&asks("second", MODEL, &["wrong", "of-b", "of-a"])).await, Ok(json!("of-a")));
    assert_eq!(
        tenants.told(&asks("public", "private.example:5000/public/app:v1", &[])).await,
        Ok(Value::Null)
    );

    let mut named = asks("named", MODEL, &["of-b"]);
    named["metadata"]["annotations"]["oras.land/pull-secret"] = json!("of-a");
    assert_eq!(tenants.told(&named).await, Ok(json!("of-a")));

    tenants.account("robot", &["of-a"]).await;
    let mut of_robot = asks("of-robot", MODEL, &[]);
    of_robot["spec"]["serviceAccountName"] = json!("robot");
    assert_eq!(tenants.told(&of_robot).await, Ok(json!("of-a")));

    // By digest it is the same question.
    let pinned = format!("private.example:5000/team-a/app@{}", tenants.digest);
    assert_eq!(tenants.told(&asks("pinned", &pinned, &["of-a"])).await, Ok(json!("of-a")));

    for (pod, words) in [
        (asks("none", MODEL, &[]), "asked with no credentials"),
        (asks("none-pinned", &pinned, &[]), "asked with no credentials"),
        (asks("of-another", MODEL, &["of-b"]), "asked with secret of-b, no credentials"),
        (asks("wrong", MODEL, &["wrong"]), "asked with secret wrong, no credentials"),
        (asks("missing", MODEL, &["missing"]), "asked with no credentials"),
    ] {
        let refused = tenants.told(&pod).await.expect_err("refused");
        eprintln!("{refused}");
        assert!(refused.contains(words) && refused.contains("oras.land/pull-secret"), "{words}: {refused}");
        assert!(
            !refused.contains("secret of a")
                && !refused.contains("secret of b")
                && !refused.contains("guessed"),
            "{refused}"
        );
    }
    let mut missing = asks("named-missing", MODEL, &["of-a"]);
    missing["metadata"]["annotations"]["oras.land/pull-secret"] = json!("missing");
    let refused = tenants.told(&missing).await.expect_err("refused");
    assert!(refused.starts_with("admission webhook") && refused.contains("\"missing\""), "{refused}");

    let expected: BTreeSet<_> = ["of-a", "of-b", "wrong", "missing"]
        .map(|name| ("get".to_owned(), name.to_owned()))
        .into_iter()
        .collect();
    let found = eventually("the audit log has all", Duration::from_secs(10), async || {
        let found = read("tenants-order")?;
        if found.is_superset(&expected) { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert_eq!(found, expected, "and no other: neither by list nor by watch");
}

/// Concurrent requests for equal references, with cached answers for both credentials.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_never_share_pull_permission() {
    let tenants = Tenants::start("tenants-parallel").await;
    for round in 0..3 {
        let pods = (0..60).map(|number| {
            let of_a = number % 2 == 0;
            let secret = if of_a { "of-a" } else { "of-b" };
            (of_a, asks(&format!("p-{round}-{number}"), MODEL, &[secret]))
        });
        let pods: Vec<_> = pods.collect();
        let told = join_all(pods.iter().map(async |(of_a, pod)| (*of_a, tenants.told(pod).await))).await;
        for (of_a, told) in told {
            match told {
                Ok(secret) => {
                    assert!(of_a && secret == "of-a", "b was let in, or a without its Secret: {secret}");
                }
                Err(words) => assert!(!of_a && words.contains("secret of-b"), "{words}"),
            }
        }
    }
    // After permission is revoked, new credentials are refused at once, cached ones when the cache entry expires.
    tenants.service.change(|rules| rules.without_tenant("a"));
    tenants.secret("late", "a", "secret of another time").await;
    let refused = tenants.told(&asks("late", MODEL, &["late"])).await.expect_err("refused");
    assert!(refused.contains("secret late"), "{refused}");
}

/// A new registry configuration and a changed password need no restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_webhook_follows_hosts_toml_and_the_docker_config() {
    const LATE: &str = "late.example:5000";
    let login = Login::password("reader", "open sesame");
    let configuration = Configuration::default().with_htpasswd(&[("reader", "open sesame")]);
    let (registry, files) = (Distribution::start_with(configuration), one_file());
    let oras = Oras::plain_http().with_login(&registry.host(), &login);
    let digest = oras.push(&format!("{}/app:v1", registry.host()), files.path(), &["app.jar"]);
    let (certs, own) = (folder(), folder());
    let config = own.path().join("config.json");
    let write =
        |login: &Login| std::fs::write(&config, login.docker_config(LATE).to_string()).expect("writes");
    write(&Login::password("reader", "guessed"));
    let client = client().await;
    let flag = format!("--docker-config={}", config.display());
    let _webhook = Webhook::start(&client, "reloads", certs.path(), &[&flag]).await;
    let pods = Api::<Pod>::namespaced(client, "reloads");
    let asks = pod("asks", &json!({"oras.land/artifact": format!("{LATE}/app:v1")}));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let told = async || match create_in(&pods, &asks, &dry).await {
        Ok(stored) => stored["metadata"]["annotations"]["oras.land/pinned"].to_string(),
        Err(status) => status.message.clone(),
    };
    let tells = async |words: &str| {
        eventually(words, Duration::from_mins(1), async || {
            Some(told().await).filter(|told| told.contains(words)).ok_or("not yet".to_owned())
        })
        .await
    };
    let words = tells(LATE).await;
    assert!(!words.contains("401"), "the registry is not configured yet: {words}");
    write_hosts_toml(certs.path(), LATE, &registry.url());
    let words = tells("401").await;
    assert!(!words.contains("guessed"), "{words}");
    write(&login);
    tells(&digest).await;
}
