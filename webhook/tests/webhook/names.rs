//! Names that a user writes, and that become part of requests to the API server.

use std::sync::Arc;

use crate::support::{Bench, inline, pod, review, soon};
use oras_csi_testkit::api_server::ApiServer;
use oras_csi_webhook::credentials::{ClusterSecrets, CredentialSources};
use oras_csi_webhook::pins::MemoryPins;
use oras_csi_webhook::review::{Hook, Review};
use rstest::rstest;
use serde_json::{Value, json};

/// Leaves the collection and the namespace, if it becomes part of a path as it is.
const PATH: &str = "../../kube-system/secrets/x";

/// A webhook that reads Secrets from an API server with the service account `default` of the namespace `team`.
fn scene() -> (Bench, ApiServer) {
    let server = ApiServer::new();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "team"}, "imagePullSecrets": [{"name": PATH}, {"name": "b"}]});
    server.put("/api/v1/namespaces/team/serviceaccounts/default", account);
    let secrets = Box::new(ClusterSecrets::new(server.client()));
    (Bench::with_credentials(CredentialSources { secrets, administrator: None }), server)
}

#[tokio::test]
async fn a_pull_secret_with_a_path_for_a_name_is_not_read() {
    let (bench, server) = scene();
    let mut pod = pod(&[("artifact", "r.io/a:v1")]);
    pod["spec"]["imagePullSecrets"] = json!([{"name": PATH}, {"name": ".."}, {"name": "a"}]);
    bench.admit(&pod).await.unwrap();
    let mut log = server.log();
    log.sort();
    // Kubelet ignores such a name as well. The other names count.
    assert_eq!(
        log,
        [
            "GET /api/v1/namespaces/team/secrets/a",
            "GET /api/v1/namespaces/team/secrets/b",
            "GET /api/v1/namespaces/team/serviceaccounts/default",
        ]
    );
    // Where credentials are missing, the denial names it.
    pod["metadata"]["annotations"]["oras.land/artifact"] = json!("private.io/alice/model:v1");
    let denial = bench.admit(&pod).await.unwrap_err();
    let words = format!("secret {PATH} was skipped: it is not the name of an object");
    assert!(denial.message().contains(&words), "{denial}");
}

#[tokio::test]
async fn a_service_account_with_a_path_for_a_name_is_not_read() {
    let (bench, server) = scene();
    let mut pod = pod(&[("artifact", "r.io/a:v1")]);
    pod["spec"]["serviceAccountName"] = json!("../../kube-system/serviceaccounts/x");
    bench.admit(&pod).await.unwrap();
    assert_eq!(server.log(), Vec::<String>::new());
}

#[rstest]
#[case::pull_secret(|pod: &mut Value| pod["metadata"]["annotations"]["oras.land/pull-secret"] = json!(PATH), PATH)]
#[case::api_version(|pod: &mut Value| owned(pod, "apiVersion"), "metadata.ownerReferences")]
#[case::kind(|pod: &mut Value| owned(pod, "kind"), "metadata.ownerReferences")]
#[case::name(|pod: &mut Value| owned(pod, "name"), "metadata.ownerReferences")]
#[case::uid(|pod: &mut Value| owned(pod, "uid"), "metadata.ownerReferences")]
#[tokio::test]
async fn a_name_that_decides_something_is_denied(#[case] change: fn(&mut Value), #[case] words: &str) {
    let (bench, server) = scene();
    let admission = Arc::into_inner(bench.admission).unwrap().with_pins(Arc::new(MemoryPins::default()));
    let mut pod = pod(&[("artifact", "r.io/a:v1")]);
    change(&mut pod);
    let denial = admission.admit_pod(&pod, "team", soon()).await.unwrap_err();
    assert_eq!(denial.code().number(), 400, "{denial}");
    assert!(denial.message().contains(words) && denial.message().contains(PATH), "{denial}");
    assert_eq!(server.log(), Vec::<String>::new());
}

/// Gives the pod a controller with a path in one field.
fn owned(pod: &mut Value, field: &str) {
    let mut owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "app", "uid": "u-1",
        "controller": true});
    owner[field] = json!(PATH);
    pod["metadata"]["ownerReferences"] = json!([owner]);
}

#[rstest]
#[case::annotation(pod(&[("artifact-set", PATH)]))]
#[case::attribute(inline(&json!({"oras-csi.name": PATH})))]
#[case::recipe(inline(&json!({"oras-csi.name": PATH, "oras-csi.actions": "[{add: r.io/a:v1}]"})))]
#[tokio::test]
async fn the_name_of_a_set_is_checked_before_it_is_looked_up(#[case] pod: Value) {
    let (bench, _) = Bench::new().with_sets(&[]);
    let denial = bench.admit(&pod).await.unwrap_err();
    let words = ["is not the name of a set", "is not a DNS label"];
    assert!(words.iter().any(|words| denial.message().contains(words)), "{denial}");
}

/// Any client that reaches the webhook can send a review.
#[tokio::test]
async fn a_namespace_is_checked_before_anything_is_read_from_it() {
    for namespace in ["../kube-system", "team/secrets/a?", "", "a.b"] {
        let (bench, server) = scene();
        let mut review = review(&pod(&[("artifact", "r.io/a:v1")]));
        review["request"]["namespace"] = json!(namespace);
        let review = Review::decode(Hook::Volumes, review.to_string().as_bytes()).unwrap();
        let answer = bench.admission.review(&review, soon()).await;
        assert!(
            answer.message().unwrap().contains("is not the name of a namespace"),
            "{:?}",
            answer.message()
        );

        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv-1"},
            "spec": {"claimRef": {"namespace": format!("{namespace}/"), "name": "data"},
                "csi": {"driver": "csi.oras.land", "volumeHandle": "h-1",
                    "volumeAttributes": {"oras.artifact.reference": "r.io/a:v1"}}}});
        let denial = bench.admission.admit_persistent_volume(&volume, soon()).await.unwrap_err();
        assert!(denial.message().starts_with("spec.claimRef.namespace: "), "{denial}");
        assert_eq!(server.log(), Vec::<String>::new());
    }
}
