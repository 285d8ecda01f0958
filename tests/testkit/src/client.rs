//! A registry in this process that implements the client trait of `oras-csi-core`, without HTTP.
//!
//! A test stores content in a [`FakeRegistry`], sets how the registry behaves for some references, hosts or credentials,
//! and afterwards reads what was requested. Because no socket is involved, it also works with a paused clock.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test cannot go on with a registry that is not set up"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use oras_csi_core::credentials::Credential;
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Printable;
use oras_csi_core::manifest::{Descriptor, VerifiedManifest, media};
use oras_csi_core::reference::{PinnedReference, Reference, RegistryHost};
use oras_csi_core::registry::{BlobStream, Registry, RegistryError};
use serde_json::Value;
use tokio::sync::Semaphore;

/// How the registry answers requests for one reference.
#[derive(Clone)]
pub enum Behaviour {
    /// The reference names the manifest with this digest.
    Is(Digest),
    /// Every request fails with this error.
    Fails(RegistryError),
    /// No request is ever answered.
    Hangs,
    /// Every request panics, as a bug would.
    Panics,
}

/// Decides about references for which no [`Behaviour`] was set.
type Fallback = dyn Fn(&str) -> Option<Behaviour> + Send + Sync;
/// Makes the manifest of a reference for which nothing was stored.
type DefaultManifest = dyn Fn(&str) -> Value + Send + Sync;
/// Decides whether a credential can read a repository.
type Access = dyn Fn(&Credential, &RegistryHost, &str) -> Result<(), RegistryError> + Send + Sync;

/// The registry. Everything in it can be changed while a test runs.
#[derive(Default)]
pub struct FakeRegistry {
    manifests: Mutex<HashMap<Digest, Bytes>>,
    blobs: Mutex<HashMap<Digest, Bytes>>,
    behaviour: Mutex<BTreeMap<String, Behaviour>>,
    fallback: Option<Box<Fallback>>,
    default_manifest: Option<Box<DefaultManifest>>,
    access: Option<Box<Access>>,
    only_blobs: Option<&'static str>,
    delay: Mutex<Duration>,
    requested: Mutex<BTreeMap<String, usize>>,

    /// While set, requests for content fail with a connection error.
    pub is_down: AtomicBool,
    /// Streams break off after so many bytes; 0 is never.
    pub cut_after: AtomicUsize,
    /// While set, each chunk of a stream waits for a permit.
    pub gate: Mutex<Option<Arc<Semaphore>>>,
    /// Hosts whose streams send chunks of so many bytes with a pause before each.
    pub slow_hosts: Mutex<BTreeMap<String, (usize, Duration)>>,
    /// Hosts that send a manifest only after a delay.
    pub delayed_hosts: Mutex<BTreeMap<String, Duration>>,
    /// Hosts that send wrong bytes.
    pub corrupting_hosts: Mutex<BTreeSet<String>>,
    /// Whether the registry supports range requests.
    pub supports_ranges: AtomicBool,
    /// Whether the registry refuses range requests.
    pub refuses_ranges: AtomicBool,
    /// The credentials that are accepted; all while not set.
    pub accepted: Mutex<Option<Vec<Credential>>>,
    /// Hosts that confirm every reference to every credential and have no content.
    pub confirming_hosts: Mutex<BTreeSet<String>>,
    /// Content that a host, or a repository of the form `HOST/NAME`, lacks although the registry has it.
    pub missing: Mutex<BTreeSet<(String, Digest)>>,

    /// The number of `resolve` calls.
    pub resolves: AtomicUsize,
    /// The number of `manifest` calls.
    pub manifest_requests: AtomicUsize,
    /// The number of calls for blobs or parts of blobs.
    pub blob_requests: AtomicUsize,
    /// The references of `resolve` and `manifest` calls, in order.
    pub log: Mutex<Vec<String>>,
    /// The number of bytes sent.
    pub sent: Arc<AtomicUsize>,
    /// The number of open streams.
    pub streams: Arc<Gauge>,
}

/// A number with its maximum.
#[derive(Debug, Default)]
pub struct Gauge {
    now: AtomicUsize,
    max: AtomicUsize,
}

/// Counts in a [`Gauge`] until dropped.
struct Counted(Arc<Gauge>);

impl Gauge {
    fn enter(self: &Arc<Self>) -> Counted {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.max.fetch_max(now, Ordering::SeqCst);
        Counted(self.clone())
    }

