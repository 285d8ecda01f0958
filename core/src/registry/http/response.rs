//! Compares the headers of a response with the request.

use std::ops::Range;

use http::{HeaderValue, StatusCode, header};
use reqwest::Response;

use crate::digest::Digest;
use crate::manifest::{Descriptor, media};
use crate::registry::body;
use crate::registry::error::{RegistryError, RegistryErrorKind};
use crate::registry::limits::Limits;
use crate::registry::request_label::RequestLabel;
use crate::registry::transport::Answer;

/// Fails unless the status is 200.
pub(super) fn expect_ok(response: &Response, label: &RequestLabel) -> Result<(), RegistryError> {
    match response.status() {
        StatusCode::OK => Ok(()),
        status => Err(label.untruthful(format!("unexpected status {status}"))),
    }
}

/// Returns the descriptor in the headers of a HEAD response. Returns `None` if a header is missing, so that the client
/// must send GET.
pub(super) fn descriptor_from_headers(
    answer: &Answer,
    requested: Option<&Digest>,
    limits: Limits,
) -> Result<Option<Descriptor>, RegistryError> {
    let Answer { response, label, .. } = answer;
    expect_ok(response, label)?;
    let reported = reported_digest(response, label, requested)?;
    // The length of an encoded body is not that of the manifest.
    let is_encoded = !body::encoding_note(response.headers()).is_empty();
    let size = body::content_length(response.headers()).filter(|_| !is_encoded);
    if size.is_some_and(|size| size > limits.manifest()) {
        return Err(RegistryError::TooLarge {
            at: label.text(),
            what: "a manifest",
            limit: limits.manifest(),
        });
    }
    let media_type = content_type(response).map(|text| essence(&text)).filter(|essence| is_manifest(essence));
    Ok(match (requested.cloned().or(reported), size, media_type) {
        (Some(digest), Some(size), Some(media_type)) if size > 0 => {
            Some(Descriptor::new(media_type, digest, size))
        }
        _ => None,
    })
}

/// Parses `Docker-Content-Digest` (distribution-spec, "Pulling manifests"). Fails if a digest of the same algorithm was
/// requested and this is another one.
///
/// Some registries and proxies send a header that is no digest (in quotes, in upper case, another hash). It is treated as
/// missing, because the digest is computed from the bytes.
pub(super) fn reported_digest(
    response: &Response,
    label: &RequestLabel,
    requested: Option<&Digest>,
) -> Result<Option<Digest>, RegistryError> {
    let values = response.headers().get_all("docker-content-digest").iter();
    let parse = |value: &HeaderValue| value.to_str().ok()?.trim().parse::<Digest>().ok();
    let mut digests = values.filter_map(parse);
    let Some(reported) = digests.next() else { return Ok(None) };
    if digests.any(|other| other != reported) {
        return Err(label.untruthful("two different Docker-Content-Digest headers"));
    }
    match requested {
        Some(requested) if requested.algorithm() == reported.algorithm() && *requested != reported => {
            Err(label.untruthful(format!("the registry returned the digest {reported}")))
        }
        _ => Ok(Some(reported)),
    }
}

/// Returns how many bytes of the body come before `offset`, after checking that the body is the requested part.
///
/// A server without range support sends the whole blob (RFC 9110, 14.2). The bytes before the offset are then read
/// again and skipped. That costs as much as starting over, but the caller keeps the hash of what it has.
pub(super) fn bytes_to_skip(
    response: &Response,
    label: &RequestLabel,
    size: u64,
    offset: u64,
) -> Result<u64, RegistryError> {
    match response.status() {
        StatusCode::OK => match body::content_length(response.headers()) {
            Some(reported) if reported != size => Err(wrong_size(response, label, reported, size)),
            _ => Ok(offset),
        },
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => {
            check_range(response, label, size, &(offset..size)).map(|()| 0)
        }
        _ => expect_ok(response, label).map(|()| offset),
    }
}

