//! Pulls a recipe into the store: reads the manifests, downloads blobs and layers (a few at a time), and assembles
//! the tree by hard links.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use futures_util::{TryStreamExt, stream};
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::PinnedRecipe;
use oras_csi_core::reference::{PinnedReference, RegistryHost};
use oras_csi_core::registry::{Access, Credentials, Registry, Source as CredentialSource};
use oras_csi_core::trace::TARGET;
use tracing::{Instrument as _, trace_span};

use super::assemble::assemble;
use super::error::PullError;
use super::fetch_blob::{Destination, FetchBlob};
use super::keyed_lock::{KeyedLocks, LockKey};
use super::parked::ParkedLayers;
use super::priority::Priority;
use super::progress::{Planned, Progress};
use super::queued::Queued;
use super::scheduler::{DownloadSlot, Scheduler};
use super::steps::{ArtifactStep, ImageSource, ResolvedStep};
use super::tenant::Tenant;
use super::tenant_turns::{DecoderMemory, TenantLimits};
use crate::content::description::TreeContent;
use crate::disk::reservations::Reservation;
use crate::disk::{DiskError, EntryPath, Usage};
use crate::layout::{Item, LayerKey, TreeKey};
use crate::state::provenance::ServedBy;
use crate::store::Store;
use crate::store::trees::Tree;
use crate::unpack::budget::Budget;
use crate::unpack::error::UnpackError;
use crate::unpack::layer::UnpackOptions;
use crate::unpack::plan::LayerContent;

/// Pulls the artifacts of recipes into a store.
pub struct Fetcher {
    store: Arc<Store>,
    pub(super) registry: Arc<dyn Registry>,
    /// The same registry, if requests are made with credentials.
    access: Option<Arc<Access>>,
    pub(super) node: Platform,
    pub(super) priority: Priority,
    pub(super) shared: Arc<Shared>,
}

/// State that all fetchers of one store share.
pub(super) struct Shared {
    locks: KeyedLocks,
    scheduler: Arc<Scheduler>,
    parked: Arc<ParkedLayers>,
    pub(super) tenant_limits: Arc<TenantLimits>,
}

#[derive(Clone)]
struct Fetch {
    destination: Destination,
    descriptor: Descriptor,
    reference: PinnedReference,
    /// The disk space for the bytes that are missing. The size of an archive's files is not known yet.
    space: Usage,
}

impl Fetcher {
    /// Creates a fetcher that pulls from `registry` into `store`, for the platform of this machine.
    pub fn new(store: Arc<Store>, registry: Arc<dyn Registry>) -> Self {
        let scheduler = Arc::new(Scheduler::new(store.limits().download_slots()));
        let (locks, tenant_limits) = (KeyedLocks::default(), Arc::new(TenantLimits::default()));
        let shared = Arc::new(Shared { locks, scheduler, parked: Arc::default(), tenant_limits });
        Self { store, registry, access: None, node: Platform::node(), priority: Priority::default(), shared }
    }

    /// Returns a fetcher that makes requests with these credentials. It shares the store, the locks and the download
    /// slots.
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

    /// Returns a fetcher whose requests outside of pulls count for the pods of a namespace.
    #[must_use]
    pub fn for_tenant(&self, tenant: &Tenant) -> Self {
        self.with_priority(Priority::of_tenant(tenant))
    }

    /// Returns a fetcher with another priority.
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

    /// Returns which credential the registry accepted for the repository of this reference, once a request was made.
    pub fn accepted_credential(&self, reference: &PinnedReference) -> Option<CredentialSource> {
        self.access.as_ref()?.accepted_source(reference.registry(), reference.repository())
    }

    /// Returns the store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns the key of the recipe's tree in the store.
    pub fn key(&self, recipe: &PinnedRecipe) -> TreeKey {
        TreeKey::of(recipe, &self.node)
    }

