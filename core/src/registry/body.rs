//! Response bodies, bounded while they are read.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, header};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::api::BlobStream;
use super::error::RegistryError;
use super::request_label::RequestLabel;
use super::transport::{Answer, client_error};
use crate::display::Printable;

/// How many bytes of a body must arrive per idle timeout. Without a minimum, a registry that sends one byte a second
/// would keep the download open without end.
const MIN_BYTES_PER_TIMEOUT: usize = 16 << 10;
/// The longest time that one wait for a chunk can add to the time that the client has waited. A caller can pause
/// between two polls, while it is the turn of other downloads. That time must not count for the registry.
const WAIT_STEP: Duration = Duration::from_secs(1);
/// How long a server may take to end a body after the last expected byte.
const END_TIMEOUT: Duration = Duration::from_secs(1);

type Chunks = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// When the client stops reading a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadTimeouts {
    /// How long [`MIN_BYTES_PER_TIMEOUT`] more bytes, or the rest of the body, may take.
    pub(super) idle: Duration,
    /// The time that the whole operation had, for the error.
    pub(super) total: Duration,
    pub(super) deadline: Instant,
}

/// Parses `Content-Length`. Returns `None` if it is missing or not a number.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Returns the part of an error message that names the `Content-Encoding` of the body, or nothing if there is none.
///
/// The client requests no encoding and decodes none. Some storage services name one that the bytes do not have, so the
/// header is not an error. It is the likely reason if the bytes have another digest, length or form than expected.
pub(super) fn encoding_note(headers: &HeaderMap) -> String {
    let encoding =
        headers.get(header::CONTENT_ENCODING).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match encoding {
        Some(encoding) if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") => {
            format!("; the body is encoded as \"{encoding}\", which was not requested")
        }
        _ => String::new(),
    }
}

/// Reports whether a body was cut off, so that a retry may return all of it.
pub(super) fn is_interrupted(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Unreachable { .. } | RegistryError::Stalled { .. })
}

/// Reads a short body: at most `limit` bytes, before the deadline. `what` names the content in errors.
pub(super) async fn read(
    response: Response,
    label: &RequestLabel,
    what: &'static str,
    limit: u64,
    timeouts: ReadTimeouts,
) -> Result<Bytes, RegistryError> {
    let too_large = || RegistryError::TooLarge { at: label.text(), what, limit };
    let announced = content_length(response.headers());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut chunks = response.bytes_stream();
    // Memory is used only where bytes arrive, whatever the length says.
    let capacity = announced.and_then(|length| usize::try_from(length).ok());
    let mut body = BytesMut::with_capacity(capacity.unwrap_or_default());
    let (mut progress, mut received) = (Instant::now(), 0);
    loop {
        let next = timeout_at(timeouts.deadline.min(progress + timeouts.idle), chunks.next());
        match next.await {
            Ok(None) => return Ok(body.freeze()),
            Ok(Some(Ok(chunk))) if (body.len() + chunk.len()) as u64 > limit => return Err(too_large()),
            Ok(Some(Ok(chunk))) => {
                body.extend_from_slice(&chunk);
                received += chunk.len();
                if received >= MIN_BYTES_PER_TIMEOUT {
                    (progress, received) = (Instant::now(), 0);
                }
            }
            Ok(Some(Err(error))) => return Err(client_error(label, &error)),
            Err(_) if Instant::now() >= timeouts.deadline => {
                return Err(label.stalled("end of the answer", timeouts.total));
            }
            Err(_) => return Err(label.stalled("more bytes", timeouts.idle)),
        }
    }
}

/// The message of an error response.
#[derive(Debug, Default)]
pub(super) struct ErrorMessage {
    pub(super) words: Printable,
    /// Whether it has the error codes of the OCI distribution-spec, which only a registry sends.
    pub(super) has_codes: bool,
}

/// Reads the message of an error response. Reads for at most two seconds, and a failure to read is not an error.
pub(super) async fn error_message(response: Response, limit: u64, timeouts: ReadTimeouts) -> ErrorMessage {
    let deadline = timeouts.deadline.min(Instant::now() + Duration::from_secs(2));
    let mut chunks = response.bytes_stream();
    let mut body = BytesMut::new();
    while let Ok(Some(Ok(chunk))) = timeout_at(deadline, chunks.next()).await {
        let remaining = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(body.len());
        body.extend_from_slice(&chunk[..chunk.len().min(remaining)]);
        if chunk.len() >= remaining {
            break;
        }
    }
    parse_error_message(&body)
}

