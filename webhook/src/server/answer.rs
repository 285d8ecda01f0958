//! The body of an answer, which counts as memory until it is written.
//!
//! Every answer does, of every path: a client of HTTP/2 that opens no window can have one unwritten answer for each of its
//! streams.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{self, Body};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::{HeaderValue, header};

use super::connections::Connection;
use super::memory::{GivenUp, Memory, Share};
use crate::review::ReviewResponse;

/// How much of an answer is given to the connection at once.
const PIECE_BYTES: usize = 16 << 10;

/// Returns the answer to a review, which keeps the memory of the review.
pub(super) fn review(review: &ReviewResponse, share: Share) -> Response {
    // Printing these types cannot fail: there are no maps with other keys than strings.
    let text = serde_json::to_vec(review).unwrap_or_default();
    let json = HeaderValue::from_static("application/json");
    let mut response = ([(header::CONTENT_TYPE, json)], text).into_response();
    response.extensions_mut().insert(Arc::new(share));
    response
}

/// Returns the same answer, whose body counts as memory until it is written. If that memory is needed earlier, the
/// connection is closed, because only a client that does not read keeps an answer waiting. Fails if there is no memory
/// for the answer.
pub(super) async fn counted(
    response: Response,
    memory: &Arc<Memory>,
    connection: Option<&Connection>,
) -> Result<Response, GivenUp> {
    let (mut parts, body) = response.into_parts();
    // All answers are made in memory, so this neither waits nor fails.
    let text = body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let kept = parts.extensions.remove::<Arc<Share>>();
    let share = kept.map_or_else(|| memory.enter().map(Arc::new), Ok)?;
    share.answer(text.len())?;
    if let Some(connection) = connection {
        share.close_when_given_up(connection.closed())?;
    }
    if !text.is_empty() {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    }
    let pieces = stream::unfold((text, share), async |(mut rest, share)| {
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        (!piece.is_empty()).then(|| (Ok::<_, Infallible>(piece), (rest, share)))
    });
    Ok(Response::from_parts(parts, Body::from_stream(pieces)))
}

#[cfg(test)]
mod tests {
    use super::super::connections::Connections;
    use super::*;

    /// Unread answers of every path give way to new ones with their connection.
    #[tokio::test]
    async fn unread_answers_close_their_connections() {
        let (memory, connections) = (Memory::new(1 << 20), Connections::new(100));
        let open: Vec<_> = (0..20).map(|_| connections.open()).collect();
        let mut unread = Vec::new();
        for connection in &open {
            let metrics = "x".repeat(100 << 10).into_response();
            unread.push(counted(metrics, &memory, Some(connection)).await.unwrap());
        }
        assert!(open[0].closed().is_cancelled() && !open.last().unwrap().closed().is_cancelled());
        let body = unread.pop().unwrap().into_body();
        assert_eq!(body::to_bytes(body, usize::MAX).await.unwrap().len(), 100 << 10);
        drop(unread);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn an_answer_without_memory_is_given_up() {
        let (memory, connection) = (Memory::new(64 << 10), Connections::new(1).open());
        let response = counted("x".repeat(100 << 10).into_response(), &memory, Some(&connection)).await;
        assert_eq!(response.err(), Some(GivenUp));
        assert!(!connection.closed().is_cancelled());
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn keeps_the_length_of_an_answer_to_head() {
        let memory = Memory::new(1 << 20);
        let head = ([(header::CONTENT_LENGTH, "5")], ()).into_response();
        let response = counted(head, &memory, None).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_LENGTH], "5");
    }
}
