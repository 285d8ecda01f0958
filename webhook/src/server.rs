//! The HTTP server around [`Admission`]: `POST /mutate` and `/warn`, `/healthz`, `/readyz` and `/metrics`, and graceful
//! shutdown.
//!
//! An answer to a review with a uid is always HTTP 200. An HTTP error means that the body had no uid; the API server
//! counts it as a failure of the webhook.

use std::io;
use std::net::TcpListener;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsConfig, from_tcp_rustls};
use futures_util::{FutureExt as _, StreamExt as _};
use http::{HeaderValue, StatusCode, Version, header};
use oras_csi_core::go_duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admit::Admission;
use crate::metrics::{Metrics, RequestOutcome};
use crate::review::{Hook, Review};

/// The maximum length of a body. The API server's own limit is 3 MiB for an object, and a review has two.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// How much of a body that is too long is read and discarded before the connection is closed.
const MAX_DISCARDED_BYTES: usize = 8 * MAX_BODY_BYTES;
/// How long an idle connection stays open: longer than the API server's client keeps it (90 s), so that the server never
/// closes a connection that the client is about to use.
const KEEP_ALIVE: Duration = Duration::from_mins(2);
/// The maximum `?timeout=` that the API server sends.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// Reports whether clients can connect to the server.
pub trait Health: Send + Sync + 'static {
    /// Returns whether the server is ready, and the reasons, one per line.
    fn report(&self) -> (bool, String);
    /// Returns when the serving certificate expires.
    fn certificate_not_after(&self) -> Option<SystemTime>;
}

impl Health for oras_csi_certs::Certificates {
    fn report(&self) -> (bool, String) {
        let readiness = self.readiness();
        (readiness.is_ready(), readiness.to_string())
    }

    fn certificate_not_after(&self) -> Option<SystemTime> {
        self.readiness().not_after()
    }
}

/// The settings of the server.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// The time limit of a request without `?timeout=`.
    pub default_timeout: Duration,
    /// How many reviews may be received at the same time; the server answers 503 to more.
    pub max_requests: usize,
    /// How long the server still accepts requests after shutdown was requested, while `/readyz` fails, so that clients
    /// switch to another replica.
    pub lame_duck: Duration,
    /// How long the server then waits for requests in progress.
    pub drain: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            default_timeout: Duration::from_secs(10),
            max_requests: 1_024,
            lame_duck: Duration::from_secs(10),
            drain: Duration::from_secs(15),
        }
    }
}

/// The state that the handlers share.
pub struct App {
    admission: Arc<Admission>,
    health: Box<dyn Health>,
    metrics: Arc<Metrics>,
    settings: ServerSettings,
    slots: Semaphore,
    draining: AtomicBool,
}

impl App {
    /// Creates the state. `metrics` are those that `admission` counts in.
    pub fn new(
        admission: impl Into<Arc<Admission>>,
        health: impl Health,
        metrics: Arc<Metrics>,
        settings: ServerSettings,
    ) -> Arc<Self> {
        let slots = Semaphore::new(settings.max_requests);
        let draining = AtomicBool::new(false);
        let admission = admission.into();
        Arc::new(Self { admission, health: Box::new(health), metrics, settings, slots, draining })
    }

    /// Makes `/readyz` fail, and closes connections after their next answer.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

/// Returns all routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/mutate", post(|State(app), request| handle_review(app, Hook::Volumes, request)))
        .route("/warn", post(|State(app), request| handle_review(app, Hook::Workloads, request)))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(|| async {
            (StatusCode::NOT_FOUND, "no such path: use /mutate, /warn, /healthz, /readyz or /metrics\n")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), wrap))
        .with_state(app)
}

/// Serves over TLS on a bound listener until `shutdown`. Readiness fails first, new requests are still answered for
/// `lame_duck`, and then the server waits for requests in progress.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    app: Arc<App>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let handle = Handle::new();
    let mut server = from_tcp_rustls(listener, RustlsConfig::from_config(tls))?
        .handle(handle.clone())
        .first_request_timeout(KEEP_ALIVE);
    server.http_builder().http1().header_read_timeout(KEEP_ALIVE);
    server.http_builder().http2().keep_alive_interval(Some(KEEP_ALIVE / 4));
    let ending = Arc::clone(&app);
    let drain = tokio::spawn(async move {
        shutdown.cancelled().await;
        let ServerSettings { lame_duck, drain, .. } = ending.settings;
        ending.start_draining();
        tracing::info!(lame_duck_s = lame_duck.as_secs(), drain_s = drain.as_secs(), "draining");
        tokio::time::sleep(lame_duck).await;
        handle.graceful_shutdown(Some(drain));
    });
    let result = server.serve(router(app).into_make_service()).await;
    drain.abort();
    result
}

