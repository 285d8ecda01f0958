//! Manifests, tags and referrers.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, StatusCode, header};

use serde_json::{Value, json};

use super::answer::{Refusal, content_digest, empty, json_body, with_body};
use super::store::{Manifest, State, Store};
use super::{Query, body};
use crate::digest::Digest;

/// The size that the specification requires registries to accept ("Pushing manifests").
const MAX_BYTES: usize = 4 << 20;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A tag or a digest in a path.
enum Name {
    Tag(String),
    Digest(Digest),
}

impl Name {
    fn of(reference: &str) -> Result<Self, Refusal> {
        if reference.contains(':') {
            return reference.parse().map(Self::Digest).map_err(|_| Refusal::digest_invalid());
        }
        let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let fits = reference.len() <= 128
            && reference.starts_with(first)
            && reference.chars().all(|c| first(c) || matches!(c, '.' | '-'));
        let refusal = Refusal::new(StatusCode::BAD_REQUEST, "TAG_INVALID", "not a tag");
        if fits { Ok(Self::Tag(reference.to_owned())) } else { Err(refusal) }
    }

    fn digest(self, state: &State, repository: &str) -> Option<Digest> {
        match self {
            Self::Digest(digest) => Some(digest),
            Self::Tag(tag) => state.repositories.get(repository)?.tags.get(&tag).cloned(),
        }
    }
}

pub(super) fn get(store: &Store, name: &str, reference: &str) -> Result<Response, Refusal> {
    let reference = Name::of(reference)?;
    let state = store.lock();
    let digest = reference.digest(&state, name).ok_or(Refusal::manifest_unknown())?;
    let manifest = state.repositories.get(name).and_then(|repository| repository.manifests.get(&digest));
    let manifest = manifest.ok_or(Refusal::manifest_unknown())?;
    let headers = [
        (header::CONTENT_TYPE, manifest.media_type.clone()),
        (header::CONTENT_LENGTH, manifest.bytes.len().to_string()),
        (header::ETAG, format!("\"{digest}\"")),
        (content_digest(), digest.to_string()),
    ];
    Ok(with_body(StatusCode::OK, &headers, Body::from(manifest.bytes.clone())))
}

pub(super) async fn put(
    store: &Store,
    name: &str,
    reference: &str,
    request: Request,
) -> Result<Response, Refusal> {
    let reference = Name::of(reference)?;
    let sent_as = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let sent_as = sent_as.map(str::to_owned);
    let bytes = body(request, MAX_BYTES).await?;
    let manifest = read(sent_as, bytes)?;
    let (digest, tag) = match reference {
        Name::Digest(digest) => (digest, None),
        Name::Tag(tag) => (Digest::sha256_of(&manifest.bytes), Some(tag)),
    };
    if !digest.matches(&manifest.bytes) {
        return Err(Refusal::digest_invalid());
    }
    let mut state = store.lock();
    check_complete(&state, name, &manifest)?;
    let mut headers = vec![
        (header::LOCATION, format!("/v2/{name}/manifests/{digest}")),
        (content_digest(), digest.to_string()),
    ];
    if let Some(subject) = &manifest.subject {
        headers.push((HeaderName::from_static("oci-subject"), subject.to_string()));
    }
    let repository = state.repository(name);
    repository.manifests.insert(digest.clone(), manifest);
    if let Some(tag) = tag {
        repository.tags.insert(tag, digest);
    }
    Ok(empty(StatusCode::CREATED, &headers))
}

fn read(sent_as: Option<String>, bytes: Bytes) -> Result<Manifest, Refusal> {
    let invalid = |message| Refusal::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message);
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| invalid("not JSON"))?;
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let inside = text("/mediaType");
    let media_type = sent_as.or_else(|| inside.clone()).ok_or(invalid("no media type"))?;
    if inside.is_some_and(|inside| inside != media_type) {
        return Err(invalid("Content-Type and mediaType differ"));
    }
    let subject = text("/subject/digest").map(|digest| digest.parse()).transpose();
    let subject = subject.map_err(|_| invalid("the subject has no digest"))?;
    let artifact_type =
        text("/artifactType").filter(|text| !text.is_empty()).or_else(|| text("/config/mediaType"));
    let annotations = value.get("annotations").cloned().unwrap_or(Value::Null);
    Ok(Manifest { media_type, bytes, subject, artifact_type, annotations })
}

