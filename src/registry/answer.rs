//! Answers and refusals, in the form of the spec ("Error Codes").

use axum::body::Body;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

/// A refusal: a status, one of the spec's codes, and words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: &'static str) -> Self {
        Self { status, code, message }
    }

    pub(super) fn unsupported() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry does not do that")
    }

    pub(super) fn blob_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry")
    }

    pub(super) fn manifest_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown to registry")
    }

    pub(super) fn upload_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
    }

    pub(super) fn digest_invalid() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the digest is none, or not that of the content")
    }

    pub(super) fn into_answer(self) -> Response {
        let body = json!({"errors": [{"code": self.code, "message": self.message, "detail": null}]});
        json_body(self.status, "application/json", &body)
    }
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode, headers: &[(HeaderName, String)]) -> Response {
    with_body(status, headers, Body::empty())
}

/// An answer with a body.
pub(super) fn with_body(status: StatusCode, headers: &[(HeaderName, String)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let version = HeaderName::from_static("docker-distribution-api-version");
    response.headers_mut().insert(version, HeaderValue::from_static("registry/2.0"));
    for (name, value) in headers {
        // Everything that is put here was parsed before, so that none is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// An answer with a JSON body.
pub(super) fn json_body(status: StatusCode, media_type: &str, body: &serde_json::Value) -> Response {
    with_body(status, &[(header::CONTENT_TYPE, media_type.to_owned())], Body::from(body.to_string()))
}

/// `Docker-Content-Digest`
pub(super) fn content_digest() -> HeaderName {
    HeaderName::from_static("docker-content-digest")
}
