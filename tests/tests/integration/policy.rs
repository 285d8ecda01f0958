//! Policies as objects of a real API server, which calls the webhook that obeys them.

use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use oras_csi_tests::admission::{Cluster, create_in, pod};
use oras_csi_tests::cluster::{eventually, kubectl};
use oras_csi_tests::parts::repository;
use oras_csi_tests::process::{run, try_run};
use oras_csi_webhook::policy::object::ArtifactPolicy;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// A policy for one namespace.
fn policy(name: &str, namespace: &str, rules: &Value) -> ArtifactPolicy {
    let mut spec = rules.clone();
    spec["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
    serde_json::from_value(json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPolicy",
        "metadata": {"name": name}, "spec": spec}))
    .expect("a policy")
}

struct Policies {
    api: Api<ArtifactPolicy>,
}

impl Policies {
    fn of(cluster: &Cluster) -> Self {
        Self { api: Api::all(cluster.client.clone()) }
    }

    /// Writes a policy, and waits until the webhook has said what it made of it.
    async fn set(&self, policy: &ArtifactPolicy) -> String {
        let name = policy.metadata.name.clone().expect("a name");
        let params = PatchParams { force: true, ..PatchParams::apply("tests") };
        let written = self.api.patch(&name, &params, &Patch::Apply(policy)).await.expect("accepted");
        let generation = written.metadata.generation;
        eventually("its status", PATIENCE, async || {
            let found = self.api.get(&name).await.map_err(|error| error.to_string())?;
            match found.status {
                Some(status) if Some(status.observed_generation) == generation => Ok(status.message),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    async fn remove(&self, name: &str) {
        self.api.delete(name, &DeleteParams::default()).await.expect("it was there");
    }
}

fn asks(name: &str, reference: &str) -> Value {
    pod(name, &json!({"oras.land/artifact": reference}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_enforced_reloaded_and_removed() {
    let cluster = Cluster::start("policy-obeyed", &[]).await;
    let policies = Policies::of(&cluster);
    let jar = "kind-registry:5000/java-app:v1";
    cluster.create(&asks("before", jar)).await.expect("no policy");

    let deny = json!({"registries": {"deny": ["kind-registry:5000/java-*", "kind-registry:5000/java-app"]}});
    let refused = policies.api.create(&PostParams::default(), &policy("bad", "policy-obeyed", &deny)).await;
    let words = refused.expect_err("the schema refuses half a wildcard").to_string();
    assert!(words.contains("whole segments only"), "{words}");

    let deny = json!({"registries": {"deny": ["kind-registry:5000/java-app"]}});
    assert_eq!(policies.set(&policy("obeyed", "policy-obeyed", &deny)).await, "in force");
    let status = cluster.refusal(&asks("denied", jar)).await;
    assert_eq!(status.code, 403, "{}", status.message);
    let wanted = "annotation oras.land/artifact: \"kind-registry:5000/java-app:v1\" is refused by ArtifactPolicy obeyed, rule \
                  registries.deny (repository kind-registry:5000/java-app matches kind-registry:5000/java-app)";
    assert!(status.message.contains(wanted), "{}", status.message);
    cluster.create(&asks("other", "kind-registry:5000/acme/model:v1")).await.expect("not forbidden");
    // The API server takes the timestamp away, but only after it has asked the webhook.
    let mut dying = asks("dying", jar);
    dying["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
    let applied = PatchParams::apply("tests");
    let answer = cluster.pods().patch("dying", &applied, &Patch::Apply(dying.clone())).await;
    assert!(answer.expect_err("denied").to_string().contains("ArtifactPolicy obeyed, rule registries.deny"));
    // The recording works: without the rule the API server takes such a pod.
    dying["metadata"]["annotations"] = json!({"oras.land/artifact": "kind-registry:5000/acme/model:v1"});
    let stored = cluster.pods().patch("dying", &applied, &Patch::Apply(dying)).await.expect("stored");
    assert_eq!(stored.metadata.deletion_timestamp, None);

    let tags = json!({"deniedTags": ["latest"], "maxSize": "1Ki"});
    assert_eq!(policies.set(&policy("obeyed", "policy-obeyed", &tags)).await, "in force");
    cluster.create(&asks("now-allowed", jar)).await.expect("the old rule is gone");
    let status = cluster.refusal(&asks("latest", "kind-registry:5000/java-app")).await;
    assert!(status.message.contains("rule deniedTags (tag latest matches latest)"), "{}", status.message);
    assert_eq!(policies.set(&policy("obeyed", "policy-obeyed", &json!({"maxSize": 3}))).await, "in force");
    let status = cluster.refusal(&asks("large", jar)).await;
    assert!(
        status.message.contains("rule maxSize (its layers have 11 bytes, more than 3)"),
        "{}",
        status.message
    );

    policies.remove("obeyed").await;
    eventually("the policy is gone", PATIENCE, async || {
        cluster.create(&asks("after", jar)).await.map(|_| ()).map_err(|status| status.message.clone())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespace_labels_select_policies() {
    let cluster = Cluster::start("policy-labels", &[]).await;
    let policies = Policies::of(&cluster);
    let mut labelled = policy("labels", "policy-labels", &json!({"requireDigest": true}));
    let selector = json!({"matchLabels": {"tests.oras.land/pinned": "yes"}});
    labelled.spec.namespace_selector = serde_json::from_value(selector).expect("a selector");
    policies.set(&labelled).await;
    let by_tag = |name: &str| asks(name, "kind-registry:5000/java-app:v1");
    cluster.create(&by_tag("before")).await.expect("the namespace is not selected");
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let label =
        |value: Value| Patch::Merge(json!({"metadata": {"labels": {"tests.oras.land/pinned": value}}}));
    let params = PatchParams::default();
    namespaces.patch("policy-labels", &params, &label(json!("yes"))).await.expect("labelled");
    eventually("the label counts", PATIENCE, async || match cluster.create(&by_tag("labelled")).await {
        Err(status) if status.message.contains("rule requireDigest (tag v1 has no digest)") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let digest = format!("kind-registry:5000/java-app:v1@{}", cluster.digest);
    cluster.create(&asks("digest", &digest)).await.expect("it has a digest");
    namespaces.patch("policy-labels", &params, &label(Value::Null)).await.expect("label removed");
    eventually("the label is gone", PATIENCE, async || {
        cluster.create(&by_tag("unlabelled")).await.map(|_| ()).map_err(|status| status.message.clone())
    })
    .await;
    policies.remove("labels").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_policy_reports_its_error_and_the_last_valid_one_stays_in_force() {
    let mut cluster = Cluster::start("policy-broken", &[]).await;
    let policies = Policies::of(&cluster);
    let jar = "kind-registry:5000/java-app:v1";
    let deny = json!({"registries": {"deny": ["kind-registry:5000/java-app"]}});
    assert_eq!(policies.set(&policy("broken", "policy-broken", &deny)).await, "in force");
    // Nothing that an expression could see: no such address exists.
    let broken = json!({"registries": {"deny": ["999.1.1.1"]}});
    let message = policies.set(&policy("broken", "policy-broken", &broken)).await;
    eprintln!("{message}");
    assert!(message.contains("generation 2 cannot be read, generation 1 stays in force"), "{message}");
    assert!(message.contains("spec.registries.deny[0]"), "{message}");
    let table = run(&mut kubectl(&["get", "artifactpolicies", "broken"]));
    eprintln!("{table}");
    assert!(table.contains("MODE") && table.contains("False") && table.contains("stays in force"), "{table}");
    run(&mut kubectl(&["wait", "--for=condition=Accepted=False", "artifactpolicy/broken", "--timeout=10s"]));
    // A generation with other rules: those before must not linger in what is said to be in force.
    let status =
        || run(&mut kubectl(&["get", "artifactpolicy", "broken", "-o", "jsonpath={.status.inForce.spec}"]));
    let other = json!({"deniedTags": ["none"], "registries": {"allow": ["kind-registry:5000/acme/*"]}});
    assert_eq!(policies.set(&policy("broken", "policy-broken", &other)).await, "in force");
    assert!(status().contains("deniedTags") && status().contains("allow"), "{}", status());
    assert_eq!(policies.set(&policy("broken", "policy-broken", &deny)).await, "in force");
    assert!(!status().contains("deniedTags") && !status().contains("allow"), "{}", status());
    let message = policies.set(&policy("broken", "policy-broken", &broken)).await;
    assert!(message.contains("cannot be read"), "{message}");
    for restarted in [false, true] {
        if restarted {
            cluster.webhook.stop();
            cluster.webhook.start_again();
            eventually("the webhook is back", PATIENCE, async || {
                let asked = cluster.create(&asks("probe", "kind-registry:5000/acme/model:v1")).await;
                asked.map(|_| ()).map_err(|status| status.message.clone())
            })
            .await;
        }
        let status = cluster.refusal(&asks("denied", jar)).await;
        assert!(status.message.contains("ArtifactPolicy broken, rule registries.deny"), "{}", status.message);
    }
    assert_eq!(policies.set(&policy("broken", "policy-broken", &json!({"mode": "Warn"}))).await, "in force");
    cluster.create(&asks("mended", jar)).await.expect("mended");
    policies.remove("broken").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_policies_change() {
    let cluster = Cluster::start("policy-reload", &[]).await;
    let policies = Policies::of(&cluster);
    let forbidding = [
        json!({"registries": {"deny": ["kind-registry:5000/java-app"]}}),
        json!({"registries": {"allow": ["kind-registry:5000/acme/*"]}}),
    ];
    policies.set(&policy("reload", "policy-reload", &forbidding[0])).await;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let pods = cluster.pods();
    let changes = async {
        for round in 0..20 {
            policies.set(&policy("reload", "policy-reload", &forbidding[(round + 1) % 2])).await;
        }
    };
    let requests = async {
        let (mut allowed, mut denied) = (0, 0);
        for number in 0..300 {
            let name = format!("pod-{number}");
            create_in(&pods, &asks(&name, "kind-registry:5000/acme/model:v1"), &dry).await.expect("allowed");
            allowed += 1;
            let status = create_in(&pods, &asks(&name, "kind-registry:5000/java-app:v1"), &dry).await;
            let status = status.expect_err("always forbidden");
            assert_eq!(status.code, 403, "{}", status.message);
            denied += 1;
        }
        (allowed, denied)
    };
    let ((), (allowed, denied)) = tokio::join!(changes, requests);
    eprintln!("{allowed} allowed and {denied} denied while a policy changed 20 times");
    policies.remove("reload").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn warn_mode_reaches_kubectl_and_audit_mode_the_audit_log() {
    let cluster = Cluster::start("policy-modes", &[]).await;
    let policies = Policies::of(&cluster);
    let latest = |mode: &str| json!({"mode": mode, "deniedTags": ["latest"]});
    policies.set(&policy("modes-warn", "policy-modes", &latest("Warn"))).await;
    let deny = json!({"mode": "Audit", "registries": {"deny": ["kind-registry:5000/java-app"]}});
    policies.set(&policy("modes-audit", "policy-modes", &deny)).await;

    let manifest = tempfile::NamedTempFile::new().expect("a file");
    let mut told = asks("told", "kind-registry:5000/java-app");
    told["metadata"]["namespace"] = json!("policy-modes");
    std::fs::write(manifest.path(), told.to_string()).expect("writes");
    let output = try_run(kubectl(&["create", "-f"]).arg(manifest.path()));
    let words = String::from_utf8_lossy(&output.stderr);
    eprintln!("{words}");
    assert!(output.status.success(), "{words}");
    assert!(
        words.contains("Warning:") && words.contains("ArtifactPolicy modes-warn, rule deniedTags"),
        "{words}"
    );
    assert!(!words.contains("modes-audit"), "{words}");

    let work = std::env::var("ORAS_CSI_TESTBED_WORK").expect("run `make test-integration`");
    let log = std::path::Path::new(&work).join("log/audit.log");
    let annotations = eventually("the audit log has it", PATIENCE, async || {
        let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut of_pod = events.filter(|event| {
            event["objectRef"]["namespace"] == "policy-modes"
                && event["verb"] == "create"
                && event["annotations"]["pods.csi.oras.land/violations"].is_string()
        });
        of_pod.next().map(|event| event["annotations"].clone()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    eprintln!("{annotations:#}");
    let violations = annotations["pods.csi.oras.land/violations"].as_str().expect("text");
    assert!(violations.contains(r#""policy":"modes-audit","rule":"registries.deny""#), "{violations}");
    let pinned = annotations["pods.csi.oras.land/pinned"].as_str().expect("text");
    assert!(pinned.contains("kind-registry:5000/java-app:latest@sha256:"), "{pinned}");
    for name in ["modes-warn", "modes-audit"] {
        policies.remove(name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_a_workload_prints_the_warnings_and_denials_of_its_pods() {
    let mut cluster = Cluster::start("policy-early", &[]).await;
    let policies = Policies::of(&cluster);
    let deny = json!({"registries": {"deny": ["kind-registry:5000/java-app"]}});
    policies.set(&policy("early", "policy-early", &deny)).await;
    let manifest = tempfile::NamedTempFile::new().expect("a file");
    let apply = |object: &Value| {
        std::fs::write(manifest.path(), object.to_string()).expect("writes");
        let output = try_run(kubectl(&["apply", "-n", "policy-early", "-f"]).arg(manifest.path()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let template = |reference: &str| {
        json!({"metadata": {"labels": {"app": "x"}, "annotations": {"oras.land/artifact": reference}},
            "spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": "none"}]}})
    };
    let workload = |api: &str, kind: &str, name: &str, template: Value| {
        let mut spec = json!({"selector": {"matchLabels": {"app": "x"}}, "template": template});
        if kind == "StatefulSet" {
            spec["serviceName"] = json!("x");
        }
        json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec})
    };
    let mut job = template("kind-registry:5000/java-app:v1");
    job["spec"]["restartPolicy"] = json!("Never");
    let job = json!({"template": job});
    let refused = "kind-registry:5000/java-app:v1";
    for object in [
        workload("apps/v1", "Deployment", "d", template(refused)),
        workload("apps/v1", "StatefulSet", "s", template(refused)),
        workload("apps/v1", "DaemonSet", "ds", template(refused)),
        workload("apps/v1", "ReplicaSet", "rs", template(refused)),
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": job}),
        json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "cj"},
            "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": job}}}),
        json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pt"}, "template": template(refused)}),
    ] {
        let words = apply(&object);
        let kind = object["kind"].as_str().expect("a kind");
        let wanted = format!("pods of this {kind} would be denied: annotation oras.land/artifact: ");
        assert!(
            words.contains(&wanted) && words.contains("ArtifactPolicy early, rule registries.deny"),
            "{words}"
        );
    }

    let mut deployment = workload("apps/v1", "Deployment", "d", template("kind-registry:5000/acme/model:v1"));
    let words = apply(&deployment);
    eprintln!("{words}");
    assert!(words.contains(
        "pods of this Deployment: annotation oras.land/artifact: kind-registry:5000/acme/model:v1 is pinned"
    ));
    deployment["spec"]["replicas"] = json!(3);
    assert_eq!(apply(&deployment), "", "more replicas are no news");
    let plain = workload(
        "apps/v1",
        "Deployment",
        "plain",
        json!({"metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "image": "none"}]}}),
    );
    assert_eq!(apply(&plain), "");
    let mut misplaced = plain;
    misplaced["metadata"]["annotations"] = json!({"oras.land/artifact": "kind-registry:5000/acme/model:v1"});
    misplaced["spec"]["template"]["spec"]["containers"][0]["image"] = json!("other");
    assert!(
        apply(&misplaced).contains("annotation oras.land/artifact on the Deployment itself has no effect")
    );

    cluster.webhook.stop();
    apply(&workload("apps/v1", "Deployment", "d", template(refused)));
    policies.remove("early").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_refuses_invalid_policies_with_a_reason() {
    let cluster = Cluster::start("policy-schema", &[]).await;
    let manifest = tempfile::NamedTempFile::new().expect("a file");
    let answer = |spec: &Value| {
        let object = json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPolicy",
            "metadata": {"name": "schema"}, "spec": spec});
        std::fs::write(manifest.path(), object.to_string()).expect("writes");
        let output = try_run(kubectl(&["create", "--dry-run=server", "-f"]).arg(manifest.path()));
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (spec, words) in [
        (json!({"mode": "enforce"}), "Unsupported value"),
        (json!({"registries": {"allow": []}}), "at least 1 item"),
        (json!({"registries": {"deny": ["https://ghcr.io"]}}), "has no scheme"),
        (json!({"registries": {"deny": ["ghcr.io/a@sha256:00"]}}), "has no digest"),
        (json!({"registries": {"deny": ["ghcr.io/a:v1"]}}), "has no tag"),
        (json!({"registries": {"deny": ["ghcr.io/team-*"]}}), "whole segments only"),
        (json!({"registries": {"deny": ["ghcr.io//x"]}}), "empty segment"),
        (json!({"registries": {"deny": ["a b"]}}), "should match"),
        (json!({"registries": {"deny": ["ubuntu"]}}), "docker.io/NAME for Docker Hub"),
        (json!({"registries": {"deny": ["ghcr.io", "ghcr.io"]}}), "Duplicate value"),
        (json!({"registries": {"dney": ["ghcr.io"]}}), "unknown field"),
        (json!({"deniedTags": ["a/b"]}), "should match"),
        (json!({"allowedMediaTypes": ["tar"]}), "should match"),
        (json!({"maxSize": "1GB"}), "should match"),
        (json!({"maxSize": -1}), "greater than or equal to 0"),
        (
            json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}}),
            "Unsupported value",
        ),
        (json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}), "need values"),
        (
            json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}),
            "need values",
        ),
    ] {
        let (accepted, said) = answer(&spec);
        assert!(!accepted && said.contains(words), "{spec}: wanted {words:?}, got {said:?}");
    }
    for spec in [
        json!({}),
        json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]},
            "mode": "Audit", "requireDigest": true, "setsOnly": false, "maxSize": "1.5Gi", "deniedTags": ["*-SNAPSHOT"],
            "allowedArtifactTypes": ["application/vnd.acme.*"], "allowedMediaTypes": ["*/*"],
            "registries": {"allow": ["*.example.org:5000/**", "[2001:db8::1]:5000/x", "10.0.0.*:5000", "docker.io/ubuntu", "**"]}}),
        json!({"maxSize": 10_737_418_240_u64}),
    ] {
        let (accepted, said) = answer(&spec);
        assert!(accepted, "{spec}: {said}");
    }
    let words = run(&mut kubectl(&["explain", "artifactpolicy.spec.registries"]));
    eprintln!("{words}");
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["compared segment by segment", "allow", "deny", "The only registries and repositories"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_policies_are_accepted() {
    let cluster = Cluster::start("policy-examples", &[]).await;
    let policies = Policies::of(&cluster);
    let mut found = 0;
    for entry in std::fs::read_dir(repository().join("examples")).expect("examples") {
        let path = entry.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("reads");
        for document in serde_saphyr::from_multiple::<Value>(&text).expect("YAML") {
            if document["kind"] == "ArtifactPolicy" {
                let policy: ArtifactPolicy = serde_json::from_value(document).expect("a policy");
                assert_eq!(policies.set(&policy).await, "in force", "{}", path.display());
                policies.remove(policy.metadata.name.as_deref().expect("a name")).await;
                found += 1;
            }
        }
    }
    assert!(found >= 3, "{found} examples");
}

/// The command line says what the cluster says, word for word, also of a denial.
#[tokio::test(flavor = "multi_thread")]
async fn render_denies_with_the_message_of_the_webhook_and_status_3() {
    let cluster = Cluster::start("policy-render", &[]).await;
    let policies = Policies::of(&cluster);
    let deny = json!({"registries": {"deny": ["kind-registry:5000/java-app"]}});
    let policy = policy("render", "policy-render", &deny);
    policies.set(&policy).await;
    let mut refused = asks("refused", "kind-registry:5000/java-app:v1");
    let message = cluster.refusal(&refused).await.message;
    refused["metadata"]["namespace"] = json!("policy-render");
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, value: &Value| {
        let path = folder.path().join(name);
        std::fs::write(&path, value.to_string()).expect("writes");
        path
    };
    let (policy, pod) =
        (write("policy.yaml", &serde_json::to_value(policy).expect("JSON")), write("pod.yaml", &refused));
    for arguments in [["render", "--policy"], ["explain", "--policy"], ["render", "-f"], ["explain", "-f"]] {
        let mut command = Command::new(oras_csi_tests::parts::oras_csi());
        command.args(arguments).arg(&policy).arg("-f").arg(&pod).arg("--certs-dir").arg(cluster.certs.path());
        let output = try_run(&mut command);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        let words = String::from_utf8_lossy(&output.stderr);
        let said = words.trim().split_once("is denied: ").map(|(_, said)| said).expect("a denial");
        assert!(message.ends_with(said), "{said}\n{message}");
    }
    policies.remove("render").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_file_renders_the_same_without_the_registry() {
    let mut cluster = Cluster::start("policy-lock", &[]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let (pod, lock) = (folder.path().join("pod.yaml"), folder.path().join("oras.lock"));
    std::fs::write(&pod, asks("locked", "kind-registry:5000/java-app:v1").to_string()).expect("writes");
    let render = || {
        let mut command = Command::new(oras_csi_tests::parts::oras_csi());
        command.args(["render", "-f"]).arg(&pod).arg("--lock").arg(&lock);
        command.arg("--certs-dir").arg(cluster.certs.path());
        try_run(&mut command)
    };
    let first = render();
    assert!(first.status.success() && String::from_utf8_lossy(&first.stdout).contains(&cluster.digest));
    let text = std::fs::read_to_string(&lock).expect("a lock file");
    cluster.registry.stop();
    let second = render();
    assert_eq!(second.stdout, first.stdout, "{}", String::from_utf8_lossy(&second.stderr));
    assert_eq!(std::fs::read_to_string(&lock).expect("it stays"), text);
    for broken in [
        text.replace("schemaVersion", "schemaVersiom"),
        text.replace("\"version\": 1", "\"version\": 2"),
        "{".into(),
    ] {
        std::fs::write(&lock, broken).expect("writes");
        let refused = render();
        assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    }
    std::fs::remove_file(&lock).expect("removed");
    assert_eq!(render().status.code(), Some(1), "the tag cannot be resolved");
    assert!(!lock.exists(), "nothing was learned");
}
