//! Responses and errors, in the form of the specification ("Error Codes").

use axum::body::Body;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

/// An error response: a status, an error code of the specification, and a message.
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
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the operation is unsupported")
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
        Self::new(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "the digest is invalid or does not match the content",
        )
    }

    pub(super) fn into_answer(self) -> Response {
        let body = json!({"errors": [{"code": self.code, "message": self.message, "detail": null}]});
        json_body(self.status, "application/json", &body)
    }
}

/// Returns a response without a body.
pub(super) fn empty(status: StatusCode, headers: &[(HeaderName, String)]) -> Response {
    with_body(status, headers, Body::empty())
}

/// Returns a response with a body.
pub(super) fn with_body(status: StatusCode, headers: &[(HeaderName, String)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let version = HeaderName::from_static("docker-distribution-api-version");
    response.headers_mut().insert(version, HeaderValue::from_static("registry/2.0"));
    for (name, value) in headers {
        // All values were parsed before, so none is invalid.
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Returns a response with a JSON body.
pub(super) fn json_body(status: StatusCode, media_type: &str, body: &serde_json::Value) -> Response {
    with_body(status, &[(header::CONTENT_TYPE, media_type.to_owned())], Body::from(body.to_string()))
}

/// Returns the name of the header `Docker-Content-Digest`.
pub(super) fn content_digest() -> HeaderName {
    HeaderName::from_static("docker-content-digest")
}
