//! A flood of connections and reviews of every bad shape does not take the webhook from an honest client: the command as
//! a process, its memory as the kernel counts it.

use std::path::{Path, PathBuf};
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
/// The memory of the cgroup in which the webhook runs.
const MEMORY_LIMIT_BYTES: u64 = 128 << 20;
/// The registry of the honest client.
const HONEST: &str = "registry.example:5000";
/// A registry that accepts connections and never answers.
const STALLING: &str = "stalling.example:5000";

#[derive(Clone)]
pub(crate) struct Client {
    port: u16,
    tls: TlsConnector,
}

impl Client {
    pub(crate) fn new(port: u16, tls: TlsConnector) -> Self {
        Self { port, tls }
    }

    async fn tcp(&self) -> Option<TcpStream> {
        TcpStream::connect(("127.0.0.1", self.port)).await.ok()
    }

    pub(crate) async fn connect(&self) -> Option<TlsStream<TcpStream>> {
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
fn large_fields() -> String {
    let mut pod = pod(&format!("{STALLING}/b:1"));
    pod["metadata"]["annotations"]["notes"] = json!("n".repeat(250_000));
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "other", "mountPath": "n".repeat(2_500_000)}]);
    review(&pod)
}

/// An HTTP/2 connection that asks for `/metrics` and opens no window for the answers (RFC 9113, section 6.5.2).
fn unread_metrics() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        bytes.extend_from_slice(&length[1..]);
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
    };
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    // HPACK (RFC 7541): GET, https, :path and :authority as literals.
    let mut head = vec![0x82, 0x87, 0x04, 8];
    head.extend_from_slice(b"/metrics");
    head.extend_from_slice(&[0x01, 9]);
    head.extend_from_slice(b"localhost");
    for stream in 0..100 {
        // END_STREAM and END_HEADERS.
        frame(1, 0x05, 2 * stream + 1, &head);
    }
    bytes
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
        // Does not read the answers.
        6 => stream.write_all(&unread_metrics()).await.ok()?,
        // Sends large reviews that wait for a registry.
        _ => {
            let text = &large[shape % 2];
            stream.write_all(head(text.len()).as_bytes()).await.ok()?;
            stream.write_all(text.as_bytes()).await.ok()?;
        }
    }
    stream.flush().await.ok()?;
    while stream.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
    Some(())
}

/// Sends a review, and returns the body of the answer.
pub(crate) async fn ask(stream: &mut TlsStream<TcpStream>, body: &str) -> Result<Value, String> {
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

pub(crate) fn connector(folder: &Path) -> TlsConnector {
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

/// A cgroup with a limit of memory, in which the kernel kills a process that needs more.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Creates a group. Only root can, and where it cannot, the test measures without a limit.
    fn create(bytes: u64) -> Option<Self> {
        let version_1 = Path::new("/sys/fs/cgroup/memory");
        let (parent, limit) = if version_1.is_dir() {
            (version_1, "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let folder = parent.join(format!("oras-csi-flood-{}", std::process::id()));
        let created = std::fs::create_dir(&folder).map(|()| Self(folder));
        let limited =
            created.and_then(|group| std::fs::write(group.0.join(limit), bytes.to_string()).map(|()| group));
        limited.inspect_err(|error| eprintln!("flood: SKIPPED the limit of {bytes} bytes: {error}")).ok()
    }

    /// Moves a process into the group.
    fn add(&self, process: u32) {
        std::fs::write(self.0.join("cgroup.procs"), process.to_string()).expect("a process of the group");
    }

    /// Returns the peak that the kernel charged, in MiB: resident memory, sockets and files.
    fn peak(&self) -> Option<u64> {
        let read = |name| std::fs::read_to_string(self.0.join(name)).ok()?.trim().parse::<u64>().ok();
        read("memory.max_usage_in_bytes").or_else(|| read("memory.peak")).map(|bytes| bytes >> 20)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // It can be removed once its process has ended.
        for _ in 0..50 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("flood: {} is left", self.0.display());
    }
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
    let group = MemoryGroup::create(MEMORY_LIMIT_BYTES);
    let mut webhook = start_webhook(folder.path(), port);
    if let Some(group) = &group {
        group.add(webhook.id());
    }
    webhook.wait_until("listening", Duration::from_secs(20), || {
        folder.path().join("tls/ca.crt").exists() && std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let client = Client::new(port, connector(folder.path()));
    let honest = review(&pod(&format!("{HONEST}/a:1")));

    let connected = Arc::new(AtomicU64::new(0));
    let large: [Arc<str>; 2] = [large_review().into(), large_fields().into()];
    let mut flood = JoinSet::new();
    for number in 0..CONNECTIONS {
        let (client, connected, large) = (client.clone(), Arc::clone(&connected), large.clone());
        flood.spawn(async move {
            loop {
                misbehave(client.clone(), number % 9, large.clone()).await;
                connected.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    // The kept connection is replaced when the server closes it, as the API server does.
    let (started, mut times, mut kept, mut closed) = (Instant::now(), Vec::new(), None, 0_usize);
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
                // On a busy machine, the server has been seen to close a new connection: counted, and limited below.
                Err(error) if failure.is_empty() => {
                    eprintln!("review {}: {error}", times.len());
                    (failure, closed) = (error, closed + 1);
                }
                Err(error) => panic!("review {}: {failure} {error}", times.len()),
            }
        };
        assert!(answer["response"]["patch"].is_string(), "{answer}");
        times.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    flood.shutdown().await;
    assert!(closed <= 1 + times.len() / 100, "{closed} of {} reviews had to be sent again", times.len());
    times.sort_unstable();
    let (peak, p99) = (peak_memory(webhook.id()), times[times.len() * 99 / 100]);
    eprintln!(
        "flood: {} connections closed, {} honest reviews answered, median {:?}, p99 {p99:?}, longest {:?}, peak resident memory {} MiB, charged to its cgroup {:?} MiB",
        connected.load(Ordering::Relaxed),
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1],
        peak >> 10,
        group.as_ref().and_then(MemoryGroup::peak),
    );
    // Each connection of the flood was made at least once, on average.
    assert!(connected.load(Ordering::Relaxed) > CONNECTIONS as u64, "the flood was too small");
    assert!(times.len() > 10, "{} reviews", times.len());
    assert!(peak < MAX_MEMORY_KIB, "peak memory {peak} KiB");
}
