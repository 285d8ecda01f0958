//! Pods of controllers: one digest per revision, for each kind of controller.

use oras_csi_tests::cluster::kubectl;
use oras_csi_tests::node::{Node, apply, until};
use oras_csi_tests::process::{run, try_run};
use serde_json::{Value, json};

use super::{PATIENCE, delete, pod, restart_every_webhook, says, template};

/// What each of the running pods with the label `app` has printed.
fn printed(app: &str) -> Vec<String> {
    let selector = format!("app={app}");
    let running = "--field-selector=status.phase=Running";
    let names = says(&["get", "pods", "-l", &selector, running, "-o", "jsonpath={.items[*].metadata.name}"]);
    // A pod can end in the meantime.
    let logs = |name| try_run(&mut kubectl(&["logs", name]));
    names
        .split_whitespace()
        .map(|name| String::from_utf8_lossy(&logs(name).stdout).trim().to_owned())
        .collect()
}

/// Waits until the running pods of `app` have printed exactly this.
pub(crate) fn have_printed(app: &str, wanted: &[&str]) {
    until(&format!("{app}: {wanted:?}"), PATIENCE, || (printed(app) == wanted).then_some(()));
}

/// The references of pins, each with the kind of its owner.
fn pins(reference: &str) -> Vec<String> {
    let columns = "jsonpath={range .items[*]}{.spec.reference} {.spec.owner.kind}{\"\\n\"}{end}";
    let all = says(&["get", "artifactpins", "-o", columns]);
    let ours = all.lines().filter_map(|line| line.strip_prefix(reference)?.strip_prefix(' '));
    let mut kinds: Vec<String> = ours.map(str::to_owned).collect();
    kinds.sort();
    kinds
}

#[test]
fn all_pods_of_a_revision_have_one_digest_across_tag_moves_and_restarts() {
    let node = Node::get();
    let reference = "kind-registry:5000/rollout:v1";
    node.push("rollout:v1", &[("file", "one")]);
    apply(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "rollout"},
        "spec": {"selector": {"matchLabels": {"app": "rollout"}},
            "template": template("rollout", reference, "Always")}}));
    have_printed("rollout", &["one"]);
    assert_eq!(pins(reference), ["ReplicaSet"]);

    node.push("rollout:v1", &[("file", "two")]);
    restart_every_webhook();
    says(&["scale", "deployment/rollout", "--replicas=2"]);
    have_printed("rollout", &["one", "one"]);

    says(&["rollout", "restart", "deployment/rollout"]);
    says(&["rollout", "status", "deployment/rollout", "--timeout=120s"]);
    have_printed("rollout", &["two", "two"]);
    says(&["delete", "deployment", "rollout", "--wait=true", "--timeout=60s"]);
    until("the pins went with the workload", PATIENCE, || pins(reference).is_empty().then_some(()));
}

/// A workload of some kind, whose pods have the label `app`.
fn workload(kind: &str, app: &str, reference: &str) -> Value {
    let (version, restart) =
        if matches!(kind, "Job" | "CronJob") { ("batch/v1", "Never") } else { ("apps/v1", "Always") };
    let template = template(app, reference, restart);
    let selector = json!({"matchLabels": {"app": app}});
    let spec = match kind {
        "Job" => json!({"completions": 9, "template": template}),
        // The schedule never fires during the test, which creates the Jobs itself.
        "CronJob" => {
            json!({"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"completions": 9, "template": template}}})
        }
        "StatefulSet" => json!({"selector": selector, "serviceName": app, "template": template}),
        _ => json!({"selector": selector, "template": template}),
    };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": app}, "spec": spec})
}

/// A pod whose controller is not a built-in workload and has no revisions.
fn of_a_trainer(name: &str, uid: &str, reference: &str) -> Value {
    let mut pod = pod(name, &json!({"oras.land/artifact": reference}), super::STAYS);
    pod["metadata"]["labels"] = json!({"app": "trainer"});
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "trainer", "uid": uid, "controller": true}]);
    pod
}

