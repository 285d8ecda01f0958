//! From settings to real TLS handshakes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use http::Method;
use oras_csi_kube_support::verb::Verb;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConnection, Stream, SupportedProtocolVersion,
};
use serde_json::json;

use super::*;
use crate::authority::Authority;
use crate::testing::{FakeApi, ManualClock, names, now};

fn settings(folder: &Path) -> Settings {
    Settings::new(Source::Folder(folder.to_owned()), names()).poll(Duration::from_millis(10))
}

async fn started(settings: Settings, client: Option<kube::Client>) -> (Certificates, CancellationToken) {
    let shutdown = CancellationToken::new();
    let certificates = start(settings, client, shutdown.clone(), &TaskTracker::new()).await.unwrap();
    (certificates, shutdown)
}

/// The leaf certificate that a client received, and the negotiated protocol.
struct Handshake {
    leaf: CertificateDer<'static>,
    alpn: Option<Vec<u8>>,
}

/// Does a handshake and sends one byte each way over loopback. The client trusts `bundle` and expects `name`.
fn handshake(
    certificates: &Certificates,
    bundle: &str,
    name: &str,
    version: &'static SupportedProtocolVersion,
    alpn: &[&[u8]],
) -> Result<Handshake, String> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = certificates.server_config();
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        let mut connection = ServerConnection::new(config).unwrap();
        let mut stream = Stream::new(&mut connection, &mut socket);
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)
    });
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle.as_bytes()).map(Result::unwrap));
    let mut config = ClientConfig::builder_with_provider(tls_config::crypto_provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    let mut stream = Stream::new(&mut connection, &mut socket);
    let mut byte = [7];
    let talked = stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte));
    drop(socket);
    let answer = server.join().unwrap();
    talked.map_err(|error| error.to_string())?;
    answer.unwrap();
    let leaf = connection.peer_certificates().unwrap()[0].clone().into_owned();
    Ok(Handshake { leaf, alpn: connection.alpn_protocol().map(<[u8]>::to_vec) })
}

fn leaf_now(certificates: &Certificates) -> CertificateDer<'static> {
    let bundle = certificates.ca_bundle_pem().unwrap();
    handshake(certificates, &bundle, "localhost", &TLS13, &[b"h2"]).unwrap().leaf
}

#[tokio::test]
async fn with_only_a_folder_a_client_that_trusts_the_bundle_connects() {
    let root = tempfile::tempdir().unwrap();
    let (certificates, _shutdown) = started(settings(&root.path().join("certs")), None).await;
    let bundle = certificates.ca_bundle_pem().unwrap();
    for (name, version, offered, agreed) in [
        ("hook.oras.svc", &TLS13, "h2", "h2"),
        ("localhost", &TLS12, "http/1.1", "http/1.1"),
        ("127.0.0.1", &TLS13, "h2", "h2"),
    ] {
        let done = handshake(&certificates, &bundle, name, version, &[offered.as_bytes()]).unwrap();
        assert_eq!(done.alpn.as_deref(), Some(agreed.as_bytes()));
    }
    let readiness = certificates.readiness();
    assert!(readiness.is_ready(), "{readiness}");
    let expiry = certificates.expiry();
    assert_eq!(expiry.leaf, readiness.not_after().map(unix_seconds));
    assert!(expiry.authority > expiry.leaf);
}

