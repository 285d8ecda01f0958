//! AdmissionReview `admission.k8s.io/v1`: decodes the request and builds the answer.
//!
//! The rules are those of kube-apiserver's `mutating/dispatcher.go` and `request/admissionreview.go`: the answer repeats
//! the uid, `patch` and `patchType` are both present or both absent, and the patch is a base64 string. The API server
//! refuses a list of numbers, which some libraries write.
//!
//! Architecture Invariant: this is the only file that builds an AdmissionResponse.

pub(crate) mod fields;
mod new_pod;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use json_patch::Patch;
use oras_csi_core::display::Shown;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use self::fields::{FieldsError, Object};
use crate::denial::{At, Denial, cut};
use crate::manifest::said_kind;
use crate::reapply::Change;
use crate::view::Tree;

/// The only version that is supported.
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// The longest uid and namespace.
const MAX_TEXT_BYTES: usize = 1_024;

/// Why a body cannot be answered as a review. Without a uid the answer is HTTP 400, which the API server counts as a
/// failure of the webhook.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Not JSON, or JSON of another shape.
    #[error("the body is not an AdmissionReview: {0}")]
    Shape(String),
    /// Another version or kind.
    #[error(
        "the body {}: this webhook supports only {KIND} of {API_VERSION} (admissionReviewVersions: [\"v1\"])",
        said_kind(.kind, .api_version)
    )]
    Version {
        /// The value of `apiVersion`.
        api_version: String,
        /// The value of `kind`.
        kind: String,
    },
    /// No `request`, or a request without a required field.
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
    #[serde(borrow)]
    old_object: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireResource {
    group: Option<String>,
    version: Option<String>,
    resource: Option<String>,
}

/// A review that can be answered, because it has a uid.
#[derive(Clone, Debug)]
pub struct Review {
    uid: String,
    namespace: String,
    is_dry_run: bool,
    subject: Subject,
    /// The memory that `subject` takes, estimated.
    bytes: usize,
}

/// The webhook that a review is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The webhook for pods and persistent volumes.
    Volumes,
    /// The webhook that returns warnings for workloads.
    Workloads,
}

/// The object of a review.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// A pod that is being created.
    NewPod(Tree),
    /// A `PersistentVolume` that is being created.
    NewPersistentVolume(Value),
    /// A pod of which an update changes a volume.
    ChangedPod(Change),
    /// A `PersistentVolume` of which an update changes the source.
    ChangedPersistentVolume(Change),
    /// A pod of which an update changes an annotation.
    AnnotatedPod(Change),
    /// A workload that is being created or changed.
    Workload(Value),
    /// An object that cannot be read.
    Unreadable(Denial),
    /// Any other operation, kind or subresource, which is allowed unchanged.
    Other,
}

impl Subject {
    /// Reads the object of an update as it was and as it will be, and returns how much memory both take.
    fn read_change(
        fields: &'static fields::Fields,
        (old, new): (&str, &str),
        subject: fn(Change) -> Self,
    ) -> (Self, usize) {
        match (fields::read(old, fields), fields::read(new, fields)) {
            (Ok(old), Ok(new)) => {
                let bytes = old.bytes + new.bytes;
                (subject(Change { old: old.value, new: new.value }), bytes)
            }
            // The API server decides about an update that the webhook cannot read.
            _ => (Self::Other, 0),
        }
    }

    /// Reads the object, and returns how much memory it takes.
    fn read(hook: Hook, kind: Option<&str>, json: &str) -> (Self, usize) {
        match (hook, kind) {
            // A workload is never denied, whatever it contains.
            (Hook::Workloads, _) => fields::read(json, &fields::WORKLOAD)
                .map_or((Self::Other, 0), |object| (Self::Workload(object.value), object.bytes)),
            (Hook::Volumes, Some("persistentvolumes")) => {
                let object = fields::read(json, &fields::PERSISTENT_VOLUME);
                Self::of(object, Self::NewPersistentVolume)
            }
            (Hook::Volumes, _) => Self::of(fields::read(json, &fields::POD), Self::NewPod),
        }
    }

