//! `why` with an API server in memory: which objects it finds, and what it makes of them.

use std::error::Error;

use oras_csi_testkit::api_server::ApiServer;
use serde_json::{Value, json};

use super::collect::collect;
use super::judge::judge;
use super::report::render;
use crate::cluster::pod::tests::admitted;

const DENIED: &str = "Error creating: admission webhook \"pods.csi.oras.land\" denied the request: annotation oras.land/artifact: \
                      \"ghcr.io/acme/model:v9\" does not exist: push it";

/// Returns the exit status and the text for a target in the namespace `team`.
async fn why(server: &ApiServer, target: &str) -> Result<(u8, String), Box<dyn Error>> {
    let facts =
        collect(&server.client(), "team", target.parse()?).await.map_err(|failure| failure.to_string())?;
    let verdict = judge(&facts);
    Ok((verdict.status.map_or(0, |status| status as u8), render(&verdict, false)))
}

fn owned(mut object: Value, kind: &str, name: &str) -> Value {
    object["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": format!("uid-of-{name}"), "controller": true}]);
    object
}

fn template() -> Value {
    json!({"metadata": {"annotations": {"oras.land/artifact": "ghcr.io/acme/model:v9"}}, "spec": {"containers": []}})
}

/// A Deployment with a ReplicaSet whose pod the webhook denies.
fn denied_deployment() -> ApiServer {
    let server = ApiServer::new();
    let spec = json!({"selector": {"matchLabels": {"app": "web"}}, "replicas": 1, "template": template()});
    server.put(
        "/apis/apps/v1/namespaces/team/deployments/web",
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "team", "uid": "uid-of-web"},
            "spec": spec}),
    );
    for (name, revision) in [("web-1", "9"), ("web-2", "10")] {
        let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": name, "namespace": "team", "uid": format!("uid-of-{name}"),
                "annotations": {"deployment.kubernetes.io/revision": revision}},
            "spec": spec});
        server.put(
            &format!("/apis/apps/v1/namespaces/team/replicasets/{name}"),
            owned(set, "Deployment", "web"),
        );
    }
    put_event(&server, "e1", "ReplicaSet", "web-2", "FailedCreate", DENIED);
    server
}

fn put_event(server: &ApiServer, name: &str, kind: &str, about: &str, reason: &str, message: &str) {
    server.put(
        &format!("/api/v1/namespaces/team/events/{name}"),
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "team"}, "reason": reason,
            "involvedObject": {"kind": kind, "name": about, "uid": format!("uid-of-{about}")},
            "lastTimestamp": "2026-01-01T00:10:00Z", "message": message}),
    );
}

fn put_pod(server: &ApiServer, pod: &Value) {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    server.put(&format!("/api/v1/namespaces/team/pods/{name}"), pod.clone());
}

fn put_node(server: &ApiServer) {
    server.put(
        "/apis/storage.k8s.io/v1/csinodes/node-1",
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": "node-1"},
            "spec": {"drivers": [{"name": "csi.oras.land", "nodeID": "node-1"}]}}),
    );
}

#[tokio::test]
async fn a_deployment_whose_pods_are_denied_is_found_under_each_name() -> Result<(), Box<dyn Error>> {
    let server = denied_deployment();
    for target in ["deploy/web", "rs/web-2", "web", "web-2-abcde", "pod/web-2-abcde"] {
        let (status, text) = why(&server, target).await?;
        assert_eq!(status, 1, "{target}: {text}");
        assert!(text.contains("failed      digest      annotation oras.land/artifact"), "{target}: {text}");
        assert!(text.contains("explain ghcr.io/acme/model:v9"), "{target}: {text}");
    }
    // The ReplicaSet of an earlier revision has no such event.
    let (status, text) = why(&server, "rs/web-1").await?;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("waiting     admission   no pod exists"), "{text}");
    let (status, text) = why(&server, "nothing").await?;
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("pod/nothing does not exist in the namespace team"), "{text}");
    Ok(())
}