    /// Returns the tree of a recipe, and pulls what the store does not have. A complete tree needs no request to a
    /// registry.
    pub async fn tree(
        self: &Arc<Self>,
        recipe: &PinnedRecipe,
        progress: &Arc<dyn Progress>,
    ) -> Result<Tree, PullError> {
        let key = self.key(recipe);
        // The lock names the references, so that a pull from one registry does not wait for a pull of the same tree
        // from another.
        let references = recipe.references().cloned().collect();
        let guard = self.shared.locks.lock(LockKey::Tree(key.clone(), references), &self.priority).await;
        // The lease protects the tree from garbage collection until it is in use.
        let mut lease = self.store.lease();
        lease.add([Item::Tree(key.clone())]).await;
        let stored = {
            let (key, recipe) = (key.clone(), recipe.clone());
            let look_up = move |store: &Store| {
                if store.provenance().has_tree(&key, &recipe) { store.tree(&key) } else { Ok(None) }
            };
            self.blocking(look_up).await?
        };
        if let Some(tree) = stored {
            return Ok(tree);
        }
        // The plan of an artifact with many layers is large. It counts for the namespace until the pull ends.
        let plan = self.read_steps(recipe, guard.priority());
        let (steps, _plan) = plan.instrument(trace_span!(target: TARGET, "read manifests")).await?;
        let steps = Arc::new(steps);
        let mut items = Vec::new();
        for layer in steps.iter().filter_map(ResolvedStep::artifact).flat_map(ArtifactStep::layers) {
            let digest = layer.descriptor().digest();
            items.push(Item::Blob(digest.clone()));
            if let LayerContent::Archive { shape, .. } = layer.content() {
                items.push(Item::Layer(LayerKey::of(digest, shape)));
            }
        }
        items.extend(ImageSource::of(&key, &steps).map(|source| Item::Layer(source.image_key())));
        lease.add(items).await;
        let Missing { fetches, budget, reused } = {
            let _turn = self.shared.tenant_limits.disk.acquire(guard.priority()).await;
            let (key, steps) = (key.clone(), Arc::clone(&steps));
            self.blocking(move |store| list_missing(store, &key, &steps)).await?
        };
        self.store.observer().reused(reused);
        let planned = fetches.iter().map(|(_, planned)| planned.clone()).collect::<Vec<_>>();
        progress.planned(&planned);
        for artifact in steps.iter().filter_map(ResolvedStep::artifact) {
            if !artifact.unnamed().is_empty() {
                progress.left_out(artifact.reference(), artifact.unnamed());
            }
        }
        let wanted = fetches.iter().map(|(fetch, _)| fetch.space).sum::<Usage>();
        let space = move |store: &Store| store.reserve(wanted.plus(TreeContent::least_usage()));
        let space = self.blocking(space).await.map_err(|error| {
            match (error, steps.iter().find_map(ResolvedStep::artifact)) {
                (PullError::Disk(source), Some(first)) => {
                    PullError::NoSpace { reference: first.reference().clone().into(), source }
                }
                (error, _) => error,
            }
        })?;
        let mut unsynced = vec![Item::Tree(key.clone())];
        unsynced.extend(fetches.iter().flat_map(|(fetch, _)| fetch.items()));
        // The mark on disk is kept until the tree is complete. From then on the store manages it.
        let unsynced_marks = self.blocking(move |store| store.mark_unsynced(&unsynced)).await?;
        let concurrency = self.store.limits().download_slots_per_artifact().max(1);
        stream::iter(fetches.into_iter().map(|(fetch, _)| Ok(fetch)))
            .try_for_each_concurrent(concurrency, |fetch| {
                let reserved = Arc::new(space.split(fetch.space));
                let span = trace_span!(
                    target: TARGET,
                    "fetch",
                    oras_csi.digest = %fetch.descriptor.digest(),
                    oras_csi.bytes = fetch.descriptor.size(),
                );
                self.fetch(fetch, reserved, guard.priority(), progress).instrument(span)
            })
            .await?;
        drop(space);
        let assembled = {
            let turn = self.shared.tenant_limits.disk.acquire(guard.priority()).await;
            let (key, recipe, steps) = (key.clone(), recipe.clone(), Arc::clone(&steps));
            self.blocking(move |store| {
                // If the pull is stopped, this thread still needs what the lease and the marks protect.
                let (lease, unsynced_marks, _turn) = (lease, unsynced_marks, turn);
                let mut tree = store.tree(&key)?;
                if tree.is_none() {
                    assemble(store, &key, &steps, &budget)?;
                    tree = store.tree(&key)?;
                }
                drop(unsynced_marks);
                store.provenance().record_tree(&key, &recipe);
                Ok::<_, PullError>((tree, lease))
            })
            .instrument(trace_span!(target: TARGET, "assemble"))
            .await?
        };
        let (assembled, _lease) = assembled;
        let missing = || DiskError::new("find the assembled tree", key.as_str(), rustix::io::Errno::NOENT);
        Ok(assembled.ok_or_else(missing)?)
    }

