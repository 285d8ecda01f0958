//! The content of a scripted registry, and its answers before a script changes them.

use std::collections::HashMap;

use super::{Answer, Request};

/// The only token that a private registry accepts.
const TOKEN: &str = "an.opaque-token";

#[derive(Clone, Debug)]
struct Manifest {
    digest: String,
    media_type: String,
    bytes: Vec<u8>,
}

/// The manifests and blobs of a registry. Every repository has all of them.
#[derive(Clone, Debug, Default)]
pub struct Content {
    manifests: HashMap<String, Manifest>,
    blobs: HashMap<String, Vec<u8>>,
    private: bool,
}

impl Content {
    /// Requires a token.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Adds a manifest with a tag and a digest.
    #[must_use]
    pub fn with_manifest(mut self, tag: &str, digest: &str, media_type: &str, bytes: Vec<u8>) -> Self {
        let manifest = Manifest { digest: digest.to_owned(), media_type: media_type.to_owned(), bytes };
        self.manifests.insert(tag.to_owned(), manifest.clone());
        self.manifests.insert(digest.to_owned(), manifest);
        self
    }

    /// Adds a blob with a digest, which can be wrong.
    #[must_use]
    pub fn with_blob(mut self, digest: &str, bytes: Vec<u8>) -> Self {
        self.blobs.insert(digest.to_owned(), bytes);
        self
    }

    pub(super) fn answer(&self, request: &Request) -> Answer {
        let head = request.method == "HEAD";
        let path = request.target.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        if name == "token" {
            let body = format!(r#"{{"token":"{TOKEN}","expires_in":300}}"#);
            return Answer::new(200, head).header("Content-Type", "application/json").body(body);
        }
        if self.private && request.header("authorization") != format!("Bearer {TOKEN}") {
            let realm = format!("Bearer realm=\"{}/token\",service=\"scripted\"", request.base());
            return Answer::new(401, head).header("WWW-Authenticate", &realm);
        }
        if let Some(manifest) = self.manifests.get(name).filter(|_| path.contains("/manifests/")) {
            return Answer::new(200, head)
                .header("Content-Type", &manifest.media_type)
                .header("Docker-Content-Digest", &manifest.digest)
                .body(manifest.bytes.clone());
        }
        match self.blobs.get(name) {
            Some(blob) if !path.contains("/manifests/") => blob_answer(blob, request),
            _ => Answer::new(404, head).body(r#"{"errors":[{"code":"NOT_FOUND","message":"not found"}]}"#),
        }
    }
}

/// Returns a whole blob, or the part that `Range: bytes=FIRST-LAST` requests.
fn blob_answer(blob: &[u8], request: &Request) -> Answer {
    let answer = |status| {
        Answer::new(status, request.method == "HEAD").header("Content-Type", "application/octet-stream")
    };
    let Some((first, last)) =
        request.header("range").strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return answer(200).body(blob);
    };
    let first = first.parse::<usize>().unwrap_or(usize::MAX);
    if first >= blob.len() {
        return answer(416).header("Content-Range", &format!("bytes */{}", blob.len()));
    }
    let last = last.parse::<usize>().unwrap_or(usize::MAX).min(blob.len() - 1);
    let range = format!("bytes {first}-{last}/{}", blob.len());
    answer(206).header("Content-Range", &range).body(&blob[first..=last])
}
