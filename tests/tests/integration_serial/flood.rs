//! A flood of connections and reviews of every bad shape does not take the webhook from an honest client: the command as
//! a process, its memory as the kernel counts it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oras_csi_tests::parts::oras_csi;
use oras_csi_tests::process::{Running, free_port};
use oras_csi_tests::registry::{Distribution, files, write_hosts_toml};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long the flood lasts. ORAS_CSI_FLOOD_SECONDS sets another time.
fn duration() -> Duration {
    let seconds = std::env::var("ORAS_CSI_FLOOD_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(15))
}

/// Connections of the flood.
const CONNECTIONS: usize = 2_000;
/// The peak of resident memory that is allowed.
const MAX_MEMORY_KIB: u64 = 96 << 10;
/// The registry of the honest client.
const HONEST: &str = "registry.example:5000";
/// A registry that accepts connections and never answers.
const STALLING: &str = "stalling.example:5000";

#[derive(Clone)]
struct Client {
    port: u16,
    tls: TlsConnector,
}

impl Client {
    async fn tcp(&self) -> Option<TcpStream> {
        TcpStream::connect(("127.0.0.1", self.port)).await.ok()
    }

    async fn connect(&self) -> Option<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").unwrap();
        self.tls.connect(name, self.tcp().await?).await.ok()
    }
}

/// The head of a request with a body of that length.
fn head(length: usize) -> String {
    format!(
        "POST /mutate?timeout=10s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    )
}

fn review(pod: &Value) -> String {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u-1", "namespace": "team", "operation": "CREATE",
        "resource": {"group": "", "version": "v1", "resource": "pods"}, "object": pod}})
    .to_string()
}

fn pod(reference: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": {"oras.land/artifact": reference}},
        "spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "x".repeat(8_000)}]}]}})
}

/// A pod of three megabytes that waits for a registry.
fn large_review() -> String {
    let mut pod = pod(&format!("{STALLING}/a:1"));
    pod["spec"]["tolerations"] = json!(vec![json!({"key": "k"}); 260_000]);
    review(&pod)
}

/// A pod with as much as possible in the fields that the webhook reads.
fn large_annotations() -> String {
    let mut pod = pod(&format!("{STALLING}/b:1"));
    pod["metadata"]["annotations"]["notes"] = json!("n".repeat(2_500_000));
    review(&pod)
}