    fn of<J>(object: Result<Object<J>, FieldsError>, subject: fn(J) -> Self) -> (Self, usize) {
        match object {
            Ok(object) => (subject(object.value), object.bytes),
            Err(error @ (FieldsError::TooLarge | FieldsError::Annotations(_))) => {
                (unreadable(error, "remove some of them"), 0)
            }
            Err(FieldsError::Syntax(error)) => (
                unreadable(
                    format_args!("cannot be read: {error}"),
                    "write JSON with numbers that fit 64 bits, Unicode text and fields nested less than 128 deep",
                ),
                0,
            ),
        }
    }
}

fn unreadable(rule: impl std::fmt::Display, advice: &str) -> Subject {
    Subject::Unreadable(Denial::bad_request(At::Field("request.object"), None, rule, advice))
}

impl Review {
    /// Decodes a body that was sent to `hook`.
    ///
    /// Only `object`, and for an update `oldObject`, is decoded, only for the kinds that the webhook handles, and only its
    /// fields in [`fields`], so a long list of something else costs nothing.
    pub fn decode(hook: Hook, body: &[u8]) -> Result<Self, ReviewError> {
        // serde accepts a list for a struct; the API server's decoder does not.
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
            return Err(ReviewError::Shape("it is a list, not an object".to_owned()));
        }
        if hook == Hook::Volumes
            && let Some(review) = Self::decode_new_pod(body)
        {
            return Ok(review);
        }
        Self::decode_any(hook, body)
    }

    /// Decodes a review of the creation of a pod in one pass over its text. Returns `None` where [`Self::decode_any`] must
    /// read it. [`Self::decode`] calls both; a fuzz target compares them.
    #[doc(hidden)]
    pub fn decode_new_pod(body: &[u8]) -> Option<Self> {
        new_pod::read(body)
    }

    /// Decodes a review of any object.
    #[doc(hidden)]
    pub fn decode_any(hook: Hook, body: &[u8]) -> Result<Self, ReviewError> {
        let wire: WireReview<'_> = serde_json::from_slice(body)
            .map_err(|error| ReviewError::Shape(Shown::new(&error.to_string()).to_string()))?;
        let api_version = wire.api_version.unwrap_or_default();
        let kind = wire.kind.unwrap_or_default();
        if api_version != API_VERSION || kind != KIND {
            return Err(ReviewError::Version { api_version, kind });
        }
        let request = wire.request.ok_or(ReviewError::Missing("uid"))?;
        let uid = request.uid.filter(|uid| !uid.is_empty()).ok_or(ReviewError::Missing("uid"))?;
        // Both are kept until the review is answered. A uid is a UUID, and a namespace a DNS label.
        for (field, text) in [("uid", Some(&uid)), ("namespace", request.namespace.as_ref())] {
            if text.is_some_and(|text| text.len() > MAX_TEXT_BYTES) {
                return Err(ReviewError::Shape(format!(
                    "request.{field} is longer than {MAX_TEXT_BYTES} bytes"
                )));
            }
        }
        let operation = request.operation.ok_or(ReviewError::Missing("operation"))?;
        let resource = request.resource.ok_or(ReviewError::Missing("resource"))?;
        let is_whole = request.sub_resource.is_none_or(|sub_resource| sub_resource.is_empty());
        let is_core =
            resource.group.is_none_or(|group| group.is_empty()) && resource.version.as_deref() == Some("v1");
        let kind = resource.resource.as_deref().filter(|_| is_core);
        let change = match (hook, kind, operation.as_str()) {
            (Hook::Volumes, Some("pods"), "UPDATE") => {
                Some((&fields::CHANGED_POD, Subject::ChangedPod as fn(Change) -> Subject))
            }
            (Hook::Volumes, Some("persistentvolumes"), "UPDATE") => Some((
                &fields::CHANGED_PERSISTENT_VOLUME,
                Subject::ChangedPersistentVolume as fn(Change) -> Subject,
            )),
            (Hook::Workloads, Some("pods"), "UPDATE") => {
                Some((&fields::CHANGED_POD, Subject::AnnotatedPod as fn(Change) -> Subject))
            }
            _ => None,
        };
        let is_wanted = is_whole
            && match hook {
                Hook::Volumes => matches!(kind, Some("pods" | "persistentvolumes")) && operation == "CREATE",
                Hook::Workloads => kind != Some("pods") && matches!(operation.as_str(), "CREATE" | "UPDATE"),
            };
        let texts = request.old_object.zip(request.object).map(|(old, new)| (old.get(), new.get()));
        let (subject, bytes) = match request.object {
            _ if is_whole && change.is_some() => match (change, texts) {
                (Some((fields, subject)), Some(texts)) => Subject::read_change(fields, texts, subject),
                _ => (Subject::Other, 0),
            },
            _ if !is_wanted => (Subject::Other, 0),
            Some(object) => Subject::read(hook, kind, object.get()),
            None if hook == Hook::Workloads => (Subject::Other, 0),
            None => (unreadable("is missing", "send the object with a CREATE request"), 0),
        };
        let (namespace, is_dry_run) = (request.namespace.unwrap_or_default(), request.dry_run == Some(true));
        Ok(Self { uid, namespace, is_dry_run, subject, bytes })
    }

    /// Reports whether the request must have no side effects.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.is_dry_run
    }

    /// Returns the namespace of the request, which is empty for a cluster-scoped object. The namespace in the pod's
    /// metadata may still be empty at admission.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the uid, which every answer repeats.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Returns an estimate of the memory that the review takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the object.
    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Allows the request without a change.
    pub(crate) fn allow(&self) -> ReviewResponse {
        ReviewResponse::new(Response { uid: self.uid.clone(), allowed: true, ..Response::default() })
    }

    /// Allows the request with a patch. An empty patch is left out: the API server refuses `patchType` without `patch`.
    ///
    /// `audit` must be the same on reinvocation for the same pod: the API server never overwrites an audit annotation.
    pub(crate) fn patched(
        &self,
        patch: &Patch,
        warnings: Vec<String>,
        audit: BTreeMap<String, String>,
    ) -> ReviewResponse {
        // Printing a patch cannot fail: its maps have no other keys than strings.
        let text = || serde_json::to_vec(patch).unwrap_or_default();
        let patch = if patch.0.is_empty() { None } else { Some(Base64(BASE64.encode(text()))) };
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

    /// Allows the request with warnings.
    pub(crate) fn warned(&self, warnings: Vec<String>) -> ReviewResponse {
        self.patched(&Patch(Vec::new()), warnings, BTreeMap::new())
    }

    /// Denies the request.
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

/// An answer that can be sent.
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
    patch: Option<Base64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Bytes in base64. As a JSON string nothing in it is escaped, so it is not looked at again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base64(String);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(format!("\"{}\"", self.0)).map_err(S::Error::custom)?.serialize(serializer)
    }
}