/// Answers a panic with HTTP 500, and closes connections while draining. Applies to every route.
async fn wrap(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let is_http_1 = request.version() < Version::HTTP_2;
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|_| {
        tracing::error!("a request handler panicked");
        app.metrics.request(RequestOutcome::Crashed);
        (StatusCode::INTERNAL_SERVER_ERROR, "the webhook failed on this request, see its log\n")
            .into_response()
    });
    if is_http_1 && app.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn handle_review(app: Arc<App>, hook: Hook, request: Request) -> Response {
    let Ok(slot) = app.slots.try_acquire() else {
        app.metrics.request(RequestOutcome::Overload);
        let wait = [(header::RETRY_AFTER, "1")];
        return (StatusCode::SERVICE_UNAVAILABLE, wait, "too many reviews are in progress\n").into_response();
    };
    let deadline = deadline(Instant::now(), request.uri().query(), app.settings.default_timeout);
    let read = read_review(hook, request, deadline).await;
    // A request that waits for a registry holds no slot, so a stalled registry cannot block other reviews.
    drop(slot);
    match read {
        Ok(review) => Json(app.admission.review(&review, deadline).await).into_response(),
        Err((status, message)) => {
            app.metrics.request(RequestOutcome::Unreadable);
            tracing::warn!(
                status = status.as_u16(),
                reason = message,
                "rejected a request that is not a valid AdmissionReview"
            );
            (status, format!("{message}\n")).into_response()
        }
    }
}

async fn read_review(
    hook: Hook,
    request: Request,
    deadline: Instant,
) -> Result<Review, (StatusCode, String)> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(is_json) {
        let message = "the content type is not application/json";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message.to_owned()));
    }
    let too_large =
        || (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {MAX_BODY_BYTES} bytes"));
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = match tokio::time::timeout_at(deadline, read_body(request.into_body(), length, deadline)).await
    {
        Ok(Ok(Some(body))) => body,
        Ok(Ok(None)) => return Err(too_large()),
        Ok(Err(error)) => return Err((StatusCode::BAD_REQUEST, format!("the body ended early: {error}"))),
        Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the body was not received in time".to_owned())),
    };
    Review::decode(hook, &body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
}

/// Reads the whole body; `None` where it is longer than the limit, whatever its `Content-Length`.
async fn read_body(
    body: Body,
    length: Option<usize>,
    deadline: Instant,
) -> Result<Option<Vec<u8>>, axum::Error> {
    let mut chunks = body.into_data_stream();
    if length.is_some_and(|length| length > MAX_BODY_BYTES) {
        tokio::spawn(discard_rest(chunks, deadline));
        return Ok(None);
    }
    let mut whole = Vec::with_capacity(length.unwrap_or_default());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        if whole.len() + chunk.len() > MAX_BODY_BYTES {
            tokio::spawn(discard_rest(chunks, deadline));
            return Ok(None);
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(Some(whole))
}

/// Discards the rest of a body: a client that is still writing when its connection is closed does not read the answer.
async fn discard_rest(mut chunks: BodyDataStream, deadline: Instant) {
    let rest = async {
        let mut discarded = 0;
        while let Some(Ok(chunk)) = chunks.next().await
            && discarded < MAX_DISCARDED_BYTES
        {
            discarded += chunk.len();
        }
    };
    let _ = tokio::time::timeout_at(deadline, rest).await;
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

async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    let (mut is_ready, mut report) = app.health.report();
    if !app.admission.policies().is_synced() {
        is_ready = false;
        report.push_str(
            "\npolicies: not read yet: check that the ArtifactPolicy CRD is installed and that the webhook may watch it",
        );
    }
    if !app.admission.has_key() {
        is_ready = false;
        report.push_str(
            "\nseal: no key yet: check that the webhook may get, create and update its Secret and its ConfigMap",
        );
    }
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{report}\n")).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let not_after = app.health.certificate_not_after().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    app.metrics.set_certificate_not_after(not_after.map_or(0.0, |since| since.as_secs_f64()));
    let (policies, unreadable) = app.admission.policies().counts();
    app.metrics.set_policies(policies, unreadable);
    match app.metrics.encode() {
        Ok(text) => {
            let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
            (kind, Body::from(text)).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
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