    /// Returns the largest number so far.
    pub fn max(&self) -> usize {
        self.max.load(Ordering::SeqCst)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Returns the error for content that the registry lacks.
pub fn not_found(at: &str) -> RegistryError {
    RegistryError::NotFound { at: Printable::new(&format!("GET {at}")), words: Printable::default() }
}

fn refused() -> RegistryError {
    RegistryError::Refused { at: "GET https://memory".into(), status: 403, words: "denied".into() }
}

fn unreachable(at: &str) -> RegistryError {
    RegistryError::Unreachable { at: Printable::new(at), words: "connection refused".into() }
}

impl FakeRegistry {
    /// Creates an empty registry.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes up a manifest for every reference for which nothing was stored.
    #[must_use]
    pub fn with_default_manifest(mut self, make: impl Fn(&str) -> Value + Send + Sync + 'static) -> Self {
        self.default_manifest = Some(Box::new(make));
        self
    }

    /// Decides by a function about references for which no behaviour was set.
    #[must_use]
    pub fn with_fallback(
        mut self,
        decide: impl Fn(&str) -> Option<Behaviour> + Send + Sync + 'static,
    ) -> Self {
        self.fallback = Some(Box::new(decide));
        self
    }

    /// Decides by a function which credentials can read which repositories.
    #[must_use]
    pub fn with_access(
        mut self,
        decide: impl Fn(&Credential, &RegistryHost, &str) -> Result<(), RegistryError> + Send + Sync + 'static,
    ) -> Self {
        self.access = Some(Box::new(decide));
        self
    }

    /// Panics when a blob of another media type is requested, or a part of a blob.
    #[must_use]
    pub fn with_only_blobs(mut self, media_type: &'static str) -> Self {
        self.only_blobs = Some(media_type);
        self
    }

    /// Sets how requests for a reference are answered.
    pub fn set(&self, reference: &str, behaviour: Behaviour) {
        let reference = Reference::parse(reference).unwrap().to_string();
        self.behaviour.lock().unwrap().insert(reference, behaviour);
    }

    /// Delays every `resolve` and `manifest` call.
    pub fn set_delay(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    /// Stores a blob; returns its digest.
    pub fn put_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256_of(bytes);
        self.blobs.lock().unwrap().insert(digest.clone(), Bytes::copy_from_slice(bytes));
        digest
    }

    /// Stores bytes under a digest that is not theirs.
    pub fn corrupt(&self, digest: &Digest, bytes: &[u8]) {
        self.blobs.lock().unwrap().insert(digest.clone(), Bytes::copy_from_slice(bytes));
    }

    /// Removes a blob.
    pub fn remove_blob(&self, digest: &Digest) {
        self.blobs.lock().unwrap().remove(digest);
    }

    /// Stores a manifest; returns its digest.
    pub fn put_manifest(&self, manifest: &Value) -> Digest {
        self.put_manifest_bytes(manifest.to_string().into())
    }

    /// Stores bytes as a manifest; returns their digest.
    pub fn put_manifest_bytes(&self, bytes: Bytes) -> Digest {
        let digest = Digest::sha256_of(&bytes);
        self.manifests.lock().unwrap().insert(digest.clone(), bytes);
        digest
    }

    /// Stores a manifest with a tag; returns its digest.
    pub fn tag(&self, reference: &str, manifest: &Value) -> Digest {
        self.tag_bytes(reference, manifest.to_string().into_bytes())
    }

    /// Stores bytes as a manifest with a tag; returns their digest.
    pub fn tag_bytes(&self, reference: &str, bytes: Vec<u8>) -> Digest {
        let digest = self.put_manifest_bytes(bytes.into());
        self.set(reference, Behaviour::Is(digest.clone()));
        digest
    }

    /// Returns the size of a stored manifest.
    pub fn manifest_size(&self, digest: &Digest) -> usize {
        self.manifests.lock().unwrap()[digest].len()
    }

    /// Returns the number of requests for content with any digest.
    pub fn requests(&self) -> usize {
        self.requested.lock().unwrap().values().sum()
    }

    /// Returns the number of requests for the content with a digest.
    pub fn requests_for(&self, digest: &Digest) -> usize {
        self.requested.lock().unwrap().get(&digest.to_string()).copied().unwrap_or(0)
    }

    /// Returns the number of `resolve` and `manifest` calls.
    pub fn calls(&self) -> usize {
        self.resolves.load(Ordering::SeqCst) + self.manifest_requests.load(Ordering::SeqCst)
    }

    /// Makes each chunk of every stream wait for a permit of the returned semaphore.
    pub fn close_gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.gate.lock().unwrap() = Some(gate.clone());
        gate
    }

    fn count(&self, digest: &Digest) {
        *self.requested.lock().unwrap().entry(digest.to_string()).or_default() += 1;
    }

    fn check_accepted(&self, credential: Option<&Credential>) -> Result<(), RegistryError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(unreachable("GET https://memory"));
        }
        match &*self.accepted.lock().unwrap() {
            Some(accepted) if !accepted.contains(credential.unwrap_or(&Credential::Anonymous)) => {
                Err(refused())
            }
            _ => Ok(()),
        }
    }

    fn check_access(
        &self,
        credential: Option<&Credential>,
        host: &RegistryHost,
        repository: &str,
    ) -> Result<(), RegistryError> {
        match (&self.access, credential) {
            (Some(access), Some(credential)) => access(credential, host, repository),
            _ => Ok(()),
        }
    }

    fn confirms_everything(&self, host: &str) -> bool {
        self.confirming_hosts.lock().unwrap().contains(host)
    }

    fn lacks(&self, reference: &PinnedReference, digest: &Digest) -> bool {
        let host = reference.registry().host();
        let places = [host.to_owned(), format!("{host}/{}", reference.repository())];
        places.into_iter().any(|place| self.missing.lock().unwrap().contains(&(place, digest.clone())))
    }

    async fn behave(&self, reference: &str) -> Result<Option<Digest>, RegistryError> {
        let delay = *self.delay.lock().unwrap();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let behaviour = self.behaviour.lock().unwrap().get(reference).cloned();
        match behaviour.or_else(|| self.fallback.as_ref()?(reference)) {
            None => Ok(None),
            Some(Behaviour::Is(digest)) => Ok(Some(digest)),
            Some(Behaviour::Fails(error)) => Err(error),
            Some(Behaviour::Hangs) => std::future::pending().await,
            Some(Behaviour::Panics) => panic!("the test asked for a panic"),
        }
    }

    /// `credential` is `None` for the registry itself, which does not check access when it resolves a reference.
    async fn resolve_with(
        &self,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<Descriptor, RegistryError> {
        self.resolves.fetch_add(1, Ordering::SeqCst);
        self.log.lock().unwrap().push(reference.to_string());
        let digest = self.behave(&reference.to_string()).await?;
        let digest = digest.unwrap_or_else(|| match &self.default_manifest {
            Some(make) => self.put_manifest(&make(&reference.to_string())),
            None => reference.digest().expect("a test stores what a tag names").clone(),
        });
        if credential.is_some() && !self.confirms_everything(reference.registry().host()) {
            self.check_accepted(credential)?;
            self.check_access(credential, reference.registry(), reference.repository())?;
        }
        Ok(Descriptor::new(media::OCI_MANIFEST, digest, 1))
    }

    async fn manifest_with(
        &self,
        reference: &PinnedReference,
        credential: Option<&Credential>,
    ) -> Result<VerifiedManifest, RegistryError> {
        self.manifest_requests.fetch_add(1, Ordering::SeqCst);
        self.log.lock().unwrap().push(reference.to_string());
        let (digest, host) = (reference.digest(), reference.registry().host());
        self.count(digest);
        self.behave(&reference.to_string()).await?;
        self.check_accepted(credential)?;
        let delay = self.delayed_hosts.lock().unwrap().get(host).copied();
        tokio::time::sleep(delay.unwrap_or_default()).await;
        let found = self.manifests.lock().unwrap().get(digest).cloned();
        let found = found.filter(|_| !self.confirms_everything(host) && !self.lacks(reference, digest));
        let bytes = found.ok_or_else(|| not_found(&reference.to_string()))?;
        self.check_access(credential, reference.registry(), reference.repository())?;
        VerifiedManifest::verify(digest, None, bytes).map_err(|error| RegistryError::Invalid {
            at: Printable::new(&format!("GET {reference}")),
            words: Printable::new(&error.to_string()),
        })
    }

    fn range_with(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        range: Range<u64>,
        credential: Option<&Credential>,
    ) -> Result<BlobStream, RegistryError> {
        self.check_access(credential, reference.registry(), reference.repository())?;
        self.blob_requests.fetch_add(1, Ordering::SeqCst);
        if let Some(media_type) = self.only_blobs {
            assert_eq!((blob.media_type(), range.start), (media_type, 0));
        }
        self.count(blob.digest());
        self.check_accepted(credential)?;
        if range != (0..blob.size()) && self.refuses_ranges.load(Ordering::SeqCst) {
            return Err(refused());
        }
        let at = format!("https://{}/blobs/{}", reference.name(), blob.digest());
        let host = reference.registry().host();
        let found = self.blobs.lock().unwrap().get(blob.digest()).cloned();
        let found = found.filter(|_| !self.lacks(reference, blob.digest()));
        let bytes = found.ok_or_else(|| not_found(&at))?;
        let end = usize::try_from(range.end).unwrap().min(bytes.len());
        // A blob that is longer than its descriptor says is sent to its end.
        let end = if range.end == blob.size() { bytes.len() } else { end };
        let mut bytes = bytes.slice(usize::try_from(range.start).unwrap()..end);
        if self.corrupting_hosts.lock().unwrap().contains(host) {
            bytes = vec![b'!'; bytes.len()].into();
        }
        let counted = self.streams.enter();
        let sent = self.sent.clone();
        let count = move |chunk: &Result<Bytes, RegistryError>| {
            let _ = &counted;
            if let Ok(chunk) = chunk {
                sent.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        };
        if let Some((length, pause)) = self.slow_hosts.lock().unwrap().get(host).copied() {
            let chunks = bytes.chunks(length).map(Bytes::copy_from_slice).map(Ok).collect::<Vec<_>>();
            let delayed = move |chunk| async move {
                tokio::time::sleep(pause).await;
                chunk
            };
            return Ok(futures_util::stream::iter(chunks).then(delayed).inspect(count).boxed());
        }
        let gate = self.gate.lock().unwrap().clone();
        let cut = self.cut_after.load(Ordering::SeqCst);
        let length = 4_096.max(bytes.len() / 256);
        let chunks = (0..bytes.len()).step_by(length);
        let chunks = chunks.map(move |at| bytes.slice(at..bytes.len().min(at + length)));
        let mut total = 0;
        let chunks = chunks.map(move |chunk| {
            total += chunk.len();
            if cut > 0 && total > cut { Err(unreachable(&format!("GET {at}"))) } else { Ok(chunk) }
        });
        let gated = move |chunk| {
            let gate = gate.clone();
            async move {
                if let Some(gate) = gate {
                    gate.acquire().await.unwrap().forget();
                }
                tokio::time::sleep(Duration::from_micros(10)).await;
                chunk
            }
        };
        Ok(futures_util::stream::iter(chunks).then(gated).inspect(count).boxed())
    }

    fn part_with(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        range: Range<u64>,
        credential: Option<&Credential>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        if !self.supports_ranges.load(Ordering::SeqCst) {
            return Ok(None);
        }
        self.range_with(reference, blob, range, credential).map(Some)
    }
}

#[async_trait]
impl Registry for FakeRegistry {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        self.resolve_with(reference, None).await
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        self.manifest_with(reference, None).await
    }

    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        self.range_with(reference, blob, offset..blob.size(), None)
    }

    async fn part(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        self.part_with(reference, blob, range, None)
    }

    fn with_credential(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry> {
        Arc::new(WithCredential(self, credential))
    }
}

/// The registry as one credential sees it.
struct WithCredential(Arc<FakeRegistry>, Credential);

#[async_trait]
impl Registry for WithCredential {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        self.0.resolve_with(reference, Some(&self.1)).await
    }

    async fn manifest(&self, reference: &PinnedReference) -> Result<VerifiedManifest, RegistryError> {
        self.0.manifest_with(reference, Some(&self.1)).await
    }

    async fn blob(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        self.0.range_with(reference, blob, offset..blob.size(), Some(&self.1))
    }

    async fn part(
        &self,
        reference: &PinnedReference,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Option<BlobStream>, RegistryError> {
        self.0.part_with(reference, blob, range, Some(&self.1))
    }

    fn with_credential(self: Arc<Self>, credential: Credential) -> Arc<dyn Registry> {
        Arc::new(Self(self.0.clone(), credential))
    }
}
