//! What an answer says of itself, compared with what was asked for.

use std::ops::Range;

use http::{StatusCode, header};
use reqwest::Response;

use crate::digest::Digest;
use crate::manifest::{Descriptor, media};
use crate::registry::transport::{Answer, Place};
use crate::registry::{Limits, RegistryError, body};

pub(super) fn expect_ok(response: &Response, place: &Place) -> Result<(), RegistryError> {
    match response.status() {
        StatusCode::OK => Ok(()),
        status => Err(place.untruthful(format!("answered with {status}, which was not asked for"))),
    }
}

/// What a HEAD says, if it says all of it; `None` where a GET must tell.
pub(super) fn described(
    answer: &Answer,
    asked: Option<&Digest>,
    limits: Limits,
) -> Result<Option<Descriptor>, RegistryError> {
    let Answer { response, place, .. } = answer;
    expect_ok(response, place)?;
    let told = told_digest(response, place, asked)?;
    let size = body::content_length(response.headers());
    if size.is_some_and(|size| size > limits.manifest()) {
        return Err(RegistryError::TooLarge { at: place.at(), what: "a manifest", limit: limits.manifest() });
    }
    let media_type = content_type(response).map(|text| essence(&text)).filter(|essence| is_manifest(essence));
    Ok(match (asked.cloned().or(told), size, media_type) {
        (Some(digest), Some(size), Some(media_type)) if size > 0 => {
            Some(Descriptor::new(media_type, digest, size))
        }
        _ => None,
    })
}

/// `Docker-Content-Digest` (distribution-spec, "Pulling manifests"): a digest, and the one that was asked
/// for if one was, unless it is of another algorithm.
pub(super) fn told_digest(
    response: &Response,
    place: &Place,
    asked: Option<&Digest>,
) -> Result<Option<Digest>, RegistryError> {
    let mut values = response.headers().get_all("docker-content-digest").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.any(|other| other != value) {
        return Err(place.untruthful("it has two Docker-Content-Digest that differ"));
    }
    let text = String::from_utf8_lossy(value.as_bytes());
    let told = text.parse::<Digest>();
    let told = told.map_err(|error| place.untruthful(format!("in Docker-Content-Digest, {error}")))?;
    match asked {
        Some(asked) if asked.algorithm() == told.algorithm() && *asked != told => {
            Err(place.untruthful(format!("it says that it is {told}")))
        }
        _ => Ok(Some(told)),
    }
}

/// How much of the body comes before the offset, after checking that it is the part that was asked for.
///
/// A server that does not know ranges sends everything (RFC 9110, 14.2). The part we have is then read
/// again and dropped: it costs what starting over would, and the caller keeps what it has hashed.
pub(super) fn skipped(
    response: &Response,
    place: &Place,
    size: u64,
    offset: u64,
) -> Result<u64, RegistryError> {
    body::plain(response.headers(), place)?;
    match response.status() {
        StatusCode::OK => match body::content_length(response.headers()) {
            Some(told) if told != size => Err(announced(place, told, size)),
            _ => Ok(offset),
        },
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => {
            check_part(response, place, size, &(offset..size)).map(|()| 0)
        }
        _ => expect_ok(response, place).map(|()| offset),
    }
}

/// Fails unless the answer is the part that was asked for. A shorter one is allowed; the stream's end tells.
pub(super) fn check_part(
    response: &Response,
    place: &Place,
    size: u64,
    asked: &Range<u64>,
) -> Result<(), RegistryError> {
    let wanted = asked.end - 1;
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {}
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let words = format!("it has no byte {}, the manifest says {size} bytes", asked.start);
            return Err(place.untruthful(words));
        }
        _ => return expect_ok(response, place),
    }
    let Some((first, last, total)) = body::content_range(response.headers()) else {
        return Err(place.untruthful("a part without a Content-Range that can be read"));
    };
    if first != asked.start || last < first || last > wanted {
        return Err(place.untruthful(format!("bytes {first}-{last}, asked was {}-{wanted}", asked.start)));
    }
    if let Some(told) = total.filter(|told| *told != size) {
        return Err(announced(place, told, size));
    }
    match body::content_length(response.headers()) {
        Some(told) if told != last - first + 1 => {
            let wanted = last - first + 1;
            Err(place.untruthful(format!("a part of {told} bytes, the manifest says {wanted}")))
        }
        _ => Ok(()),
    }
}

fn announced(place: &Place, told: u64, size: u64) -> RegistryError {
    place.untruthful(format!("the blob is announced with {told} bytes, the manifest says {size}"))
}

/// Whether a GET may succeed, or tell more, where a HEAD failed: some registries and proxies do not know
/// HEAD, and its refusals have no body.
pub(super) fn head_may_lie(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Refused { status: 400 | 401 | 403 | 405 | 406, .. })
        || matches!(error, RegistryError::Unavailable { status: 501, .. })
}

pub(super) fn content_type(response: &Response) -> Option<String> {
    response.headers().get(header::CONTENT_TYPE)?.to_str().ok().map(str::to_owned)
}

fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Types of manifests, those that are meant first.
pub(super) const MANIFESTS: [&str; 5] =
    [media::OCI_MANIFEST, media::OCI_INDEX, media::DOCKER_MANIFEST, media::DOCKER_LIST, media::OCI_ARTIFACT];

fn is_manifest(essence: &str) -> bool {
    MANIFESTS.contains(&essence)
}
