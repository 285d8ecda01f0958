//! Pushing blobs: at once, in chunks, or from another repository ("Pushing blobs").

use axum::extract::Request;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{HeaderName, StatusCode, header};
use oras_csi_core::digest::Digest;

use super::answer::{Refusal, content_digest, empty};
use super::store::Store;
use super::{Query, body};

/// No upload is longer: it is kept in memory.
const LONGEST: usize = 4 << 30;

/// `POST …/blobs/uploads/`: mounts a blob, takes a whole one, or starts an upload.
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
        let bytes = body(request, LONGEST).await?;
        return keep(store, name, &digest, bytes);
    }
    let id = store.lock().start_upload(name);
    Ok(empty(StatusCode::ACCEPTED, &progress(name, &id, 0)))
}

/// `GET` of an upload: how far it is.
pub(super) fn status(store: &Store, name: &str, id: &str) -> Result<Response, Refusal> {
    let length = store.lock().upload(name, id).ok_or(Refusal::upload_unknown())?.len();
    Ok(empty(StatusCode::NO_CONTENT, &progress(name, id, length)))
}

/// `PATCH`: the next chunk, which must begin where the last one ended.
pub(super) async fn append(
    store: &Store,
    name: &str,
    id: &str,
    request: Request,
) -> Result<Response, Refusal> {
    let range = request.headers().get(header::CONTENT_RANGE).cloned();
    let chunk = body(request, LONGEST).await?;
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

/// `PUT`: the last chunk, if any, and the digest of the whole.
pub(super) async fn finish(
    store: &Store,
    name: &str,
    id: &str,
    query: &Query,
    request: Request,
) -> Result<Response, Refusal> {
    let digest = query.get("digest").and_then(|digest| digest.parse::<Digest>().ok());
    let digest = digest.ok_or(Refusal::digest_invalid())?;
    let chunk = body(request, LONGEST).await?;
    let bytes = {
        let mut state = store.lock();
        let upload = state.upload(name, id).ok_or(Refusal::upload_unknown())?;
        extend(upload, &chunk)?;
        let bytes = std::mem::take(upload);
        state.uploads.remove(id);
        bytes
    };
    keep(store, name, &digest, bytes.freeze())
}

/// `DELETE`: the upload is given up.
pub(super) fn cancel(store: &Store, name: &str, id: &str) -> Result<Response, Refusal> {
    let mut state = store.lock();
    state.upload(name, id).ok_or(Refusal::upload_unknown())?;
    state.uploads.remove(id);
    Ok(empty(StatusCode::NO_CONTENT, &[]))
}

fn extend(upload: &mut BytesMut, chunk: &[u8]) -> Result<(), Refusal> {
    if upload.len() + chunk.len() > LONGEST {
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", "the blob is too long"));
    }
    upload.extend_from_slice(chunk);
    Ok(())
}

fn keep(store: &Store, name: &str, digest: &Digest, bytes: Bytes) -> Result<Response, Refusal> {
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
