//! A tunnel to one registry endpoint, for an HTTP client that cannot restrict its own connections.
//!
//! The tunnel is a SOCKS5 proxy (RFC 1928) on a loopback port. It connects to one host and port and to no other, so a
//! redirect or an upload address on another server fails. It applies the address guard, because the host name is
//! resolved here. It limits the time of a connection without progress and the bytes that the registry may send. It
//! needs no authentication: every local process can reach the same address without it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::address::without_brackets;
use super::guard::GuardedResolver;

/// The size of the buffers of a connection, in bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// The first byte of a TLS handshake record (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const DOMAIN: u8 = 3;
const IPV6: u8 = 4;
const SUCCEEDED: u8 = 0;
const GENERAL_FAILURE: u8 = 1;
const NOT_ALLOWED: u8 = 2;

/// The protocol that is spoken through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    /// TLS only: a connection that does not begin with a TLS handshake is closed.
    Https,
}

/// The address at the end of a tunnel, and the limits of its connections.
#[derive(Clone, Debug)]
pub(super) struct TunnelSettings {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    /// How long name resolution and connection may take together.
    pub(super) connect_timeout: Duration,
    /// How long a connection may transfer nothing in either direction.
    pub(super) idle_timeout: Duration,
    /// How many bytes the server may send over one connection.
    pub(super) max_received: u64,
}

/// An open tunnel. Dropping it closes its port and its connections.
pub(super) struct Tunnel {
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tunnel {
    /// Opens a tunnel on a free loopback port.
    pub(super) async fn open(settings: TunnelSettings, resolver: GuardedResolver) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(serve(listener, Arc::new(settings), resolver)).abort_handle();
        Ok(Self { address, task })
    }

    /// Returns the URL of the proxy. With `socks5h`, the client leaves name resolution to the proxy.
    pub(super) fn proxy_url(&self) -> String {
        format!("socks5h://{}", self.address)
    }
}

