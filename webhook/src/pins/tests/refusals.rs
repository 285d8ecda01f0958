//! Answers of the API server that are not a pin, and pins that are not accepted.

use rstest::rstest;

use super::*;
use crate::denial::At;

/// A `Status` as API servers write it.
fn status(code: u16, reason: &str, message: &str, details: &Value) -> String {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "details": details, "code": code})
    .to_string()
}

/// Returns the code and the message of the denial.
fn denied(error: &PinError) -> (u16, String) {
    let reference = Reference::parse(REFERENCE).unwrap();
    let denial = error.denial(At::Annotation("oras.land/artifact"), &reference);
    let begin = format!(
        "annotation oras.land/artifact: \"{REFERENCE}\" cannot be pinned for all pods of their controller: "
    );
    let message = denial.message().strip_prefix(&begin).expect("names the reference").to_owned();
    (denial.code().number(), message)
}

/// Returns the details of a `Status` that names the pin.
fn named() -> Value {
    json!({"name": key().object_name(), "group": "oras.land", "kind": "artifactpins"})
}

#[rstest]
#[case::rights(
    403,
    "Forbidden",
    "artifactpins.oras.land is forbidden: User \"system:serviceaccount:oras-csi:oras-csi-webhook\" \
    cannot create resource \"artifactpins\" in API group \"oras.land\" in the namespace \"team\"",
    503,
    "the webhook has no permission to create ArtifactPin team/NAME (artifactpins.oras.land is forbidden: User",
    "ask the administrator to grant the permissions of the chart, get and create of artifactpins.oras.land"
)]
#[case::quota(
    403,
    "Forbidden",
    "artifactpins.oras.land \"x\" is forbidden: exceeded quota: pins, requested: \
    count/artifactpins.oras.land=1, used: count/artifactpins.oras.land=5, limited: count/artifactpins.oras.land=5",
    403,
    "a ResourceQuota does not allow ArtifactPin team/NAME (",
    "or write the reference with its digest"
)]
#[case::policy(
    422,
    "Invalid",
    "artifactpins.oras.land \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' \
    denied request: no pins here",
    403,
    "does not admit ArtifactPin team/NAME (artifactpins.oras.land \"x\" is forbidden: \
    ValidatingAdmissionPolicy 'p'",
    "allow the ArtifactPins of the webhook there"
)]
#[case::webhook(
    400,
    "BadRequest",
    "admission webhook \"w.example.org\" denied the request: who exceeded quota cannot create \
    resource x",
    403,
    "(admission webhook \"w.example.org\" denied the request",
    "allow the ArtifactPins of the webhook there"
)]
#[case::another_plugin(
    403,
    "Forbidden",
    "artifactpins.oras.land \"x\" is forbidden: no",
    403,
    "does not admit",
    "allow the ArtifactPins"
)]
#[case::webhook_fails(
    500,
    "InternalError",
    "Internal error occurred: failed calling webhook \"w.example.org\": no route",
    503,
    "the API server did not create ArtifactPin team/NAME (Internal error occurred: failed calling webhook",
    "retry later"
)]
#[case::quota_conflict(
    409,
    "Conflict",
    "Operation cannot be fulfilled on resourcequotas \"pins\": the object has been \
    modified",
    503,
    "did not create ArtifactPin team/NAME (Operation",
    "retry later"
)]
#[case::schema(
    422,
    "Invalid",
    "ArtifactPin.oras.land \"x\" is invalid: spec.owner.uid: Too long: may not be more than 128 \
    bytes",
    503,
    "is not valid by the custom resource definition in the cluster (ArtifactPin.oras.land",
    "of the webhook's version"
)]
#[case::no_namespace(
    404,
    "NotFound",
    "namespaces \"team\" not found",
    503,
    "(namespaces \"team\" not found)",
    "retry"
)]
#[case::expired(
    401,
    "Unauthorized",
    "Unauthorized",
    503,
    "did not create ArtifactPin team/NAME (Unauthorized)",
    "retry"
)]
#[case::busy(
    503,
    "ServiceUnavailable",
    "etcd is away",
    503,
    "did not create ArtifactPin team/NAME (etcd is away)",
    "retry"
)]
#[tokio::test]
async fn a_denial_has_the_answer_of_the_api_server(
    #[case] code: u16,
    #[case] reason: &str,
    #[case] message: &str,
    #[case] denial_code: u16,
    #[case] part: &str,
    #[case] instead: &str,
) {
    let api = FakeApi::default();
    api.answer_with(Method::POST, code, &status(code, reason, message, &named()));
    let error =
        ClusterPins::new(api.client()).get_or_create("team", &key(), &digest("one")).await.unwrap_err();
    let (number, message) = denied(&error);
    assert_eq!(number, denial_code, "{message}");
    assert!(message.contains(&part.replace("NAME", &key().object_name())), "{message}");
    assert!(message.contains(instead), "{message}");
    assert_eq!((api.log().len(), api.objects().len()), (1, 0));
}

#[tokio::test]
async fn a_namespace_that_is_being_deleted_is_reported() {
    let api = FakeApi::default();
    let details = json!({"name": "x", "group": "oras.land", "kind": "artifactpins", "causes":
        [{"reason": "NamespaceTerminating", "message": "namespace team is being terminated", "field": "metadata.namespace"}]});
    let message = "artifactpins.oras.land \"x\" is forbidden: unable to create new content in namespace team because it \
        is being terminated";
    api.answer_with(Method::POST, 403, &status(403, "Forbidden", message, &details));
    let error =
        ClusterPins::new(api.client()).get_or_create("team", &key(), &digest("one")).await.unwrap_err();
    assert_eq!(error, PinError::Terminating("team".into()));
    assert_eq!(denied(&error).0, 403);
}

