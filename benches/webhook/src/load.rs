//! A client of webhooks: kept TLS connections, each with a thread of its own that blocks.
//!
//! It offers what the API server does: HTTP/1.1 (which its client for webhooks insists on) and the cipher suites in the
//! order of Go. Each request has another uid.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::review::UID;

/// Where the requests go, and what they are.
#[derive(Clone)]
pub(crate) struct Target {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    request: Arc<[u8]>,
    uid: usize,
}

impl Target {
    pub(crate) fn new(address: SocketAddr, ca: &Path, body: &str) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).expect("a CA") {
            roots.add(certificate.expect("a certificate")).expect("a root");
        }
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("a version");
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let request = format!(
            "POST /mutate?timeout=10s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: kube-apiserver-admission\r\n\
             Content-Length: {}\r\nAccept: application/json, */*\r\nContent-Type: application/json\r\n\
             Accept-Encoding: gzip\r\n\r\n{body}",
            body.len()
        );
        let uid = request.find(UID).expect("the body has the uid") + UID.len() - 12;
        Self { address, tls: Arc::new(config), request: request.into_bytes().into(), uid }
    }

    pub(crate) fn connect(&self) -> Connection {
        let name = ServerName::try_from("localhost").expect("a name");
        let session = ClientConnection::new(Arc::clone(&self.tls), name).expect("a session");
        let socket = TcpStream::connect(self.address).expect("the server listens");
        socket.set_nodelay(true).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        let request = self.request.to_vec();
        let stream = StreamOwned::new(session, socket);
        Connection { stream, request, uid: self.uid, answer: vec![0; 64 << 10] }
    }
}

/// The number of the next request.
static NEXT: AtomicU64 = AtomicU64::new(1);

pub(crate) struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    request: Vec<u8>,
    /// Where the last 12 digits of the uid are in the request.
    uid: usize,
    answer: Vec<u8>,
}

impl Connection {
    /// Sends a review, and returns the body of the answer.
    pub(crate) fn ask(&mut self) -> &[u8] {
        let number = format!("{:012x}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.request[self.uid..self.uid + 12].copy_from_slice(number.as_bytes());
        self.stream.write_all(&self.request).expect("the server reads");
        let mut length = 0;
        loop {
            let count = self.stream.read(&mut self.answer[length..]).expect("the server answers");
            assert!(count > 0, "the server closed a connection");
            length += count;
            let head = self.answer[..length].windows(4).position(|bytes| bytes == b"\r\n\r\n");
            let Some(head) = head else { continue };
            let text = std::str::from_utf8(&self.answer[..head]).expect("text").to_ascii_lowercase();
            assert!(text.starts_with("http/1.1 200"), "{}", String::from_utf8_lossy(&self.answer[..length]));
            let body = text.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next());
            let body: usize = body.and_then(|number| number.parse().ok()).expect("a length");
            if length == head + 4 + body {
                return &self.answer[head + 4..length];
            }
        }
    }
}

/// Sends on `connections` at once, each as soon as it has the answer, for `time`. Returns the number of answers.
pub(crate) fn closed_loop(target: &Target, connections: usize, time: Duration) -> Closed {
    let mut open: Vec<Connection> = (0..connections).map(|_| target.connect()).collect();
    for connection in &mut open {
        connection.ask();
    }
    let started = Instant::now();
    let threads: Vec<_> = open
        .into_iter()
        .map(|mut connection| {
            spawn(move || {
                let mut times = Vec::new();
                while started.elapsed() < time {
                    let began = Instant::now();
                    connection.ask();
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    let times: Vec<Duration> =
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
    Closed { answers: times.len(), elapsed: started.elapsed() }
}

/// What a closed loop saw.
pub(crate) struct Closed {
    pub(crate) answers: usize,
    pub(crate) elapsed: Duration,
}

/// Sends `rate` requests a second, whether or not the answers come. A time counts from the moment at which its request
/// was due, so a slow answer that delays the next requests of its connection counts for them too. Returns the times in
/// order.
pub(crate) fn open_loop(target: &Target, connections: u32, rate: u32, time: Duration) -> Vec<Duration> {
    let mut open: Vec<Connection> = (0..connections).map(|_| target.connect()).collect();
    for connection in &mut open {
        connection.ask();
    }
    let started = Instant::now() + Duration::from_millis(200);
    let interval = Duration::from_secs(1) / rate;
    let threads: Vec<_> = (0..connections)
        .zip(open)
        .map(|(number, mut connection)| {
            spawn(move || {
                let mut times = Vec::new();
                let mut due = started + interval * number;
                while due < started + time {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    connection.ask();
                    times.push(due.elapsed());
                    due += interval * connections;
                }
                times
            })
        })
        .collect();
    let times = threads.into_iter().flat_map(|thread| thread.join().expect("no panic"));
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().stack_size(256 << 10).spawn(work).expect("a thread")
}
