//! Pushes any bytes as blobs and manifests, which no other client does, with HTTP written by hand.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use oras_csi_core::digest::Digest;

/// A registry over plain http, and a repository in it.
#[derive(Clone, Debug)]
pub struct Raw {
    host: String,
    repository: String,
}

struct Answer {
    status: u16,
    location: Option<String>,
    text: String,
}

impl Raw {
    /// The repository of the registry at `host` (as `127.0.0.1:5000`).
    pub fn new(host: &str, repository: &str) -> Self {
        Self { host: host.to_owned(), repository: repository.to_owned() }
    }

    /// Pushes a blob in one piece.
    pub fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256_of(bytes);
        let begun = self.send("POST", &format!("/v2/{}/blobs/uploads/", self.repository), &[], b"");
        assert_eq!(begun.status, 202, "{}", begun.text);
        let location = begun.location.expect("where to upload");
        let path = location.find("/v2/").map_or(location.as_str(), |at| &location[at..]);
        let joint = if path.contains('?') { '&' } else { '?' };
        let done = self.send(
            "PUT",
            &format!("{path}{joint}digest={digest}"),
            &["Content-Type: application/octet-stream"],
            bytes,
        );
        assert_eq!(done.status, 201, "{}", done.text);
        digest
    }

    /// Pushes a manifest by its digest; returns the status and the body if the registry refuses it.
    pub fn manifest(&self, media_type: &str, bytes: &[u8]) -> Result<Digest, (u16, String)> {
        let digest = Digest::sha256_of(bytes);
        let path = format!("/v2/{}/manifests/{digest}", self.repository);
        let done = self.send("PUT", &path, &[&format!("Content-Type: {media_type}")], bytes);
        if done.status == 201 { Ok(digest) } else { Err((done.status, done.text)) }
    }

    /// Deletes a blob.
    pub fn forget(&self, digest: &Digest) {
        let done = self.send("DELETE", &format!("/v2/{}/blobs/{digest}", self.repository), &[], b"");
        assert_eq!(done.status, 202, "{}", done.text);
    }

    fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.host).expect("the registry listens");
        let first = format!("{method} {path} HTTP/1.1");
        let more = [format!("Host: {}", self.host), "Connection: close".to_owned()];
        let length = format!("Content-Length: {}\r\n\r\n", body.len());
        let lines = [first].into_iter().chain(more).chain(headers.iter().map(|&line| line.to_owned()));
        let head = lines.chain([length]).collect::<Vec<_>>().join("\r\n");
        stream.write_all(head.as_bytes()).expect("it reads");
        // The registry can refuse the request before it has read all of it.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut lines = text.lines().take_while(|line| !line.is_empty());
        let location = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
        });
        Answer { status, location, text }
    }
}
