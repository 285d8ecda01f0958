//! Blobs: pulling, with ranges, and deleting.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};

use super::answer::{Refusal, content_digest, empty, with_body};
use super::store::Store;
use crate::digest::Digest;

pub(super) fn get(
    store: &Store,
    name: &str,
    digest: &str,
    headers: &HeaderMap,
    head: bool,
) -> Result<Response, Refusal> {
    let digest: Digest = digest.parse().map_err(|_| Refusal::digest_invalid())?;
    let bytes = store.lock().blob(name, &digest).ok_or(Refusal::blob_unknown())?;
    let size = bytes.len();
    let mut answer = vec![
        (content_digest(), digest.to_string()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, format!("\"{digest}\"")),
    ];
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (status, body) = match range.map_or(Requested::All, |range| Requested::of(range, size)) {
        Requested::All => (StatusCode::OK, bytes),
        Requested::Part { first, last } => {
            answer.push((header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}")));
            (StatusCode::PARTIAL_CONTENT, bytes.slice(first..=last))
        }
        Requested::None => {
            let range = (header::CONTENT_RANGE, format!("bytes */{size}"));
            return Ok(empty(StatusCode::RANGE_NOT_SATISFIABLE, &[range]));
        }
    };
    answer.push((header::CONTENT_LENGTH, body.len().to_string()));
    let body = if head { Body::empty() } else { Body::from(body) };
    Ok(with_body(status, &answer, body))
}

/// The part of a blob that a `Range` header requests (RFC 9110, section 14.2). Several ranges at once are answered with the
/// whole blob.
#[derive(Debug, PartialEq, Eq)]
enum Requested {
    All,
    Part { first: usize, last: usize },
    None,
}

impl Requested {
    fn of(range: &str, size: usize) -> Self {
        let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
            return Self::All;
        };
        let last_byte = size.saturating_sub(1);
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), _) if first >= size => Self::None,
            (Ok(first), Ok(last)) if first <= last => Self::Part { first, last: last.min(last_byte) },
            (Ok(first), Err(_)) if last.is_empty() => Self::Part { first, last: last_byte },
            (Err(_), Ok(0)) if first.is_empty() => Self::None,
            (Err(_), Ok(_)) if first.is_empty() && size == 0 => Self::None,
            (Err(_), Ok(tail)) if first.is_empty() => {
                Self::Part { first: size.saturating_sub(tail), last: last_byte }
            }
            _ => Self::All,
        }
    }
}

pub(super) fn delete(store: &Store, name: &str, digest: &str) -> Result<Response, Refusal> {
    let digest: Digest = digest.parse().map_err(|_| Refusal::digest_invalid())?;
    let mut state = store.lock();
    if !state.repositories.get_mut(name).is_some_and(|repository| repository.blobs.remove(&digest)) {
        return Err(Refusal::blob_unknown());
    }
    if !state.repositories.values().any(|repository| repository.blobs.contains(&digest)) {
        state.blobs.remove(&digest);
    }
    Ok(empty(StatusCode::ACCEPTED, &[]))
}

#[cfg(test)]
mod tests {
    use super::Requested::{self, All, None, Part};

    #[test]
    fn parses_range_headers() {
        for (range, wanted) in [
            ("bytes=0-4", Part { first: 0, last: 4 }),
            ("bytes=5-", Part { first: 5, last: 9 }),
            ("bytes=5-100", Part { first: 5, last: 9 }),
            ("bytes=-3", Part { first: 7, last: 9 }),
            ("bytes=-30", Part { first: 0, last: 9 }),
            ("bytes=10-", None),
            ("bytes=-0", None),
            ("bytes=5-4", All),
            ("bytes=0-1,3-4", All),
            ("bytes=x-", All),
            ("items=0-1", All),
        ] {
            assert_eq!(Requested::of(range, 10), wanted, "{range}");
        }
        assert_eq!(Requested::of("bytes=0-", 0), None);
        assert_eq!(Requested::of("bytes=-1", 0), None);
    }
}
