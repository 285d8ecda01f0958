//! Answers, the parts that are sent of them, and scripts, whose lines change the answers to some requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::Request;

/// An answer that has not been split into parts.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers. `Content-Length` is computed from the body unless it is among them.
    pub headers: Vec<(String, String)>,
    /// The body. An answer to HEAD announces its length and does not send it.
    pub body: Vec<u8>,
    head: bool,
}

/// A part of an answer. Parts are sent in order; then the connection is closed.
#[derive(Clone, Debug)]
pub enum Part {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes, repeated for ever.
    Forever(Vec<u8>),
    /// These bytes, repeated for ever with a pause after each time.
    Repeat(Vec<u8>, Duration),
    /// A pause.
    Wait(Duration),
    /// These bytes, one per second.
    ByteASecond(Vec<u8>),
    /// Nothing more, while the connection stays open.
    Hang,
    /// A TCP reset instead of an orderly end.
    Reset,
    /// The connection stays open for another request.
    Keep,
}

/// Changes an answer.
pub type Trick = Arc<dyn Fn(&Request, Answer) -> Vec<Part> + Send + Sync>;

impl Answer {
    /// Creates an answer without headers and body; `head` is for a HEAD request.
    pub fn new(status: u16, head: bool) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), head }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Removes a header.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self
    }

    /// Replaces the status.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Replaces the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Returns the status line and the headers.
    pub fn start(&self) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {} Whatever\r\n", self.status);
        let has = |name: &str| self.headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        if !has("content-length") && !has("transfer-encoding") {
            text.extend([format!("Content-Length: {}\r\n", self.body.len())]);
        }
        text.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")));
        (text + "\r\n").into_bytes()
    }

    /// Returns the bytes of the body that are sent.
    pub fn sent(&self) -> &[u8] {
        if self.head { &[] } else { &self.body }
    }

    /// Sends the whole answer, and closes the connection.
    pub fn parts(self) -> Vec<Part> {
        self.then(usize::MAX, [])
    }

    /// Sends the whole answer, and keeps the connection open.
    pub fn kept(self) -> Vec<Part> {
        self.then(usize::MAX, [Part::Keep])
    }

    /// Sends status line, headers, `length` bytes of the body, and then `rest`. Adds `Connection: close` unless `rest` keeps
    /// the connection: without it, a client could send its next request while the connection is being closed.
    pub fn then(self, length: usize, rest: impl IntoIterator<Item = Part>) -> Vec<Part> {
        let rest: Vec<_> = rest.into_iter().collect();
        let keeps = rest.iter().any(|part| matches!(part, Part::Keep));
        let answer = if keeps { self } else { self.header("Connection", "close") };
        let sent = &answer.sent()[..length.min(answer.sent().len())];
        [Part::Bytes([&answer.start(), sent].concat())].into_iter().chain(rest).collect()
    }
}

struct Line {
    method: Option<&'static str>,
    path: &'static str,
    left: AtomicUsize,
    used: AtomicBool,
    trick: Trick,
}

/// The lines of a script. For each request, the first line counts that matches and is not used up.
#[derive(Default)]
pub struct Script(Vec<Line>);

impl Script {
    /// Changes all answers to some requests. `what` is a part of the target, such as `/blobs/`, or a method and such a part.
    #[must_use]
    pub fn on(self, what: &'static str, trick: Trick) -> Self {
        self.times(usize::MAX, what, trick)
    }

    /// Changes the first answer.
    #[must_use]
    pub fn once(self, what: &'static str, trick: Trick) -> Self {
        self.times(1, what, trick)
    }

    /// Changes the first `times` answers.
    #[must_use]
    pub fn times(mut self, times: usize, what: &'static str, trick: Trick) -> Self {
        let (method, path) = what.split_once(' ').map_or((None, what), |(method, path)| (Some(method), path));
        self.0.push(Line { method, path, left: times.into(), used: false.into(), trick });
        self
    }

    pub(super) fn trick(&self, request: &Request) -> Option<&Trick> {
        let matches = |line: &&Line| {
            line.method.is_none_or(|method| method == request.method)
                && request.target.contains(line.path)
                && line
                    .left
                    .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
        };
        let line = self.0.iter().find(matches)?;
        line.used.store(true, Ordering::Relaxed);
        Some(&line.trick)
    }

    /// Returns the paths of lines that matched no request: such a test would prove nothing.
    pub(super) fn unused(&self) -> Vec<&'static str> {
        let unused = self.0.iter().filter(|line| !line.used.load(Ordering::Relaxed));
        unused.map(|line| line.path).collect()
    }
}

/// Returns the parts of an answer with a body and its length. The connection is closed after it.
pub fn answer(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<Part> {
    let length = body.len().to_string();
    let mut all = vec![("Content-Length", length.as_str())];
    all.extend_from_slice(headers);
    vec![head(status, &all), Part::Bytes(body.to_vec())]
}

/// Returns a status line and headers.
pub fn head(status: u16, headers: &[(&str, &str)]) -> Part {
    let mut text = format!("HTTP/1.1 {status} Whatever\r\nConnection: close\r\n");
    text.extend(headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")));
    Part::Bytes((text + "\r\n").into_bytes())
}

/// Returns a chunk of the transfer coding `chunked`.
pub fn chunk(bytes: &[u8]) -> Part {
    Part::Bytes([format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
}
