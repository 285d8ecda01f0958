//! One connection over HTTP/1.1, with or without TLS, which sends one request after the other.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The connection.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Connects to `127.0.0.1:PORT` without TLS.
    pub(crate) async fn plain(port: u16) -> Result<Self> {
        let stream = connect(port).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: format!("127.0.0.1:{port}") })
    }

    /// Connects to `127.0.0.1:PORT` with TLS; trusts the certificates in a PEM file.
    pub(crate) async fn tls(port: u16, authority: &Path) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authority).context("cannot read the CA")? {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, connect(port).await?).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: format!("localhost:{port}") })
    }

    /// Sends a request, and returns the status and the JSON of the answer; null if it is none.
    pub(crate) async fn send(&mut self, method: &str, path: &str, body: &Bytes) -> Result<(u16, Value)> {
        self.sender.ready().await?;
        let request = hyper::Request::builder().method(method).uri(path).header("host", &self.host);
        let request = request.header("content-type", "application/json").body(Full::new(body.clone()))?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Sends a request that must succeed.
    pub(crate) async fn must(&mut self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let text = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let (status, answer) = self.send(method, path, &text).await?;
        ensure!((200..300).contains(&status), "{method} {path} was answered with {status}: {answer}");
        Ok(answer)
    }
}

async fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let stream = stream.with_context(|| format!("cannot connect to 127.0.0.1:{port}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
