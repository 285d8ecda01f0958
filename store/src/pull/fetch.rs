//! A recipe becomes a tree: manifests, then blobs and layers a few at a time, then hard links.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{TryStreamExt, stream};
use oras_csi_core::manifest::{Descriptor, Document, ImageManifest, ManifestDocument};
use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::{Layer as RecipeLayer, PinnedRecipe, Step};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{Access, Credentials, Limits as RegistryLimits, Registry, Source as Asker};

use super::assemble::assemble;
use super::error::PullError;
use super::fetch_blob::{FetchBlob, Job};
use super::keyed_lock::KeyedLocks;
use super::priority::Priority;
use super::progress::{Planned, Progress};
use super::scheduler::Scheduler;
use super::steps::{Source, Work, mark_laid};
use crate::disk::{DiskError, EntryPath};
use crate::layout::{Item, LayerKey, TreeKey};
use crate::state::provenance::ServedBy;
use crate::store::Store;
use crate::store::trees::Tree;
use crate::unpack::budget::Budget;
use crate::unpack::graft::Laying;
use crate::unpack::layer::Unpacking;
use crate::unpack::plan::{Content, Piece, plan};

/// Fetches what recipes name into a store.
pub struct Fetcher {
    store: Arc<Store>,
    registry: Arc<dyn Registry>,
    /// The same, where it asks in somebody's name.
    access: Option<Arc<Access>>,
    node: Platform,
    priority: Priority,
    shared: Arc<Shared>,
}

/// What all who fetch into one store share.
struct Shared {
    locks: KeyedLocks,
    scheduler: Arc<Scheduler>,
}

#[derive(Clone)]
struct Fetch {
    job: Job,
    descriptor: Descriptor,
    reference: PinnedReference,
    /// It is there, and only has to be given.
    is_proof: bool,
}

impl Fetcher {
    /// Fetches from `registry` into `store`, for nodes of this machine's platform.
    pub fn new(store: Arc<Store>, registry: Arc<dyn Registry>) -> Self {
        let scheduler = Arc::new(Scheduler::new(store.limits().download_slots()));
        let shared = Arc::new(Shared { locks: KeyedLocks::default(), scheduler });
        Self { store, registry, access: None, node: Platform::node(), priority: Priority::default(), shared }
    }

    /// The same in somebody's name; what one fetches, the others find.
    #[must_use]
    pub fn with_credentials(&self, credentials: Arc<dyn Credentials>) -> Self {
        let access = Arc::new(Access::new(self.registry.clone(), credentials));
        Self {
            store: self.store.clone(),
            registry: access.clone(),
            access: Some(access),
            node: self.node.clone(),
            priority: self.priority.clone(),
            shared: self.shared.clone(),
        }
    }

    /// The same, no faster than somebody waits for it.
    pub(super) fn with_priority(&self, priority: Priority) -> Self {
        Self {
            store: self.store.clone(),
            registry: self.registry.clone(),
            access: self.access.clone(),
            node: self.node.clone(),
            priority,
            shared: self.shared.clone(),
        }
    }

    /// Asks a registry whether what a reference names may be read.
    ///
    /// A registry that has given us these bytes is asked whether they are there; any other has to give them: whoever
    /// says that it has what somebody else's registry keeps to itself would let everybody in.
    pub async fn check_pull_permission(&self, reference: &PinnedReference) -> Result<(), PullError> {
        match self.store.provenance().of(reference, reference.digest()) {
            ServedBy::ThisRepository | ServedBy::ThisHost => self.is_to_be_had(reference).await,
            ServedBy::Unknown => self.get_manifest(reference).await.map(drop),
        }
    }

    /// Asks a registry that gave a manifest whether it is to be had under this name.
    async fn is_to_be_had(&self, reference: &PinnedReference) -> Result<(), PullError> {
        let asked = self.registry.resolve(&Reference::from(reference.clone())).await;
        asked.map_err(|source| PullError::Registry { reference: reference.clone().into(), source })?;
        self.store.provenance().record(reference, reference.digest());
        Ok(())
    }

