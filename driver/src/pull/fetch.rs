//! A recipe becomes a tree: manifests, then blobs and layers a few at a time, then hard links.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use oras_csi_core::digest::Digest;
use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::{Layer as RecipeLayer, PinnedRecipe, Step};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{
    Access, Credentials, Descriptor, Document, ImageManifest, Limits as RegistryLimits, ManifestDocument,
    Registry, RegistryError, RegistryErrorKind,
};
use tokio::sync::mpsc;

use super::assemble::{Source, assemble};
use super::error::{PullError, UnsupportedStep};
use super::locks::Locks;
use super::progress::{Planned, Progress};
use super::slots::{Pace, Slot, Slots, TooSlow};
use crate::store::{DiskError, Item, LayerKey, Store, Tree, TreeKey};
use crate::unpack::graft::Filter;
use crate::unpack::name::EntryPath;
use crate::unpack::plan::{Content, Piece, plan};
use crate::unpack::stream::{BlobReader, PIECES, Piece as StreamPiece};
use crate::unpack::{Shape, UnpackError, unpack_layer};

/// How often a blob is asked for again, from where it broke off, without much more having come.
const RESUMES: u32 = 5;
/// What of them a stall takes, which has cost half a minute already: the second one at the same place is the last.
const STALL: u32 = RESUMES;
/// How many references are asked about at once before a pull.
const RIGHTS_AT_ONCE: usize = 8;
/// How much is much: a registry that gives a byte a connection would keep us for years.
const PROGRESS: u64 = 16 << 10;

/// Fetches what recipes name into a store.
pub struct Fetcher {
    store: Arc<Store>,
    registry: Arc<dyn Registry>,
    node: Platform,
    locks: Arc<Locks>,
    slots: Arc<Slots>,
}

/// Something to be brought into the store.
#[derive(Clone)]
enum Job {
    Blob,
    Layer(LayerKey, Shape),
}

#[derive(Clone)]
struct Fetch {
    job: Job,
    descriptor: Descriptor,
    reference: PinnedReference,
}

impl Fetcher {
    /// Fetches from `registry` into `store`, for nodes of this machine's platform.
    pub fn new(store: Arc<Store>, registry: Arc<dyn Registry>) -> Self {
        let slots = Arc::new(Slots::new(store.limits().streams()));
        Self { store, registry, node: Platform::node(), locks: Arc::default(), slots }
    }

    /// The same in somebody's name; what one fetches, the others find.
    #[must_use]
    pub fn in_the_name_of(&self, credentials: Arc<dyn Credentials>) -> Self {
        Self {
            store: self.store.clone(),
            registry: Arc::new(Access::new(self.registry.clone(), credentials)),
            node: self.node.clone(),
            locks: self.locks.clone(),
            slots: self.slots.clone(),
        }
    }