    /// Downloads one blob or layer, or lets the registry show that it serves it. Fetches of the same content from the
    /// same repository wait for each other; the content is downloaded again from another repository.
    async fn fetch(
        self: &Arc<Self>,
        fetch: Fetch,
        space: Arc<Reservation>,
        priority: &Priority,
        progress: &Arc<dyn Progress>,
    ) -> Result<(), PullError> {
        let digest = fetch.descriptor.digest();
        let host = fetch.reference.registry();
        let guard =
            self.shared.locks.lock(LockKey::Item(fetch.item(), fetch.reference.name()), priority).await;
        // A blob can be stored as a file and as an unpacked layer. A fetch that waits for the same blob must not
        // occupy a slot.
        let bytes = LockKey::Bytes(digest.clone(), fetch.reference.name());
        let guard = self.shared.locks.lock(bytes, guard.priority()).await;
        let probe = fetch.clone();
        let look_up = move |store: &Store| {
            let stored = probe.stored(store)?;
            let served_by = stored.as_ref().map(|item| probe.served_by(store, item));
            Ok::<_, DiskError>((stored.is_some(), served_by.unwrap_or(ServedBy::Unknown)))
        };
        let (is_stored, served_by) = self.blocking(look_up).await?;
        if is_stored && served_by == ServedBy::ThisRepository {
            progress.found(digest, fetch.descriptor.size());
            progress.finished(digest);
            return Ok(());
        }
        let failed = |source| PullError::Layer {
            reference: fetch.reference.clone().into(),
            layer: digest.clone(),
            source,
        };
        let slot = self.acquire_slot(host, fetch.descriptor.size(), guard.priority()).await;
        let memory = DecoderMemory::new(&self.shared.tenant_limits, guard.priority());
        let destination = fetch.destination.clone().with_memory(memory);
        let fetch_blob = |destination| FetchBlob {
            store: &self.store,
            registry: self.registry.as_ref(),
            scheduler: &self.shared.scheduler,
            parked: &self.shared.parked,
            priority: guard.priority(),
            destination,
            only_verify: is_stored,
            blob: &fetch.descriptor,
            reference: &fetch.reference,
            space: &space,
            progress,
        };
        if is_stored && served_by == ServedBy::ThisHost {
            fetch_blob(&destination).check_readable(slot).await.map_err(failed)?;
            progress.found(digest, fetch.descriptor.size());
        } else {
            let before = destination.budget().map(Budget::used);
            let mut ended = fetch_blob(&destination).run(slot).await;
            if matches!(ended, Err(UnpackError::NotForImage)) {
                tracing::info!(%digest, "the archive has entries that an image cannot represent; downloading it again to unpack it into files");
                if let (Some(budget), Some(before)) = (destination.budget(), before) {
                    budget.reset_to(before);
                }
                let slot = self.acquire_slot(host, fetch.descriptor.size(), guard.priority()).await;
                ended = fetch_blob(&destination.without_image()).run(slot).await;
            }
            if ended.as_ref().is_err_and(UnpackError::is_disk_full) {
                self.shared.parked.clear();
            }
            ended.map_err(failed)?;
        }
        let recorded = fetch.clone();
        self.blocking(move |store| {
            let Fetch { reference, descriptor, .. } = &recorded;
            let item = recorded.stored(store)?.unwrap_or_else(|| recorded.item());
            store.provenance().record(reference, descriptor.digest(), &item);
            Ok::<_, DiskError>(())
        })
        .await?;
        progress.finished(digest);
        Ok(())
    }

    /// Waits for the first turn of a download, and reports the wait to the observer.
    async fn acquire_slot(&self, host: &RegistryHost, size: u64, priority: &Priority) -> DownloadSlot {
        let queued = Queued::enter(self.store.observer(), priority);
        let slot = self.shared.scheduler.acquire(host, size, priority).await;
        queued.start();
        slot
    }

    /// Runs `work` on a thread that may block on the disk.
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
    fn item(&self) -> Item {
        match &self.destination {
            Destination::Blob => Item::Blob(self.descriptor.digest().clone()),
            Destination::Layer(key, _) => Item::Layer(key.clone()),
        }
    }

    /// Returns what the fetch can create: a layer becomes files or an image.
    fn items(&self) -> impl Iterator<Item = Item> {
        self.destination.image_key().map(Item::Layer).into_iter().chain([self.item()])
    }