    /// Whose credential was let in to the repository of a reference, once it was asked for.
    pub fn accepted_credential(&self, reference: &PinnedReference) -> Option<Asker> {
        self.access.as_ref()?.let_in(reference.registry(), reference.repository())
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
        let key = self.key(recipe);
        // Whoever has the same from another registry does not wait for this one.
        let names = recipe.references().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let held = self.shared.locks.hold(&format!("tree {key} of {names}"), &self.priority).await;
        // Nothing of it is collected before it is in use.
        let mut lease = self.store.lease();
        lease.tree(&key);
        if self.store.provenance().has_tree(&key, recipe) {
            let key = key.clone();
            if let Some(tree) = self.blocking(move |store| store.tree(&key)).await? {
                return Ok(tree);
            }
        }
        let steps = self.read_steps(recipe).await?;
        for piece in steps.iter().filter_map(Work::source).flat_map(Source::pieces) {
            let digest = piece.descriptor().digest();
            lease.blob(digest);
            if let Content::Archive { shape, .. } = piece.content() {
                lease.layer(&LayerKey::of(digest, shape));
            }
        }
        let fetches = self.missing(&steps).await?;
        let announced = fetches.iter().map(|(_, planned)| planned.clone()).collect::<Vec<_>>();
        progress.planned(&announced);
        let wanted = fetches
            .iter()
            .filter(|(fetch, _)| !fetch.is_proof)
            .map(|(fetch, _)| (fetch.descriptor.clone(), fetch.reference.registry().clone()))
            .collect::<Vec<_>>();
        let space = move |store: &Store| {
            // What is on its way has its place on the disk already.
            let left = wanted.iter().map(|(blob, host)| blob.size() - store.allocated_bytes(blob, host));
            store.check_free_space(left.fold(0, u64::saturating_add))
        };
        self.blocking(space).await.map_err(|error| match (error, steps.iter().find_map(Work::source)) {
            (PullError::Disk(source), Some(first)) => {
                PullError::Room { reference: first.reference().clone().into(), source }
            }
            (error, _) => error,
        })?;
        let mut made = vec![Item::Tree(key.clone())];
        made.extend(fetches.iter().map(|(fetch, _)| fetch.item()));
        // Held until the tree is there. From then on the store sees to it by itself.
        let marked = self.blocking(move |store| store.mark_unsynced(&made)).await?;
        let at_once = self.store.limits().download_slots_per_artifact().max(1);
        stream::iter(fetches.into_iter().map(|(fetch, _)| Ok(fetch)))
            .try_for_each_concurrent(at_once, |fetch| self.fetch(fetch, held.priority(), progress))
            .await?;
        let assembled = {
            let key = key.clone();
            self.blocking(move |store| {
                if let Some(tree) = store.tree(&key)? {
                    return Ok(Some(tree));
                }
                assemble(store, &key, &steps)?;
                Ok::<_, PullError>(store.tree(&key)?)
            })
            .await?
        };
        drop(marked);
        self.store.provenance().record_tree(&key, recipe);
        let vanished = || DiskError::new("find the tree just made", key.as_str(), rustix::io::Errno::NOENT);
        Ok(assembled.ok_or_else(vanished)?)
    }

    /// Reads what the steps name, in their order.
    async fn read_steps(&self, recipe: &PinnedRecipe) -> Result<Vec<Work>, PullError> {
        let mut steps = Vec::with_capacity(recipe.steps().len());
        for step in recipe.steps() {
            steps.push(match step {
                Step::Add(layer) => Work::Lay(self.read_step(layer, Laying::Beside).await?),
                Step::Overlay(layer) => Work::Lay(self.read_step(layer, Laying::Over).await?),
                Step::Remove(glob) => Work::Remove(glob.clone()),
            });
        }
        mark_laid(&mut steps);
        Ok(steps)
    }

    /// Reads a step's manifest, through indexes, and plans what its layers become.
    async fn read_step(
        &self,
        step: &RecipeLayer<PinnedReference>,
        laying: Laying,
    ) -> Result<Source, PullError> {
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
                    return Ok(Source::new(step.clone(), laying, manifests, pieces));
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
        // What is there is nobody's who does not have it.
        let given = self.store.provenance().of(reference, &digest);
        if given == ServedBy::ThisHost {
            self.is_to_be_had(reference).await?;
        }
        if given != ServedBy::Unknown
            && let Some(bytes) = self.blocking(move |store| store.read_blob(&wanted, longest)).await?
        {
            return ManifestDocument::verify(&digest, None, bytes.into()).map_err(refused);
        }
        self.get_manifest(reference).await
    }

    /// A manifest as its registry gives it, which is then kept.
    async fn get_manifest(&self, reference: &PinnedReference) -> Result<ManifestDocument, PullError> {
        let manifest = self.registry.manifest(reference).await;
        let manifest =
            manifest.map_err(|source| PullError::Registry { reference: reference.clone().into(), source })?;
        self.store.provenance().record(reference, reference.digest());
        let (digest, bytes) = (reference.digest().clone(), manifest.bytes().clone());
        // One that needs the type it came with to be read is not kept, but asked for again.
        if ManifestDocument::verify(&digest, None, bytes.clone()).is_ok() {
            self.blocking(move |store| store.put_blob(&digest, &bytes)).await?;
        }
        Ok(manifest)
    }

