//! AdmissionReview `admission.k8s.io/v1`: read as the API server writes it, answered as it wants it.
//!
//! The rules are those of kube-apiserver's `mutating/dispatcher.go` and `request/admissionreview.go`:
//! the uid comes back, `patch` and `patchType` stand together or not at all, and the patch is a base64
//! string (a list of numbers, which some libraries write, is refused).
//!
//! Architecture Invariant: this is the only file that builds an AdmissionResponse.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use json_patch::Patch;
use oras_csi_core::display::Shown;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::denial::{At, Denial, cut};
use crate::manifest::said_kind;

/// The one version that is spoken.
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Why a body is no review that could be answered. There is no uid to answer to: this is HTTP 400, which
/// the API server counts as a failure of the webhook.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Not JSON, or JSON of another shape.
    #[error("the body is not an AdmissionReview: {0}")]
    Shape(String),
    /// Another version or kind.
    #[error(
        "the body {}: this webhook speaks {KIND} of {API_VERSION} only (admissionReviewVersions: [\"v1\"])",
        said_kind(.kind, .api_version)
    )]
    Version {
        /// What `apiVersion` says.
        api_version: String,
        /// What `kind` says.
        kind: String,
    },
    /// No `request`, or one without its uid.
    #[error("the AdmissionReview has no request.{0}")]
    Missing(&'static str),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireReview<'a> {
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(borrow)]
    request: Option<WireRequest<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireRequest<'a> {
    uid: Option<String>,
    resource: Option<WireResource>,
    sub_resource: Option<String>,
    namespace: Option<String>,
    operation: Option<String>,
    dry_run: Option<bool>,
    #[serde(borrow)]
    object: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireResource {
    group: Option<String>,
    version: Option<String>,
    resource: Option<String>,
}

/// A review that can be answered: it has a uid.
#[derive(Clone, Debug)]
pub struct Review {
    uid: String,
    namespace: String,
    is_dry_run: bool,
    subject: Subject,
}

/// Which webhook a review came for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The one that pods and persistent volumes go through.
    Volumes,
    /// The one that tells what the pods of workloads will meet.
    Workloads,
}

/// What a review is about.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// A pod that is being created.
    NewPod(Value),
    /// A `PersistentVolume` that is being created.
    NewPersistentVolume(Value),
    /// A workload that is being created or changed.
    Workload(Value),
    /// The same, with an object that cannot be read.
    Unreadable(Denial),
    /// Any other operation, kind or subresource: none of our business.
    Other,
}

