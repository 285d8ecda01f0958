//! The routes and the shutdown of the server.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Behaviour, Bench, FixedHealth, pod, review};
use axum::Router;
use axum::body::{Body, to_bytes};
use futures_util::StreamExt as _;
use http::{Request, StatusCode};
use oras_csi_webhook::ResolverSettings;
use oras_csi_webhook::server::{self, MAX_BODY_BYTES, ServerSettings, router};
use rstest::rstest;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

fn routes() -> Router {
    router(Bench::new().app(FixedHealth(true), ServerSettings::default()))
}

fn post(body: impl Into<Body>) -> Request<Body> {
    Request::post("/mutate?timeout=10s").header("content-type", "application/json").body(body.into()).unwrap()
}

async fn ask(router: &Router, request: Request<Body>) -> (StatusCode, String) {
    let answer = router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn get(router: &Router, path: &str) -> (StatusCode, String) {
    ask(router, Request::get(path).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_review_gets_the_answer_that_the_api_server_requires() {
    let (status, body) = ask(&routes(), post(review(&pod(&[("artifact", "r.io/a:1")])).to_string())).await;
    assert_eq!(status, StatusCode::OK);
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    let response = &answer["response"];
    assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    assert!(response["patch"].is_string() && response["status"].is_null());
    assert!(response["auditAnnotations"]["pinned"].as_str().unwrap().contains("r.io/a:1@sha256:"));
    assert!(response["warnings"][0].as_str().unwrap().contains("is pinned to sha256:"));
}

#[tokio::test]
async fn a_denial_is_http_200() {
    let (status, body) = ask(&routes(), post(review(&pod(&[("artefact", "r.io/a:1")])).to_string())).await;
    assert_eq!(status, StatusCode::OK);
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!(answer["response"]["status"]["code"], 400);
    assert!(answer["response"].get("patch").is_none() && answer["response"].get("patchType").is_none());
}

#[rstest]
#[case::kind("text/plain", "{}", StatusCode::UNSUPPORTED_MEDIA_TYPE, "application/json")]
#[case::parameters("application/json; charset=utf-8", "{}", StatusCode::BAD_REQUEST, "AdmissionReview")]
#[case::empty("application/json", "", StatusCode::BAD_REQUEST, "EOF")]
#[case::nothing("application/json", "{}", StatusCode::BAD_REQUEST, "the body has no kind: this webhook")]
#[case::a_pod(
    "application/json",
    r#"{"kind":"Pod","apiVersion":"v1"}"#,
    StatusCode::BAD_REQUEST,
    "the body is Pod of v1: this"
)]
#[case::no_version(
    "application/json",
    r#"{"kind":"AdmissionReview"}"#,
    StatusCode::BAD_REQUEST,
    "the body has no apiVersion: this"
)]
#[tokio::test]
async fn a_body_without_a_uid_is_an_http_error(
    #[case] kind: &str,
    #[case] body: &'static str,
    #[case] status: StatusCode,
    #[case] words: &str,
) {
    let request = Request::post("/mutate").header("content-type", kind).body(Body::from(body)).unwrap();
    let (found, text) = ask(&routes(), request).await;
    assert_eq!(found, status);
    assert!(text.contains(words), "{text}");
}