    /// What is not in the store yet, each blob and layer once.
    async fn missing(&self, steps: &[Work]) -> Result<Vec<(Fetch, Planned)>, PullError> {
        let mut wanted = BTreeMap::new();
        let budget = Budget::default();
        for source in steps.iter().filter_map(Work::source) {
            let step = source.step();
            for piece in source.pieces().iter().filter(|piece| source.needs(piece)) {
                let (name, job, path) = match piece.content() {
                    Content::File(path) => (piece.descriptor().digest().to_string(), Job::Blob, path),
                    Content::Archive { at, shape } => {
                        let key = LayerKey::of(piece.descriptor().digest(), shape);
                        let unpacking = Unpacking::new(shape.clone(), budget.clone());
                        (key.to_string(), Job::Layer(key, unpacking), at)
                    }
                };
                let shown = if path.is_root() {
                    "layer".to_owned()
                } else {
                    path.under(&EntryPath::from(step.path())).to_string()
                };
                let descriptor = piece.descriptor().clone();
                let planned = Planned::new(descriptor.clone(), shown);
                let reference = step.reference().clone();
                let fetch = Fetch { job, descriptor, reference, is_proof: false };
                wanted.entry(name).or_insert((fetch, planned));
            }
        }
        self.blocking(move |store| {
            let mut missing = Vec::new();
            for (fetch, planned) in wanted.into_values() {
                // What is there may have been for long, on a disk that forgets.
                if !fetch.is_there(store)? || !store.is_intact(&fetch.item())? {
                    missing.push((fetch, planned));
                    continue;
                }
                if let Job::Layer(key, _) = &fetch.job
                    && let Some(layer) = store.layer(key)?
                {
                    budget.charge(layer.totals());
                }
                if store.provenance().of(&fetch.reference, fetch.descriptor.digest())
                    != ServedBy::ThisRepository
                {
                    missing.push((Fetch { is_proof: true, ..fetch }, planned));
                }
            }
            Ok::<_, DiskError>(missing)
        })
        .await
    }

    /// Brings one blob or layer into the store, and has it given by the registry that is named. Whoever wants the same
    /// of the same registry waits for it; whoever wants it of another brings it as well.
    async fn fetch(
        self: &Arc<Self>,
        fetch: Fetch,
        priority: &Priority,
        progress: &Arc<dyn Progress>,
    ) -> Result<(), PullError> {
        let digest = fetch.descriptor.digest();
        let host = fetch.reference.registry();
        let held = self.shared.locks.hold(&format!("{} from {host}", fetch.name()), priority).await;
        // The same bytes, however they are laid out: who waits for them takes nobody's turn.
        let held = self.shared.locks.hold(&format!("bytes {digest} from {host}"), held.priority()).await;
        let look = fetch.clone();
        let is_there = self.blocking(move |store| look.is_there(store)).await?;
        let given = self.store.provenance().of(&fetch.reference, digest);
        if is_there && given == ServedBy::ThisRepository {
            progress.found(digest, fetch.descriptor.size());
            progress.finished(digest);
            return Ok(());
        }
        let failed = |source| PullError::Layer {
            reference: fetch.reference.clone().into(),
            layer: digest.clone(),
            source,
        };
        let Some(slot) = self.shared.scheduler.take(host, held.priority()).await else {
            return Err(PullError::Stopped);
        };
        let fetch_blob = FetchBlob {
            store: &self.store,
            registry: self.registry.as_ref(),
            scheduler: &self.shared.scheduler,
            priority: held.priority(),
            job: &fetch.job,
            is_proof: is_there,
            blob: &fetch.descriptor,
            reference: &fetch.reference,
            progress,
        };
        if is_there && given == ServedBy::ThisHost {
            fetch_blob.is_opened(slot).await.map_err(failed)?;
            progress.found(digest, fetch.descriptor.size());
        } else {
            fetch_blob.run(slot).await.map_err(failed)?;
        }
        self.store.provenance().record(&fetch.reference, digest);
        progress.finished(digest);
        Ok(())
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

impl Fetch {
    fn name(&self) -> String {
        match &self.job {
            Job::Blob => format!("blob {}", self.descriptor.digest()),
            Job::Layer(key, _) => format!("layer {key}"),
        }
    }

    fn item(&self) -> Item {
        match &self.job {
            Job::Blob => Item::Blob(self.descriptor.digest().clone()),
            Job::Layer(key, _) => Item::Layer(key.clone()),
        }
    }

    fn is_there(&self, store: &Store) -> Result<bool, DiskError> {
        match &self.job {
            Job::Blob => store.has_blob(&self.descriptor),
            Job::Layer(key, _) => Ok(store.layer(key)?.is_some()),
        }
    }
}
