//! The body of an answer, which counts as memory until it is written.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::{HeaderValue, header};
use tokio_util::task::AbortOnDropHandle;

use super::connections::Connection;
use super::memory::{GivenUp, Share};
use crate::review::ReviewResponse;

/// How much of an answer is given to the connection at once.
const PIECE_BYTES: usize = 16 << 10;

/// Returns the answer to a review. If its memory is needed before it is written, its connection is closed, because only
/// a client that does not read keeps an answer waiting.
pub(super) fn answer(
    review: &ReviewResponse,
    share: Share,
    connection: Option<Arc<Connection>>,
) -> Result<Response, GivenUp> {
    // Printing these types cannot fail: there are no maps with other keys than strings.
    let text = Bytes::from(serde_json::to_vec(review).unwrap_or_default());
    let length = HeaderValue::from(text.len());
    share.resize(text.len())?;
    let guard = close_if_given_up(&share, connection);
    let body = Body::from_stream(stream::unfold((text, share, guard), async |(mut rest, share, guard)| {
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        (!piece.is_empty()).then(|| (Ok::<_, Infallible>(piece), (rest, share, guard)))
    }));
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json), (header::CONTENT_LENGTH, length)], body).into_response())
}

fn close_if_given_up(share: &Share, connection: Option<Arc<Connection>>) -> AbortOnDropHandle<()> {
    let given_up = share.given_up().clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        given_up.cancelled().await;
        if let Some(connection) = connection {
            connection.close();
        }
    }))
}