#[tokio::test]
async fn the_pod_of_a_workload_that_needs_help_is_explained() -> Result<(), Box<dyn Error>> {
    let server = denied_deployment();
    put_node(&server);
    let running =
        json!({"phase": "Running", "conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]});
    put_pod(&server, &owned(admitted("web-2-a", &running), "ReplicaSet", "web-2"));
    put_pod(&server, &owned(admitted("web-2-b", &json!({"phase": "Pending"})), "ReplicaSet", "web-2"));
    put_pod(&server, &owned(admitted("web-1-c", &json!({"phase": "Pending"})), "ReplicaSet", "web-1"));
    put_event(
        &server,
        "e2",
        "Pod",
        "web-2-b",
        "FailedMount",
        "MountVolume.SetUp failed for volume \"oras-artifacts\" : rpc error: code = Unavailable desc = no route",
    );
    let (status, text) = why(&server, "deploy/web").await?;
    assert!(text.starts_with("pod/web-2-b in the namespace team\n"), "{text}");
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("failed      pull        the volume oras-artifacts: no route"), "{text}");
    let (status, text) = why(&server, "web-2-a").await?;
    assert_eq!(status, 0, "{text}");
    assert!(
        text.contains("has its volumes") && text.contains("Note: the controller cannot create the next pod"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn policies_and_pins_are_read_for_the_pod() -> Result<(), Box<dyn Error>> {
    let server = ApiServer::new();
    put_node(&server);
    put_pod(&server, &owned(admitted("web-0", &json!({"phase": "Pending"})), "StatefulSet", "web"));
    server.put(
        "/api/v1/namespaces/team",
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team", "labels": {"a": "b"}}}),
    );
    for (name, spec) in [
        ("allows", json!({"registries": {"allow": ["ghcr.io/**"]}})),
        ("denies", json!({"mode": "Warn", "registries": {"deny": ["ghcr.io/acme/**"]}})),
        (
            "elsewhere",
            json!({"namespaceSelector": {"matchLabels": {"a": "c"}}, "registries": {"deny": ["**"]}}),
        ),
        ("broken", json!({"registries": {"deny": ["http://x"]}})),
    ] {
        server.put(
            &format!("/apis/oras.land/v1alpha1/artifactpolicies/{name}"),
            json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPolicy", "metadata": {"name": name}, "spec": spec}),
        );
    }
    server.put(
        "/apis/oras.land/v1alpha1/namespaces/team/artifactpins/p",
        json!({"apiVersion": "oras.land/v1alpha1", "kind": "ArtifactPin", "metadata": {"name": "p", "namespace": "team"},
            "spec": {"reference": "ghcr.io/acme/model:v1", "digest": "sha256:0",
                "owner": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "uid-of-web"}}}),
    );
    let (status, text) = why(&server, "web-0").await?;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("allows (Enforce) passes; broken (Enforce) cannot be read"), "{text}");
    assert!(text.contains("denies (Warn) refuses ghcr.io/acme/model:v1 now, rule registries.deny"), "{text}");
    assert!(!text.contains("elsewhere"), "{text}");
    assert!(text.contains("pinned for all pods of StatefulSet/web"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_user_without_cluster_rights_gets_an_answer() -> Result<(), Box<dyn Error>> {
    let server = ApiServer::new();
    put_pod(&server, &admitted("web", &json!({"phase": "Pending"})));
    for prefix in [
        "/apis/oras.land",
        "/apis/storage.k8s.io",
        "/api/v1/namespaces/team/events",
        "/apis/admissionregistration.k8s.io",
    ] {
        server.forbid(prefix);
    }
    let (status, text) = why(&server, "web").await?;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("unknown     policy      cannot list artifactpolicies.oras.land"), "{text}");
    assert!(
        text.contains("Note: cannot list events in the namespace team: RBAC does not allow it"),
        "{text}"
    );
    // Without the pod there is nothing to explain.
    server.forbid("/api/v1/namespaces/team/pods");
    let failure = why(&server, "web").await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(failure.contains("cannot explain pods web: cannot list pods in the namespace team"), "{failure}");
    Ok(())
}

#[tokio::test]
async fn the_webhook_configuration_is_read_for_a_pod_that_was_not_processed() -> Result<(), Box<dyn Error>> {
    let server = ApiServer::new();
    let mut pod = admitted("web", &json!({"phase": "Running"}));
    pod["spec"]["volumes"] = json!([]);
    put_pod(&server, &pod);
    let (status, text) = why(&server, "web").await?;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("has no webhook configuration with pods.csi.oras.land"), "{text}");
    server.put(
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/zz",
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "zz"},
            "webhooks": [{"name": "pods.csi.oras.land", "admissionReviewVersions": ["v1"], "clientConfig": {}, "sideEffects": "None"}]}),
    );
    let (_, text) = why(&server, "web").await?;
    assert!(text.contains("its namespace is excluded"), "{text}");
    Ok(())
}
