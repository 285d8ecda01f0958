//! The connections of the server: a cap, and which one is closed when it is reached.
//!
//! A connection costs memory as soon as its TLS handshake starts, whether or not it sends a request. So their number is
//! limited, and a new connection closes another one. There are three kinds: those without an answer so far, those that
//! wait for the next request, and those with a review in progress. The first of these kinds that has a third of all
//! connections gives up the one that is in its kind for the longest time. So no kind can close the connections of
//! another: neither handshakes that the API server uses, nor slow reviews a new handshake. Connections that have not sent
//! a byte are counted apart: they cost little, and must not close others.
//!
//! ```text
//! accepted ── first byte ──> fresh ── review ──> busy ── answer ──> idle ── review ──> busy …
//!    └─ MAX_SILENT              └─ max_connections for the three together ─┘
//! ```

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Extension;
use axum::middleware::AddExtension;
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::Layer as _;

/// How many connections may be open that have not sent a byte.
const MAX_SILENT: usize = 256;
/// How long a connection may be open before its first byte.
const FIRST_BYTE: Duration = Duration::from_secs(10);

/// The open connections, up to a limit.
pub(super) struct Connections {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Without an answer so far. All three are sorted by the time at which a connection came to its kind, oldest first.
    fresh: BTreeMap<u64, CancellationToken>,
    /// Waiting for the next request.
    idle: BTreeMap<u64, CancellationToken>,
    /// With a review in progress.
    busy: BTreeMap<u64, CancellationToken>,
}

/// An open connection; dropping it makes room for another.
pub(super) struct Connection {
    connections: Arc<Connections>,
    /// Its place in the order, and how many reviews are in progress on it.
    place: Mutex<(u64, usize)>,
    closed: CancellationToken,
}

/// A review in progress on a connection.
pub(super) struct Busy(Arc<Connection>);

