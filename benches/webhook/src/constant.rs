//! A TLS server that reads a request and answers a constant: the least that any webhook in Rust can cost.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use http::{Request, Response, header};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Serves until the process is killed.
pub(crate) fn serve(address: &str, certificate: &Path, key: &Path, answer: &Path) {
    let certificates = CertificateDer::pem_file_iter(certificate).expect("a certificate");
    let certificates = certificates.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let mut config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key);
    if let Ok(config) = &mut config {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
    }
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a certificate with its key")));
    let answer = Bytes::from(std::fs::read(answer).expect("an answer"));
    let address: SocketAddr = address.parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await.expect("a free port");
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let answer = answer.clone();
                    async move {
                        to_bytes(Body::new(request.into_body()), 1 << 20).await?;
                        let json = "application/json";
                        let response = Response::builder().header(header::CONTENT_TYPE, json);
                        Ok::<_, axum::Error>(response.body(Body::from(answer)).expect("a response"))
                    }
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}
