//! A connection, plain or TLS, on which any bytes can be sent.

use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use rustls::ServerConnection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{Part, Security};

/// How long the server waits for a client to read the rest before it closes the connection.
const LAST_READ: Duration = Duration::from_millis(500);
/// The limit of the head of a request.
const MAX_HEAD: usize = 1 << 20;
/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

pub(super) struct Wire {
    stream: TcpStream,
    tls: Option<ServerConnection>,
    received: Vec<u8>,
    kept: bool,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, security: &Security) -> Self {
        let tls = match security {
            Security::Plain => None,
            Security::Tls(config) => Some(ServerConnection::new(config.clone()).expect("a configuration")),
        };
        Self { stream, tls, received: Vec::new(), kept: false }
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Returns the next request up to its empty line, or `None` at the end of the connection.
    pub(super) async fn head(&mut self) -> Option<String> {
        self.kept = false;
        loop {
            if let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.received.drain(..end + 4).collect();
                return String::from_utf8(head).ok();
            }
            if self.tls.is_none() && self.received.first() == Some(&TLS_HANDSHAKE) {
                // Real servers answer a TLS handshake on a plain port like this.
                let _ = self.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
                return None;
            }
            if self.received.len() > MAX_HEAD || !self.receive().await.ok()? {
                return None;
            }
        }
    }

    /// Returns the next `length` bytes, or `None` if the connection ends before.
    pub(super) async fn body(&mut self, length: usize) -> Option<String> {
        while self.received.len() < length {
            if !self.receive().await.ok()? {
                return None;
            }
        }
        String::from_utf8(self.received.drain(..length).collect()).ok()
    }

    /// Sends one part; returns `false` when the connection is gone.
    pub(super) async fn send_part(&mut self, part: Part) -> io::Result<bool> {
        match part {
            Part::Bytes(bytes) => self.send(&bytes).await?,
            Part::Forever(bytes) => loop {
                self.send(&bytes).await?;
            },
            Part::Repeat(bytes, pause) => loop {
                self.send(&bytes).await?;
                sleep(pause).await;
            },
            Part::Wait(pause) => sleep(pause).await,
            Part::ByteASecond(bytes) => {
                for byte in bytes {
                    self.send(&[byte]).await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Part::Hang => std::future::pending().await,
            Part::Reset => {
                self.stream.set_zero_linger()?;
                return Ok(false);
            }
            Part::Keep => self.kept = true,
        }
        Ok(true)
    }

    /// Ends the connection in order: after a reset the client could lose the last bytes.
    pub(super) async fn close(mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = self.flush().await;
        }
        let _ = self.stream.shutdown().await;
        let mut rest = [0; 1_024];
        let _ =
            timeout(LAST_READ, async { while matches!(self.stream.read(&mut rest).await, Ok(1..)) {} }).await;
    }

    async fn receive(&mut self) -> io::Result<bool> {
        let mut raw = [0; 8_192];
        let length = self.stream.read(&mut raw).await?;
        match &mut self.tls {
            None => self.received.extend_from_slice(&raw[..length]),
            Some(tls) => {
                let mut raw = &raw[..length];
                while !raw.is_empty() {
                    tls.read_tls(&mut raw)?;
                    let state = tls.process_new_packets().map_err(io::Error::other)?;
                    let mut plain = vec![0; state.plaintext_bytes_to_read()];
                    tls.reader().read_exact(&mut plain)?;
                    self.received.extend(plain);
                }
                self.flush().await?;
            }
        }
        Ok(length > 0)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.tls.is_none() {
            return self.stream.write_all(bytes).await;
        }
        // rustls buffers only a limited number of bytes.
        for piece in bytes.chunks(16 << 10) {
            if let Some(tls) = &mut self.tls {
                tls.writer().write_all(piece)?;
            }
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        let mut raw = Vec::new();
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut raw)?;
            }
        }
        self.stream.write_all(&raw).await
    }
}