/// The fields of `metav1.Status` that a denial has.
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

/// `metav1.StatusDetails`: the API server turns it into its `Retry-After` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    retry_after_seconds: u32,
}

impl ReviewResponse {
    fn new(response: Response) -> Self {
        Self { api_version: API_VERSION, kind: KIND, response }
    }

    /// Reports whether the request is allowed.
    pub fn is_allowed(&self) -> bool {
        self.response.allowed
    }

    /// Reports whether the answer has a patch.
    pub fn has_patch(&self) -> bool {
        self.response.patch.is_some()
    }

    /// Returns the status code of a denial.
    pub fn code(&self) -> Option<u16> {
        self.response.status.as_ref().map(|status| status.code)
    }

    /// Returns the message of a denial.
    pub fn message(&self) -> Option<&str> {
        self.response.status.as_ref().map(|status| status.message.as_str())
    }
}

/// The API server cuts each warning to 256 characters when all together exceed 4,096 bytes. Warnings are kept within
/// these limits here, so that none is cut unexpectedly.
const MAX_WARNING_CHARS: usize = 256;
const MAX_WARNING_BYTES: usize = 4_096;
const LAST_WARNING_BYTES: usize = 64;

/// Returns the warnings that fit the API server's limits; the last one says how many were left out.
fn within_limits(warnings: Vec<String>) -> Vec<String> {
    let all = warnings.len();
    let max_chars = if warnings.iter().map(String::len).sum::<usize>() > MAX_WARNING_BYTES {
        MAX_WARNING_CHARS
    } else {
        usize::MAX
    };
    let mut included = Vec::new();
    let mut size = 0;
    for warning in warnings {
        // A warning is sent in an HTTP header (RFC 7234, section 5.5).
        let warning: String = warning.chars().filter(|character| !character.is_control()).collect();
        let warning = cut(warning, max_chars);
        size += warning.len();
        if size > MAX_WARNING_BYTES - LAST_WARNING_BYTES {
            included.push(format!("and {} more warnings", all - included.len()));
            break;
        }
        included.push(warning);
    }
    included
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Json as _;
    use rstest::rstest;
    use serde_json::json;

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
        assert!(
            matches!(review.subject(), Subject::NewPod(pod) if *pod.to_value() == json!({"metadata": {}}))
        );
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
    fn allows_other_requests_unchanged(#[case] field: &str, #[case] value: Value) {
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
    fn rejects_a_request_without_a_required_field(
        #[case] field: &str,
        #[case] value: Value,
        #[case] words: &str,
    ) {
        let mut request = pod_request();
        request[field] = value;
        let error = Review::decode(Hook::Volumes, &review(&request)).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }

    #[rstest]
    #[case("uid")]
    #[case("namespace")]
    fn rejects_long_texts_that_would_be_kept(#[case] field: &str) {
        let mut request = pod_request();
        request[field] = json!("u".repeat(MAX_TEXT_BYTES + 1));
        let error = Review::decode(Hook::Volumes, &review(&request)).unwrap_err();
        assert!(error.to_string().contains("is longer than 1024 bytes"), "{error}");
    }

    #[rstest]
    #[case(b"" as &[u8], "EOF")]
    #[case(b"{", "EOF")]
    #[case(b"[1]", "is not an AdmissionReview")]
    #[case(br#" ["admission.k8s.io/v1","AdmissionReview",{"uid":"u"}]"#, "a list, not an object")]
    #[case(
        br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}"#,
        "v1beta1: this webhook supports"
    )]
    #[case(br#"{"apiVersion":"admission.k8s.io/v1","kind":"Pod"}"#, "Pod of")]
    #[case(br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#, "request.uid")]
    #[case(b"\xff\xfe", "is not an AdmissionReview")]
    fn rejects_bodies_that_are_no_review(#[case] body: &[u8], #[case] words: &str) {
        let error = Review::decode(Hook::Volumes, body).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn reads_a_new_persistent_volume_and_the_dry_run_flag() {
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
    fn denies_a_pod_that_nests_too_deep() {
        let request = pod_request().to_string();
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let deep = format!(r#"{{"metadata":{{"annotations":{{"a":{deep}}}}}}}"#);
        let request = request.replace(r#"{"metadata":{}}"#, &deep);
        let body = format!(r#"{{"apiVersion":"{API_VERSION}","kind":"{KIND}","request":{request}}}"#);
        let review = Review::decode(Hook::Volumes, body.as_bytes()).unwrap();
        assert!(matches!(review.subject(), Subject::Unreadable(denial) if denial.code().number() == 400));
    }

    #[test]
    fn a_patch_is_a_base64_string_with_its_type() {
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
    fn a_denial_has_a_code_a_reason_and_a_retry_delay() {
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
        let included = within_limits(many);
        assert!(included.iter().map(String::len).sum::<usize>() <= 4_096);
        assert!(included.iter().all(|line| line.chars().count() <= 256 && !line.contains(['\r', '\n'])));
        let last = included.last().unwrap();
        assert!(last.contains(&format!("{} more", 100 - (included.len() - 1))), "{last}");
        assert_eq!(within_limits(vec!["a".into()]), ["a"]);
        let long = "x".repeat(3_000);
        assert_eq!(within_limits(vec![long.clone()]), [long], "a single warning is not cut");
    }
}