#[test]
fn every_kind_of_controller_keeps_its_digest_and_takes_the_next_with_the_next_revision() {
    let node = Node::get();
    let reference = "kind-registry:5000/kinds:v1";
    node.push("kinds:v1", &[("file", "one")]);
    let kinds = [("StatefulSet", "stateful"), ("DaemonSet", "daemon"), ("Job", "job"), ("CronJob", "cron")];
    for (kind, app) in kinds {
        apply(&workload(kind, app, reference));
    }
    says(&["create", "job", "cron-1", "--from=cronjob/cron"]);
    apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "trainer"}}));
    let uid = says(&["get", "configmap", "trainer", "-o", "jsonpath={.metadata.uid}"]);
    apply(&of_a_trainer("trainer-1", &uid, reference));
    let apps = ["stateful", "daemon", "job", "cron", "trainer"];
    for app in apps {
        have_printed(app, &["one"]);
    }
    let owners = ["ConfigMap", "DaemonSet", "Job", "Job", "StatefulSet"];
    assert_eq!(pins(reference), owners);

    node.push("kinds:v1", &[("file", "two")]);
    node.push("kinds:v2", &[("file", "edited")]);
    restart_every_webhook();
    for app in apps {
        let selector = format!("app={app}");
        says(&["delete", "pod", "-l", &selector, "--wait=true", "--timeout=60s"]);
        if app == "trainer" {
            apply(&of_a_trainer("trainer-2", &uid, reference));
        }
        have_printed(app, &["one"]);
    }
    assert_eq!(pins(reference), owners, "no pin more");

    for kind in ["statefulset/stateful", "daemonset/daemon"] {
        says(&["rollout", "restart", kind]);
        says(&["rollout", "status", kind, "--timeout=120s"]);
    }
    says(&["delete", "job", "job", "cron-1", "--wait=true", "--timeout=60s"]);
    until("the Jobs' pods are gone", PATIENCE, || printed("cron").is_empty().then_some(()));
    apply(&workload("Job", "job", reference));
    says(&["create", "job", "cron-2", "--from=cronjob/cron"]);
    for app in ["stateful", "daemon", "job", "cron"] {
        have_printed(app, &["two"]);
    }
    // Without revisions another tag marks the next one.
    delete("trainer-2");
    apply(&of_a_trainer("trainer-3", &uid, "kind-registry:5000/kinds:v2"));
    have_printed("trainer", &["edited"]);
    delete("trainer-3");
    apply(&of_a_trainer("trainer-4", &uid, reference));
    have_printed("trainer", &["one"]);

    for (kind, app) in kinds {
        says(&["delete", kind, app, "--wait=true", "--timeout=60s"]);
    }
    says(&["delete", "configmap", "trainer"]);
    until("the pins went with the workloads", PATIENCE, || pins(reference).is_empty().then_some(()));
}

/// The denial of a controller's pods is otherwise visible only in its events.
#[test]
fn denied_pods_of_a_deployment_are_reported_by_apply_and_by_events() {
    let node = Node::get();
    node.push("attic/java-app:v1", &[("file", "old")]);
    run(&mut kubectl(&["create", "namespace", "no-attic"]));
    apply(
        &json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPolicy", "metadata": {"name": "no-attic"},
        "spec": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "no-attic"}},
            "registries": {"deny": ["kind-registry:5000/attic/**"]}}}),
    );
    run(&mut kubectl(&["wait", "--for=condition=Accepted", "artifactpolicy/no-attic", "--timeout=30s"]));
    for (name, reference, wanted) in [
        (
            "forbidden",
            "kind-registry:5000/attic/java-app:v1",
            "ArtifactPolicy no-attic, rule registries.deny",
        ),
        ("missing", "kind-registry:5000/java-app:v404", "does not exist"),
    ] {
        let template = template(name, reference, "Always");
        let words = apply(&json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "no-attic"},
            "spec": {"selector": {"matchLabels": {"app": name}}, "template": template}}));
        eprintln!("{words}");
        assert!(words.contains("Warning: pods of this Deployment would be denied"), "{words}");
        assert!(words.contains(wanted) && words.contains(reference), "{words}");
        let selector = "involvedObject.kind=ReplicaSet,reason=FailedCreate";
        let words = until("the ReplicaSet says why it has no pod", PATIENCE, || {
            let words = run(&mut kubectl(&[
                "get",
                "events",
                "-n",
                "no-attic",
                "--field-selector",
                selector,
                "-o",
                "jsonpath={range .items[*]}{.involvedObject.name}: {.message}{\"\\n\"}{end}",
            ]));
            words.lines().find(|line| line.starts_with(&format!("{name}-"))).map(str::to_owned)
        });
        eprintln!("{words}");
        assert!(words.contains("pods.csi.oras.land") && words.contains(wanted), "{words}");
        assert!(words.contains(reference), "{words}");
    }
    run(&mut kubectl(&["delete", "artifactpolicy", "no-attic"]));
    run(&mut kubectl(&["delete", "namespace", "no-attic", "--wait=false"]));
}