    /// Asks registries whether all that a recipe names may be read.
    pub async fn check_rights(&self, recipe: &PinnedRecipe) -> Result<(), PullError> {
        let ask = |reference: PinnedReference| async move {
            let asked = self.registry.resolve(&Reference::from(reference.clone())).await;
            asked.map_err(|source| PullError::Registry { reference: reference.into(), source })
        };
        let references: BTreeSet<&PinnedReference> = recipe.references().collect();
        let asked: Vec<_> = references.into_iter().cloned().map(ask).collect();
        stream::iter(asked).buffer_unordered(RIGHTS_AT_ONCE).try_for_each(|_| async { Ok(()) }).await
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Under which name the tree of this recipe is kept.
    pub fn key(&self, recipe: &PinnedRecipe) -> TreeKey {
        TreeKey::of(recipe, &self.node)
    }

    /// The tree of a recipe: what the store has is not fetched, and a tree that is there asks no registry.
    pub async fn tree(
        self: &Arc<Self>,
        recipe: &PinnedRecipe,
        progress: &Arc<dyn Progress>,
    ) -> Result<Tree, PullError> {
        let steps = add_steps(recipe)?;
        let key = self.key(recipe);
        let _held = self.locks.hold(&format!("tree {key}")).await;
        // Nothing of it is collected before it is in use.
        let mut lease = self.store.lease();
        lease.tree(&key);
        if let Some(tree) = self
            .blocking({
                let key = key.clone();
                move |store| store.tree(&key)
            })
            .await?
        {
            return Ok(tree);
        }
        let mut sources = Vec::with_capacity(steps.len());
        for step in steps {
            sources.push(self.read_step(step).await?);
        }
        for piece in sources.iter().flat_map(|source| &source.pieces) {
            let digest = piece.descriptor().digest();
            lease.blob(digest);
            if let Content::Archive { shape, .. } = piece.content() {
                lease.layer(&LayerKey::of(digest, shape));
            }
        }
        let fetches = self.missing(&sources).await?;
        let announced = fetches.iter().map(|(_, planned)| planned.clone()).collect::<Vec<_>>();
        progress.planned(&announced);
        let wanted = announced.iter().map(|blob| blob.descriptor().size()).fold(0, u64::saturating_add);
        self.blocking(move |store| store.check_room(wanted)).await.map_err(|error| {
            match (error, sources.first()) {
                (PullError::Disk(source), Some(first)) => {
                    PullError::Room { reference: first.reference().clone().into(), source }
                }
                (error, _) => error,
            }
        })?;
        let at_once = self.store.limits().streams_per_artifact().max(1);
        stream::iter(fetches.into_iter().map(|(fetch, _)| Ok(fetch)))
            .try_for_each_concurrent(at_once, |fetch| self.fetch(fetch, progress))
            .await?;
        let assembled = {
            let key = key.clone();
            self.blocking(move |store| {
                assemble(store, &key, &sources)?;
                Ok::<_, PullError>(store.tree(&key)?)
            })
            .await?
        };
        let vanished = || DiskError::new("find the tree just made", key.as_str(), rustix::io::Errno::NOENT);
        Ok(assembled.ok_or_else(vanished)?)
    }

    /// Reads a step's manifest, through indexes, and plans what its layers become.
    async fn read_step(&self, step: &RecipeLayer<PinnedReference>) -> Result<Source, PullError> {
        let reference = step.reference().clone();
        let platform = step.platform().unwrap_or(&self.node);
        let mut manifests = Vec::new();
        let mut current = reference.clone();
        loop {
            let manifest = self.manifest(&current).await?;
            manifests.push(current.digest().clone());
            match manifest.into_document() {
                Document::Image(image) => {
                    let pieces = self.plan(&image, step)?;
                    return Ok(Source { step: step.clone(), manifests, pieces });
                }
                Document::Index(_) if manifests.len() > 1 => {
                    return Err(PullError::Nested { reference: reference.into() });
                }
                Document::Index(index) => {
                    let selected = index.select(platform);
                    let entry = selected.map_err(|source| PullError::Platform {
                        reference: current.clone().into(),
                        source,
                    })?;
                    let next = current.with_digest(entry.descriptor().digest().clone());
                    let size = self.manifest(&next).await?.descriptor().size();
                    if size != entry.descriptor().size() {
                        let wanted = entry.descriptor().size();
                        return Err(PullError::ManifestSize { reference: next.into(), wanted, found: size });
                    }
                    current = next;
                }
            }
        }
    }

    fn plan(
        &self,
        image: &ImageManifest,
        step: &RecipeLayer<PinnedReference>,
    ) -> Result<Vec<Piece>, PullError> {
        plan(image, step.media_types(), self.store.limits())
            .map_err(|source| PullError::Plan { reference: step.reference().clone().into(), source })
    }

    /// A manifest by its digest: the store's, else the registry's, which is then kept.
    async fn manifest(&self, reference: &PinnedReference) -> Result<ManifestDocument, PullError> {
        let digest = reference.digest().clone();
        let refused = |source| PullError::Manifest { reference: reference.clone().into(), source };
        let wanted = digest.clone();
        let longest = RegistryLimits::default().manifest();
        if let Some(bytes) = self.blocking(move |store| store.read_blob(&wanted, longest)).await? {
            return ManifestDocument::verify(&digest, None, bytes.into()).map_err(refused);
        }
        let manifest = self
            .registry
            .manifest(reference)
            .await
            .map_err(|source| PullError::Registry { reference: reference.clone().into(), source })?;
        let bytes = manifest.bytes().clone();
        // One that needs the type it came with to be read is not kept, but asked for again.
        if ManifestDocument::verify(&digest, None, bytes.clone()).is_ok() {
            self.blocking(move |store| store.put_blob(&digest, &bytes)).await?;
        }
        Ok(manifest)
    }

    /// What is not in the store yet, each blob and layer once.
    async fn missing(&self, sources: &[Source]) -> Result<Vec<(Fetch, Planned)>, PullError> {
        let mut wanted = BTreeMap::new();
        for source in sources {
            let step = &source.step;
            let filter = Filter::new(step.include(), step.exclude());
            for piece in &source.pieces {
                let (name, job, path) = match piece.content() {
                    Content::File(path) if !filter.keeps(path) => continue,
                    Content::File(path) => (piece.descriptor().digest().to_string(), Job::Blob, path),
                    Content::Archive { at, shape } => {
                        let key = LayerKey::of(piece.descriptor().digest(), shape);
                        (key.to_string(), Job::Layer(key, shape.clone()), at)
                    }
                };
                let shown = if path.is_root() {
                    "layer".to_owned()
                } else {
                    path.under(&EntryPath::from(step.path())).to_string()
                };
                let descriptor = piece.descriptor().clone();
                let planned = Planned::new(descriptor.clone(), shown);
                let fetch = Fetch { job, descriptor, reference: step.reference().clone() };
                wanted.entry(name).or_insert((fetch, planned));
            }
        }
        self.blocking(move |store| {
            let mut missing = Vec::new();
            for (fetch, planned) in wanted.into_values() {
                // What is there may have been for long, on a disk that forgets.
                if !fetch.is_there(store)? || !store.is_whole(&fetch.item())? {
                    missing.push((fetch, planned));
                }
            }
            Ok::<_, DiskError>(missing)
        })
        .await
    }

    /// Brings one blob or layer into the store; whoever else wants the same waits for it.
    async fn fetch(self: &Arc<Self>, fetch: Fetch, progress: &Arc<dyn Progress>) -> Result<(), PullError> {
        let digest = fetch.descriptor.digest().clone();
        let _held = self.locks.hold(&fetch.name()).await;
        let look = fetch.clone();
        if self.blocking(move |store| look.is_there(store)).await? {
            progress.received(&digest, fetch.descriptor.size());
            progress.finished(&digest);
            return Ok(());
        }
        let slot = self.slots.take(fetch.reference.registry()).await;
        let Some(mut slot) = slot else { return Err(PullError::Stopped) };
        let (sender, receiver) = mpsc::channel(PIECES);
        let reader = BlobReader::new(fetch.descriptor.clone(), receiver);
        let (store, job, descriptor) = (self.store.clone(), fetch.job.clone(), fetch.descriptor.clone());
        let written = tokio::task::spawn_blocking(move || write(&store, &job, &descriptor, reader));
        self.feed(&fetch, &mut slot, sender, progress).await;
        match written.await {
            Ok(Ok(())) => {
                progress.finished(&digest);
                Ok(())
            }
            Ok(Err(source)) => {
                Err(PullError::Layer { reference: fetch.reference.into(), layer: digest, source })
            }
            Err(_) => Err(PullError::Stopped),
        }
    }

    /// Sends a blob's bytes; asks again from where it broke off.
    async fn feed(
        &self,
        fetch: &Fetch,
        slot: &mut Slot,
        sender: mpsc::Sender<StreamPiece>,
        progress: &Arc<dyn Progress>,
    ) {
        let mut pace = Pace::new(self.store.limits());
        let mut offset = 0;
        let mut failures = 0;
        let mut reached = 0;
        loop {
            let (asked, fed) = self.feed_from(fetch, slot, &mut pace, &mut offset, &sender, progress).await;
            if offset - reached >= PROGRESS {
                (failures, reached) = (0, offset);
            }
            let given_up = match fed {
                Ok(()) => return,
                // What never began to answer was asked several times already.
                Err(Broken::Registry(error))
                    if (asked || offset > 0) && error.is_transient() && failures < RESUMES =>
                {
                    let stalled = error.kind() == RegistryErrorKind::Stalled;
                    let wait = error.retry_after().unwrap_or(Duration::from_millis(200) * (1 << failures));
                    let wait = wait.min(Duration::from_secs(30));
                    tracing::info!(digest = %fetch.descriptor.digest(), offset, %error, "a download broke off; going on from there");
                    failures += if stalled { STALL } else { 1 };
                    tokio::select! {
                        waited = pace.wait(slot, tokio::time::sleep(wait)) => match waited {
                            Ok(()) => continue,
                            Err(late) => fetch.too_slow(late),
                        },
                        () = sender.closed() => return,
                    }
                }
                Err(Broken::Registry(error)) => error,
                Err(Broken::Slow(late)) => fetch.too_slow(late),
            };
            let _ = sender.send(Err(given_up)).await;
            return;
        }
    }

    /// Sends what one answer gives, and says whether there was one.
    async fn feed_from(
        &self,
        fetch: &Fetch,
        slot: &mut Slot,
        pace: &mut Pace,
        offset: &mut u64,
        sender: &mpsc::Sender<StreamPiece>,
        progress: &Arc<dyn Progress>,
    ) -> (bool, Result<(), Broken>) {
        let answer = self.registry.blob(&fetch.reference, &fetch.descriptor, *offset);
        let mut stream = match pace.wait(slot, answer).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return (false, Err(Broken::Registry(error))),
            Err(late) => return (false, Err(Broken::Slow(late))),
        };
        loop {
            let piece = match pace.wait(slot, stream.next()).await {
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => return (true, Err(Broken::Registry(error))),
                Ok(None) => return (true, Ok(())),
                Err(late) => return (true, Err(Broken::Slow(late))),
            };
            let length = piece.len() as u64;
            pace.came(length);
            if sender.send(Ok(piece)).await.is_err() {
                // The writer has given up, and says why itself.
                return (true, Ok(()));
            }
            *offset += length;
            progress.received(fetch.descriptor.digest(), length);
        }
    }

