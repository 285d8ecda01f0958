//! A registry that says exactly what a script tells it to, true or not.
//!
//! By itself it is an honest registry of a few artifacts, over plain http or TLS: tags, manifests, blobs with
//! ranges, tokens where it is private. A [`Script`] has lines, each for some requests and a number of times, and
//! each makes something else of the honest answer. HTTP is written by hand, since no library would send most of
//! this.

mod content;
mod script;
mod trial;
pub mod tricks;
mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use self::wire::Wire;
use crate::registry::tls::Identity;

pub use self::content::Content;
pub use self::script::{Answer, Part, Script, Trick};
pub use self::trial::{Trial, Verdict};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `HEAD`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// By name in lower case.
    pub headers: HashMap<String, String>,
    scheme: &'static str,
}

impl Request {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// `scheme://host:port` of the server that was asked.
    pub fn home(&self) -> String {
        format!("{}://{}", self.scheme, self.header("host"))
    }

    fn parse(head: &str, scheme: &'static str) -> Option<Self> {
        let mut lines = head.lines();
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Some(Self { method, target, headers, scheme })
    }
}

/// How a server is spoken to.
#[derive(Clone)]
pub enum Security {
    /// Plain http.
    Plain,
    /// TLS with this configuration.
    Tls(Arc<ServerConfig>),
}

impl Security {
    /// TLS with a server's certificate.
    pub fn of(server: &Identity) -> Self {
        let chain = vec![CertificateDer::from_pem_file(server.certificate()).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_file(server.key()).expect("a key");
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth();
        Self::Tls(Arc::new(builder.with_single_cert(chain, key).expect("they belong together")))
    }
}

/// The server; it stops when dropped.
pub struct Scripted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
    script: Arc<Script>,
    task: JoinHandle<()>,
}

impl Scripted {
    /// Starts one at a free port of `address`.
    pub fn start(address: &str, security: Security, content: Arc<Content>, script: Script) -> Self {
        let listener = runtime().block_on(TcpListener::bind((address, 0))).expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let asked = Arc::<Mutex<Vec<Request>>>::default();
        let script = Arc::new(script);
        let (log, lines) = (asked.clone(), script.clone());
        let task = runtime().spawn(async move {
            // What a connection does ends with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (content, script, log) = (content.clone(), lines.clone(), log.clone());
                let wire = Wire::new(stream, &security);
                connections.spawn(async move { serve(wire, &content, &script, &log).await });
            }
        });
        Self { address, asked, script, task }
    }

    /// `address:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The paths of the script's lines that no request has fitted.
    pub fn unused(&self) -> Vec<&'static str> {
        self.script.unused()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One for all servers of a test program: a server is a task or two.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("a runtime")
    })
}

/// One connection, request after request, until a part ends it or nobody asks any more.
async fn serve(mut wire: Wire, content: &Content, script: &Script, log: &Mutex<Vec<Request>>) {
    while let Some(head) = wire.head().await {
        let Some(request) = Request::parse(&head, wire.scheme()) else { return };
        log.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        let answer = content.answer(&request);
        let parts = match script.trick(&request) {
            None => answer.kept(),
            Some(trick) => trick(&request, answer),
        };
        for part in parts {
            match wire.play(part).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return,
            }
        }
        if !wire.is_kept() {
            return wire.close().await;
        }
    }
}