#[tokio::test]
async fn a_missing_kind_is_not_a_missing_pin() {
    let api = FakeApi::default();
    let pins = ClusterPins::new(api.client());
    let unknown = status(404, "NotFound", "the server could not find the requested resource", &json!({}));
    for answer in ["404 page not found\n", "", &unknown] {
        api.answer_with(Method::GET, 404, answer);
        assert_eq!(pins.find("team", &key()).await, Err(PinError::NoKind), "{answer}");
        api.answer_with(Method::POST, 404, answer);
        assert_eq!(
            pins.get_or_create("team", &key(), &digest("one")).await,
            Err(PinError::NoKind),
            "{answer}"
        );
    }
    let (code, message) = denied(&PinError::NoKind);
    assert_eq!(code, 503);
    assert!(message.contains("no ArtifactPins (v1alpha1 of artifactpins.oras.land)"), "{message}");
    assert!(message.contains("crds.install"), "{message}");
}

#[tokio::test]
async fn a_pin_that_cannot_be_read_is_not_created_again() {
    let api = FakeApi::default();
    let pins = ClusterPins::new(api.client());
    let forbidden = status(403, "Forbidden", "User \"x\" cannot get resource \"artifactpins\"", &named());
    api.answer_with(Method::GET, 403, &forbidden);
    let error = pins.find("team", &key()).await.unwrap_err();
    assert!(
        denied(&error).1.starts_with("the webhook has no permission to get ArtifactPin team/model-"),
        "{error}"
    );
    api.put("team", pin(|_| {}));
    api.answer_with(Method::GET, 403, &forbidden);
    assert_eq!(pins.get_or_create("team", &key(), &digest("two")).await, Err(error));
}

#[tokio::test]
async fn the_retry_delay_of_the_api_server_is_passed_on_within_bounds() {
    for (requested, passed_on) in [(0, None), (7, Some(7)), (86_400, Some(60))] {
        let api = FakeApi::default();
        let details = json!({"retryAfterSeconds": requested});
        api.answer_with(Method::GET, 429, &status(429, "TooManyRequests", "too many requests", &details));
        let error = ClusterPins::new(api.client()).find("team", &key()).await.unwrap_err();
        let denial = error.denial(At::Reference, key().subject());
        assert_eq!((denial.code().number(), denial.retry_after()), (503, passed_on), "{denial}");
    }
}

#[tokio::test]
async fn an_unreachable_api_server_is_reported_with_the_cause() {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error: Box<dyn std::error::Error + Send + Sync> = Box::new(Outer(refused));
        Err::<http::Response<kube::client::Body>, _>(error)
    });
    let pins = ClusterPins::new(kube::Client::new(service, "default"));
    let (code, message) = denied(&pins.find("team", &key()).await.unwrap_err());
    assert_eq!(code, 503);
    assert!(message.contains("client error (Connect): connection refused"), "{message}");
}

#[derive(Debug, thiserror::Error)]
#[error("client error (Connect)")]
struct Outer(#[source] std::io::Error);

#[rstest]
#[case::reference("/spec/reference", json!("r.io/team/other:v1"), "its spec.reference is \"r.io/team/other:v1\", not \"r.io/team/model:v1\"")]
#[case::owner("/spec/owner/uid", json!("mine"), "its spec.owner.uid is \"mine\", not \"1d4a\"")]
#[case::revision("/spec/revision", json!(null), "its spec.revision is \"\", not \"5d4f\"")]
#[case::digest("/spec/digest", json!("sha256:abc"), "its spec.digest: \"sha256:abc\" is not a digest")]
#[case::shape("/spec/owner", json!("me"), "it cannot be read (")]
#[case::cursor("/spec/reference", json!("\u{1b}[2J"), "its spec.reference is \"\\u{1b}[2J\"")]
#[tokio::test]
async fn a_pin_that_another_client_created_under_the_name_is_not_accepted(
    #[case] field: &str,
    #[case] value: Value,
    #[case] part: &str,
) {
    let api = FakeApi::default();
    api.put("team", pin(|pin| *pin.pointer_mut(field).unwrap() = value));
    let pins = ClusterPins::new(api.client());
    let error = pins.find("team", &key()).await.unwrap_err();
    assert_eq!(pins.get_or_create("team", &key(), &digest("two")).await, Err(error.clone()));
    let name = key().object_name();
    let (code, message) = denied(&error);
    assert_eq!(code, 400);
    assert!(
        message.starts_with(&format!("ArtifactPin team/{name} exists, and is not the expected pin: {part}")),
        "{message}"
    );
    assert!(
        message.ends_with(&format!(": delete it: kubectl delete artifactpin {name} --namespace team")),
        "{message}"
    );
}

/// Another admission webhook may change the pin that is created.
#[tokio::test]
async fn the_created_pin_is_checked() {
    let api = FakeApi::default();
    let changed = pin(|pin| pin["spec"]["reference"] = json!("mirror.io/team/model:v1"));
    api.answer_with(Method::POST, 201, &changed.to_string());
    let error =
        ClusterPins::new(api.client()).get_or_create("team", &key(), &digest("one")).await.unwrap_err();
    assert!(matches!(error, PinError::Mismatch { .. }), "{error}");
}

#[test]
fn a_timeout_is_reported() {
    assert_eq!(
        denied(&PinError::TooLate),
        (503, "the API server did not answer in time: retry later".to_owned())
    );
}