    /// Runs what blocks on the disk where it may.
    pub(super) async fn blocking<T, E>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, E> + Send + 'static,
    ) -> Result<T, PullError>
    where
        T: Send + 'static,
        E: Into<PullError> + Send + 'static,
    {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(done) => done.map_err(Into::into),
            Err(_) => Err(PullError::Stopped),
        }
    }
}

/// Why one answer did not give all.
enum Broken {
    Registry(RegistryError),
    /// Asking again would be as slow.
    Slow(TooSlow),
}

impl Fetch {
    fn too_slow(&self, late: TooSlow) -> RegistryError {
        let TooSlow { least, rate, after, others_wait } = late;
        let others = if others_wait { " and others wait" } else { "" };
        let what = format!("{} KiB a second (it gave {rate} bytes a second{others})", least >> 10);
        RegistryError::Stalled { at: self.reference.name().into(), what: what.into(), after }
    }

    fn name(&self) -> String {
        match &self.job {
            Job::Blob => format!("blob {}", self.descriptor.digest()),
            Job::Layer(key, _) => format!("layer {key}"),
        }
    }

    fn item(&self) -> Item {
        match &self.job {
            Job::Blob => Item::Blob(self.descriptor.digest().clone()),
            Job::Layer(key, _) => Item::Layer(key.to_string()),
        }
    }

