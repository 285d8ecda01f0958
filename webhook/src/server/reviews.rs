//! `POST /mutate` and `/warn`: from the body of a request to the answer of a review.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use oras_csi_core::go_duration;
use tokio::time::Instant;

use super::App;
use super::answer;
use super::body::{self, BodyError, Received};
use super::connections::Connection;
use super::memory::{GivenUp, Share};
use crate::metrics::RequestOutcome;
use crate::review::{Hook, Review, ReviewError};

/// The maximum `?timeout=` that the API server sends.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a request has no answer of a review.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the content type is not application/json")]
    ContentType,
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error(transparent)]
    Review(#[from] ReviewError),
}

impl From<GivenUp> for RequestError {
    fn from(error: GivenUp) -> Self {
        Self::Body(error.into())
    }
}

impl RequestError {
    fn status(&self) -> StatusCode {
        match self {
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Body(BodyError::TooLong) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyError::Late { .. }) => StatusCode::REQUEST_TIMEOUT,
            Self::Body(BodyError::GivenUp(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Body(BodyError::Ended(_)) | Self::Review(_) => StatusCode::BAD_REQUEST,
        }
    }
}

pub(super) async fn handle(app: Arc<App>, hook: Hook, request: Request) -> Response {
    let deadline = deadline(Instant::now(), request.uri().query(), app.settings.default_timeout);
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let (review, share) = match read(&app, hook, request, deadline).await {
        Ok(read) => read,
        Err(error) => return failed(&app, &error),
    };
    // A connection is in use from a review on, not from a byte on.
    let _busy = connection.as_ref().map(Connection::busy);
    let reviewed = tokio::select! {
        reviewed = app.admission.review(&review, deadline) => reviewed,
        () = share.given_up().cancelled() => return overloaded(&app),
    };
    drop(review);
    answer::review(&reviewed, share)
}

/// Returns the answer of a request for which there is no memory: it is one of the largest, or the oldest of the same
/// size.
pub(super) fn overloaded(app: &App) -> Response {
    failed(app, &GivenUp.into())
}

fn failed(app: &App, error: &RequestError) -> Response {
    let (status, message) = (error.status(), error.to_string());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        app.metrics.request(RequestOutcome::Overload);
        let wait = [(header::RETRY_AFTER, "1")];
        return (status, wait, format!("{message}: try again\n")).into_response();
    }
    app.metrics.request(RequestOutcome::Unreadable);
    tracing::warn!(
        status = status.as_u16(),
        reason = message,
        "rejected a request that is not a valid AdmissionReview"
    );
    (status, format!("{message}\n")).into_response()
}

async fn read(
    app: &App,
    hook: Hook,
    request: Request,
    deadline: Instant,
) -> Result<(Review, Share), RequestError> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(is_json) {
        return Err(RequestError::ContentType);
    }
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let Received { bytes, share } = body::receive(request.into_body(), length, &app.memory, deadline).await?;
    let review = Review::decode(hook, &bytes)?;
    drop(bytes);
    share.resize(review.bytes())?;
    Ok((review, share))
}

/// `application/json`, with any parameters (RFC 9110, section 8.3.1).
fn is_json(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Returns when an answer has to be ready: the API server's `?timeout=` (which it rounds up to whole seconds), less a
/// fifth of it and at least a second for the network, but never less than half of it.
fn deadline(arrival: Instant, query: Option<&str>, default: Duration) -> Instant {
    let written = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("timeout=")));
    let timeout = written.and_then(parse_timeout).unwrap_or(default).min(MAX_TIMEOUT);
    let reserve = (timeout / 5).max(Duration::from_secs(1)).min(timeout / 2);
    arrival + timeout.saturating_sub(reserve)
}

/// Parses a timeout as Go's `Duration.String` prints it: `10s`, `1m30s`, `1.5s`, `500ms`. That form always ends in `s`.
fn parse_timeout(text: &str) -> Option<Duration> {
    let is_printed_by_go = text.ends_with('s') && !text.starts_with('-');
    let parsed = Some(text).filter(|_| is_printed_by_go).and_then(go_duration::parse);
    parsed.filter(|timeout| *timeout < go_duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(Some("timeout=10s"), 8_000)]
    #[case(Some("a=b&timeout=30s"), 24_000)]
    #[case(Some("timeout=1s"), 500)]
    #[case(Some("timeout=2s"), 1_000)]
    #[case(Some("timeout=3s"), 2_000)]
    #[case(Some("timeout=500ms"), 250)]
    #[case(Some("timeout=1m30s"), 24_000)]
    #[case(Some("timeout=1m"), 4_000)]
    #[case(Some("timeout=99999999999999999999s"), 4_000)]
    #[case(Some("timeout=-1s"), 4_000)]
    #[case(Some("timeout=NaNs"), 4_000)]
    #[case(Some("timeout="), 4_000)]
    #[case(Some("timeout=0s"), 0)]
    #[case(None, 4_000)]
    fn a_deadline_leaves_time_for_the_network(#[case] query: Option<&str>, #[case] milliseconds: u64) {
        let now = Instant::now();
        assert_eq!(deadline(now, query, Duration::from_secs(5)), now + Duration::from_millis(milliseconds));
    }

    #[rstest]
    #[case("application/json", true)]
    #[case("Application/JSON; charset=utf-8", true)]
    #[case("application/json ;x=y", true)]
    #[case("application/jsonx", false)]
    #[case("text/plain; application/json", false)]
    #[case("", false)]
    fn recognizes_the_json_content_type(#[case] content_type: &str, #[case] json: bool) {
        assert_eq!(is_json(content_type), json);
    }
}
