//! Serves HTTP on a port of the node to clients that the driver does not know.
//!
//! Any pod can connect to a port of the node. So one port has few connections, each has time limits, and at the limit a
//! new connection replaces the oldest one. A client that holds connections open therefore takes no file descriptors from
//! the rest of the driver, and does not keep the next client from its answer.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How many connections one port has at a time. Prometheus and kubelet use one or two.
const MAX_CONNECTIONS: usize = 32;
/// How long a client can take for the head of a request, and be idle before it and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection lasts at most, so that a client that does not read its answer ends as well.
const MAX_AGE: Duration = Duration::from_mins(1);
/// The pause after a connection could not be accepted, for example because the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests until `stop` is cancelled, and then closes the connections.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = Connections::default();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => connections.add(serve_connection(stream, router.clone())).await,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection; trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection<S>(stream: S, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(MAX_AGE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection failed"),
        Err(_) => tracing::debug!("closed a connection at its maximum age"),
    }
}

/// The open connections. All are closed when this is dropped.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    oldest_first: VecDeque<AbortHandle>,
}

impl Connections {
    /// Adds a connection. At the limit, closes the oldest one first.
    async fn add(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.oldest_first.retain(|task| !task.is_finished());
        if self.tasks.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            oldest.abort();
            // Its file descriptor is free when the task has ended.
            self.tasks.join_next().await;
        }
        self.oldest_first.push_back(self.tasks.spawn(connection));
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    use super::*;

    fn router() -> Router {
        Router::new().route("/healthz", get(|| async { "ok\n" }))
    }

    async fn serving() -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        (address, stop.clone(), tokio::spawn(serve(listener, router(), stop)))
    }

    async fn answer(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// Returns what the client reads until the server closes the connection.
    async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut bytes = Vec::new();
        // A reset ends a connection as well.
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn idle_connections_do_not_keep_the_next_client_from_its_answer() {
        let (address, stop, serving) = serving().await;
        let mut idle = Vec::new();
        for _ in 0..10 * MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(answer(address).await.starts_with("HTTP/1.1 200"));
        // The answer was given after all of them were accepted: the oldest ones are closed.
        let surplus = idle.len() + 1 - MAX_CONNECTIONS;
        for stream in &mut idle[..surplus] {
            assert_eq!(rest(stream).await, "");
        }
        // The others stay until they time out, or the server stops.
        let open = idle[surplus..].iter().filter(|stream| {
            stream.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        });
        assert_eq!(open.count(), MAX_CONNECTIONS - 1);
        stop.cancel();
        serving.await.unwrap();
        for stream in &mut idle[surplus..] {
            assert_eq!(rest(stream).await, "");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_no_request_is_disconnected() {
        for sent in ["", "GET /healthz HTTP/1.1\r\nHo"] {
            let begun = Instant::now();
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(sent.as_bytes()).await.unwrap();
            let serving = tokio::spawn(serve_connection(server, router()));
            assert!(!rest(&mut client).await.contains("200 OK"));
            serving.await.unwrap();
            assert_eq!(begun.elapsed().as_secs(), HEAD_TIMEOUT.as_secs(), "{sent:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_idle_after_a_request_is_disconnected() {
        let begun = Instant::now();
        let (mut client, server) = tokio::io::duplex(4_096);
        client.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let serving = tokio::spawn(serve_connection(server, router()));
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 200 OK"));
        serving.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answer_is_disconnected() {
        let begun = Instant::now();
        let (mut client, server) = tokio::io::duplex(16);
        let serving = tokio::spawn(serve_connection(server, router()));
        client.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        serving.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), MAX_AGE.as_secs());
        drop(client);
    }
}
