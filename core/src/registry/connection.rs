//! Opens the connections of the HTTP client: directly or through a proxy, with TLS, and with a limit on interim answers.
//!
//! reqwest's own connections cannot be wrapped, so this client uses hyper-util's client with a connector of its own. The
//! options of the connections are those of reqwest.

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Uri, header, uri::Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::address::without_brackets;
use super::guard::GuardedResolver;
use super::interim::InterimLimit;
use super::proxy::Proxy;

type BoxError = Box<dyn StdError + Send + Sync>;

/// When the kernel checks whether an idle peer is still there, and how often.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent data may remain unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The error for a connection that takes too long.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no connection in time")]
pub(super) struct ConnectTimeout;

/// Opens connections with one configuration.
#[derive(Clone)]
pub(super) struct Connector {
    http: HttpConnector<GuardedResolver>,
    tls: TlsConnector,
    proxy: Option<Arc<Matcher>>,
    user_agent: HeaderValue,
    /// How long name resolution, connection, tunnel and TLS handshake may take together.
    connect_timeout: Duration,
}

impl Connector {
    pub(super) fn new(
        resolver: GuardedResolver,
        tls: ClientConfig,
        proxy: Option<&Proxy>,
        user_agent: &'static str,
        connect_timeout: Duration,
    ) -> Self {
        let mut http = HttpConnector::new_with_resolver(resolver);
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(connect_timeout));
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(KEEPALIVE));
        http.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        #[cfg(target_os = "linux")]
        http.set_tcp_user_timeout(Some(USER_TIMEOUT));
        let proxy = proxy.map(|proxy| Arc::new(Matcher::builder().all(proxy.url().as_str()).build()));
        let user_agent = HeaderValue::from_static(user_agent);
        Self { http, tls: TlsConnector::from(Arc::new(tls)), proxy, user_agent, connect_timeout }
    }

    /// Returns the value of `Proxy-Authorization` for a request to a proxy that is not tunneled.
    pub(super) fn proxy_authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        if uri.scheme() == Some(&Scheme::HTTPS) {
            return None;
        }
        self.proxy.as_ref()?.intercept(uri)?.basic_auth().cloned()
    }

    async fn connect(self, uri: Uri) -> Result<HttpConnection, BoxError> {
        let is_https = uri.scheme() == Some(&Scheme::HTTPS);
        let (stream, is_proxied) = match self.proxy.as_ref().and_then(|proxy| proxy.intercept(&uri)) {
            None => (self.dial(uri.clone()).await?, false),
            Some(proxy) if is_https => (self.tunnel(&proxy, uri.clone()).await?, false),
            Some(proxy) => (self.dial_proxy(proxy.uri().clone()).await?, true),
        };
        let stream = if is_https { self.encrypt(stream, &uri).await? } else { stream };
        Ok(HttpConnection { io: TokioIo::new(InterimLimit::new(stream)), is_proxied })
    }

    async fn dial(&self, uri: Uri) -> Result<BoxStream, BoxError> {
        let stream = self.http.clone().call(uri).await?;
        Ok(Box::new(stream.into_inner()))
    }

    async fn dial_proxy(&self, uri: Uri) -> Result<BoxStream, BoxError> {
        let stream = self.dial(uri.clone()).await?;
        if uri.scheme() == Some(&Scheme::HTTPS) { self.encrypt(stream, &uri).await } else { Ok(stream) }
    }

    async fn tunnel(&self, proxy: &Intercept, uri: Uri) -> Result<BoxStream, BoxError> {
        let mut tunnel = Tunnel::new(proxy.uri().clone(), ProxyDialer(self.clone()));
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let headers = HeaderMap::from_iter([(header::USER_AGENT, self.user_agent.clone())]);
        Ok(tunnel.with_headers(headers).call(uri).await?.into_inner())
    }

    async fn encrypt(&self, stream: BoxStream, uri: &Uri) -> Result<BoxStream, BoxError> {
        let host = without_brackets(uri.host().unwrap_or_default()).to_owned();
        Ok(Box::new(self.tls.connect(ServerName::try_from(host)?, stream).await?))
    }
}

impl Service<Uri> for Connector {
    type Response = HttpConnection;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<HttpConnection, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let limit = this.connect_timeout;
            timeout(limit, this.connect(uri)).await.map_err(|_| BoxError::from(ConnectTimeout))?
        })
    }
}

/// Connects to a proxy, for [`Tunnel`].
#[derive(Clone)]
struct ProxyDialer(Connector);

impl Service<Uri> for ProxyDialer {
    type Response = TokioIo<BoxStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<TokioIo<BoxStream>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.0.clone();
        Box::pin(async move { connector.dial_proxy(uri).await.map(TokioIo::new) })
    }
}

impl Service<Name> for GuardedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.addresses(name.as_str()).await?.into_iter()) })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type BoxStream = Box<dyn Stream>;

/// A connection to a registry or to a proxy.
pub(super) struct HttpConnection {
    io: TokioIo<InterimLimit<BoxStream>>,
    is_proxied: bool,
}

impl Connection for HttpConnection {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxied)
    }
}

impl Read for HttpConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for HttpConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