impl Review {
    /// Reads a body that came for `hook`.
    ///
    /// Only the object of a request that matters is read at all, so a huge or odd `oldObject` of another
    /// request costs nothing.
    pub fn decode(hook: Hook, body: &[u8]) -> Result<Self, ReviewError> {
        // serde takes a list for a struct; the API server's decoder does not.
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
            return Err(ReviewError::Shape("it is a list, and not an object".to_owned()));
        }
        let wire: WireReview<'_> = serde_json::from_slice(body)
            .map_err(|error| ReviewError::Shape(Shown::new(&error.to_string()).to_string()))?;
        let api_version = wire.api_version.unwrap_or_default();
        let kind = wire.kind.unwrap_or_default();
        if api_version != API_VERSION || kind != KIND {
            return Err(ReviewError::Version { api_version, kind });
        }
        let request = wire.request.ok_or(ReviewError::Missing("uid"))?;
        let uid = request.uid.filter(|uid| !uid.is_empty()).ok_or(ReviewError::Missing("uid"))?;
        let operation = request.operation.ok_or(ReviewError::Missing("operation"))?;
        let resource = request.resource.ok_or(ReviewError::Missing("resource"))?;
        let is_whole = request.sub_resource.is_none_or(|sub_resource| sub_resource.is_empty());
        let is_core =
            resource.group.is_none_or(|group| group.is_empty()) && resource.version.as_deref() == Some("v1");
        let kind = resource.resource.as_deref().filter(|_| is_core);
        let is_wanted = is_whole
            && match hook {
                Hook::Volumes => matches!(kind, Some("pods" | "persistentvolumes")) && operation == "CREATE",
                Hook::Workloads => kind != Some("pods") && matches!(operation.as_str(), "CREATE" | "UPDATE"),
            };
        let subject = if is_wanted {
            match request.object.map(|raw| serde_json::from_str(raw.get())) {
                Some(Ok(object)) if hook == Hook::Workloads => Subject::Workload(object),
                // It is never refused here, whatever it is.
                _ if hook == Hook::Workloads => Subject::Other,
                Some(Ok(volume)) if kind == Some("persistentvolumes") => Subject::NewPersistentVolume(volume),
                Some(Ok(pod)) => Subject::NewPod(pod),
                Some(Err(error)) => Subject::Unreadable(Denial::rewrite(
                    At::Field("request.object"),
                    None,
                    format_args!("cannot be read: {error}"),
                    "write JSON with numbers that fit 64 bits, Unicode text and fields nested less than 128 deep",
                )),
                None => Subject::Unreadable(Denial::rewrite(
                    At::Field("request.object"),
                    None,
                    "is missing",
                    "a CREATE carries the object",
                )),
            }
        } else {
            Subject::Other
        };
        let (namespace, is_dry_run) = (request.namespace.unwrap_or_default(), request.dry_run == Some(true));
        Ok(Self { uid, namespace, is_dry_run, subject })
    }

    /// Whether nothing may come of it but the answer.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.is_dry_run
    }

    /// The namespace of the request; empty for an object that has none. The pod's own may be empty at admission.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The uid, which every answer repeats.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// What it is about.
    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Yes, without a change.
    pub(crate) fn allow(&self) -> ReviewResponse {
        ReviewResponse::new(Response { uid: self.uid.clone(), allowed: true, ..Response::default() })
    }

    /// Yes, with a patch. An empty one is left out: the API server refuses `patchType` without `patch`.
    ///
    /// `audit` must be the same in a second round for the same pod: the API server never overwrites an
    /// audit annotation.
    pub(crate) fn patched(
        &self,
        patch: &Patch,
        warnings: Vec<String>,
        audit: BTreeMap<String, String>,
    ) -> ReviewResponse {
        // `Value`'s printer cannot fail, where `to_vec` only does not.
        let patch = if patch.0.is_empty() { None } else { Some(BASE64.encode(json!(patch).to_string())) };
        ReviewResponse::new(Response {
            uid: self.uid.clone(),
            allowed: true,
            patch_type: patch.as_ref().map(|_| "JSONPatch"),
            patch,
            warnings: within_limits(warnings),
            audit_annotations: audit,
            ..Response::default()
        })
    }

    /// Yes, with words.
    pub(crate) fn warned(&self, warnings: Vec<String>) -> ReviewResponse {
        self.patched(&Patch(Vec::new()), warnings, BTreeMap::new())
    }

    /// No.
    pub(crate) fn denied(&self, denial: &Denial) -> ReviewResponse {
        ReviewResponse::new(Response {
            uid: self.uid.clone(),
            allowed: false,
            status: Some(Status {
                result: "Failure",
                code: denial.code().number(),
                reason: denial.code().reason(),
                message: denial.message().to_owned(),
                details: denial.retry_after().map(|retry_after_seconds| Details { retry_after_seconds }),
            }),
            ..Response::default()
        })
    }
}

/// An answer, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReviewResponse {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// `metav1.Status`, as much of it as a refusal has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Status {
    #[serde(rename = "status")]
    result: &'static str,
    code: u16,
    reason: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

/// `metav1.StatusDetails`: from it the API server makes its `Retry-After` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    retry_after_seconds: u32,
}

impl ReviewResponse {
    fn new(response: Response) -> Self {
        Self { api_version: API_VERSION, kind: KIND, response }
    }

    /// Whether the request is allowed.
    pub fn is_allowed(&self) -> bool {
        self.response.allowed
    }