/// Fails if the registry lacks content that a manifest names. The subject can be pushed later ("Pushing Manifests with
/// Subject").
fn check_complete(state: &State, name: &str, manifest: &Manifest) -> Result<(), Refusal> {
    let value: Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
    let unknown = Refusal::new(
        StatusCode::NOT_FOUND,
        "MANIFEST_BLOB_UNKNOWN",
        "the registry lacks content that the manifest names",
    );
    let list = |key: &str| value.get(key).and_then(Value::as_array).into_iter().flatten();
    let blobs = list("layers").filter(|layer| layer.get("urls").is_none()).chain(value.get("config"));
    for (descriptor, is_blob) in
        blobs.map(|blob| (blob, true)).chain(list("manifests").map(|one| (one, false)))
    {
        let digest = descriptor.get("digest").and_then(Value::as_str).and_then(|digest| digest.parse().ok());
        let digest: Digest = digest.ok_or(unknown)?;
        let repository = state.repositories.get(name).ok_or(unknown)?;
        let exists = if is_blob {
            repository.blobs.contains(&digest)
        } else {
            repository.manifests.contains_key(&digest)
        };
        if !exists {
            return Err(unknown);
        }
    }
    Ok(())
}

pub(super) fn delete(store: &Store, name: &str, reference: &str) -> Result<Response, Refusal> {
    let reference = Name::of(reference)?;
    let mut state = store.lock();
    let repository = state.repositories.get_mut(name).ok_or(Refusal::manifest_unknown())?;
    let existed = match reference {
        Name::Tag(tag) => repository.tags.remove(&tag).is_some(),
        Name::Digest(digest) => {
            repository.tags.retain(|_, tagged| *tagged != digest);
            repository.manifests.remove(&digest).is_some()
        }
    };
    if existed { Ok(empty(StatusCode::ACCEPTED, &[])) } else { Err(Refusal::manifest_unknown()) }
}

/// Answers `GET …/tags/list`: sorted tags, at most `n` after `last` ("Listing Tags").
pub(super) fn tags(store: &Store, name: &str, query: &Query) -> Result<Response, Refusal> {
    let state = store.lock();
    let repository = state.repositories.get(name);
    let unknown =
        Refusal::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "repository name not known to registry");
    let last = query.get("last").unwrap_or_default();
    let tags = repository.ok_or(unknown)?.tags.keys().filter(|tag| tag.as_str() > last);
    let all: Vec<_> = tags.cloned().collect();
    let limit = query.get("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let page = &all[..all.len().min(limit)];
    let mut response = json_body(StatusCode::OK, "application/json", &json!({"name": name, "tags": page}));
    if let Some(last) = page.last().filter(|_| page.len() < all.len())
        && let Ok(link) = format!("</v2/{name}/tags/list?n={limit}&last={last}>; rel=\"next\"").parse()
    {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// Answers `GET …/referrers/DIGEST`, filtered by artifact type on request, with an index ("Listing Referrers").
pub(super) fn referrers(store: &Store, name: &str, digest: &str, query: &Query) -> Result<Response, Refusal> {
    let subject: Digest = digest.parse().map_err(|_| Refusal::digest_invalid())?;
    let filter = query.get("artifactType");
    let state = store.lock();
    let manifests = state.repositories.get(name).into_iter().flat_map(|repository| &repository.manifests);
    let attached = manifests.filter(|(_, manifest)| {
        manifest.subject.as_ref() == Some(&subject)
            && (filter.is_none() || manifest.artifact_type.as_deref() == filter)
    });
    let mut entries: Vec<_> = attached.map(|(digest, manifest)| descriptor(digest, manifest)).collect();
    entries.sort_by_key(|entry| entry["digest"].to_string());
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    let mut response = json_body(StatusCode::OK, INDEX, &index);
    if filter.is_some() {
        let name = HeaderName::from_static("oci-filters-applied");
        response.headers_mut().insert(name, http::HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

fn descriptor(digest: &Digest, manifest: &Manifest) -> Value {
    let mut entry = json!({
        "mediaType": manifest.media_type,
        "digest": digest.to_string(),
        "size": manifest.bytes.len(),
    });
    if let Some(artifact_type) = &manifest.artifact_type {
        entry["artifactType"] = artifact_type.as_str().into();
    }
    if manifest.annotations.is_object() {
        entry["annotations"] = manifest.annotations.clone();
    }
    entry
}
