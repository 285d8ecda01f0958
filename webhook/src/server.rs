//! HTTP around [`Admission`]: `POST /mutate` and `/warn`, `/healthz`, `/readyz` and `/metrics`, and how it all ends.
//!
//! An answer with a uid is HTTP 200, whatever it says. An HTTP error means that there is no uid to answer
//! to, which the API server takes for a failure of the webhook.

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
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admit::Admission;
use crate::metrics::{Metrics, RequestOutcome};
use crate::review::{Hook, Review};

/// The longest body: the API server's own limit is 3 MiB an object, of which a review has two.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// How much of a body that is too long is read before its connection is given up.
const MAX_DISCARDED_BYTES: usize = 8 * MAX_BODY_BYTES;
/// How long an idle connection is kept: longer than the API server's client keeps it (90 s), so that the
/// server is never the one to close it under a request.
const KEEP_ALIVE: Duration = Duration::from_mins(2);
/// The longest `?timeout=` that the API server sends.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether clients can reach the server, in words.
pub trait Health: Send + Sync + 'static {
    /// Ready or not, and why, one reason a line.
    fn report(&self) -> (bool, String);
    /// When the serving certificate ends.
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

/// How the server behaves.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// How long a request may take that says no `?timeout=`.
    pub default_timeout: Duration,
    /// How many reviews may be on their way in; more are turned away at once.
    pub max_requests: usize,
    /// How long to answer on, not ready, once the end is asked for, so that clients go elsewhere.
    pub lame_duck: Duration,
    /// How long to wait after that for what is under way.
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

/// Everything that the handlers share.
pub struct App {
    admission: Arc<Admission>,
    health: Box<dyn Health>,
    metrics: Arc<Metrics>,
    settings: ServerSettings,
    slots: Semaphore,
    draining: AtomicBool,
}

impl App {
    /// `metrics` are those that `admission` counts in.
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

    /// From now on `/readyz` says no, and connections are not kept.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/mutate", post(|State(app), request| answer(app, Hook::Volumes, request)))
        .route("/warn", post(|State(app), request| answer(app, Hook::Workloads, request)))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(|| async {
            (StatusCode::NOT_FOUND, "there is /mutate, /warn, /healthz, /readyz and /metrics\n")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// Serves over TLS on a listener that is bound already, until `shutdown`: then readiness fails first, new
/// requests are still answered for a while, and what is under way is waited for.
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

/// What holds for every route: a panic is an answer, and a connection is not kept while draining.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let keeps_connections = request.version() < Version::HTTP_2;
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|_| {
        tracing::error!("a request ended in a panic");
        app.metrics.request(RequestOutcome::Crashed);
        (StatusCode::INTERNAL_SERVER_ERROR, "the webhook failed on this request; its log says why\n")
            .into_response()
    });
    if keeps_connections && app.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn answer(app: Arc<App>, hook: Hook, request: Request) -> Response {
    let Ok(slot) = app.slots.try_acquire() else {
        app.metrics.request(RequestOutcome::Overload);
        let wait = [(header::RETRY_AFTER, "1")];
        return (StatusCode::SERVICE_UNAVAILABLE, wait, "too many reviews are at work\n").into_response();
    };
    let deadline = deadline(Instant::now(), request.uri().query(), app.settings.default_timeout);
    let read = read(hook, request, deadline).await;
    // Whoever waits for a registry takes nobody's place.
    drop(slot);
    match read {
        Ok(review) => Json(app.admission.review(&review, deadline).await).into_response(),
        Err((status, words)) => {
            app.metrics.request(RequestOutcome::Unreadable);
            tracing::warn!(status = status.as_u16(), reason = words, "not a review that can be answered");
            (status, format!("{words}\n")).into_response()
        }
    }
}

async fn read(hook: Hook, request: Request, deadline: Instant) -> Result<Review, (StatusCode, String)> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(is_json) {
        let words = "the content type is not application/json";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, words.to_owned()));
    }
    let too_large =
        || (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {MAX_BODY_BYTES} bytes"));
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = match tokio::time::timeout_at(deadline, collect(request.into_body(), length, deadline)).await {
        Ok(Ok(Some(body))) => body,
        Ok(Ok(None)) => return Err(too_large()),
        Ok(Err(error)) => return Err((StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
        Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned())),
    };
    Review::decode(hook, &body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
}

/// The whole body, or `None` where it is longer than it may be, whatever its announced length.
async fn collect(
    body: Body,
    length: Option<usize>,
    deadline: Instant,
) -> Result<Option<Vec<u8>>, axum::Error> {
    let mut chunks = body.into_data_stream();
    if length.is_some_and(|length| length > MAX_BODY_BYTES) {
        tokio::spawn(drop_rest(chunks, deadline));
        return Ok(None);
    }
    let mut whole = Vec::with_capacity(length.unwrap_or_default());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        if whole.len() + chunk.len() > MAX_BODY_BYTES {
            tokio::spawn(drop_rest(chunks, deadline));
            return Ok(None);
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(Some(whole))
}

/// Takes in what is left of a body: a client that is still writing when its connection ends never reads why.
async fn drop_rest(mut chunks: BodyDataStream, deadline: Instant) {
    let rest = async {
        let mut dropped = 0;
        while let Some(Ok(chunk)) = chunks.next().await
            && dropped < MAX_DISCARDED_BYTES
        {
            dropped += chunk.len();
        }
    };
    let _ = tokio::time::timeout_at(deadline, rest).await;
}

/// `application/json`, with any parameters (RFC 9110, section 8.3.1).
fn is_json(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// When an answer has to be ready: the API server's `?timeout=` (rounded up to whole seconds by it), less
/// a fifth of it and at least a second for the way there and back, but never less than half of it.
fn deadline(arrival: Instant, query: Option<&str>, default: Duration) -> Instant {
    let written = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("timeout=")));
    let timeout = written.and_then(parse_timeout).unwrap_or(default).min(MAX_TIMEOUT);
    let reserve = (timeout / 5).max(Duration::from_secs(1)).min(timeout / 2);
    arrival + timeout.saturating_sub(reserve)
}

/// A duration as Go prints whole and broken seconds: `10s`, `1m30s`, `1.5s`, `500ms`.
fn parse_timeout(text: &str) -> Option<Duration> {
    if let Some(milliseconds) = text.strip_suffix("ms") {
        return milliseconds.parse().ok().map(Duration::from_millis);
    }
    let (minutes, seconds) = text.split_once('m').unwrap_or(("0", text));
    let minutes: u32 = minutes.parse().ok()?;
    let seconds: f64 = seconds.strip_suffix('s')?.parse().ok()?;
    let seconds = Duration::try_from_secs_f64(seconds).ok()?;
    Duration::from_mins(1).checked_mul(minutes)?.checked_add(seconds)
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    let (mut is_ready, mut words) = app.health.report();
    if !app.admission.policies().is_synced() {
        is_ready = false;
        words.push_str(
            "\npolicies: not read yet; is the ArtifactPolicy resource installed, and may it be watched?",
        );
    }
    if !app.admission.has_key() {
        is_ready = false;
        words.push_str(
            "\nseal: no key yet; may the webhook get, create and update its Secret and its ConfigMap?",
        );
    }
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{words}\n")).into_response()
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
    fn a_deadline_leaves_time_for_the_way_back(#[case] query: Option<&str>, #[case] milliseconds: u64) {
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
    fn knows_json(#[case] content_type: &str, #[case] json: bool) {
        assert_eq!(is_json(content_type), json);
    }
}
