//! HTTP servers that send exactly what a test tells them to, valid or not.
//!
//! A [`Server`] passes each request to a function, which returns the parts of the answer. A [`Scripted`] registry is such
//! a server with [`Content`] (tags, manifests, blobs with ranges, tokens) and a [`Script`] that changes some of the
//! answers. HTTP is written by hand, because no library would send most of what the tests need.

#![allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a test cannot go on without its server")]

mod content;
mod script;
pub mod tricks;
mod wire;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::ServerConfig;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use self::wire::Wire;

pub use self::content::Content;
pub use self::script::{Answer, Part, Script, Trick, answer, chunk, head};

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers by their name in lower case; several of one name are joined by a comma.
    pub headers: HashMap<String, String>,
    /// The body, as far as `Content-Length` announces it.
    pub body: String,
    scheme: &'static str,
}

impl Request {
    /// Returns method and target.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    /// Returns a header, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Returns `scheme://host:port` of the server that received the request.
    pub fn base(&self) -> String {
        format!("{}://{}", self.scheme, self.header("host"))
    }

    fn parse(head: &str, scheme: &'static str) -> Option<Self> {
        let mut lines = head.lines();
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
        let mut headers = HashMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            let all: &mut String = headers.entry(name.to_ascii_lowercase()).or_default();
            *all = if all.is_empty() { value.to_owned() } else { format!("{all}, {value}") };
        }
        Some(Self { method, target, headers, body: String::new(), scheme })
    }
}

/// Plain HTTP or TLS.
#[derive(Clone)]
pub enum Security {
    /// Plain HTTP.
    Plain,
    /// TLS with this configuration.
    Tls(Arc<ServerConfig>),
}

type Handler = dyn Fn(&Request) -> Vec<Part> + Send + Sync;

/// A server on a free port. It stops when dropped.
pub struct Server {
    /// The port.
    pub port: u16,
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

/// What the connections of a server share.
struct State {
    handler: Box<Handler>,
    requests: Mutex<Vec<Request>>,
    waiting: AtomicUsize,
    max_waiting: AtomicUsize,
}

impl Server {
    /// Starts a server on 127.0.0.1 with plain HTTP.
    #[expect(clippy::unused_async, reason = "most servers of tests are started by an async function")]
    pub async fn start(handler: impl Fn(&Request) -> Vec<Part> + Send + Sync + 'static) -> Self {
        Self::listen("127.0.0.1", Security::Plain, without_body_of_head(handler))
    }

    /// Starts a server on 127.0.0.1 with TLS.
    #[expect(clippy::unused_async, reason = "as for `start`")]
    pub async fn start_tls(
        config: ServerConfig,
        handler: impl Fn(&Request) -> Vec<Part> + Send + Sync + 'static,
    ) -> Self {
        Self::listen("127.0.0.1", Security::Tls(Arc::new(config)), without_body_of_head(handler))
    }

    /// Starts a server on a free port of `address`. The function decides what is sent for HEAD.
    pub fn listen(
        address: &str,
        security: Security,
        handler: impl Fn(&Request) -> Vec<Part> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a port");
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(State {
            handler: Box::new(handler),
            requests: Mutex::default(),
            waiting: AtomicUsize::new(0),
            max_waiting: AtomicUsize::new(0),
        });
        let shared = state.clone();
        let task = runtime().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("it is non-blocking");
            // The set ends its connections when the server ends.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, wire) = (shared.clone(), Wire::new(stream, &security));
                connections.spawn(async move { state.serve(wire).await });
            }
        });
        Self { port: address.port(), address, state, task }
    }

    /// Returns `address:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns all requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns method and target of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Request::line).collect()
    }

    /// Returns the largest number of requests that waited at the same time for the first byte of their answer.
    pub fn most_at_once(&self) -> usize {
        self.state.max_waiting.load(Ordering::SeqCst)
    }
}

/// Drops the body of answers to HEAD, which is announced and not sent.
fn without_body_of_head(handler: impl Fn(&Request) -> Vec<Part>) -> impl Fn(&Request) -> Vec<Part> {
    move |request| {
        let mut parts = handler(request);
        if request.method == "HEAD" {
            let mut position = 0;
            parts.retain(|part| {
                position += 1;
                position == 1 || !matches!(part, Part::Bytes(bytes) if !bytes.starts_with(b"HTTP"))
            });
        }
        parts
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The runtime of all servers of a process. Tests can therefore block their own thread.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("a runtime")
    })
}

impl State {
    /// Serves one connection, request after request, until a part of an answer or the client ends it.
    async fn serve(&self, mut wire: Wire) {
        while let Some(head) = wire.head().await {
            let Some(mut request) = Request::parse(&head, wire.scheme()) else { return };
            let length = request.header("content-length").parse().unwrap_or(0);
            let Some(body) = wire.body(length).await else { return };
            request.body = body;
            let parts = (self.handler)(&request);
            self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            if !self.send(&mut wire, parts).await {
                return;
            }
            if !wire.is_kept() {
                return wire.close().await;
            }
        }
    }

    /// Sends an answer; returns `false` when the connection is gone.
    async fn send(&self, wire: &mut Wire, parts: Vec<Part>) -> bool {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.max_waiting.fetch_max(waiting, Ordering::SeqCst);
        let mut has_begun = false;
        for part in parts {
            if !has_begun && !matches!(part, Part::Wait(_)) {
                has_begun = true;
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            if !matches!(wire.send_part(part).await, Ok(true)) {
                return false;
            }
        }
        if !has_begun {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        true
    }
}

/// A registry with some content, and a script that changes some of its answers. It stops when dropped.
pub struct Scripted {
    server: Server,
    script: Arc<Script>,
}

impl Scripted {
    /// Starts a registry on a free port of `address`.
    pub fn start(address: &str, security: Security, content: Arc<Content>, script: Script) -> Self {
        let script = Arc::new(script);
        let lines = script.clone();
        let server = Server::listen(address, security, move |request| {
            let answer = content.answer(request);
            match lines.trick(request) {
                None => answer.kept(),
                Some(trick) => trick(request, answer),
            }
        });
        Self { server, script }
    }

    /// Returns `address:port`.
    pub fn host(&self) -> String {
        self.server.host()
    }

    /// Returns all requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.server.requests()
    }

    /// Returns the paths of the script's lines that matched no request.
    pub fn unused(&self) -> Vec<&'static str> {
        self.script.unused()
    }
}