/// Converts the error formats of the OCI distribution-spec ("Error Codes") and of storage services (`<Error>` with `<Code>`
/// and `<Message>`, as S3, Google Cloud Storage and Azure send it) to `CODE: message`. Returns any other text unchanged.
fn parse_error_message(body: &[u8]) -> ErrorMessage {
    #[derive(serde::Deserialize)]
    struct Envelope {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    if let Ok(envelope) = serde_json::from_slice::<Envelope>(body) {
        let entries = envelope.errors.iter().take(3).map(|entry| match (&*entry.code, &*entry.message) {
            ("", message) => message.to_owned(),
            (code, "") => code.to_owned(),
            (code, message) => format!("{code}: {message}"),
        });
        return ErrorMessage { words: entries.collect::<Vec<_>>().join("; ").into(), has_codes: true };
    }
    ErrorMessage { words: parse_other_message(body), has_codes: false }
}

fn parse_other_message(body: &[u8]) -> Printable {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if !text.starts_with('<') {
        return Printable::new(text);
    }
    // An HTML page makes no useful message.
    match (xml_element(text, "Code"), xml_element(text, "Message")) {
        (Some(code), Some(message)) => Printable::new(&format!("{code}: {message}")),
        (Some(one), None) | (None, Some(one)) => Printable::new(&one),
        (None, None) => Printable::default(),
    }
}

/// Returns the text of the first element with this name. This is no XML parser: the text only becomes part of a message.
fn xml_element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    Some(text.replace("&amp;", "&").trim().to_owned()).filter(|text| !text.is_empty())
}

/// The state of a blob's stream.
struct BlobBody {
    chunks: Chunks,
    label: RequestLabel,
    /// See [`encoding_note`].
    encoding_note: String,
    /// How many bytes are still to be skipped.
    skip: u64,
    /// How many bytes are still expected.
    remaining: u64,
    length: u64,
    idle: Duration,
    /// How long the client has waited since `MIN_BYTES_PER_TIMEOUT` bytes last arrived.
    waited: Duration,
    /// How many bytes have arrived since then.
    received: usize,
    done: bool,
    _permit: OwnedSemaphorePermit,
}

/// Streams the body as a blob: skips `skip` bytes, then yields exactly `length` bytes. At least
/// `MIN_BYTES_PER_TIMEOUT` bytes must arrive per `idle` of waiting.
pub(super) fn blob(answer: Answer, skip: u64, length: u64, idle: Duration) -> BlobStream {
    let Answer { response, label, permit, .. } = answer;
    let encoding_note = encoding_note(response.headers());
    let chunks: Chunks = Box::pin(response.bytes_stream());
    let body = BlobBody {
        chunks,
        label,
        encoding_note,
        skip,
        remaining: length,
        length,
        idle,
        waited: Duration::ZERO,
        received: 0,
        done: false,
        _permit: permit,
    };
    Box::pin(stream::unfold(body, |mut body| async move {
        if body.done {
            return None;
        }
        let item = body.next().await?;
        body.done |= item.is_err();
        Some((item, body))
    }))
}

impl BlobBody {
    async fn next(&mut self) -> Option<Result<Bytes, RegistryError>> {
        loop {
            if self.remaining == 0 {
                return self.end().await;
            }
            let started = Instant::now();
            let step = self.idle.saturating_sub(self.waited).min(WAIT_STEP);
            let mut chunk = match timeout(step, self.chunks.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Some(Err(client_error(&self.label, &error))),
                Ok(None) => return Some(Err(self.cut_error())),
                Err(_) => {
                    self.waited += step;
                    if self.waited < self.idle {
                        continue;
                    }
                    let what = if self.received == 0 { "more bytes" } else { "16 KiB more" };
                    return Some(Err(self.label.stalled(what, self.idle)));
                }
            };
            // Only the time that the client waits counts, not the time that the disk needs between two chunks.
            self.waited += started.elapsed().min(step);
            self.received += chunk.len();
            if self.received >= MIN_BYTES_PER_TIMEOUT {
                (self.waited, self.received) = (Duration::ZERO, 0);
            }
            let skipped = chunk.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip -= skipped as u64;
            let chunk = chunk.split_off(skipped);
            if chunk.is_empty() {
                continue;
            }
            let Some(remaining) = self.remaining.checked_sub(chunk.len() as u64) else {
                return Some(Err(self.too_many_bytes()));
            };
            self.remaining = remaining;
            return Some(Ok(chunk));
        }
    }