impl Connections {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// Adds a connection, and closes another one if there are too many.
    pub(super) fn open(self: &Arc<Self>) -> Arc<Connection> {
        let closed = CancellationToken::new();
        let mut state = self.lock();
        let limit = self.limit.max(1);
        while state.kinds().map(|kind| kind.len()).iter().sum::<usize>() >= limit {
            // One of three kinds has a third of them at least.
            let share = limit.div_ceil(3);
            let oldest = state.kinds().into_iter().find(|kind| kind.len() >= share);
            if let Some((_, oldest)) = oldest.and_then(BTreeMap::pop_first) {
                oldest.cancel();
            }
        }
        let place = state.next();
        state.fresh.insert(place, closed.clone());
        drop(state);
        Arc::new(Connection { connections: Arc::clone(self), place: Mutex::new((place, 0)), closed })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the three kinds, in the order in which they give up connections.
    fn kinds(&mut self) -> [&mut BTreeMap<u64, CancellationToken>; 3] {
        [&mut self.fresh, &mut self.idle, &mut self.busy]
    }

    /// Removes a connection; `false` if it was closed by the server.
    fn remove(&mut self, place: u64) -> bool {
        self.kinds().into_iter().any(|kind| kind.remove(&place).is_some())
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Connection {
    /// Starts a review.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.count(|reviews| reviews + 1);
        Busy(Arc::clone(self))
    }

    /// Returns the token that closes it.
    pub(super) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        let mut state = self.connections.lock();
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let was_open = state.remove(place.0);
        *place = (state.next(), change(place.1));
        if was_open {
            let list = if place.1 == 0 { &mut state.idle } else { &mut state.busy };
            list.insert(place.0, self.closed.clone());
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let place = self.place.get_mut().unwrap_or_else(PoisonError::into_inner).0;
        self.connections.lock().remove(place);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.count(|reviews| reviews - 1);
    }
}

/// Counts a connection before `inner` does the TLS handshake on it.
#[derive(Clone)]
pub(super) struct CountingAcceptor<A> {
    inner: A,
    silent: Arc<Connections>,
    open: Arc<Connections>,
}

impl<A> CountingAcceptor<A> {
    pub(super) fn new(inner: A, max_connections: usize) -> Self {
        Self { inner, silent: Connections::new(MAX_SILENT), open: Connections::new(max_connections) }
    }
}

impl<A, S> Accept<TcpStream, S> for CountingAcceptor<A>
where
    A: Accept<Counted<TcpStream>, S> + Clone + Send + Sync + 'static,
    A::Future: Send,
    A::Stream: Send,
    A::Service: Send,
    S: Send + 'static,
{
    type Stream = A::Stream;
    type Service = AddExtension<A::Service, Arc<Connection>>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Self { inner, silent, open } = self.clone();
        Box::pin(async move {
            // Otherwise the first answer waits for the acknowledgement of the session tickets (RFC 896), which the client
            // delays by 40 ms.
            stream.set_nodelay(true)?;
            wait_for_first_byte(&stream, &silent.open()).await?;
            let connection = open.open();
            let counted = Counted::new(stream, Arc::clone(&connection));
            let closed = connection.closed.clone();
            let (stream, service) = tokio::select! {
                accepted = inner.accept(counted, service) => accepted?,
                () = closed.cancelled() => return Err(closed_error()),
            };
            Ok((stream, Extension(connection).layer(service)))
        })
    }
}

async fn wait_for_first_byte(stream: &TcpStream, silent: &Connection) -> io::Result<()> {
    let mut byte = [0];
    tokio::select! {
        peeked = stream.peek(&mut byte) => peeked.map(drop),
        () = silent.closed.cancelled() => Err(closed_error()),
        () = tokio::time::sleep(FIRST_BYTE) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn closed_error() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "closed in favour of another connection")
}

/// A stream that ends with an error when its connection is closed by the server.
pub(super) struct Counted<S> {
    stream: S,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    _connection: Arc<Connection>,
}

impl<S> Counted<S> {
    fn new(stream: S, connection: Arc<Connection>) -> Self {
        let closed = Box::pin(connection.closed.clone().cancelled_owned());
        Self { stream, closed, _connection: connection }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.closed.as_mut().poll(context).is_ready() { Err(closed_error()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_closed(connection: &Connection) -> bool {
        connection.closed.is_cancelled()
    }

    /// How many connections there are of each kind.
    fn open(connections: &Connections) -> [usize; 3] {
        connections.lock().kinds().map(|kind| kind.len())
    }

    #[test]
    fn a_new_connection_closes_the_oldest_without_an_answer() {
        let connections = Connections::new(3);
        let (first, second, third) = (connections.open(), connections.open(), connections.open());
        drop(first.busy());
        let fourth = connections.open();
        assert!(!is_closed(&first) && is_closed(&second) && !is_closed(&third) && !is_closed(&fourth));
        drop(third);
        let fifth = connections.open();
        assert!(!is_closed(&first) && !is_closed(&fourth) && !is_closed(&fifth));
        drop((first, second, fourth, fifth));
        assert_eq!(open(&connections), [0, 0, 0]);
    }

    /// A flood of one kind closes only its own, and the API server's connections of the other kinds stay open.
    #[test]
    fn a_flood_of_one_kind_closes_only_its_own() {
        let connections = Connections::new(9);
        let fresh = || connections.open();
        let idle = || Some(connections.open()).inspect(|connection| drop(connection.busy())).unwrap();
        let busy = || Some(connections.open()).map(|connection| connection.busy()).unwrap();

        let (handshake, kept, review) = (fresh(), idle(), busy());
        let flood: Vec<_> = (0..50).map(|_| idle()).collect();
        assert!(!is_closed(&handshake) && is_closed(&kept) && !is_closed(&review.0));
        assert!(!is_closed(flood.last().unwrap()));
        drop((flood, kept));

        let kept = idle();
        let flood: Vec<_> = (0..50).map(|_| busy()).collect();
        assert!(!is_closed(&handshake) && !is_closed(&kept) && is_closed(&review.0));
        drop((flood, review));

        let review = busy();
        let flood: Vec<_> = (0..50).map(|_| fresh()).collect();
        assert!(is_closed(&handshake) && !is_closed(&kept) && !is_closed(&review.0));
        assert_eq!(open(&connections), [7, 1, 1], "a kind may use what the others do not");
        drop(flood);
    }

    #[test]
    fn a_connection_stays_busy_until_its_last_review_ends() {
        let connections = Connections::new(2);
        let first = connections.open();
        let reviews = (first.busy(), first.busy());
        drop(reviews.0);
        assert_eq!(open(&connections), [0, 0, 1]);
        drop(reviews.1);
        assert_eq!(open(&connections), [0, 1, 0]);
    }

    #[test]
    fn a_connection_that_was_closed_does_not_come_back() {
        let connections = Connections::new(1);
        let first = connections.open();
        let review = first.busy();
        let second = connections.open();
        assert!(is_closed(&first) && !is_closed(&second));
        drop(review);
        assert_eq!(open(&connections), [1, 0, 0]);
    }

    #[tokio::test]
    async fn a_closed_connection_wakes_its_reader() {
        use tokio::io::AsyncReadExt as _;
        let connections = Connections::new(1);
        let (near, _far) = tokio::io::duplex(64);
        let mut stream = Counted::new(near, connections.open());
        let read = tokio::spawn(async move { stream.read_u8().await });
        tokio::task::yield_now().await;
        let _newer = connections.open();
        assert_eq!(read.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