    /// Whether it carries a patch.
    pub fn has_patch(&self) -> bool {
        self.response.patch.is_some()
    }

    /// The code of a refusal.
    pub fn code(&self) -> Option<u16> {
        self.response.status.as_ref().map(|status| status.code)
    }

    /// The words of a refusal.
    pub fn message(&self) -> Option<&str> {
        self.response.status.as_ref().map(|status| status.message.as_str())
    }
}

/// The API server cuts warnings to 256 characters each once all together exceed 4,096 bytes; these stay whole.
const LONGEST_WARNING: usize = 256;
const LONGEST_WARNINGS: usize = 4_096;
const LONGEST_LAST_WARNING: usize = 64;

/// Warnings within the API server's limits, the last one saying how many were left out.
fn within_limits(warnings: Vec<String>) -> Vec<String> {
    let all = warnings.len();
    let longest = if warnings.iter().map(String::len).sum::<usize>() > LONGEST_WARNINGS {
        LONGEST_WARNING
    } else {
        usize::MAX
    };
    let mut kept = Vec::new();
    let mut size = 0;
    for warning in warnings {
        // A warning travels in an HTTP header (RFC 7234, section 5.5).
        let warning: String = warning.chars().filter(|character| !character.is_control()).collect();
        let warning = cut(warning, longest);
        size += warning.len();
        if size > LONGEST_WARNINGS - LONGEST_LAST_WARNING {
            kept.push(format!("and {} more warnings of this kind", all - kept.len()));
            break;
        }
        kept.push(warning);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn review(request: &Value) -> Vec<u8> {
        json!({"apiVersion": API_VERSION, "kind": KIND, "request": request}).to_string().into_bytes()
    }

    fn pod_request() -> Value {
        json!({"uid": "u-1", "namespace": "team", "operation": "CREATE",
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "object": {"metadata": {}}})
    }

    #[test]
    fn reads_a_new_pod() {
        let review = Review::decode(Hook::Volumes, &review(&pod_request())).unwrap();
        assert_eq!((review.uid(), review.namespace()), ("u-1", "team"));
        assert!(matches!(review.subject(), Subject::NewPod(pod) if *pod == json!({"metadata": {}})));
    }

    #[rstest]
    #[case("operation", json!("UPDATE"))]
    #[case("operation", json!("DELETE"))]
    #[case("operation", json!("CONNECT"))]
    #[case("operation", json!("SOMETHING_NEW"))]
    #[case("subResource", json!("ephemeralcontainers"))]
    #[case("subResource", json!("exec"))]
    #[case("resource", json!({"group": "", "version": "v1", "resource": "services"}))]
    #[case("resource", json!({"group": "metrics.k8s.io", "version": "v1", "resource": "pods"}))]
    #[case("resource", json!({"group": "", "version": "v2", "resource": "pods"}))]
    fn leaves_the_rest_alone(#[case] field: &str, #[case] value: Value) {
        let mut request = pod_request();
        request[field] = value;
        let review = Review::decode(Hook::Volumes, &review(&request)).unwrap();
        assert!(matches!(review.subject(), Subject::Other));
    }

    #[rstest]
    #[case("uid", Value::Null, "request.uid")]
    #[case("uid", json!(""), "request.uid")]
    #[case("uid", json!(7), "expected a string")]
    #[case("operation", Value::Null, "request.operation")]
    #[case("resource", Value::Null, "request.resource")]
    fn refuses_what_it_cannot_answer(#[case] field: &str, #[case] value: Value, #[case] words: &str) {
        let mut request = pod_request();
        request[field] = value;
        let error = Review::decode(Hook::Volumes, &review(&request)).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }

    #[rstest]
    #[case(b"" as &[u8], "EOF")]
    #[case(b"{", "EOF")]
    #[case(b"[1]", "is not an AdmissionReview")]
    #[case(br#" ["admission.k8s.io/v1","AdmissionReview",{"uid":"u"}]"#, "a list, and not an object")]
    #[case(
        br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}"#,
        "v1beta1: this webhook speaks"
    )]
    #[case(br#"{"apiVersion":"admission.k8s.io/v1","kind":"Pod"}"#, "Pod of")]
    #[case(br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#, "request.uid")]
    #[case(b"\xff\xfe", "is not an AdmissionReview")]
    fn refuses_other_bodies(#[case] body: &[u8], #[case] words: &str) {
        let error = Review::decode(Hook::Volumes, body).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn reads_a_new_persistent_volume_and_whether_it_is_meant() {
        let mut request = pod_request();
        request["resource"]["resource"] = json!("persistentvolumes");
        request["namespace"] = json!(null);
        request["dryRun"] = json!(true);
        let read = Review::decode(Hook::Volumes, &review(&request)).unwrap();
        assert!(matches!(read.subject(), Subject::NewPersistentVolume(_)) && read.is_dry_run());
        assert_eq!(read.namespace(), "");
        assert!(!Review::decode(Hook::Volumes, &review(&pod_request())).unwrap().is_dry_run());
        request["operation"] = json!("UPDATE");
        let read = Review::decode(Hook::Volumes, &review(&request)).unwrap();
        assert!(matches!(read.subject(), Subject::Other));
    }

    #[test]
    fn a_pod_that_nests_too_deep_is_answered() {
        let request = pod_request().to_string();
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let request = request.replace(r#"{"metadata":{}}"#, &deep);
        let body = format!(r#"{{"apiVersion":"{API_VERSION}","kind":"{KIND}","request":{request}}}"#);
        let review = Review::decode(Hook::Volumes, body.as_bytes()).unwrap();
        assert!(matches!(review.subject(), Subject::Unreadable(denial) if denial.code().number() == 400));
    }

    #[test]
    fn a_patch_is_a_base64_string_and_never_half_there() {
        let review = Review::decode(Hook::Volumes, &review(&pod_request())).unwrap();
        let patch: Patch = serde_json::from_value(json!([{"op": "add", "path": "/a", "value": 1}])).unwrap();
        let answer = serde_json::to_value(review.patched(&patch, vec![], BTreeMap::new())).unwrap();
        assert_eq!(answer["response"]["uid"], "u-1");
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        let text = BASE64.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        assert_eq!(text, br#"[{"op":"add","path":"/a","value":1}]"#);

        let none = review.patched(&Patch(vec![]), vec![], BTreeMap::new());
        let none = serde_json::to_value(none).unwrap();
        assert_eq!(none["response"], json!({"uid": "u-1", "allowed": true}));
    }

    #[test]
    fn a_denial_has_a_code_a_reason_and_a_wait() {
        let review = Review::decode(Hook::Volumes, &review(&pod_request())).unwrap();
        let denial = Denial::new(crate::denial::Code::TooManyRequests, At::Volume("v"), None, "no", "wait")
            .with_retry_after(Some(7));
        let answer = serde_json::to_value(review.denied(&denial)).unwrap();
        assert_eq!(
            answer["response"],
            json!({"uid": "u-1", "allowed": false, "status": {"status": "Failure", "code": 429,
                "reason": "TooManyRequests", "message": "volume v: no: wait", "details": {"retryAfterSeconds": 7}}})
        );
    }

    #[test]
    fn warnings_stay_within_the_limits() {
        let many: Vec<String> = (0..100).map(|n| format!("{n}\r\n{}", "ü".repeat(300))).collect();
        let kept = within_limits(many);
        assert!(kept.iter().map(String::len).sum::<usize>() <= 4_096);
        assert!(kept.iter().all(|line| line.chars().count() <= 256 && !line.contains(['\r', '\n'])));
        let last = kept.last().unwrap();
        assert!(last.contains(&format!("{} more", 100 - (kept.len() - 1))), "{last}");
        assert_eq!(within_limits(vec!["a".into()]), ["a"]);
        let long = "x".repeat(3_000);
        assert_eq!(within_limits(vec![long.clone()]), [long], "one that is alone is not cut");
    }
}
