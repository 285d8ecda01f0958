//! An OCI registry in memory, over HTTP.
//!
//! It implements what clients use of the OCI distribution specification 1.1: pull (with ranges), push (at once, in chunks,
//! by mount), tags, referrers, deletion, and error responses. It has no authentication, and its content ends with the
//! process.

#![cfg_attr(test, allow(clippy::expect_used, clippy::panic, clippy::unwrap_used))]

mod answer;
mod blobs;
mod manifests;
mod store;
#[cfg(test)]
mod tests;
mod uploads;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{Method, StatusCode, Uri};
use tokio::net::TcpListener;

use self::answer::{Refusal, empty};
use self::store::Store;

/// A registry that has a port, and answers as soon as [`Self::serve`] runs.
pub struct MemoryRegistry {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What all requests share.
struct Shared {
    store: Store,
    requests: [AtomicU64; Kind::COUNT],
}

/// Counts of requests. They can be read while the server runs, and after it has ended.
#[derive(Clone)]
pub struct Requests(Arc<Shared>);

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HEAD of a manifest.
    ManifestHead,
    /// GET of a manifest.
    ManifestGet,
    /// GET of a blob, or of a part of it.
    BlobGet,
    /// A request that writes.
    Write,
    /// All other requests.
    Other,
}

impl Kind {
    const COUNT: usize = 5;
}

impl Requests {
    /// Returns how many requests of a kind there were.
    pub fn count(&self, kind: Kind) -> u64 {
        self.0.requests[kind as usize].load(Ordering::Relaxed)
    }
}

impl MemoryRegistry {
    /// Listens at `address`; port 0 is any free port.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Shared { store: Store::default(), requests: Default::default() };
        Ok(Self { listener, address, shared: Arc::new(shared) })
    }

    /// Returns the address of the listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the counts of requests.
    pub fn requests(&self) -> Requests {
        Requests(self.shared.clone())
    }

    /// Answers requests until `stop` ends, and then completes the running ones.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
        let router = Router::new().fallback(route).with_state(self.shared);
        axum::serve(self.listener, router).with_graceful_shutdown(stop).await
    }
}

/// The target of a path. A repository has any number of segments, so a router cannot match it.
enum Target<'a> {
    Base,
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Uploads(&'a str),
    Upload(&'a str, &'a str),
    Tags(&'a str),
    Referrers(&'a str, &'a str),
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2")?;
        let rest = match rest.strip_prefix('/') {
            None | Some("") => return rest.trim_matches('/').is_empty().then_some(Self::Base),
            Some(rest) => rest,
        };
        if let Some(name) =
            rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads"))
        {
            return Some(Self::Uploads(name));
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(Self::Tags(name));
        }
        let (front, last) = rest.rsplit_once('/')?;
        if let Some(name) = front.strip_suffix("/blobs/uploads") {
            return Some(Self::Upload(name, last));
        }
        let (name, kind) = front.rsplit_once('/')?;
        match kind {
            "manifests" => Some(Self::Manifest(name, last)),
            "blobs" => Some(Self::Blob(name, last)),
            "referrers" => Some(Self::Referrers(name, last)),
            _ => None,
        }
    }

    fn kind(&self, method: &Method) -> Kind {
        match (self, method) {
            (Self::Manifest(..), &Method::HEAD) => Kind::ManifestHead,
            (Self::Manifest(..), &Method::GET) => Kind::ManifestGet,
            (Self::Blob(..), &Method::GET) => Kind::BlobGet,
            (_, &Method::GET | &Method::HEAD) => Kind::Other,
            _ => Kind::Write,
        }
    }

    fn repository(&self) -> Option<&str> {
        match self {
            Self::Base => None,
            Self::Manifest(name, _)
            | Self::Blob(name, _)
            | Self::Upload(name, _)
            | Self::Referrers(name, _)
            | Self::Uploads(name)
            | Self::Tags(name) => Some(name),
        }
    }
}

async fn route(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    answer(&shared, &method, &uri, request).await.unwrap_or_else(Refusal::into_answer)
}

async fn answer(shared: &Shared, method: &Method, uri: &Uri, request: Request) -> Result<Response, Refusal> {
    let target = Target::of(uri.path()).ok_or(Refusal::unsupported())?;
    shared.requests[target.kind(method) as usize].fetch_add(1, Ordering::Relaxed);
    if target.repository().is_some_and(|name| !is_repository(name)) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "NAME_INVALID", "not a repository name"));
    }
    let store = &shared.store;
    let query = Query::of(uri);
    match (&target, method) {
        (Target::Base, &Method::GET | &Method::HEAD) => Ok(empty(StatusCode::OK, &[])),
        (Target::Manifest(name, reference), &Method::GET | &Method::HEAD) => {
            manifests::get(store, name, reference)
        }
        (Target::Manifest(name, reference), &Method::PUT) => {
            manifests::put(store, name, reference, request).await
        }
        (Target::Manifest(name, reference), &Method::DELETE) => manifests::delete(store, name, reference),
        (Target::Blob(name, digest), &Method::GET | &Method::HEAD) => {
            blobs::get(store, name, digest, request.headers(), method == Method::HEAD)
        }
        (Target::Blob(name, digest), &Method::DELETE) => blobs::delete(store, name, digest),
        (Target::Uploads(name), &Method::POST) => uploads::start(store, name, &query, request).await,
        (Target::Upload(name, id), &Method::GET) => uploads::status(store, name, id),
        (Target::Upload(name, id), &Method::PATCH) => uploads::append(store, name, id, request).await,
        (Target::Upload(name, id), &Method::PUT) => uploads::finish(store, name, id, &query, request).await,
        (Target::Upload(name, id), &Method::DELETE) => uploads::cancel(store, name, id),
        (Target::Tags(name), &Method::GET) => manifests::tags(store, name, &query),
        (Target::Referrers(name, digest), &Method::GET) => manifests::referrers(store, name, digest, &query),
        _ => Err(Refusal::unsupported()),
    }
}

/// Reports whether a name matches the pattern of the specification ("Pulling manifests").
fn is_repository(name: &str) -> bool {
    name.len() <= 255 && name.split('/').all(is_segment)
}

fn is_segment(segment: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = segment.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    segment.bytes().next().is_some_and(alphanumeric)
        && segment.bytes().last().is_some_and(alphanumeric)
        && separators
            .into_iter()
            .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

/// The decoded query of a request.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(uri: &Uri) -> Self {
        let parse = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        Self(parse.map(|query| query.0).unwrap_or_default())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads the body of a request, at most `limit` bytes.
async fn body(request: Request<Body>, limit: usize) -> Result<bytes::Bytes, Refusal> {
    axum::body::to_bytes(request.into_body(), limit).await.map_err(|_| {
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", "the body is incomplete or too large")
    })
}
