//! The HTTP server around [`Admission`]: `POST /mutate` and `/warn`, `/healthz`, `/readyz` and `/metrics`, and graceful
//! shutdown.
//!
//! An answer to a review with a uid is always HTTP 200. An HTTP error means that the body had no uid, or that the server
//! has no memory for the review; the API server counts it as a failure of the webhook.
//!
//! Every client can connect, so everything that a client can occupy is limited: [`connections`] limits their number,
//! [`memory`] the bytes of reviews and answers, [`body`] the time that a body takes.

mod answer;
mod body;
mod connections;
mod memory;
mod reviews;

use std::io;
use std::net::TcpListener;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use futures_util::FutureExt as _;
use http::{HeaderValue, StatusCode, Version, header};
use oras_csi_certs::Expiry;
use tokio_util::sync::CancellationToken;

use self::connections::{Connection, CountingAcceptor};
use self::memory::Memory;
use crate::admit::Admission;
use crate::metrics::{Metrics, RequestOutcome};
use crate::review::Hook;

pub use self::body::MAX_BODY_BYTES;

/// How long an idle connection stays open: longer than the API server's client keeps it (90 s), so that the server never
/// closes a connection that the client is about to use.
const KEEP_ALIVE: Duration = Duration::from_mins(2);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The buffer of an HTTP/1 connection: the longest head of a request, and what is read of a body at once.
const HTTP_1_BUFFER: usize = 16 << 10;
/// How much of all bodies of an HTTP/2 connection is received before the server reads them (flow control, RFC 9113,
/// section 5.2). A connection may have this much unread.
const HTTP_2_WINDOW: u32 = 128 << 10;
/// How many requests an HTTP/2 connection may have in progress. The API server opens another connection for more.
const HTTP_2_STREAMS: u32 = 16;

/// Reports whether clients can connect to the server.
pub trait Health: Send + Sync + 'static {
    /// Returns whether the server is ready, and the reasons, one per line.
    fn report(&self) -> (bool, String);
    /// Returns when the serving certificate and its CA expire.
    fn certificate_expiry(&self) -> Expiry;
}

impl Health for oras_csi_certs::Certificates {
    fn report(&self) -> (bool, String) {
        let readiness = self.readiness();
        (readiness.is_ready(), readiness.to_string())
    }

    fn certificate_expiry(&self) -> Expiry {
        self.expiry()
    }
}

/// The settings of the server.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// The time limit of a request without `?timeout=`.
    pub default_timeout: Duration,
    /// How many bytes of memory the reviews in progress and the answers may take. When it is used up, the largest and
    /// oldest are answered 503.
    pub review_memory: usize,
    /// How many connections may be open. Above it, a new connection closes another one (see [`connections`]).
    pub max_connections: usize,
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
            review_memory: 16 << 20,
            max_connections: 384,
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
    memory: Arc<Memory>,
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
        let memory = Memory::new(settings.review_memory);
        let draining = AtomicBool::new(false);
        let admission = admission.into();
        Arc::new(Self { admission, health: Box::new(health), metrics, settings, memory, draining })
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
        .route("/mutate", post(|State(app), request| reviews::handle(app, Hook::Volumes, request)))
        .route("/warn", post(|State(app), request| reviews::handle(app, Hook::Workloads, request)))
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
    let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(tls)).handshake_timeout(HANDSHAKE);
    let mut server = axum_server::from_tcp(listener)?
        .acceptor(CountingAcceptor::new(acceptor, app.settings.max_connections))
        .handle(handle.clone())
        .first_request_timeout(KEEP_ALIVE);
    server.http_builder().http1().header_read_timeout(KEEP_ALIVE).max_buf_size(HTTP_1_BUFFER);
    let mut http2 = server.http_builder().http2();
    http2.keep_alive_interval(Some(KEEP_ALIVE / 4));
    http2.initial_stream_window_size(HTTP_2_WINDOW).initial_connection_window_size(HTTP_2_WINDOW);
    http2.max_concurrent_streams(HTTP_2_STREAMS).max_send_buf_size(HTTP_1_BUFFER);
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

/// Answers a panic with HTTP 500, counts the memory of the answer, and closes connections while draining. Applies to every
/// route.
async fn wrap(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let is_http_1 = request.version() < Version::HTTP_2;
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let response = answered.unwrap_or_else(|_| {
        tracing::error!("a request handler panicked");
        app.metrics.request(RequestOutcome::Crashed);
        (StatusCode::INTERNAL_SERVER_ERROR, "the webhook failed on this request, see its log\n")
            .into_response()
    });
    let counted = answer::counted(response, &app.memory, connection.as_deref()).await;
    let mut response = counted.unwrap_or_else(|_| reviews::overloaded(&app));
    if is_http_1 && app.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
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
    app.metrics.set_certificate_expiry(app.health.certificate_expiry());
    let (policies, unreadable) = app.admission.policies().counts();
    app.metrics.set_policies(policies, unreadable);
    ([(header::CONTENT_TYPE, oras_csi_metrics::CONTENT_TYPE)], Body::from(app.metrics.encode()))
        .into_response()
}
