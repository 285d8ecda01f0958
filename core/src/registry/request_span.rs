//! The span of a request in traces.

use http::Method;
use reqwest::Response;
use tracing::{Span, field};
use url::Url;

use super::error::RegistryError;
use crate::trace::{self, TARGET};

/// Begins the span of a request. It ends with the headers of the response. The query, and the path of a redirect, are left
/// out, because presigned addresses carry their secret there.
pub(super) fn begin(method: &Method, url: &Url, is_first: bool) -> Span {
    tracing::trace_span!(
        target: TARGET,
        "HTTP request",
        otel.kind = "client",
        http.request.method = method.as_str(),
        server.address = url.host_str(),
        server.port = url.port_or_known_default(),
        url.path = is_first.then(|| url.path()),
        http.response.status_code = field::Empty,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
    )
}

/// Writes the answer to a request into its span.
pub(super) fn record(span: &Span, answer: Result<&Response, &RegistryError>) {
    match answer {
        Ok(response) => _ = span.record("http.response.status_code", response.status().as_u16()),
        Err(error) => trace::record_error(span, error),
    }
}
