//! The body of an answer, which counts as memory until it is written.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::{HeaderValue, header};

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
    connection: Option<&Connection>,
) -> Result<Response, GivenUp> {
    // Printing these types cannot fail: there are no maps with other keys than strings.
    let text = Bytes::from(serde_json::to_vec(review).unwrap_or_default());
    let length = HeaderValue::from(text.len());
    share.resize(text.len())?;
    if let Some(connection) = connection {
        share.close_when_given_up(connection.closed())?;
    }
    let body = Body::from_stream(stream::unfold((text, share), async |(mut rest, share)| {
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        (!piece.is_empty()).then(|| (Ok::<_, Infallible>(piece), (rest, share)))
    }));
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json), (header::CONTENT_LENGTH, length)], body).into_response())
}
