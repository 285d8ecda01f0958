//! A registry in memory that counts what it is asked, and fails as it is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use oras_csi_core::credentials::Credential;
use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::{Descriptor, VerifiedManifest, media};
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{BlobStream, Registry, RegistryError};
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
    /// Hosts whose manifests take so long.
    pub silent: Mutex<BTreeMap<String, Duration>>,
    /// Hosts that give other bytes.
    pub lying: Mutex<BTreeSet<String>>,
    /// Whether it gives parts of blobs.
    pub gives_parts: AtomicBool,
    /// Who may read what is in it; everybody, unless something is set.
    pub let_in: Mutex<Option<Vec<Credential>>>,
    /// Hosts that let everybody in and say that they have everything, but give nothing.
    pub boasting: Mutex<BTreeSet<String>>,
    /// What a host has not: manifests and blobs that others have.
    pub lacking: Mutex<BTreeSet<(String, Digest)>>,
    /// How often it was asked who may read something.
    pub questions: AtomicUsize,
    /// How many bytes it gave, and how many streams there are and were at once.
    pub sent: Arc<AtomicUsize>,
    pub open: Arc<Load>,
}

/// How many at once, now and at most.
#[derive(Default)]
pub struct Load {
    now: AtomicUsize,
    peak: AtomicUsize,
}

/// One of them.
pub struct Loading(Arc<Load>);

impl Load {
    fn enter(self: &Arc<Self>) -> Loading {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::SeqCst);
        Loading(self.clone())
    }

    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::SeqCst)
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The registry as one credential sees it.
struct Seen(Arc<Memory>, Credential);

fn refused(what: &str) -> RegistryError {
    RegistryError::Refused { at: what.into(), status: 403, words: "denied".into() }
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

    /// How long a manifest is.
    pub fn size_of(&self, manifest: &Digest) -> usize {
        self.manifests.lock().unwrap()[manifest].len()
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

    fn ask(&self, digest: &Digest, who: &Credential) -> Result<(), RegistryError> {
        *self.asked.lock().unwrap().entry(digest.to_string()).or_default() += 1;
        self.judge(who)
    }

    fn judge(&self, who: &Credential) -> Result<(), RegistryError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(unreachable("GET https://memory"));
        }
        match &*self.let_in.lock().unwrap() {
            Some(let_in) if !let_in.contains(who) => Err(refused("GET https://memory")),
            _ => Ok(()),
        }
    }

    fn boasts(&self, host: &str) -> bool {
        self.boasting.lock().unwrap().contains(host)
    }

    fn lacks(&self, host: &str, digest: &Digest) -> bool {
        self.lacking.lock().unwrap().contains(&(host.to_owned(), digest.clone()))
    }

    async fn manifest_for(
        &self,
        reference: &PinnedReference,
        who: &Credential,
    ) -> Result<VerifiedManifest, RegistryError> {
        let digest = reference.digest();
        let at = || format!("GET https://{reference}").into();
        let host = reference.registry().host();
        self.ask(digest, who)?;
        let silent = self.silent.lock().unwrap().get(host).copied();
        tokio::time::sleep(silent.unwrap_or_default()).await;
        let found = self.manifests.lock().unwrap().get(digest).cloned();
        let found = found.filter(|_| !self.boasts(host) && !self.lacks(host, digest));
        let bytes =
            found.ok_or_else(|| RegistryError::NotFound { at: at(), words: "manifest unknown".into() })?;
        VerifiedManifest::verify(digest, None, bytes)
            .map_err(|error| RegistryError::Invalid { at: at(), words: error.to_string().into() })
    }

    fn range_for(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        range: Range<u64>,
        who: &Credential,
    ) -> Result<BlobStream, RegistryError> {
        self.ask(blob.digest(), who)?;
        let at = format!("GET https://{}/blobs/{}", reference.name(), blob.digest());
        let found = self.blobs.lock().unwrap().get(blob.digest()).cloned();
        let found = found.filter(|_| !self.lacks(reference.registry().host(), blob.digest()));
        let bytes = found.ok_or_else(|| RegistryError::NotFound {
            at: at.as_str().into(),
            words: "blob unknown".into(),
        })?;
        let end = usize::try_from(range.end).unwrap().min(bytes.len());
        // One that has more than it says gives more.
        let end = if range.end == blob.size() { bytes.len() } else { end };
        let mut bytes = bytes.slice(usize::try_from(range.start).unwrap()..end);
        let host = reference.registry().host();
        if self.lying.lock().unwrap().contains(host) {
            bytes = vec![b'!'; bytes.len()].into();
        }
        let loading = self.open.enter();
        let sent = self.sent.clone();
        let counted = move |piece: &Result<Bytes, RegistryError>| {
            let _ = &loading;
            if let Ok(piece) = piece {
                sent.fetch_add(piece.len(), Ordering::SeqCst);
            }
        };
        if let Some((piece, pause)) = self.dripping.lock().unwrap().get(host).copied() {
            let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).map(Ok).collect::<Vec<_>>();
            let slowly = move |piece| async move {
                tokio::time::sleep(pause).await;
                piece
            };
            return Ok(futures_util::stream::iter(pieces).then(slowly).inspect(counted).boxed());
        }
        let gate = self.gate.lock().unwrap().clone();
        let cut = self.cut_after.load(Ordering::SeqCst);
        let length = 4_096.max(bytes.len() / 256);
        let pieces = (0..bytes.len()).step_by(length);
        let pieces = pieces.map(move |at| bytes.slice(at..bytes.len().min(at + length)));
        let mut given = 0;
        let pieces = pieces.map(move |piece| {
            given += piece.len();
            if cut > 0 && given > cut { Err(unreachable(&at)) } else { Ok(piece) }
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
        Ok(futures_util::stream::iter(pieces).then(waiting).inspect(counted).boxed())
    }
}

#[async_trait]
impl Registry for Seen {
    /// Who may read what is asked for. Counted apart.
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        let digest = reference.digest().expect("the driver never resolves a tag").clone();
        self.0.questions.fetch_add(1, Ordering::SeqCst);
        if !self.0.boasts(reference.registry().host()) {
            self.0.judge(&self.1)?;
        }
        Ok(Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest, 1))
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        self.0.manifest_for(reference, &self.1).await
    }

    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        self.0.range_for(reference, blob, offset..blob.size(), &self.1)
    }

    async fn part(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        if !self.0.gives_parts.load(Ordering::SeqCst) {
            return Ok(None);
        }
        self.0.range_for(reference, blob, range, &self.1).map(Some)
    }

    fn with_credential(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry> {
        Arc::new(Self(self.0.clone(), credential))
    }
}

#[async_trait]
impl Registry for Memory {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        let digest = reference.digest().expect("the driver never resolves a tag").clone();
        self.questions.fetch_add(1, Ordering::SeqCst);
        Ok(Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest, 1))
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        self.manifest_for(reference, &Credential::Anonymous).await
    }

    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        self.range_for(reference, blob, offset..blob.size(), &Credential::Anonymous)
    }

    async fn part(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        if !self.gives_parts.load(Ordering::SeqCst) {
            return Ok(None);
        }
        self.range_for(reference, blob, range, &Credential::Anonymous).map(Some)
    }

    fn with_credential(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry> {
        Arc::new(Seen(self, credential))
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