#[tokio::test]
async fn other_methods_and_paths_are_rejected() {
    let routes = routes();
    assert_eq!(get(&routes, "/mutate").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(get(&routes, "/").await.0, StatusCode::NOT_FOUND);
    let no_kind = Request::post("/mutate").body(Body::from("{}")).unwrap();
    assert_eq!(ask(&routes, no_kind).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn a_body_has_a_maximum_length() {
    let routes = routes();
    let mut large = pod(&[("artifact", "r.io/a:1")]);
    large["spec"]["x"] = json!("x".repeat(MAX_BODY_BYTES - 4_096));
    assert_eq!(ask(&routes, post(review(&large).to_string())).await.0, StatusCode::OK);

    let nine = vec![b' '; 9 << 20];
    let (status, text) = ask(&routes, post(nine.clone())).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(text.contains("8388608"), "{text}");
    // The same without a Content-Length.
    let chunks = nine.chunks(65_536).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect::<Vec<_>>();
    let stream = Body::from_stream(futures_util::stream::iter(chunks));
    assert_eq!(ask(&routes, post(stream)).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    // The answer is sent at once, and the rest of the body is discarded, so that the client reads the answer.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let body = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    let request = Request::post("/mutate?timeout=5s")
        .header("content-type", "application/json")
        .header("content-length", (12 << 20).to_string())
        .body(Body::from_stream(body))
        .unwrap();
    assert_eq!(ask(&routes, request).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    for _ in 0..12 {
        sender.send(Ok(vec![b' '; 1 << 20])).await.unwrap();
    }
}

#[tokio::test]
async fn a_stalled_body_does_not_block_other_requests() {
    let body = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let request =
        Request::post("/mutate?timeout=1s").header("content-type", "application/json").body(body).unwrap();
    assert_eq!(ask(&routes(), request).await.0, StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn the_timeout_of_the_request_limits_the_work() {
    let bench = Bench::new();
    bench.registry.set("slow.io/a:1", Behaviour::Hangs);
    let routes = router(bench.app(FixedHealth(true), ServerSettings::default()));
    let body = review(&pod(&[("artifact", "slow.io/a:1")])).to_string();
    let request = Request::post("/mutate?timeout=1s")
        .header("content-type", "application/json")
        .body(Body::from(body))
        .unwrap();
    let started = Instant::now();
    let (status, body) = ask(&routes, request).await;
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains(r#""code":503"#), "{body}");
}

/// There is memory for one review of half a mebibyte.
#[tokio::test]
async fn a_review_makes_room_for_another() {
    let settings = ServerSettings { review_memory: 1 << 20, ..ServerSettings::default() };
    let routes = router(Bench::new().app(FixedHealth(true), settings));
    let half = Body::from_stream(
        futures_util::stream::iter([Ok::<_, std::io::Error>(vec![b' '; 600 << 10])])
            .chain(futures_util::stream::pending()),
    );
    let slow = tokio::spawn({
        let routes = routes.clone();
        async move { ask(&routes, post(half)).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut large = pod(&[]);
    large["spec"]["x"] = json!("x".repeat(500 << 10));
    assert_eq!(ask(&routes, post(review(&large).to_string())).await.0, StatusCode::OK);
    let (status, body) = slow.await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("the memory for reviews is used up: try again"), "{body}");
    large["spec"]["x"] = json!("x".repeat(2 << 20));
    let (status, _) = ask(&routes, post(review(&large).to_string())).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "it needs more than there is");
    assert_eq!(get(&routes, "/healthz").await.0, StatusCode::OK, "others are not touched");
    let (_, metrics) = get(&routes, "/metrics").await;
    assert!(metrics.contains(r#"outcome="overload",code="503"} 2"#), "{metrics}");
}

/// A review that waits for a registry takes as much memory as its pod has in fields that are read.
#[tokio::test]
async fn a_large_pod_that_waits_for_a_registry_makes_room_for_others() {
    let bench = Bench::new();
    bench.registry.set("slow.io/a:1", Behaviour::Hangs);
    let settings = ServerSettings { review_memory: 1 << 20, ..ServerSettings::default() };
    let routes = router(bench.app(FixedHealth(true), settings));
    let mut large = pod(&[("artifact", "slow.io/a:1")]);
    large["metadata"]["annotations"]["notes"] = json!("n".repeat(200 << 10));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (routes, body) = (routes.clone(), review(&large).to_string());
        waiting.spawn(async move { ask(&routes, post(body)).await.0 });
    }
    let first = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(first, StatusCode::SERVICE_UNAVAILABLE);
    let (status, body) = ask(&routes, post(review(&pod(&[("artifact", "r.io/a:1")])).to_string())).await;
    assert!(status == StatusCode::OK && body.contains("patch"), "{body}");
    waiting.abort_all();
}

#[tokio::test]
async fn a_stalled_registry_does_not_block_other_requests() {
    let bench = Bench::new();
    bench.registry.set("slow.io/a:1", Behaviour::Hangs);
    let routes = router(bench.app(FixedHealth(true), ServerSettings::default()));
    let of = |reference: &str| review(&pod(&[("artifact", reference)])).to_string();
    let mut stalled = tokio::task::JoinSet::new();
    for _ in 0..400 {
        let (routes, body) = (routes.clone(), of("slow.io/a:1"));
        stalled.spawn(async move { ask(&routes, post(body)).await.1 });
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let started = Instant::now();
    for number in 0..100 {
        let (status, body) = ask(&routes, post(of(&format!("r.io/a:{number}")))).await;
        assert!(status == StatusCode::OK && body.contains("@sha256:"), "{body}");
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    // The registry has not answered for too long, so more requests fail at once.
    let started = Instant::now();
    let (_, body) = ask(&routes, post(of("slow.io/a:1"))).await;
    assert!(body.contains("400 requests already wait for the registry"), "{body}");
    assert!(started.elapsed() < Duration::from_secs(1));
    stalled.abort_all();
}

#[tokio::test]
async fn applying_a_workload_gives_the_warnings_of_its_pods() {
    let bench = Bench::new();
    bench.registry.set("r.io/none:1", Behaviour::Fails(crate::support::not_found("r.io/none:1")));
    let routes = router(bench.app(FixedHealth(true), ServerSettings::default()));
    let about = async |object: Value, operation: &str| {
        let mut review = review(&object);
        review["request"]["operation"] = json!(operation);
        review["request"]["resource"] = json!({"group": "apps", "version": "v1", "resource": "deployments"});
        let request = Request::post("/warn?timeout=5s").header("content-type", "application/json");
        let (status, body) = ask(&routes, request.body(Body::from(review.to_string())).unwrap()).await;
        assert_eq!(status, StatusCode::OK);
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["response"]["allowed"], true, "{answer}");
        assert!(answer["response"]["patch"].is_null() && answer["response"]["auditAnnotations"].is_null());
        answer["response"]["warnings"].to_string()
    };
    let deployment = |reference: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
            "spec": {"template": pod(&[("artifact", reference)])}})
    };
    assert!(about(deployment("r.io/a:1"), "CREATE").await.contains("pods of this Deployment: annotation"));
    let words = about(deployment("r.io/none:1"), "UPDATE").await;
    assert!(
        words.contains("would be denied: annotation oras.land/artifact: \\\"r.io/none:1\\\" does not exist"),
        "{words}"
    );
    assert!(about(deployment("team/app"), "CREATE").await.contains("docker.io/team/app"));
    let mut misplaced = deployment("r.io/a:1");
    misplaced["metadata"]["annotations"] = json!({"oras.land/artifact": "r.io/a:1"});
    assert!(about(misplaced, "CREATE").await.contains("on the Deployment itself has no effect"));
    for silent in [
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": pod(&[])}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": null}}),
        json!({"apiVersion": "example.org/v1", "kind": "Thing"}),
        json!(null),
        json!([1]),
    ] {
        assert_eq!(about(silent, "CREATE").await, "null");
    }
    assert_eq!(about(deployment("r.io/none:1"), "DELETE").await, "null");
    // Reviews with a pod template count in the slack metric, like pods.
    let (_, metrics) = get(&routes, "/metrics").await;
    assert!(metrics.contains("oras_csi_webhook_deadline_slack_seconds_count 5\n"), "{metrics}");
}

#[tokio::test]
async fn health_readiness_and_metrics() {
    let routes = routes();
    assert_eq!(get(&routes, "/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
    assert_eq!(get(&routes, "/readyz").await, (StatusCode::OK, "certificate: ok\n".to_owned()));
    ask(&routes, post(review(&pod(&[("artifact", "r.io/a:1")])).to_string())).await;
    ask(&routes, post(review(&pod(&[("artifact", "r.io/a:1")])).to_string())).await;
    ask(&routes, post(review(&pod(&[("artefact", "r.io/a:1")])).to_string())).await;
    ask(&routes, post("{")).await;
    let (status, text) = get(&routes, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    for line in [
        r#"oras_csi_webhook_requests_total{outcome="patched",code="200"} 2"#,
        r#"oras_csi_webhook_requests_total{outcome="denied",code="400"} 1"#,
        r#"oras_csi_webhook_requests_total{outcome="unreadable",code="400"} 1"#,
        r#"oras_csi_webhook_resolve_duration_seconds_count{cache="hit"} 1"#,
        r#"oras_csi_webhook_resolve_duration_seconds_count{cache="miss"} 1"#,
        r#"oras_csi_webhook_certificate_expiry_timestamp_seconds{kind="serving"} 1234"#,
        "oras_csi_webhook_deadline_slack_seconds_count 3",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("r.io") && !text.contains("team"), "no names in labels: {text}");

    let unready = router(Bench::new().app(FixedHealth(false), ServerSettings::default()));
    let (status, text) = get(&unready, "/readyz").await;
    assert_eq!((status, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "certificate: not ready\n"));
}

#[tokio::test]
async fn a_draining_server_is_not_ready_and_still_answers() {
    let app = Bench::new().app(FixedHealth(true), ServerSettings::default());
    let routes = router(Arc::clone(&app));
    let connection = async || {
        let answer = routes.clone().oneshot(post(review(&pod(&[])).to_string())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.headers().get("connection").cloned()
    };
    assert_eq!(connection().await, None);
    app.start_draining();
    assert_eq!(connection().await.unwrap(), "close");
    assert_eq!(get(&routes, "/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()));
    assert_eq!(get(&routes, "/healthz").await.0, StatusCode::OK);
}

/// A health check that panics.
struct Broken;

impl server::Health for Broken {
    fn report(&self) -> (bool, String) {
        panic!("told to")
    }

    fn certificate_expiry(&self) -> oras_csi_certs::Expiry {
        oras_csi_certs::Expiry::default()
    }
}

#[tokio::test]
async fn a_panic_is_answered_with_500() {
    let routes = router(Bench::new().app(Broken, ServerSettings::default()));
    assert_eq!(get(&routes, "/readyz").await.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(get(&routes, "/healthz").await.0, StatusCode::OK);
    assert!(get(&routes, "/metrics").await.1.contains(r#"outcome="crashed",code="500"} 1"#));
}

/// Sends one request over TLS on a new connection. Returns everything until the server closes it, or `None` where the
/// connection fails.
fn over_tls(port: u16, ca: &str, request: &str) -> Option<String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls::pki_types::CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, socket);
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    Some(String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_over_tls_and_shuts_down_gracefully() {
    let folder = tempfile::tempdir().unwrap();
    let (stop, stop_certificates, tasks) =
        (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    let names = oras_csi_certs::Names::new(["localhost"], []).unwrap();
    let source = oras_csi_certs::Source::Folder(folder.path().join("certs"));
    let settings = oras_csi_certs::Settings::new(source, names);
    let certificates =
        oras_csi_certs::start(settings, None, stop_certificates.clone(), &tasks).await.unwrap();
    let ca = certificates.ca_bundle_pem().unwrap();

    let bench = Bench::with(&[], ResolverSettings::default());
    bench.registry.set_delay(Duration::from_millis(400));
    let settings = ServerSettings {
        lame_duck: Duration::from_millis(600),
        drain: Duration::from_secs(5),
        ..ServerSettings::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = bench.app(certificates.clone(), settings);
    let server = tokio::spawn(server::serve(listener, certificates.server_config(), app, stop.clone()));

    let get = move |path: &'static str, ca: String| {
        tokio::task::spawn_blocking(move || {
            over_tls(
                port,
                &ca,
                &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
            )
        })
    };
    let ready = get("/readyz", ca.clone()).await.unwrap().unwrap();
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("certificate: ok"), "{ready}");

    let began = Instant::now();
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let lame = get("/readyz", ca.clone()).await.unwrap().unwrap();
    assert!(lame.starts_with("HTTP/1.1 503") && lame.contains("draining"), "{lame}");
    // A request that arrives while draining, and takes longer than the lame duck period, is answered; the server then
    // closes the connection.
    let body = review(&pod(&[("artifact", "r.io/a:1")])).to_string();
    let request = format!(
        "POST /mutate?timeout=10s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: \
         {}\r\n\r\n{body}",
        body.len()
    );
    let slow = tokio::task::spawn_blocking({
        let ca = ca.clone();
        move || over_tls(port, &ca, &request)
    });
    let answer = slow.await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("JSONPatch"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    server.await.unwrap().unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(600) && took < Duration::from_secs(4), "{took:?}");
    assert!(get("/readyz", ca).await.unwrap().is_none(), "the port is closed");
    stop_certificates.cancel();
    tasks.close();
    tasks.wait().await;
}