    fn is_there(&self, store: &Store) -> Result<bool, DiskError> {
        match &self.job {
            Job::Blob => store.has_blob(&self.descriptor),
            Job::Layer(key, _) => Ok(store.layer(key)?.is_some()),
        }
    }
}

/// The writing half of a fetch, in a thread that may block.
fn write(store: &Store, job: &Job, descriptor: &Descriptor, reader: BlobReader) -> Result<(), UnpackError> {
    match job {
        Job::Blob => store.write_blob(descriptor, reader),
        Job::Layer(key, shape) => {
            let staging = store.stage()?;
            let unpacked = unpack_layer(reader, shape, staging.files(), store.limits())?;
            if unpacked.left_out > 0 {
                tracing::warn!(
                    digest = %descriptor.digest(),
                    count = unpacked.left_out,
                    "device nodes, FIFOs and the like in a layer were left out"
                );
            }
            Ok(staging.commit_layer(key, unpacked.totals)?)
        }
    }
}

/// The steps, if all are ones that this version can do.
pub(crate) fn add_steps(
    recipe: &PinnedRecipe,
) -> Result<Vec<&RecipeLayer<PinnedReference>>, UnsupportedStep> {
    recipe
        .steps()
        .iter()
        .map(|step| match step {
            Step::Add(layer) => Ok(layer),
            Step::Overlay(_) => Err(UnsupportedStep::Overlay),
            Step::Remove(_) => Err(UnsupportedStep::Remove),
        })
        .collect()
}

/// The digests of a source's file layers.
pub(super) fn blobs(source: &Source) -> impl Iterator<Item = &Digest> {
    source.pieces.iter().filter_map(|piece| match piece.content() {
        Content::File(_) => Some(piece.descriptor().digest()),
        Content::Archive { .. } => None,
    })
}