/// Fails unless the response is the requested range. A shorter part is allowed; the stream then ends with an error.
pub(super) fn check_range(
    response: &Response,
    label: &RequestLabel,
    size: u64,
    requested: &Range<u64>,
) -> Result<(), RegistryError> {
    let last_requested = requested.end - 1;
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {}
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let start = requested.start;
            let message =
                format!("the registry has no byte {start} of the blob; the manifest says {size} bytes");
            return Err(label.untruthful(message));
        }
        _ => return expect_ok(response, label),
    }
    let Some((first, last, total)) = body::content_range(response.headers()) else {
        return Err(label.untruthful("a partial response without a valid Content-Range"));
    };
    if first != requested.start || last < first || last > last_requested {
        let start = requested.start;
        let message = format!("bytes {first}-{last} instead of the requested {start}-{last_requested}");
        return Err(label.untruthful(message));
    }
    if let Some(reported) = total.filter(|reported| *reported != size) {
        return Err(wrong_size(response, label, reported, size));
    }
    match body::content_length(response.headers()) {
        Some(reported) if reported != last - first + 1 => {
            let expected = last - first + 1;
            Err(label.untruthful(format!("a partial response of {reported} bytes instead of {expected}")))
        }
        _ => Ok(()),
    }
}

fn wrong_size(response: &Response, label: &RequestLabel, reported: u64, size: u64) -> RegistryError {
    let note = body::encoding_note(response.headers());
    label.untruthful(format!("the blob is announced with {reported} bytes, the manifest says {size}{note}"))
}

/// Reports whether GET may succeed or explain more after HEAD failed: some registries and proxies do not support HEAD,
/// and its errors have no body.
pub(super) fn is_get_worth_trying(error: &RegistryError) -> bool {
    // A presigned address of a storage service can be for GET only.
    matches!(error.refusal(), Some(400 | 401 | 403 | 405 | 406))
        // Only the body of an answer tells a proxy from the registry behind it.
        || error.kind() == RegistryErrorKind::Misconfigured
        || matches!(error, RegistryError::Unavailable { status: 501, .. })
}

/// Reports whether one GET is sent after HEAD failed. A registry that fetches tags from another one may do so only for GET,
/// and only GET has the registry's message. A digest that HEAD does not find is not there.
pub(super) fn is_one_get_worth_trying(error: &RegistryError, digest: Option<&Digest>) -> bool {
    match error.kind() {
        RegistryErrorKind::NotFound => digest.is_none(),
        // The words say which limit it is. A request that is refused does not count for it.
        RegistryErrorKind::RateLimited => true,
        _ => matches!(error, RegistryError::Unavailable { status: 500 | 503, .. }),
    }
}

/// Returns the error of GET, or that of HEAD if GET broke off or returned something else than a manifest.
pub(super) fn more_informative(of_head: RegistryError, of_get: RegistryError) -> RegistryError {
    let is_less = body::is_interrupted(&of_get) || matches!(of_get, RegistryError::Invalid { .. });
    if is_less { of_head } else { of_get }
}

/// Returns the `Content-Type`.
pub(super) fn content_type(response: &Response) -> Option<String> {
    response.headers().get(header::CONTENT_TYPE)?.to_str().ok().map(str::to_owned)
}

/// Returns the media type without parameters.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The media types of manifests, the preferred ones first.
pub(super) const MANIFEST_TYPES: [&str; 5] =
    [media::OCI_MANIFEST, media::OCI_INDEX, media::DOCKER_MANIFEST, media::DOCKER_LIST, media::OCI_ARTIFACT];

/// Reports whether a body is an index, also if it cannot be parsed: its type says so, or it has the field of an index.
pub(super) fn is_meant_as_index(content_type: Option<&str>, body: &[u8]) -> bool {
    const FIELD: &[u8] = b"\"manifests\"";
    let is_index = |essence: String| matches!(essence.as_str(), media::OCI_INDEX | media::DOCKER_LIST);
    content_type.map(essence).is_some_and(is_index) || body.windows(FIELD.len()).any(|part| part == FIELD)
}

fn is_manifest(essence: &str) -> bool {
    MANIFEST_TYPES.contains(&essence)
}
