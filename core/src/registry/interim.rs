//! A limit on the interim answers (1xx) of a server.
//!
//! The HTTP client drops interim answers (RFC 9110, 15.2), and it has no limit for them. Without one, a server could send
//! gigabytes before its answer. So the bytes of each connection are watched until the head of a final answer begins.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many bytes a server may send before the head of its answer. Interim answers have some hundred bytes.
pub(super) const MAX_INTERIM_BYTES: usize = 64 << 10;
/// The length of `HTTP/1.1 103`.
const STATUS_LEN: usize = 12;

/// The error for too many interim answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {} KiB of interim answers (status 1xx)", MAX_INTERIM_BYTES >> 10)]
pub(super) struct TooManyInterimAnswers;

/// The part of an answer that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The beginning of a head: the bytes so far, and how many there are.
    Status([u8; STATUS_LEN], usize),
    /// The rest of an interim answer, and the length of its current line.
    Interim(usize),
    /// A final answer, or something that the HTTP client rejects. Both have limits of their own.
    Final,
}

/// Counts the bytes before a final answer.
#[derive(Clone, Copy, Debug)]
struct Meter {
    part: Part,
    counted: usize,
}

impl Meter {
    const fn new() -> Self {
        Self { part: Part::Status([0; STATUS_LEN], 0), counted: 0 }
    }

    /// Starts again if a final answer was received: the next request was sent on the same connection.
    fn record_sent(&mut self) {
        if self.part == Part::Final {
            *self = Self::new();
        }
    }

    fn record_received(&mut self, bytes: &[u8]) -> Result<(), TooManyInterimAnswers> {
        for byte in bytes {
            if self.part == Part::Final {
                return Ok(());
            }
            self.counted += 1;
            if self.counted > MAX_INTERIM_BYTES {
                return Err(TooManyInterimAnswers);
            }
            self.part = self.part.after(*byte);
        }
        Ok(())
    }
}

impl Part {
    fn after(self, byte: u8) -> Self {
        match self {
            // The HTTP client skips empty lines before a head.
            Self::Status(_, 0) if matches!(byte, b'\r' | b'\n') => self,
            Self::Status(mut bytes, length) => {
                bytes[length] = byte;
                let begins_as_http = b"HTTP/1."[..].starts_with(&bytes[..(length + 1).min(7)]);
                match (begins_as_http, length + 1 == STATUS_LEN) {
                    (true, false) => Self::Status(bytes, length + 1),
                    (true, true) if bytes[9] == b'1' && !bytes.ends_with(b"101") => Self::Interim(STATUS_LEN),
                    // A switch to another protocol (101) is a final answer.
                    _ => Self::Final,
                }
            }
            Self::Interim(0) if byte == b'\n' => Self::Status([0; STATUS_LEN], 0),
            Self::Interim(_) if byte == b'\n' => Self::Interim(0),
            Self::Interim(length) if byte == b'\r' => Self::Interim(length),
            Self::Interim(length) => Self::Interim(length.saturating_add(1)),
            Self::Final => self,
        }
    }
}

/// A connection that ends with an error after too many interim answers.
#[derive(Debug)]
pub(super) struct InterimLimit<S> {
    stream: S,
    meter: Meter,
}

impl<S> InterimLimit<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, meter: Meter::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for InterimLimit<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        match self.meter.record_received(buffer.filled().get(before..).unwrap_or_default()) {
            Ok(()) => result,
            Err(error) => Poll::Ready(Err(io::Error::other(error))),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for InterimLimit<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.meter.record_sent();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.meter.record_sent();
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const FINAL: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";

    #[rstest]
    #[case::plain(b"HTTP/1.1 103 Early Hints\r\n\r\n")]
    #[case::with_fields(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nA: b\r\n\r\n")]
    #[case::http_1_0(b"HTTP/1.0 102 Processing\r\n\r\n")]
    #[case::without_carriage_returns(b"HTTP/1.1 100\nA: b\n\n")]
    #[case::after_empty_lines(b"\r\n\n\r\nHTTP/1.1 199 X\r\n\r\n")]
    fn interim_answers_are_limited_and_bodies_are_not(
        #[case] interim: &[u8],
        #[values(1, 7, 4096)] chunk: usize,
    ) {
        let feed = |meter: &mut Meter, bytes: &[u8]| {
            bytes.chunks(chunk).try_for_each(|part| meter.record_received(part))
        };
        let mut meter = Meter::new();
        // Two requests on one connection, each with some interim answers and a large body that looks like more of them.
        for _ in 0..2 {
            meter.record_sent();
            let count = MAX_INTERIM_BYTES / interim.len() - 1;
            feed(&mut meter, &interim.repeat(count)).unwrap();
            feed(&mut meter, FINAL).unwrap();
            assert_eq!(meter.part, Part::Final);
            feed(&mut meter, &interim.repeat(2 * count)).unwrap();
        }
        meter.record_sent();
        meter.record_sent();
        let many = interim.repeat(MAX_INTERIM_BYTES / interim.len() + 1);
        assert_eq!(feed(&mut meter, &many), Err(TooManyInterimAnswers));
    }

    /// An upload sends more while interim answers arrive.
    #[test]
    fn sending_more_does_not_start_again() {
        let mut meter = Meter::new();
        let interim = b"HTTP/1.1 102 Processing\r\n\r\n";
        let sent = (0..MAX_INTERIM_BYTES).try_for_each(|_| {
            meter.record_sent();
            meter.record_received(interim)
        });
        assert_eq!(sent, Err(TooManyInterimAnswers));
    }

    #[rstest]
    #[case(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")]
    #[case(b"HTTP/2.0 103 X\r\n\r\n")]
    #[case(b"garbage")]
    fn other_bytes_are_left_to_the_http_client(#[case] bytes: &[u8]) {
        let mut meter = Meter::new();
        meter.record_received(bytes).unwrap();
        assert_eq!(meter.part, Part::Final);
    }
}
