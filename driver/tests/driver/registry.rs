//! A registry in memory that counts what it is asked, and fails as it is told.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use oras_csi_core::credentials::Credential;
use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{BlobStream, Descriptor, ManifestDocument, Registry, RegistryError, media};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

#[derive(Default)]
pub struct Memory {
    manifests: Mutex<HashMap<Digest, Bytes>>,
    blobs: Mutex<HashMap<Digest, Bytes>>,
    asked: Mutex<BTreeMap<String, usize>>,
    pub down: AtomicBool,
    /// Streams break off after so many bytes; 0 never.
    pub cut_after: AtomicUsize,
    /// While this is set, every stream waits for a permit.
    pub gate: Mutex<Option<Arc<Semaphore>>>,
    /// Hosts that give a few bytes every so often, for ever.
    pub dripping: Mutex<BTreeMap<String, (usize, Duration)>>,
}

fn unreachable(what: &str) -> RegistryError {
    RegistryError::Unreachable { at: what.into(), words: "connection refused".into() }
}

impl Memory {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn put_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256_of(bytes);
        self.blobs.lock().unwrap().insert(digest.clone(), Bytes::copy_from_slice(bytes));
        digest
    }

    /// Other bytes than the digest says.
    pub fn corrupt(&self, digest: &Digest, bytes: &[u8]) {
        self.blobs.lock().unwrap().insert(digest.clone(), Bytes::copy_from_slice(bytes));
    }

    pub fn drop_blob(&self, digest: &Digest) {
        self.blobs.lock().unwrap().remove(digest);
    }

    pub fn put_manifest(&self, manifest: &Value) -> Digest {
        let bytes = serde_json::to_vec(manifest).unwrap();
        let digest = Digest::sha256_of(&bytes);
        self.manifests.lock().unwrap().insert(digest.clone(), bytes.into());
        digest
    }

    /// How often anything was asked.
    pub fn asked(&self) -> usize {
        self.asked.lock().unwrap().values().sum()
    }

    /// How often the streams of this blob were asked for.
    pub fn asked_for(&self, digest: &Digest) -> usize {
        self.asked.lock().unwrap().get(&digest.to_string()).copied().unwrap_or(0)
    }

    pub fn close_gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.gate.lock().unwrap() = Some(gate.clone());
        gate
    }

    fn ask(&self, digest: &Digest) -> Result<(), RegistryError> {
        *self.asked.lock().unwrap().entry(digest.to_string()).or_default() += 1;
        if self.down.load(Ordering::SeqCst) { Err(unreachable("GET https://memory")) } else { Ok(()) }
    }
}

#[async_trait]
impl Registry for Memory {
    /// Who may read what is asked for. Not counted.
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        let digest = reference.digest().expect("the driver never resolves a tag").clone();
        if self.down.load(Ordering::SeqCst) {
            return Err(unreachable("HEAD https://memory"));
        }
        Ok(Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest, 1))
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<ManifestDocument, RegistryError> {
        let digest = reference.digest();
        self.ask(digest)?;
        let found = self.manifests.lock().unwrap().get(digest).cloned();
        let at = || format!("GET https://{reference}").into();
        let bytes =
            found.ok_or_else(|| RegistryError::NotFound { at: at(), words: "manifest unknown".into() })?;
        ManifestDocument::verify(digest, None, bytes)
            .map_err(|error| RegistryError::Invalid { at: at(), words: error.to_string().into() })
    }

    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        self.ask(blob.digest())?;
        let at = format!("GET https://{}/blobs/{}", reference.name(), blob.digest());
        let found = self.blobs.lock().unwrap().get(blob.digest()).cloned();
        let bytes = found
            .ok_or_else(|| RegistryError::NotFound { at: at.as_str().into(), words: "blob unknown".into() })?
            .slice(usize::try_from(offset).unwrap()..);
        if let Some((piece, pause)) = self.dripping.lock().unwrap().get(reference.registry().host()).copied()
        {
            let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).map(Ok).collect::<Vec<_>>();
            let slowly = move |piece| async move {
                tokio::time::sleep(pause).await;
                piece
            };
            return Ok(futures_util::stream::iter(pieces).then(slowly).boxed());
        }
        let gate = self.gate.lock().unwrap().clone();
        let cut = self.cut_after.load(Ordering::SeqCst);
        let pieces =
            bytes.chunks(4_096.max(bytes.len() / 256)).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        let mut sent = 0;
        let pieces = pieces.into_iter().map(move |piece| {
            sent += piece.len();
            if cut > 0 && sent > cut { Err(unreachable(&at)) } else { Ok(piece) }
        });
        let waiting = move |piece| {
            let gate = gate.clone();
            async move {
                if let Some(gate) = gate {
                    gate.acquire().await.unwrap().forget();
                }
                tokio::time::sleep(Duration::from_micros(10)).await;
                piece
            }
        };
        Ok(futures_util::stream::iter(pieces).then(waiting).boxed())
    }

    fn seen_by(self: Arc<Self>, _: Credential) -> Arc<dyn Registry> {
        self
    }
}

/// A manifest in the making.
pub struct Artifact<'a> {
    registry: &'a Memory,
    layers: Vec<Value>,
}

impl<'a> Artifact<'a> {
    pub fn new(registry: &'a Memory) -> Self {
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

    /// As `oras push NAME` does with a directory.
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

/// The step that adds `digest` of `kind-registry:5000/java-app`.
pub fn add(digest: &Digest) -> Layer<PinnedReference> {
    add_from("kind-registry:5000", digest)
}

/// The step that adds `digest` of `java-app` in another registry.
pub fn add_from(host: &str, digest: &Digest) -> Layer<PinnedReference> {
    Layer::new(format!("{host}/java-app@{digest}").parse().unwrap())
}

pub fn recipe(steps: impl IntoIterator<Item = Layer<PinnedReference>>) -> PinnedRecipe {
    PinnedRecipe::new(steps.into_iter().map(Step::Add).collect()).unwrap()
}
