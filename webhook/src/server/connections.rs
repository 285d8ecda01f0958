//! The connections of the server: a cap, and which one is closed when it is reached.
//!
//! A connection costs memory as soon as its TLS handshake starts, whether or not it sends a request. So their number is
//! limited, and a new connection closes the one that has been of no use for the longest time: since its last answer, or
//! since it was opened. Connections with a review in progress are closed only if all have one. Connections that have not
//! sent a byte are counted apart: they cost little, and must not close others.
//!
//! ```text
//! accepted ── first byte ──> open ── review in progress ──> answered ──> …
//!    └─ MAX_SILENT              └─ max_connections: the longest without an answer is closed
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
    /// By the time of the last use, oldest first.
    idle: BTreeMap<u64, CancellationToken>,
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
        while state.idle.len() + state.busy.len() >= self.limit.max(1) {
            let oldest = state.idle.pop_first().or_else(|| state.busy.pop_first());
            if let Some((_, oldest)) = oldest {
                oldest.cancel();
            }
        }
        let place = state.next();
        state.idle.insert(place, closed.clone());
        drop(state);
        Arc::new(Connection { connections: Arc::clone(self), place: Mutex::new((place, 0)), closed })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
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
        let was_open = state.idle.remove(&place.0).or_else(|| state.busy.remove(&place.0)).is_some();
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
        let mut state = self.connections.lock();
        state.idle.remove(&place);
        state.busy.remove(&place);
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

    fn open(connections: &Connections) -> (usize, usize) {
        let state = connections.lock();
        (state.idle.len(), state.busy.len())
    }

    #[test]
    fn a_new_connection_closes_the_one_without_an_answer_for_the_longest_time() {
        let connections = Connections::new(3);
        let (first, second, third) = (connections.open(), connections.open(), connections.open());
        drop(first.busy());
        let fourth = connections.open();
        assert!(!is_closed(&first) && is_closed(&second) && !is_closed(&third) && !is_closed(&fourth));
        drop(third);
        let fifth = connections.open();
        assert!(!is_closed(&first) && !is_closed(&fourth) && !is_closed(&fifth));
    }

    #[test]
    fn a_connection_with_a_review_is_closed_last() {
        let connections = Connections::new(2);
        let (first, second) = (connections.open(), connections.open());
        let reviews = (first.busy(), first.busy());
        drop(reviews.0);
        let third = connections.open();
        assert!(!is_closed(&first) && is_closed(&second));
        let review = third.busy();
        let fourth = connections.open();
        assert!(is_closed(&first) && !is_closed(&third) && !is_closed(&fourth));
        drop((reviews.1, review));
        assert_eq!(open(&connections), (2, 0));
        drop((first, second, third, fourth));
        assert_eq!(open(&connections), (0, 0));
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