    /// Waits for the end of the body after the last expected byte. More bytes are an error. A server that does not end
    /// the body in time is accepted, because the caller hashes the bytes.
    async fn end(&mut self) -> Option<Result<Bytes, RegistryError>> {
        self.done = true;
        let deadline = Instant::now() + END_TIMEOUT.min(self.idle);
        while let Ok(Some(Ok(chunk))) = timeout_at(deadline, self.chunks.next()).await {
            if !chunk.is_empty() {
                return Some(Err(self.too_many_bytes()));
            }
        }
        None
    }

    fn too_many_bytes(&self) -> RegistryError {
        let note = &self.encoding_note;
        self.label.untruthful(format!("more than the {} bytes that were requested{note}", self.length))
    }

    /// Returns the error for a body that ends too early. An encoded body ends there each time.
    fn cut_error(&self) -> RegistryError {
        let (received, length, note) = (self.length - self.remaining, self.length, &self.encoding_note);
        if note.is_empty() {
            self.label.unreachable(format!("the connection ended after {received} of {length} bytes"))
        } else {
            self.label.untruthful(format!("the body ended after {received} of {length} bytes{note}"))
        }
    }
}

/// Parses `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4). The total may be `*`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(parse_digits(total)?) };
    Some((parse_digits(first)?, parse_digits(last)?, total))
}

/// Parses decimal digits and nothing else (`parse` alone accepts a sign).
fn parse_digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_between_two_polls_does_not_count_for_the_registry() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let mut body = BlobBody {
            chunks: Box::pin(stream::poll_fn(move |context| receiver.poll_recv(context))),
            label: RequestLabel::from_name("registry/blob"),
            encoding_note: String::new(),
            skip: 0,
            remaining: 1_000_000,
            length: 1_000_000,
            idle: Duration::from_secs(30),
            waited: Duration::ZERO,
            received: 0,
            done: false,
            _permit: Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap(),
        };
        for _ in 0..3 {
            let mut next = std::pin::pin!(body.next());
            assert!(timeout(Duration::from_secs(5), next.as_mut()).await.is_err());
            // It is the turn of other downloads.
            tokio::time::advance(Duration::from_mins(5)).await;
            sender.send(Ok(Bytes::from_static(&[7; 100]))).unwrap();
            assert_eq!(next.await.unwrap().unwrap().len(), 100);
        }
        let began = Instant::now();
        let error = body.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("16 KiB more"), "{error}");
        let waited = began.elapsed().as_secs();
        assert!((10..=15).contains(&waited), "{waited} of the 30 s after three waits of 5 s");
    }

    #[test]
    fn content_ranges_are_parsed() {
        let parse = |value: &str| {
            content_range(&HeaderMap::from_iter([(header::CONTENT_RANGE, value.parse().unwrap())]))
        };
        assert_eq!(parse("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse("bytes 0-0/*"), Some((0, 0, None)));
        for odd in ["bytes */10", "bytes 5-9", "5-9/10", "bytes +5-9/10", "bytes 5-/10", "items 5-9/10", ""] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn error_bodies_become_messages() {
        let envelope =
            br#"{"errors":[{"code":"DENIED","message":"\u001b[31mno\u001b[0m","detail":{}},{"code":"X"}]}"#;
        assert_eq!(parse_error_message(envelope).words.as_str(), "DENIED: no; X");
        assert_eq!(parse_error_message(b"plain \x1b[2Jwords\n").words.as_str(), "plain words");
        assert_eq!(parse_error_message(b"<html>long page</html>").words.as_str(), "");
        for (xml, message) in [
            (
                "\u{feff}<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code><Message>Request has \
                 expired</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>",
                "AccessDenied: Request has expired",
            ),
            ("<Error><Message>a &amp;lt; b\nRequestId:1</Message></Error>", "a &lt; b RequestId:1"),
            ("<Error><Code>NoSuchKey</Code><Message/></Error>", "NoSuchKey"),
            ("<Error><Code></Code><Message>open", ""),
        ] {
            assert_eq!(parse_error_message(xml.as_bytes()).words.as_str(), message, "{xml}");
        }
        assert_eq!(parse_error_message(b"\xff\xfe").words.as_str(), "\u{fffd}\u{fffd}");
    }
}