#[tokio::test]
async fn a_client_for_another_name_or_with_another_bundle_fails() {
    let root = tempfile::tempdir().unwrap();
    let (certificates, _shutdown) = started(settings(root.path()), None).await;
    let bundle = certificates.ca_bundle_pem().unwrap();
    let refused = |bundle: &str, name: &str| {
        handshake(&certificates, bundle, name, &TLS13, &[b"h2"]).err().expect("no connection")
    };
    let error = refused(&bundle, "elsewhere.example");
    assert!(error.contains("not valid for name"), "{error}");
    let other = Authority::generate(now()).unwrap();
    let error = refused(other.certificate_pem(), "localhost");
    assert!(error.contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn the_next_handshake_after_a_change_gets_the_new_certificate() {
    let root = tempfile::tempdir().unwrap();
    let (certificates, _shutdown) = started(settings(root.path()), None).await;
    let before = leaf_now(&certificates);
    let authority = Authority::generate(now()).unwrap();
    let pair = authority.issue(&names(), now()).unwrap();
    for (entry, text) in [
        ("tls.crt", pair.certificate_pem.as_str()),
        ("tls.key", &pair.key_pem),
        ("ca.crt", authority.certificate_pem()),
    ] {
        std::fs::write(root.path().join(entry), text).unwrap();
    }
    let changed = async {
        while certificates.ca_bundle_pem().as_deref() != Some(authority.certificate_pem()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), changed).await.expect("in time");
    assert_ne!(leaf_now(&certificates), before);
}

#[tokio::test]
async fn an_external_certificate_is_awaited() {
    let root = tempfile::tempdir().unwrap();
    let (certificates, _shutdown) = started(settings(root.path()).issuance(Issuance::External), None).await;
    let readiness = certificates.readiness();
    assert!(!readiness.is_ready());
    assert!(readiness.certificate().reason().contains("no tls.crt and tls.key yet"), "{readiness}");
    assert_eq!((certificates.expiry(), certificates.ca_bundle_pem()), (Expiry::default(), None));
    let pair = Authority::generate(now()).unwrap().issue(&names(), now()).unwrap();
    std::fs::write(root.path().join("tls.key"), &pair.key_pem).unwrap();
    std::fs::write(root.path().join("tls.crt"), &pair.certificate_pem).unwrap();
    let ready = async {
        while !certificates.readiness().is_ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.expect("in time");
    assert!(!root.path().join("ca.key").exists());
}

#[tokio::test]
async fn an_expired_certificate_is_not_ready() {
    let root = tempfile::tempdir().unwrap();
    let pair = Authority::generate(now()).unwrap().issue(&names(), now()).unwrap();
    std::fs::write(root.path().join("tls.key"), &pair.key_pem).unwrap();
    std::fs::write(root.path().join("tls.crt"), &pair.certificate_pem).unwrap();
    let clock = ManualClock::default();
    let tasks = TaskTracker::new();
    let certificates =
        start_with_clock(settings(root.path()), None, CancellationToken::new(), &tasks, clock.clock())
            .await
            .unwrap();
    assert!(certificates.readiness().is_ready());
    clock.advance(Duration::from_hours(8 * 24));
    let readiness = certificates.readiness();
    assert!(!readiness.certificate().is_ok(), "{readiness}");
}

fn configuration() -> serde_json::Value {
    let webhook = json!({
        "name": "pods.oras.land", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"name": "hook", "namespace": "oras"}},
    });
    json!({"metadata": {"name": "oras"}, "webhooks": [webhook]})
}

#[tokio::test]
async fn readiness_waits_for_the_configuration_and_tasks_end_at_shutdown() {
    let root = tempfile::tempdir().unwrap();
    let (api, client) = FakeApi::serve(None);
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let settings = settings(root.path()).webhook_configuration(Some("oras"));
    let certificates = start(settings, Some(client), shutdown.clone(), &tasks).await.unwrap();
    let readiness = certificates.readiness();
    assert!(readiness.certificate().is_ok() && !readiness.trust().is_ok(), "{readiness}");
    api.edit(|object| *object = Some(configuration()));
    let ready = async {
        while !certificates.readiness().is_ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.expect("in time");
    let bundle = api.object().unwrap()["webhooks"][0]["clientConfig"]["caBundle"].clone();
    let bundle: k8s_openapi::ByteString = serde_json::from_value(bundle).unwrap();
    handshake(&certificates, std::str::from_utf8(&bundle.0).unwrap(), "hook.oras.svc", &TLS13, &[b"h2"])
        .unwrap();
    shutdown.cancel();
    tasks.close();
    tokio::time::timeout(Duration::from_secs(20), tasks.wait()).await.expect("in time");
}

fn secret() -> Settings {
    let source = Source::Secret { namespace: "oras".to_owned(), name: "hook-ca".to_owned() };
    Settings::new(source, names())
}

#[tokio::test]
async fn settings_that_need_an_api_server_fail_without_a_client() {
    let root = tempfile::tempdir().unwrap();
    let folder = || settings(root.path());
    let validating = folder().validating_webhook_configuration(Some("oras".to_owned()));
    for settings in [secret(), folder().webhook_configuration(Some("oras")), validating] {
        let started = start(settings, None, CancellationToken::new(), &TaskTracker::new()).await;
        assert!(matches!(started, Err(Error::NoClient { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn a_transient_failure_of_the_api_server_is_retried_and_a_refusal_is_not() {
    let (api, client) = FakeApi::serve(None);
    api.refuse(Method::GET, 503);
    api.refuse(Method::GET, 429);
    let (certificates, _shutdown) = started(secret(), Some(client)).await;
    assert!(certificates.readiness().is_ready());

    let (api, client) = FakeApi::serve(None);
    api.refuse(Method::GET, 403);
    let refused = start(secret(), Some(client), CancellationToken::new(), &TaskTracker::new()).await;
    assert!(matches!(refused, Err(Error::Api { verb: Verb::Get, .. })));
    assert_eq!(api.count("GET"), 1);
}

#[tokio::test]
async fn an_invalid_entry_at_the_start_is_named_in_the_error() {
    let root = tempfile::tempdir().unwrap();
    for entry in ["tls.crt", "tls.key"] {
        std::fs::write(root.path().join(entry), "garbage").unwrap();
    }
    let started = start(settings(root.path()), None, CancellationToken::new(), &TaskTracker::new()).await;
    let error = started.unwrap_err().to_string();
    assert!(error.contains("tls.crt") && error.contains(&root.path().display().to_string()), "{error}");
}
