//! A server that sends exactly the bytes that a test scripts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: String,
}

impl Request {
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What the server sends, in order. Then it closes the connection.
#[derive(Clone)]
pub(super) enum Part {
    Bytes(Vec<u8>),
    Wait(Duration),
    Forever(Vec<u8>),
    Hang,
}

/// A response with a body and its length.
pub(super) fn answer(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<Part> {
    let length = body.len().to_string();
    let mut all = vec![("Content-Length", length.as_str())];
    all.extend_from_slice(headers);
    vec![head(status, &all), Part::Bytes(body.to_vec())]
}

pub(super) fn head(status: u16, headers: &[(&str, &str)]) -> Part {
    let mut text = format!("HTTP/1.1 {status} Whatever\r\nConnection: close\r\n");
    text.extend(headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")));
    Part::Bytes((text + "\r\n").into_bytes())
}

pub(super) fn chunk(bytes: &[u8]) -> Part {
    let mut text = format!("{:x}\r\n", bytes.len()).into_bytes();
    text.extend_from_slice(bytes);
    text.extend_from_slice(b"\r\n");
    Part::Bytes(text)
}

pub(super) struct Server {
    pub(super) port: u16,
    log: Arc<Mutex<Vec<Request>>>,
    busy: Arc<Busy>,
    task: tokio::task::JoinHandle<()>,
}

/// How many requests wait for the first byte of their response, now and at most.
#[derive(Default)]
struct Busy {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Busy {
    fn enter(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
    }

    fn leave(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

type Handler = dyn Fn(&Request) -> Vec<Part> + Send + Sync;

impl Server {
    pub(super) async fn start(handler: impl Fn(&Request) -> Vec<Part> + Send + Sync + 'static) -> Self {
        Self::listen(None, Arc::new(handler)).await
    }

    pub(super) async fn start_tls(
        config: ServerConfig,
        handler: impl Fn(&Request) -> Vec<Part> + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(TlsAcceptor::from(Arc::new(config))), Arc::new(handler)).await
    }

    async fn listen(tls: Option<TlsAcceptor>, handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let seen = log.clone();
        let busy = Arc::<Busy>::default();
        let counted = busy.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, handler) = (tls.clone(), handler.clone());
                let (seen, busy) = (seen.clone(), counted.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, handler, seen, busy).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, handler, seen, busy).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, log, busy, task }
    }

    pub(super) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The maximum number of requests that waited for their response at the same time.
    pub(super) fn most_at_once(&self) -> usize {
        self.busy.most.load(Ordering::SeqCst)
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Request::line).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    handler: Arc<Handler>,
    log: Arc<Mutex<Vec<Request>>>,
    busy: Arc<Busy>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
        if head[0] == 0x16 {
            // A TLS handshake on a plain http port gets the response that real servers send.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
            return;
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let mut headers = HashMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        let all: &mut String = headers.entry(name.to_ascii_lowercase()).or_default();
        *all = if all.is_empty() { value.to_owned() } else { format!("{all}, {value}") };
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    let body = String::from_utf8(body).unwrap();
    let request = Request { method, target, headers, body };
    let parts = handler(&request);
    let is_head = request.method == "HEAD";
    log.lock().unwrap().push(request);
    let mut waits = true;
    busy.enter();
    for (position, part) in parts.into_iter().enumerate() {
        if waits && !matches!(part, Part::Wait(_)) {
            waits = false;
            busy.leave();
        }
        match part {
            Part::Bytes(bytes) if is_head && position > 0 && !bytes.starts_with(b"HTTP") => {}
            Part::Bytes(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Part::Wait(pause) => tokio::time::sleep(pause).await,
            Part::Forever(bytes) => while stream.write_all(&bytes).await.is_ok() {},
            Part::Hang => tokio::time::sleep(Duration::from_mins(1)).await,
        }
        let _ = stream.flush().await;
    }
    let _ = stream.shutdown().await;
    // Waits until the client has read everything: a reset would discard the last bytes.
    let mut rest = [0; 64];
    let _ = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut rest)).await;
}
