//! Pushing blobs: at once, in chunks, or from another repository ("Pushing blobs").

use axum::extract::Request;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{HeaderName, StatusCode, header};

use super::answer::{Refusal, content_digest, empty};
use super::store::Store;
use super::{Query, body};
use crate::digest::Digest;

/// The limit of an upload, which is kept in memory.
const MAX_BYTES: usize = 4 << 30;

/// Answers `POST …/blobs/uploads/`: mounts a blob, stores a whole blob, or starts an upload.
pub(super) async fn start(
    store: &Store,
    name: &str,
    query: &Query,
    request: Request,
) -> Result<Response, Refusal> {
    if let Some(digest) = query.get("mount") {
        let digest: Digest = digest.parse().map_err(|_| Refusal::digest_invalid())?;
        let mut state = store.lock();
        if let Some(bytes) = query.get("from").and_then(|from| state.blob(from, &digest)) {
            state.add_blob(name, digest.clone(), bytes);
            return Ok(created(name, &digest));
        }
    } else if let Some(digest) = query.get("digest") {
        let digest: Digest = digest.parse().map_err(|_| Refusal::digest_invalid())?;
        let bytes = body(request, MAX_BYTES).await?;
        return save(store, name, &digest, bytes);
    }
    let id = store.lock().start_upload(name);
    Ok(empty(StatusCode::ACCEPTED, &progress(name, &id, 0)))
}

/// Answers `GET` of an upload with its progress.
pub(super) fn status(store: &Store, name: &str, id: &str) -> Result<Response, Refusal> {
    let length = store.lock().upload(name, id).ok_or(Refusal::upload_unknown())?.len();
    Ok(empty(StatusCode::NO_CONTENT, &progress(name, id, length)))
}

/// Answers `PATCH`: appends a chunk, which must begin where the last one ended.
pub(super) async fn append(
    store: &Store,
    name: &str,
    id: &str,
    request: Request,
) -> Result<Response, Refusal> {
    let range = request.headers().get(header::CONTENT_RANGE).cloned();
    let chunk = body(request, MAX_BYTES).await?;
    let mut state = store.lock();
    let upload = state.upload(name, id).ok_or(Refusal::upload_unknown())?;
    if let Some(range) = range {
        let last = (upload.len() + chunk.len()).saturating_sub(1);
        if range.to_str().ok() != Some(&format!("{}-{last}", upload.len())) && !chunk.is_empty() {
            return Ok(empty(StatusCode::RANGE_NOT_SATISFIABLE, &progress(name, id, upload.len())));
        }
    }
    extend(upload, &chunk)?;
    Ok(empty(StatusCode::ACCEPTED, &progress(name, id, upload.len())))
}

/// Answers `PUT`: appends the last chunk, if any, and stores the blob if its digest matches.
pub(super) async fn finish(
    store: &Store,
    name: &str,
    id: &str,
    query: &Query,
    request: Request,
) -> Result<Response, Refusal> {
    let digest = query.get("digest").and_then(|digest| digest.parse::<Digest>().ok());
    let digest = digest.ok_or(Refusal::digest_invalid())?;
    let chunk = body(request, MAX_BYTES).await?;
    let bytes = {
        let mut state = store.lock();
        let upload = state.upload(name, id).ok_or(Refusal::upload_unknown())?;
        extend(upload, &chunk)?;
        let bytes = std::mem::take(upload);
        state.uploads.remove(id);
        bytes
    };
    save(store, name, &digest, bytes.freeze())
}

/// Answers `DELETE`: cancels the upload.
pub(super) fn cancel(store: &Store, name: &str, id: &str) -> Result<Response, Refusal> {
    let mut state = store.lock();
    state.upload(name, id).ok_or(Refusal::upload_unknown())?;
    state.uploads.remove(id);
    Ok(empty(StatusCode::NO_CONTENT, &[]))
}

fn extend(upload: &mut BytesMut, chunk: &[u8]) -> Result<(), Refusal> {
    if upload.len() + chunk.len() > MAX_BYTES {
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", "the blob is too large"));
    }
    upload.extend_from_slice(chunk);
    Ok(())
}

fn save(store: &Store, name: &str, digest: &Digest, bytes: Bytes) -> Result<Response, Refusal> {
    if !digest.matches(&bytes) {
        return Err(Refusal::digest_invalid());
    }
    store.lock().add_blob(name, digest.clone(), bytes);
    Ok(created(name, digest))
}

fn created(name: &str, digest: &Digest) -> Response {
    let headers =
        [(header::LOCATION, format!("/v2/{name}/blobs/{digest}")), (content_digest(), digest.to_string())];
    empty(StatusCode::CREATED, &headers)
}

fn progress(name: &str, id: &str, length: usize) -> [(HeaderName, String); 3] {
    [
        (header::LOCATION, format!("/v2/{name}/blobs/uploads/{id}")),
        (header::RANGE, format!("0-{}", length.saturating_sub(1))),
        (HeaderName::from_static("docker-upload-uuid"), id.to_owned()),
    ]
}
