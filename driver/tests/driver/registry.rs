//! Artifacts in an in-memory registry.

use std::collections::BTreeMap;
use std::io::Write;

use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::media;
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::PinnedReference;
pub use oras_csi_testkit::client::FakeRegistry;
use serde_json::{Value, json};

/// A seed for [`noise`].
pub const NOISE_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns bytes that cannot be compressed, and that are the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Builds the manifest of an artifact, and stores its blobs.
pub struct Artifact<'a> {
    registry: &'a FakeRegistry,
    layers: Vec<Value>,
}

impl<'a> Artifact<'a> {
    pub fn new(registry: &'a FakeRegistry) -> Self {
        Self { registry, layers: Vec::new() }
    }

    pub fn layer(mut self, media_type: &str, bytes: &[u8], annotations: &[(&str, &str)]) -> Self {
        let digest = self.registry.put_blob(bytes);
        let annotations = annotations.iter().copied().collect::<BTreeMap<_, _>>();
        self.layers.push(json!({
            "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len(), "annotations": annotations,
        }));
        self
    }

    pub fn file(self, title: &str, bytes: &[u8]) -> Self {
        self.layer("application/octet-stream", bytes, &[("org.opencontainers.image.title", title)])
    }

    /// Adds a directory as `oras push NAME` does.
    pub fn directory(self, title: &str, files: &[(&str, &[u8])]) -> Self {
        let plain =
            tar(&files.iter().map(|(name, data)| (format!("{title}/{name}"), *data)).collect::<Vec<_>>());
        let content = Digest::sha256_of(&plain).to_string();
        self.layer(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            &gzip(&plain),
            &[
                ("org.opencontainers.image.title", title),
                ("io.deis.oras.content.unpack", "true"),
                ("io.deis.oras.content.digest", &content),
            ],
        )
    }

    pub fn manifest(&self) -> Value {
        let empty = self.registry.put_blob(b"{}");
        json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "artifactType": "application/vnd.test",
            "config": {"mediaType": media::EMPTY, "digest": empty.to_string(), "size": 2},
            "layers": self.layers,
        })
    }

    pub fn push(&self) -> Digest {
        self.registry.put_manifest(&self.manifest())
    }
}

pub fn tar(files: &[(String, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_600_000_000);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns the step that adds `digest` of `kind-registry:5000/java-app`.
pub fn add(digest: &Digest) -> Layer<PinnedReference> {
    add_from("kind-registry:5000", digest)
}

/// Returns the step that adds `digest` of `java-app` in another registry.
pub fn add_from(host: &str, digest: &Digest) -> Layer<PinnedReference> {
    add_of(&format!("{host}/java-app"), digest)
}

/// Returns the step that adds `digest` of a repository.
pub fn add_of(repository: &str, digest: &Digest) -> Layer<PinnedReference> {
    Layer::new(format!("{repository}@{digest}").parse().unwrap())
}

pub fn recipe(steps: impl IntoIterator<Item = Layer<PinnedReference>>) -> PinnedRecipe {
    PinnedRecipe::new(steps.into_iter().map(Step::Add).collect()).unwrap()
}