    fn served_by(&self, store: &Store, item: &Item) -> ServedBy {
        store.provenance().of(&self.reference, self.descriptor.digest(), item)
    }

    /// Returns what the store has of it, as an image or as files.
    fn stored(&self, store: &Store) -> Result<Option<Item>, DiskError> {
        for item in self.items() {
            let is_stored = match &item {
                Item::Layer(key) => store.layer(key)?.is_some(),
                _ => store.has_blob(&self.descriptor)?,
            };
            if is_stored {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }
}

/// What a pull still has to fetch.
struct Missing {
    fetches: Vec<(Fetch, Planned)>,
    /// The limits of the volume, of which blobs and stored layers have used their part.
    budget: Budget,
    /// The size of the blobs whose content is in the store and needs no request.
    reused: u64,
}

/// Lists the blobs and layers that are not in the store, or that their registry has not served yet. Each is listed once.
///
/// Filters with many globs take seconds for thousands of layers, so this runs on a thread that may block.
fn list_missing(store: &Store, tree: &TreeKey, steps: &[ResolvedStep]) -> Result<Missing, PullError> {
    let image = ImageSource::of(tree, steps).filter(|_| store.has_images());
    let mut wanted = BTreeMap::new();
    // The compressed bytes of archives are on the disk only until they are unpacked, but they arrive first.
    let mut compressed = 0_u64;
    let budget = Budget::new(store.reservations());
    for artifact in steps.iter().filter_map(ResolvedStep::artifact) {
        let step = artifact.step();
        for layer in artifact.layers().iter().filter(|layer| artifact.needs(layer)) {
            let digest = layer.descriptor().digest();
            let (item, destination, path) = match layer.content() {
                LayerContent::File(path) => (Item::Blob(digest.clone()), Destination::Blob, path),
                LayerContent::Archive { at, shape } => {
                    let key = LayerKey::of(digest, shape);
                    let mut options = UnpackOptions::new(shape.clone(), budget.clone());
                    if let Some(image) = image.as_ref().filter(|image| image.layer == key) {
                        options = options.with_image(image.plan.clone());
                    }
                    (Item::Layer(key.clone()), Destination::Layer(key, options), at)
                }
            };
            let shown = if path.is_root() {
                "layer".to_owned()
            } else {
                path.under(&EntryPath::from(step.path())).to_string()
            };
            let descriptor = layer.descriptor().clone();
            let planned = Planned::new(descriptor.clone(), shown);
            let reference = step.reference().clone();
            let space = Usage::default();
            let fetch = Fetch { destination, descriptor, reference, space };
            if let Entry::Vacant(new) = wanted.entry(item) {
                let (size, limits) = (fetch.descriptor.size(), store.limits());
                let counted = if matches!(fetch.destination, Destination::Blob) {
                    budget.count_disk(Usage::blob(size).bytes, limits)
                } else {
                    compressed = compressed.saturating_add(size);
                    Budget::check_compressed(compressed, limits)
                };
                counted.map_err(|exceeded| artifact.pull_error(exceeded.into()))?;
                new.insert((fetch, planned));
            }
        }
    }
    let (mut missing, mut reused) = (Vec::new(), 0_u64);
    let with_space = |fetch: Fetch| {
        // A partial blob has its space on the disk already.
        let bytes = store.allocated_bytes(&fetch.descriptor, &fetch.reference);
        let space = Usage::blob(fetch.descriptor.size()).minus(Usage { bytes, inodes: 0 });
        Fetch { space, ..fetch }
    };
    for (fetch, planned) in wanted.into_values() {
        // Stored content may have been damaged on the disk since, so it is verified before it is used again.
        let stored = match fetch.stored(store)? {
            Some(item) if store.is_intact(&item)? => item,
            _ => {
                missing.push((with_space(fetch), planned));
                continue;
            }
        };
        let served_by = fetch.served_by(store, &stored);
        if served_by == ServedBy::Unknown {
            // Downloaded and unpacked as if it were not stored, which counts its files.
            missing.push((with_space(fetch), planned));
            continue;
        }
        if let Item::Layer(key) = &stored
            && let Some(layer) = store.layer(key)?
        {
            budget.charge(layer.totals(), layer.usage());
        }
        if served_by == ServedBy::ThisHost {
            // It is enough that the body begins, and nothing is written.
            missing.push((fetch, planned));
        } else {
            reused = reused.saturating_add(fetch.descriptor.size());
        }
    }
    Ok(Missing { fetches: missing, budget, reused })
}