async fn serve(listener: TcpListener, settings: Arc<TunnelSettings>, resolver: GuardedResolver) {
    // Dropped with the task, which ends the connections.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (settings, resolver) = (Arc::clone(&settings), resolver.clone());
        connections.spawn(async move {
            if let Err(error) = forward(stream, &settings, &resolver).await {
                tracing::debug!(host = settings.host, port = settings.port, %error, "a tunnel connection ended");
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(
    mut client: TcpStream,
    settings: &TunnelSettings,
    resolver: &GuardedResolver,
) -> io::Result<()> {
    let request = timeout(settings.connect_timeout, read_request(&mut client)).await??;
    if !settings.is_target(&request) {
        reply(&mut client, NOT_ALLOWED).await?;
        let message = format!("{}:{} is not the registry that is pushed to", request.host, request.port);
        return Err(io::Error::other(message));
    }
    let server = match timeout(settings.connect_timeout, connect(settings, resolver)).await {
        Ok(Ok(server)) => server,
        failed => {
            reply(&mut client, GENERAL_FAILURE).await?;
            return failed.map_err(io::Error::other)?.map(|_| ());
        }
    };
    reply(&mut client, SUCCEEDED).await?;
    relay(client, server, settings).await
}

/// The address that a client requests.
struct SocksRequest {
    host: String,
    port: u16,
}

impl TunnelSettings {
    fn is_target(&self, request: &SocksRequest) -> bool {
        let host = without_brackets(&self.host);
        let is_host = match (host.parse::<IpAddr>(), request.host.parse::<IpAddr>()) {
            (Ok(one), Ok(other)) => one == other,
            _ => host.eq_ignore_ascii_case(&request.host),
        };
        is_host && self.port == request.port
    }
}

/// Reads the method selection and the request (RFC 1928, 3 and 4).
async fn read_request(client: &mut TcpStream) -> io::Result<SocksRequest> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    if client.read_u8().await? != VERSION {
        return Err(invalid());
    }
    let mut methods = vec![0; usize::from(client.read_u8().await?)];
    client.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        return Err(invalid());
    }
    client.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    let [VERSION, CONNECT, _, kind] = head else { return Err(invalid()) };
    let host = match kind {
        IPV4 => {
            let mut octets = [0; 4];
            client.read_exact(&mut octets).await?;
            Ipv4Addr::from(octets).to_string()
        }
        IPV6 => {
            let mut octets = [0; 16];
            client.read_exact(&mut octets).await?;
            Ipv6Addr::from(octets).to_string()
        }
        DOMAIN => {
            let mut name = vec![0; usize::from(client.read_u8().await?)];
            client.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| invalid())?
        }
        _ => return Err(invalid()),
    };
    Ok(SocksRequest { host, port: client.read_u16().await? })
}

/// Answers the request (RFC 1928, 6). The bound address is left out, because clients do not use it.
async fn reply(client: &mut TcpStream, code: u8) -> io::Result<()> {
    client.write_all(&[VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0]).await
}

async fn connect(settings: &TunnelSettings, resolver: &GuardedResolver) -> io::Result<TcpStream> {
    let host = without_brackets(&settings.host);
    let addresses = match host.parse::<IpAddr>() {
        // The guard has checked a literal address before the tunnel was opened.
        Ok(address) => vec![SocketAddr::new(address, 0)],
        Err(_) => resolver.addresses(host).await?,
    };
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for mut address in addresses {
        address.set_port(settings.port);
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Copies bytes in both directions until one side ends, a limit is reached or nothing is transferred for too long.
async fn relay(mut client: TcpStream, mut server: TcpStream, settings: &TunnelSettings) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let (mut outgoing, mut incoming) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let (mut is_first, mut received) = (true, 0_u64);
    loop {
        let transfer = async {
            tokio::select! {
                read = from_client.read(&mut outgoing) => {
                    let bytes = &outgoing[..read?];
                    let must_be_tls = is_first && settings.protocol == Protocol::Https;
                    if must_be_tls && bytes.first().is_some_and(|first| *first != TLS_HANDSHAKE) {
                        return Err(io::Error::other("plain http to an https registry"));
                    }
                    is_first = false;
                    to_server.write_all(bytes).await?;
                    Ok(bytes.len())
                }
                read = from_server.read(&mut incoming) => {
                    let bytes = &incoming[..read?];
                    received += bytes.len() as u64;
                    if received > settings.max_received {
                        return Err(io::Error::other("the registry sends too many bytes"));
                    }
                    to_client.write_all(bytes).await?;
                    Ok(bytes.len())
                }
            }
        };
        if timeout(settings.idle_timeout, transfer).await?? == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::registry::guard::{HostResolver, ProxyHosts};

    #[derive(Debug)]
    struct LoopbackResolver;

    #[async_trait]
    impl HostResolver for LoopbackResolver {
        async fn resolve_host(&self, _: &str) -> io::Result<Vec<SocketAddr>> {
            Ok(vec![([127, 0, 0, 1], 0).into()])
        }
    }

    /// A server that sends back what it receives.
    async fn echo_server() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }
        });
        port
    }

    fn settings(port: u16, protocol: Protocol) -> TunnelSettings {
        TunnelSettings {
            host: "registry.example".to_owned(),
            port,
            protocol,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_millis(500),
            max_received: 8,
        }
    }

    /// Requests an address through a tunnel. Returns the connection and the reply code.
    async fn request(tunnel: &Tunnel, host: &str, port: u16) -> (TcpStream, u8) {
        let mut client = TcpStream::connect(tunnel.address).await.unwrap();
        client.write_all(&[VERSION, 1, NO_AUTHENTICATION]).await.unwrap();
        let mut selected = [0; 2];
        client.read_exact(&mut selected).await.unwrap();
        assert_eq!(selected, [VERSION, NO_AUTHENTICATION]);
        let mut request = vec![VERSION, CONNECT, 0, DOMAIN, u8::try_from(host.len()).unwrap()];
        request.extend_from_slice(host.as_bytes());
        request.extend_from_slice(&port.to_be_bytes());
        client.write_all(&request).await.unwrap();
        let mut reply = [0; 10];
        client.read_exact(&mut reply).await.unwrap();
        (client, reply[1])
    }

    async fn open(settings: TunnelSettings, is_named: bool) -> Tunnel {
        let resolver = GuardedResolver::new(Arc::new(LoopbackResolver), is_named, ProxyHosts::default());
        Tunnel::open(settings, resolver).await.unwrap()
    }

    #[tokio::test]
    async fn only_the_configured_address_is_reached() {
        let port = echo_server().await;
        let tunnel = open(settings(port, Protocol::Http), true).await;
        let (mut client, code) = request(&tunnel, "Registry.example", port).await;
        assert_eq!(code, SUCCEEDED);
        client.write_all(b"hello").await.unwrap();
        let mut echoed = [0; 5];
        client.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"hello");
        for (host, port) in [("other.example", port), ("registry.example", port.wrapping_add(1))] {
            assert_eq!(request(&tunnel, host, port).await.1, NOT_ALLOWED, "{host}:{port}");
        }
    }

    #[tokio::test]
    async fn the_address_guard_applies() {
        let port = echo_server().await;
        let tunnel = open(settings(port, Protocol::Http), false).await;
        assert_eq!(request(&tunnel, "registry.example", port).await.1, GENERAL_FAILURE);
    }

    #[tokio::test]
    async fn plain_http_to_an_https_registry_is_cut_off() {
        let port = echo_server().await;
        let tunnel = open(settings(port, Protocol::Https), true).await;
        for (first, expected) in [(b'G', 0), (TLS_HANDSHAKE, 1)] {
            let (mut client, code) = request(&tunnel, "registry.example", port).await;
            assert_eq!(code, SUCCEEDED);
            client.write_all(&[first]).await.unwrap();
            assert_eq!(client.read(&mut [0; 8]).await.unwrap_or(0), expected);
        }
    }

    #[tokio::test]
    async fn long_responses_and_idle_connections_are_cut_off() {
        let port = echo_server().await;
        let tunnel = open(settings(port, Protocol::Http), true).await;
        let (mut client, _) = request(&tunnel, "registry.example", port).await;
        client.write_all(b"more than eight bytes").await.unwrap();
        assert_eq!(client.read(&mut [0; 32]).await.unwrap_or(0), 0);
        let (mut idle, _) = request(&tunnel, "registry.example", port).await;
        assert_eq!(timeout(Duration::from_secs(5), idle.read(&mut [0; 8])).await.unwrap().unwrap_or(0), 0);
    }
}
