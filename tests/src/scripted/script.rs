//! What a script is made of: lines that say which answers change, and how.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::Request;

/// An answer, until it is made into parts.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Without `Content-Length`, which the body gives, unless somebody adds one.
    pub headers: Vec<(String, String)>,
    /// The body, also of the answer to a HEAD: there it is announced and not sent.
    pub body: Vec<u8>,
    head: bool,
}

/// What goes over the wire, in order; then the connection is closed.
#[derive(Clone, Debug)]
pub enum Part {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes, again and again, with a pause after each time.
    Forever(Vec<u8>, Duration),
    /// These bytes, one a second.
    ByteASecond(Vec<u8>),
    /// Nothing more, and the connection stays open.
    Hang,
    /// TCP's RST instead of an orderly end.
    Reset,
    /// The connection is good for another request.
    Keep,
}

/// Makes something else of an honest answer.
pub type Trick = Arc<dyn Fn(&Request, Answer) -> Vec<Part> + Send + Sync>;

impl Answer {
    /// An answer without headers and body; `head`: to a HEAD.
    pub fn new(status: u16, head: bool) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), head }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same without a header.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self
    }

    /// The same with another status.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same with another body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Status line and headers.
    pub fn start(&self) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {} Whatever\r\n", self.status);
        let has = |name: &str| self.headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        if !has("content-length") && !has("transfer-encoding") {
            text.extend([format!("Content-Length: {}\r\n", self.body.len())]);
        }
        text.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")));
        (text + "\r\n").into_bytes()
    }

    /// What is sent of the body.
    pub fn sent(&self) -> &[u8] {
        if self.head { &[] } else { &self.body }
    }

    /// The whole answer, and the end of the connection.
    pub fn parts(self) -> Vec<Part> {
        self.then(usize::MAX, [])
    }

    /// The whole answer, and the connection stays.
    pub fn kept(self) -> Vec<Part> {
        self.then(usize::MAX, [Part::Keep])
    }

    /// Status line and headers, `length` bytes of the body, and then `rest`. Unless that keeps the connection
    /// it is said to end: a request on one that ends at that moment would fail for no reason of the script's.
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

/// Lines; of those that fit a request, the first that is not used up counts.
#[derive(Default)]
pub struct Script(Vec<Line>);

impl Script {
    /// For ever. `what` is a part of the target, as `/blobs/`, or a method and a part of the target.
    #[must_use]
    pub fn on(self, what: &'static str, trick: Trick) -> Self {
        self.times(usize::MAX, what, trick)
    }

    /// The first time.
    #[must_use]
    pub fn once(self, what: &'static str, trick: Trick) -> Self {
        self.times(1, what, trick)
    }

    /// The first `times` times.
    #[must_use]
    pub fn times(mut self, times: usize, what: &'static str, trick: Trick) -> Self {
        let (method, path) = what.split_once(' ').map_or((None, what), |(method, path)| (Some(method), path));
        self.0.push(Line { method, path, left: times.into(), used: false.into(), trick });
        self
    }

    pub(super) fn trick(&self, request: &Request) -> Option<&Trick> {
        let fits = |line: &&Line| {
            line.method.is_none_or(|method| method == request.method)
                && request.target.contains(line.path)
                && line
                    .left
                    .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
        };
        let line = self.0.iter().find(fits)?;
        line.used.store(true, Ordering::Relaxed);
        Some(&line.trick)
    }

    /// What no request has fitted yet: a test in which nothing happens proves nothing.
    pub(super) fn unused(&self) -> Vec<&'static str> {
        let unused = self.0.iter().filter(|line| !line.used.load(Ordering::Relaxed));
        unused.map(|line| line.path).collect()
    }
}
