//! Bodies, bounded while they are read.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, header};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::transport::{self, Answer, Place};
use super::{BlobStream, RegistryError};
use crate::display::Printable;

/// How many bytes of a blob have to come while we wait as long as we do for the next: a registry that gives a byte
/// a second is never silent, and never done.
const LEAST: usize = 16 << 10;
/// How long a server has to end a body once all bytes of it are there.
const END: Duration = Duration::from_secs(1);

type Chunks = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// When reading gives up: between two pieces of a body, and on the whole of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) idle: Duration,
    pub(super) whole: Duration,
    pub(super) deadline: Instant,
}

/// `Content-Length`, where there is one that is a number.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Fails on a body that is not sent as it is: nothing here asks for one that is compressed, and one that
/// is unpacked on the way would have another digest and any length.
pub(super) fn plain(headers: &HeaderMap, place: &Place) -> Result<(), RegistryError> {
    match headers.get(header::CONTENT_ENCODING).map(|value| String::from_utf8_lossy(value.as_bytes())) {
        Some(encoding) if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") => {
            Err(place.untruthful(format!("the body is encoded as \"{encoding}\", which was not asked for")))
        }
        _ => Ok(()),
    }
}

/// Whether a body began and did not end, so that asking again may give all of it.
pub(super) fn broke_off(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Unreachable { .. } | RegistryError::Stalled { .. })
}

/// Reads a short body: at most `limit` bytes, before the deadline.
pub(super) async fn read(
    response: Response,
    place: &Place,
    what: &'static str,
    limit: u64,
    patience: Patience,
) -> Result<Bytes, RegistryError> {
    let too_large = || RegistryError::TooLarge { at: place.at(), what, limit };
    plain(response.headers(), place)?;
    let announced = content_length(response.headers());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut chunks = response.bytes_stream();
    let mut body = BytesMut::new();
    loop {
        let next = timeout_at(patience.deadline.min(Instant::now() + patience.idle), chunks.next());
        match next.await {
            Ok(None) => return Ok(body.freeze()),
            Ok(Some(Ok(chunk))) if (body.len() + chunk.len()) as u64 > limit => return Err(too_large()),
            Ok(Some(Ok(chunk))) => body.extend_from_slice(&chunk),
            Ok(Some(Err(error))) => return Err(place.failed(&error)),
            Err(_) if Instant::now() >= patience.deadline => {
                return Err(place.stalled("end of the answer", patience.whole));
            }
            Err(_) => return Err(place.stalled("more bytes", patience.idle)),
        }
    }
}

/// The words of an error's body: what is read within two seconds, and no error of its own.
pub(super) async fn words(response: Response, limit: u64, patience: Patience) -> Printable {
    let deadline = patience.deadline.min(Instant::now() + Duration::from_secs(2));
    let mut chunks = response.bytes_stream();
    let mut body = BytesMut::new();
    while let Ok(Some(Ok(chunk))) = timeout_at(deadline, chunks.next()).await {
        let room = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(body.len());
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() >= room {
            break;
        }
    }
    error_words(&body)
}

/// The OCI distribution-spec's error envelope ("Error Codes") as `CODE: message`, else the text itself.
fn error_words(body: &[u8]) -> Printable {
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
        return entries.collect::<Vec<_>>().join("; ").into();
    }
    let text = String::from_utf8_lossy(body);
    // A page for people says nothing in a line.
    if text.trim_start().starts_with('<') { Printable::default() } else { Printable::new(&text) }
}

/// What a blob's stream has still to do.
struct Rest {
    chunks: Chunks,
    place: Place,
    skip: u64,
    left: u64,
    whole: u64,
    idle: Duration,
    /// How long we have waited since `LEAST` bytes last came, and how many have come since.
    waited: Duration,
    came: usize,
    done: bool,
    _permit: OwnedSemaphorePermit,
}

