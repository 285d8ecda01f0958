//! Receives the body of a review: limits its length, its memory and its time.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use super::memory::{GivenUp, Memory, Share};

/// The maximum length of a body. The API server's own limit is 3 MiB for an object, and a review has two.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// How much of a body that is too long is read and discarded before the connection is closed.
const MAX_DISCARDED_BYTES: usize = 8 * MAX_BODY_BYTES;
/// What is allocated for the first bytes of a body, whatever its `Content-Length`.
const FIRST_BYTES: usize = 16 << 10;
/// How long a body may take besides the time at [`LEAST_RATE`]. The API server sends it at once.
const GRACE: Duration = Duration::from_secs(1);
/// The rate below which a body is given up, in bytes per second.
const LEAST_RATE: usize = 256 << 10;

/// A body, and the memory that it takes.
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) share: Share,
}

/// Why a body was not received.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body is longer than {MAX_BODY_BYTES} bytes")]
    TooLong,
    #[error("the body ended early: {0}")]
    Ended(axum::Error),
    #[error("the body was not received in time: {received} bytes in {} ms", .elapsed.as_millis())]
    Late { received: usize, elapsed: Duration },
    #[error(transparent)]
    GivenUp(#[from] GivenUp),
}

/// Receives the whole body. A request takes memory before its body has a byte, because HTTP/2 has many requests on one
/// connection.
pub(super) async fn receive(
    body: Body,
    length: Option<usize>,
    memory: &std::sync::Arc<Memory>,
    deadline: Instant,
) -> Result<Received, BodyError> {
    let mut chunks = body.into_data_stream();
    if length.is_some_and(|length| length > MAX_BODY_BYTES) {
        tokio::spawn(discard_rest(chunks, deadline));
        return Err(BodyError::TooLong);
    }
    let started = Instant::now();
    let share = memory.enter()?;
    let mut bytes = Vec::new();
    loop {
        let limit = deadline.min(started + GRACE + time_at_least_rate(bytes.len()));
        let next = tokio::select! {
            next = timeout_at(limit, chunks.next()) => next,
            () = share.given_up().cancelled() => return Err(GivenUp.into()),
        };
        let late = |_| BodyError::Late { received: bytes.len(), elapsed: started.elapsed() };
        let Some(chunk) = next.map_err(late)? else { return Ok(Received { bytes, share }) };
        let chunk = chunk.map_err(BodyError::Ended)?;
        if bytes.len() + chunk.len() > MAX_BODY_BYTES {
            tokio::spawn(discard_rest(chunks, deadline));
            return Err(BodyError::TooLong);
        }
        reserve(&mut bytes, chunk.len(), length, &share)?;
        bytes.extend_from_slice(&chunk);
    }
}

/// Makes room for more bytes: twice as much as before, but not more than the body has.
fn reserve(bytes: &mut Vec<u8>, more: usize, length: Option<usize>, share: &Share) -> Result<(), GivenUp> {
    let needed = bytes.len() + more;
    if needed > bytes.capacity() {
        let doubled = FIRST_BYTES.max(2 * bytes.capacity());
        let capacity = needed.max(doubled.min(length.unwrap_or(usize::MAX)));
        // The old and the new allocation exist at the same time.
        share.resize(bytes.capacity() + capacity)?;
        bytes.reserve_exact(capacity - bytes.len());
    }
    share.resize(bytes.capacity())
}

fn time_at_least_rate(bytes: usize) -> Duration {
    Duration::from_micros((bytes * 1_000 / (LEAST_RATE / 1_000)) as u64)
}

/// Discards the rest of a body: a client that is still writing when its connection is closed does not read the answer.
async fn discard_rest(mut chunks: BodyDataStream, deadline: Instant) {
    let rest = async {
        let started = Instant::now();
        let mut discarded = 0;
        while discarded < MAX_DISCARDED_BYTES {
            let limit = started + GRACE + time_at_least_rate(discarded);
            let Ok(Some(Ok(chunk))) = timeout_at(limit, chunks.next()).await else { return };
            discarded += chunk.len();
        }
    };
    let _ = timeout_at(deadline, rest).await;
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use futures_util::stream;

    use super::*;

    fn memory() -> Arc<Memory> {
        Memory::new(24 << 20)
    }

    /// A body whose chunks come at an interval, and that never ends.
    fn dripping(chunk: usize, interval: Duration) -> Body {
        Body::from_stream(stream::unfold((), move |()| async move {
            tokio::time::sleep(interval).await;
            Some((Ok::<_, io::Error>(vec![b' '; chunk]), ()))
        }))
    }

    fn in_seconds(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_a_least_rate() {
        for (chunk, milliseconds, most) in [(1, 100, 1_200), (10 << 10, 100, 1_800), (1, 60_000, 1_000)] {
            let started = Instant::now();
            let body = dripping(chunk, Duration::from_millis(milliseconds));
            let error = receive(body, Some(7 << 20), &memory(), in_seconds(24)).await.err().unwrap();
            assert!(matches!(error, BodyError::Late { .. }), "{error}");
            assert!(started.elapsed() <= Duration::from_millis(most), "{:?}", started.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_fast_enough_is_received() {
        let chunks = (0..20).map(|_| vec![b'x'; 100 << 10]);
        let body = Body::from_stream(stream::unfold(chunks, |mut chunks| async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            chunks.next().map(|chunk| (Ok::<_, io::Error>(chunk), chunks))
        }));
        let received = receive(body, None, &memory(), in_seconds(24)).await.ok().unwrap();
        assert_eq!(received.bytes.len(), 2_000 << 10);
    }

    /// What a body claims takes no memory.
    #[tokio::test(start_paused = true)]
    async fn only_bytes_that_are_received_take_memory() {
        let memory = Memory::new(100 << 10);
        let silent = Body::from_stream(stream::pending::<Result<Vec<u8>, io::Error>>());
        let error = receive(silent, Some(7 << 20), &memory, in_seconds(24)).await.err().unwrap();
        assert!(matches!(error, BodyError::Late { received: 0, .. }), "{error}");
        let large = Body::from(vec![b' '; 100 << 10]);
        let error = receive(large, Some(100 << 10), &memory, in_seconds(24)).await.err().unwrap();
        assert!(matches!(error, BodyError::GivenUp(_)), "{error}");
        assert!(receive(Body::from("{}"), Some(2), &memory, in_seconds(24)).await.is_ok());
    }

    /// Large partial bodies make room for an ordinary one.
    #[tokio::test(start_paused = true)]
    async fn large_bodies_give_way_to_small_ones() {
        let memory = memory();
        let large = (0..40).map(|_| {
            let memory = Arc::clone(&memory);
            let body = dripping(1 << 20, Duration::from_millis(10));
            tokio::spawn(async move { receive(body, Some(7 << 20), &memory, in_seconds(24)).await.err() })
        });
        let large: Vec<_> = large.collect();
        tokio::time::sleep(Duration::from_millis(45)).await;
        for _ in 0..100 {
            let body = Body::from(vec![b' '; 10_000]);
            assert!(receive(body, Some(10_000), &memory, in_seconds(8)).await.is_ok());
        }
        let mut given_up = 0;
        for task in large {
            given_up += usize::from(matches!(task.await.unwrap(), Some(BodyError::GivenUp(_))));
        }
        assert!(given_up > 30, "{given_up}");
    }
}