/// One connection of the flood, which lasts until the server closes it.
async fn misbehave(client: Client, shape: usize, large: [Arc<str>; 2]) -> Option<()> {
    if shape == 0 {
        // Sends nothing.
        client.tcp().await?.read_u8().await.ok();
        return Some(());
    }
    let mut stream = client.connect().await?;
    match shape {
        // Sends no request.
        1 => {}
        // Sends one byte of a body.
        2 => stream.write_all(format!("{}{{", head(1_000)).as_bytes()).await.ok()?,
        // Sends most of a body of seven megabytes.
        3 => {
            stream.write_all(head(7_000_000).as_bytes()).await.ok()?;
            stream.write_all(&vec![b' '; 6_900_000]).await.ok()?;
        }
        // Sends a byte a second.
        4 => {
            stream.write_all(head(30).as_bytes()).await.ok()?;
            for _ in 0..29 {
                stream.write_all(b" ").await.ok()?;
                stream.flush().await.ok()?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        // Sends half a head.
        5 => stream.write_all(b"POST /mutate HTTP/1.1\r\nHost: loc").await.ok()?,
        // Sends large reviews that wait for a registry.
        _ => {
            let text = &large[shape % 2];
            stream.write_all(head(text.len()).as_bytes()).await.ok()?;
            stream.write_all(text.as_bytes()).await.ok()?;
        }
    }
    stream.flush().await.ok()?;
    let mut byte = [0];
    let _ = stream.read(&mut byte).await;
    Some(())
}

/// Sends a review, and returns the body of the answer.
async fn ask(stream: &mut TlsStream<TcpStream>, body: &str) -> Result<Value, String> {
    let written = async {
        stream.write_all(format!("{}{body}", head(body.len())).as_bytes()).await?;
        stream.flush().await
    };
    written.await.map_err(|error| format!("write: {error}"))?;
    let mut text = Vec::new();
    loop {
        let count = stream.read_buf(&mut text).await.map_err(|error| format!("read: {error}"))?;
        let shown = String::from_utf8_lossy(&text);
        if let Some((head, body)) = shown.split_once("\r\n\r\n") {
            if !head.starts_with("HTTP/1.1 200") {
                return Err(shown.into_owned());
            }
            if let Ok(answer) = serde_json::from_str(body) {
                return Ok(answer);
            }
        }
        if count == 0 {
            return Err(format!("the connection ended after {shown:?}"));
        }
    }
}

fn start_webhook(folder: &Path, port: u16) -> Running {
    let mut command = Command::new(oras_csi());
    command.args(["webhook", &format!("--listen=127.0.0.1:{port}"), "--lame-duck=0"]);
    command.arg("--tls-dir").arg(folder.join("tls")).arg("--certs-dir").arg(folder.join("certs"));
    command.arg("--seal-dir").arg(folder.join("seal"));
    // The log of a flood is not read.
    command.env("RUST_LOG", "error");
    Running::start(&mut command, "webhook", folder)
}

fn connector(folder: &Path) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(folder.join("tls/ca.crt")).expect("the CA") {
        roots.add(certificate.expect("a certificate")).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Returns the peak of resident memory, in KiB.
fn peak_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_does_not_take_the_webhook_from_others() {
    let folder = tempfile::tempdir().unwrap();
    let stalling = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = stalling.local_addr().unwrap();
    write_hosts_toml(&folder.path().join("certs"), STALLING, &format!("http://{address}"));
    let registry = Distribution::start();
    write_hosts_toml(&folder.path().join("certs"), HONEST, &registry.url());
    registry.push("a:1", files::one_file().path(), &["app.jar"]);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = stalling.accept().await {
            open.push(stream);
        }
    });
    let port = free_port();
    let mut webhook = start_webhook(folder.path(), port);
    webhook.wait_until("listening", Duration::from_secs(20), || {
        folder.path().join("tls/ca.crt").exists() && std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let client = Client { port, tls: connector(folder.path()) };
    let honest = review(&pod(&format!("{HONEST}/a:1")));

    let connected = Arc::new(AtomicU64::new(0));
    let large: [Arc<str>; 2] = [large_review().into(), large_annotations().into()];
    let mut flood = JoinSet::new();
    for number in 0..CONNECTIONS {
        let (client, connected, large) = (client.clone(), Arc::clone(&connected), large.clone());
        flood.spawn(async move {
            loop {
                misbehave(client.clone(), number % 8, large.clone()).await;
                connected.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    // The kept connection is replaced when the server closes it, as the API server does.
    let (started, mut times, mut kept) = (Instant::now(), Vec::new(), None);
    while started.elapsed() < duration() {
        let began = Instant::now();
        let is_new = times.len() % 2 == 0;
        let mut failure = String::new();
        let answer = loop {
            let stream = if is_new { None } else { kept.take() };
            let mut stream = match stream {
                Some(stream) => stream,
                None => client.connect().await.unwrap_or_else(|| panic!("no connection; before: {failure}")),
            };
            match ask(&mut stream, &honest).await {
                Ok(answer) => {
                    kept = Some(stream);
                    break answer;
                }
                Err(error) if failure.is_empty() && !is_new => failure = error,
                Err(error) => panic!("review {}: {failure} {error}", times.len()),
            }
        };
        assert!(answer["response"]["patch"].is_string(), "{answer}");
        times.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    flood.shutdown().await;
    times.sort_unstable();
    let (peak, p99) = (peak_memory(webhook.id()), times[times.len() * 99 / 100]);
    eprintln!(
        "flood: {} connections closed, {} honest reviews answered, median {:?}, p99 {p99:?}, longest {:?}, peak memory {} MiB",
        connected.load(Ordering::Relaxed),
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1],
        peak >> 10
    );
    // Each connection of the flood was made at least once, on average.
    assert!(connected.load(Ordering::Relaxed) > CONNECTIONS as u64, "the flood was too small");
    assert!(times.len() > 10, "{} reviews", times.len());
    assert!(peak < MAX_MEMORY_KIB, "peak memory {peak} KiB");
}
