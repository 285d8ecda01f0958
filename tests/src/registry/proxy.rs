//! A forward proxy that counts requests and resolves names that exist only in the proxy.
//!
//! It gives a registry and its token service host names in a test: a client behind a proxy leaves the resolution
//! of names to the proxy.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpListener, TcpStream};

use super::served::Served;

/// A request to the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// `CONNECT host:port`. The proxy does not see the requests in the tunnel.
    Connect(String),
    /// An absolute-form request (RFC 9112, 3.2.2): method and URL.
    Request(String, String),
}

/// A forward proxy that runs until it is dropped.
#[derive(Debug)]
pub struct ForwardProxy {
    served: Served,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    names: HashMap<String, String>,
    pace: Option<u32>,
    seen: Mutex<Vec<Proxied>>,
}

impl ForwardProxy {
    /// Starts one that resolves these names (`registry.test:443`) to addresses, and other names normally.
    pub fn start(names: &[(&str, &str)]) -> Self {
        Self::start_with(names, None)
    }

    /// Starts one with a limit of bytes per second and connection for answers.
    pub fn start_slow(names: &[(&str, &str)], bytes_per_second: u32) -> Self {
        Self::start_with(names, Some(bytes_per_second))
    }

    fn start_with(names: &[(&str, &str)], pace: Option<u32>) -> Self {
        let names = names.iter().map(|&(name, address)| (name.to_owned(), address.to_owned())).collect();
        let shared = Arc::new(Shared { names, pace, seen: Mutex::default() });
        let accepting = shared.clone();
        let served = Served::start(async move |listener| {
            let listener = TcpListener::from_std(listener).expect("a listener");
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                let shared = accepting.clone();
                // A client that disconnects is not a failure of the proxy.
                tokio::spawn(async move { shared.serve(client).await.ok() });
            }
        });
        Self { served, shared }
    }

    /// What `HTTP_PROXY` and `HTTPS_PROXY` are set to.
    pub fn url(&self) -> String {
        format!("http://{}", self.served.address())
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Proxied> {
        self.shared.seen.lock().expect("no panic").clone()
    }

    /// Returns the number of tunnels to `host:port`.
    pub fn connects(&self, authority: &str) -> usize {
        self.seen().iter().filter(|seen| **seen == Proxied::Connect(authority.to_owned())).count()
    }
}

impl Shared {
    /// One tunnel, or one request: the server is asked to close after its answer.
    async fn serve(&self, client: TcpStream) -> io::Result<()> {
        let mut client = BufReader::new(client);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            client.read_line(&mut line).await?;
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let request = lines.first().ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut words = request.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if method == "CONNECT" {
            self.note(Proxied::Connect(target.to_owned()));
            let Some(server) = self.dial(&mut client, target).await? else { return Ok(()) };
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            return self.carry(client, server).await;
        }
        self.note(Proxied::Request(method.to_owned(), target.to_owned()));
        let (authority, path) = target
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or(io::ErrorKind::InvalidData)?;
        let port = if authority.contains(':') { "" } else { ":80" };
        let Some(mut server) = self.dial(&mut client, &format!("{authority}{port}")).await? else {
            return Ok(());
        };
        let not_of_a_hop = |line: &&String| {
            let line = line.to_ascii_lowercase();
            !line.starts_with("connection:") && !line.starts_with("proxy-")
        };
        let mut head = vec![format!("{method} /{path} HTTP/1.1")];
        head.extend(lines[1..].iter().filter(not_of_a_hop).cloned());
        let head = head.join("\r\n") + "\r\nConnection: close\r\n\r\n";
        server.write_all(head.as_bytes()).await?;
        self.carry(client, server).await
    }

    fn note(&self, seen: Proxied) {
        self.seen.lock().expect("no panic").push(seen);
    }

    async fn dial(
        &self,
        client: &mut BufReader<TcpStream>,
        authority: &str,
    ) -> io::Result<Option<TcpStream>> {
        let address = self.names.get(authority).map_or(authority, String::as_str);
        if let Ok(server) = TcpStream::connect(address).await {
            return Ok(Some(server));
        }
        let answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        client.write_all(answer).await?;
        Ok(None)
    }

    async fn carry(&self, client: BufReader<TcpStream>, server: TcpStream) -> io::Result<()> {
        let (from_client, to_client) = tokio::io::split(client);
        let (from_server, to_server) = server.into_split();
        let asked = copy(from_client, to_server, None);
        let answered = copy(from_server, to_client, self.pace);
        // The end of the server's stream ends the tunnel; the end of the client's only means that it has no more requests.
        tokio::pin!(asked);
        tokio::pin!(answered);
        tokio::select! {
            ended = &mut answered => ended,
            _ = &mut asked => answered.await,
        }
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    pace: Option<u32>,
) -> io::Result<()> {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..count]).await?;
        if let Some(pace) = pace {
            let share = u32::try_from(count).map_or(1.0, f64::from) / f64::from(pace);
            tokio::time::sleep(Duration::from_secs_f64(share)).await;
        }
    }
}