/// The body as a blob: `skip` bytes dropped, then exactly `length`, of which `LEAST` come while we wait `idle`.
pub(super) fn blob(answer: Answer, skip: u64, length: u64, idle: Duration) -> BlobStream {
    let Answer { response, place, permit, .. } = answer;
    let chunks: Chunks = Box::pin(response.bytes_stream());
    let (waited, came) = (Duration::ZERO, 0);
    let rest = Rest {
        chunks,
        place,
        skip,
        left: length,
        whole: length,
        idle,
        waited,
        came,
        done: false,
        _permit: permit,
    };
    Box::pin(stream::unfold(rest, |mut rest| async move {
        if rest.done {
            return None;
        }
        let item = rest.next().await?;
        rest.done |= item.is_err();
        Some((item, rest))
    }))
}

impl Rest {
    async fn next(&mut self) -> Option<Result<Bytes, RegistryError>> {
        loop {
            if self.left == 0 {
                return self.end().await;
            }
            let asked = Instant::now();
            let mut chunk = match timeout(self.idle.saturating_sub(self.waited), self.chunks.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Some(Err(self.place.failed(&error))),
                Ok(None) => return Some(Err(self.place.unreachable(self.cut()))),
                Err(_) if self.came == 0 => return Some(Err(self.place.stalled("more bytes", self.idle))),
                Err(_) => return Some(Err(self.place.stalled("16 KiB more", self.idle))),
            };
            // Only our own waiting counts, and not what the disk takes between two pieces.
            self.waited += asked.elapsed();
            self.came += chunk.len();
            if self.came >= LEAST {
                (self.waited, self.came) = (Duration::ZERO, 0);
            }
            let skipped = chunk.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip -= skipped as u64;
            let chunk = chunk.split_off(skipped);
            if chunk.is_empty() {
                continue;
            }
            let Some(left) = self.left.checked_sub(chunk.len() as u64) else { return Some(Err(self.more())) };
            self.left = left;
            return Some(Ok(chunk));
        }
    }

    /// All bytes are there; a server that sends more is not believed about the ones before either. One
    /// that does not get round to ending the body is: its bytes are hashed by whoever asked.
    async fn end(&mut self) -> Option<Result<Bytes, RegistryError>> {
        self.done = true;
        let deadline = Instant::now() + END.min(self.idle);
        while let Ok(Some(Ok(chunk))) = timeout_at(deadline, self.chunks.next()).await {
            if !chunk.is_empty() {
                return Some(Err(self.more()));
            }
        }
        None
    }

    fn more(&self) -> RegistryError {
        self.place.untruthful(format!("more than the {} bytes that were asked for", self.whole))
    }

    fn cut(&self) -> String {
        format!("the connection ended after {} of {} bytes", self.whole - self.left, self.whole)
    }
}

/// `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4); the total may be `*`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(transport::number(total)?) };
    Some((transport::number(first)?, transport::number(last)?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        let read = |value: &str| {
            content_range(&HeaderMap::from_iter([(header::CONTENT_RANGE, value.parse().unwrap())]))
        };
        assert_eq!(read("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(read("bytes 0-0/*"), Some((0, 0, None)));
        for odd in ["bytes */10", "bytes 5-9", "5-9/10", "bytes +5-9/10", "bytes 5-/10", "items 5-9/10", ""] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn error_bodies_are_put_in_words() {
        let envelope =
            br#"{"errors":[{"code":"DENIED","message":"\u001b[31mno\u001b[0m","detail":{}},{"code":"X"}]}"#;
        assert_eq!(error_words(envelope).as_str(), "DENIED: no; X");
        assert_eq!(error_words(b"plain \x1b[2Jwords\n").as_str(), "plain words");
        assert_eq!(error_words(b"<html>long page</html>").as_str(), "");
        assert_eq!(error_words(b"\xff\xfe").as_str(), "\u{fffd}\u{fffd}");
    }
}
