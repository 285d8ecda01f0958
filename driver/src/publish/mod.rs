//! Publishes and unpublishes volumes: mounts a canonical volume read-only at kubelet's target path, and unmounts it.
//!
//! ```text
//! request ─► seal ─► target lock ─► state of the target ─► authorization ─► tree (store or pull) ─► record ─► mount
//! ```
//!
//! The driver checks the pull permission of the pod before it looks for the content ([`AuthorizationError`]). It skips
//! that check in three cases: the volume is mounted already; the target has a record of the same volume and tree, as
//! after a reboot of the node; or the seal names a cluster set, whose content the administrator granted to all pods.
//!
//! A crash can happen after each step: [`crate::volume_records`] explains why the next call repairs what it left. A
//! publish that fails leaves neither a directory nor a record. The pull that it waited for continues until no pod waits
//! for it ([`oras_csi_store::pull`] has the times).

mod authorization;
mod fetching;
pub(crate) mod orphaned_volumes;
mod recovery;
mod request;
mod seal;
mod stale_volumes;
mod target_lock;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oras_csi_core::display::Shown;
use oras_csi_core::registry::Keyring;
use oras_csi_core::trace::TARGET;
use oras_csi_core::volume::VolumeError;
use oras_csi_store::gc::double_free_space;
use oras_csi_store::pull::{Fetcher, ProgressSnapshot, PullError, PullStatus, Pulls, Tenant};
use oras_csi_store::{DiskError, Item, PullErrorKind, Store, Tree, TreeKey, Usage};
use tracing::{Instrument as _, trace_span};

use self::authorization::Authorizer;
pub use self::authorization::{AuthorizationError, PodName};
pub use self::request::{PublishRequest, SecretError};
pub use self::seal::{SealRejection, Seals};
pub use self::target_lock::TargetLocks;
use crate::metrics::{Metrics, TreeLookup};
use crate::mount::{Found, MountError, Mounter, Target};
use crate::pod_events::{PodEventSender, Pulled};
use crate::preload::{SetSecretError, SetSecrets};
use crate::volume_records::{Record, Records};

/// How long a publish waits for the authorization check and the pull before it reports the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishWait(pub Duration);

/// How long a pull permission stays valid while its registry is unreachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthorizationGrace(pub Duration);

/// Says that kubelet repeats the call, where that can help.
fn retrying(error: &PullError) -> &'static str {
    if error.kind() == PullErrorKind::Unavailable { ". Retrying." } else { "" }
}

/// Why a volume could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A required field of the request is empty.
    #[error(
        "cannot publish: the request has no {0}. Kubelet always sends it: check which client calls the driver"
    )]
    MissingField(&'static str),
    /// The request is for a block volume.
    #[error(
        "cannot publish the volume as a block device: this driver mounts files. Set volumeMode: Filesystem"
    )]
    Block,
    /// The request does not name the pod's namespace, so the seal cannot be verified.
    #[error(
        "cannot tell which pod the volume is for: the request has no {0}. The CSIDriver object csi.oras.land must have podInfoOnMount: true"
    )]
    MissingNamespace(&'static str),
    /// The attributes are not a canonical volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The Secret of the request has no credentials for registries.
    #[error("cannot use the pull secret of the volume (nodePublishSecretRef): {0}")]
    Secret(#[from] SecretError),
    /// The volume has no valid seal for this pod.
    #[error(transparent)]
    Seal(#[from] SealRejection),
    /// The pod has no pull permission, or the permission cannot be checked.
    #[error(transparent)]
    Authorization(#[from] AuthorizationError),
    /// The registry has not answered the authorization check yet.
    #[error("checking whether {pod} is allowed to pull {id} takes longer than {} s. Retrying.", .after.0.as_secs())]
    CheckingPermission {
        /// The pod.
        pod: PodName,
        /// The volume's id.
        id: String,
        /// How long the call waited.
        after: PublishWait,
    },
    /// Another call has locked the target.
    #[error("another call for {} is in progress. Retrying.", .0.display())]
    Busy(PathBuf),
    /// The pull is in progress.
    #[error(
        "pulling {id}: {progress}. The pull continues in the background; the volume is mounted when it is complete."
    )]
    Pulling {
        /// The volume's id.
        id: String,
        /// The progress.
        progress: ProgressSnapshot,
    },
    /// The pull failed.
    #[error("{}{}", .0, retrying(.0))]
    Pull(Arc<PullError>),
    /// The pull failed without the pull secret of the cluster set, which could not be read.
    #[error("{error}. The pull secret of the cluster set was not used: {secret}")]
    PullWithoutSecret {
        /// Why the pull failed.
        error: Arc<PullError>,
        /// Why the secret was not used.
        secret: Box<SetSecretError>,
    },
    /// Another volume of this driver is mounted at the target.
    #[error("cannot mount at {}: {found} is mounted there. Unpublish it first", .target.display())]
    Conflict {
        /// The target.
        target: PathBuf,
        /// What is mounted.
        found: String,
    },
    /// Mounting failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The store's disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The runtime stopped before the work ended.
    #[error("the driver stopped during the call. Retrying.")]
    Interrupted,
}

impl PublishError {
    /// Reports whether the work continues in the background.
    fn is_waiting(&self) -> bool {
        matches!(self, Self::Pulling { .. } | Self::CheckingPermission { .. })
    }

    /// Reports whether the registry limits the rate of requests.
    fn is_rate_limited(&self) -> bool {
        match self {
            Self::Pull(error) | Self::PullWithoutSecret { error, .. } => error.is_rate_limited(),
            Self::Authorization(
                AuthorizationError::Rejected { source, .. } | AuthorizationError::Unreachable { source, .. },
            ) => source.is_rate_limited(),
            _ => false,
        }
    }
}

/// Why a volume could not be unpublished.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishError {
    /// A required field of the request is empty.
    #[error(
        "cannot unpublish: the request has no {0}. Kubelet always sends it: check which client calls the driver"
    )]
    MissingField(&'static str),
    /// Another call has locked the target.
    #[error("another call for {} is in progress. Retrying.", .0.display())]
    Busy(PathBuf),
    /// Another volume is mounted at the target.
    #[error("cannot unpublish at {}: the volume there is \"{found}\", not the requested one", .target.display())]
    OtherVolume {
        /// The target.
        target: PathBuf,
        /// The volume at the target.
        found: Shown,
    },
    /// Unmounting failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The store's disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The runtime stopped before the work ended.
    #[error("the driver stopped during the call. Retrying.")]
    Interrupted,
}

/// Why the size of a volume could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// A required field of the request is empty.
    #[error("cannot read volume statistics: the request has no {0}")]
    MissingField(&'static str),
    /// The volume does not exist, or is not mounted at this path.
    #[error("cannot read volume statistics: the volume \"{volume}\" is not published at \"{path}\"")]
    NotPublished {
        /// The volume.
        volume: Shown,
        /// The path.
        path: Shown,
    },
    /// The store's disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The mount could not be read.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The runtime stopped before the work ended.
    #[error("the driver stopped during the call. Retrying.")]
    Interrupted,
}

/// What a successful publish or unpublish did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It mounted or unmounted the volume.
    Changed,
    /// The volume was mounted or unmounted already.
    Unchanged,
}

/// Publishes and unpublishes the volumes of a node.
pub struct Publisher {
    disk: Arc<Disk>,
    pulls: Arc<Pulls>,
    target_locks: TargetLocks,
    keyring: Keyring,
    authorizer: Authorizer,
    set_secrets: Option<SetSecrets>,
    wait: PublishWait,
    events: PodEventSender,
}

/// The settings of a [`Publisher`].
pub struct PublisherOptions {
    /// Which volumes need a seal.
    pub seals: Seals,
    /// The administrator's credentials.
    pub keyring: Keyring,
    /// Reads the pull secrets of cluster sets, for volumes whose seal names one.
    pub set_secrets: Option<SetSecrets>,
    /// How long a publish waits for a pull.
    pub wait: PublishWait,
    /// How long a pull permission stays valid while its registry is unreachable.
    pub authorization_grace: AuthorizationGrace,
    /// The counters of the driver.
    pub metrics: Metrics,
    /// Receives what happens to the volumes of pods.
    pub events: PodEventSender,
}

/// The parts of the publisher that block on the disk or the kernel. Used only on threads that may block.
struct Disk {
    store: Arc<Store>,
    records: Records,
    mounter: Mounter,
    seals: Seals,
    metrics: Metrics,
}

/// The state of a target before a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TargetState {
    /// The volume is mounted.
    Mounted,
    /// A record shows that the same volume with the same tree was mounted here before.
    Recorded,
    /// The volume was never mounted here.
    New,
}

impl Publisher {
    /// Creates a publisher that mounts trees from the store of `pulls`.
    pub fn new(pulls: Arc<Pulls>, mounter: Mounter, options: PublisherOptions) -> Self {
        let PublisherOptions { seals, keyring, set_secrets, wait, authorization_grace, metrics, events } =
            options;
        let store = pulls.fetcher().store().clone();
        let records = Records::new(store.clone());
        let disk = Arc::new(Disk { store, records, mounter, seals, metrics });
        let (target_locks, authorizer) = (TargetLocks::default(), Authorizer::new(authorization_grace));
        Self { disk, pulls, target_locks, keyring, authorizer, set_secrets, wait, events }
    }

    /// Mounts the volume at its target. A second call for the same volume changes nothing.
    pub async fn publish(&self, request: PublishRequest) -> Result<Effect, PublishError> {
        let request = Arc::new(request);
        let limits_before = self.rate_limits(&request);
        let published = self.publish_volume(&request).await;
        match &published {
            // The client waits as long as the registry demands, and tries again.
            Err(error) if error.is_waiting() && self.rate_limits(&request) > limits_before => {
                self.events.rate_limited(&request, error);
            }
            Ok(Effect::Changed) => self.events.mounted(&request),
            Err(error) if error.is_rate_limited() => self.events.rate_limited(&request, error),
            _ => {}
        }
        published
    }

    /// Returns how often the registries of the volume have limited the rate of requests of this node.
    fn rate_limits(&self, request: &PublishRequest) -> u64 {
        let requests = self.disk.metrics.registry_requests();
        let hosts = request.recipe().references().map(|reference| reference.registry().clone());
        hosts.collect::<BTreeSet<_>>().iter().map(|host| requests.rate_limits(host)).sum()
    }

    async fn publish_volume(&self, request: &Arc<PublishRequest>) -> Result<Effect, PublishError> {
        let request = request.clone();
        {
            let request = request.clone();
            self.run_on_disk(move |disk| {
                let checked = disk.seals.check(&request);
                Ok(checked.inspect_err(|rejection| disk.metrics.seal_rejected(rejection))?)
            })
            .await?;
        }
        let busy = || PublishError::Busy(request.target().path().to_owned());
        let target_lock = self.target_locks.try_lock(request.target().path()).ok_or_else(busy)?;
        let key = self.pulls.fetcher().key(request.recipe());
        // The lease keeps the tree from garbage collection until its record is written.
        let mut lease = self.disk.store.lease();
        lease.add([Item::Tree(key.clone())]).await;
        let state = {
            let (request, key) = (request.clone(), key.clone());
            self.run_on_disk(move |disk| disk.target_state(&request, &key)).await?
        };
        if state == TargetState::Mounted {
            return Ok(Effect::Unchanged);
        }
        let began = Instant::now();
        let fetcher = self.pulls.fetcher().with_credentials(Arc::new(self.keyring_of(&request)));
        let fetcher = Arc::new(fetcher.for_tenant(&Tenant::of_namespace(request.namespace())));
        let is_authorized = state == TargetState::Recorded || self.disk.seals.authorizes_pull(&request);
        if !is_authorized {
            let check = self.authorize(&request, &fetcher);
            check.instrument(trace_span!(target: TARGET, "check pull permission")).await?;
        }
        // A tree in the store counts for this pod only if the registries of its recipe served the content to this node.
        // The seal of a cluster set is no exception: the set grants what its own registries serve.
        let stored = {
            let (request, key) = (request.clone(), key.clone());
            self.run_on_disk(move |disk| {
                let may_use_store = state == TargetState::Recorded
                    || disk.store.provenance().has_tree(&key, request.recipe());
                Ok(if may_use_store { disk.store.tree(&key)? } else { None })
            })
            .await?
        };
        let hit = |tree: &Tree| TreeLookup::Hit { bytes: tree.totals().bytes };
        self.disk.metrics.looked_up(stored.as_ref().map_or(TreeLookup::Miss, hit));
        let tree = if let Some(tree) = stored {
            self.events.found(&request, tree.totals().bytes);
            tree
        } else {
            let wait = self.wait.0.saturating_sub(began.elapsed());
            let pull = self.pull(&request, &key, fetcher, wait);
            pull.instrument(trace_span!(target: TARGET, "wait for the pull")).await?
        };
        // The lock moves into the work: if the caller hangs up, no other call can start before the work ends.
        self.run_on_disk(move |disk| {
            let _held = (target_lock, lease);
            disk.mount(&request, &tree)
        })
        .instrument(trace_span!(target: TARGET, "mount"))
        .await?;
        Ok(Effect::Changed)
    }

    /// Checks the pull permission of the pod. If it is denied, removes what an interrupted publish left at the target.
    async fn authorize(&self, request: &Arc<PublishRequest>, fetcher: &Fetcher) -> Result<(), PublishError> {
        let check = self.authorizer.check(fetcher, request);
        let checked = tokio::time::timeout(self.wait.0, check).await;
        let checked = checked.map_err(|_| PublishError::CheckingPermission {
            pod: request.pod(),
            id: request.id().to_owned(),
            after: self.wait,
        })?;
        if let Err(AuthorizationError::Rejected { .. }) = &checked {
            let request = request.clone();
            self.run_on_disk(move |disk| disk.forget_failed(request.target())).await?;
        }
        Ok(checked?)
    }

    /// Pulls the tree of the volume into the store, and waits for it at most `wait`.
    async fn pull(
        &self,
        request: &Arc<PublishRequest>,
        key: &TreeKey,
        fetcher: Arc<Fetcher>,
        wait: Duration,
    ) -> Result<Tree, PublishError> {
        let (fetcher, secret_error) = self.with_credentials_of_its_set(request, fetcher).await;
        self.events.pulling(request);
        let (status, progress) = self.pull_into_store(request, key, &fetcher, wait).await?;
        let error = match status {
            PullStatus::Ready(tree) => {
                let unpacked = tree.totals().bytes;
                self.events.pulled(request, Pulled { downloaded: progress.downloaded(), unpacked });
                return Ok(tree);
            }
            PullStatus::Pulling(progress) => {
                return Err(PublishError::Pulling { id: request.id().to_owned(), progress });
            }
            PullStatus::Failed(error) => error,
        };
        let (request, is_disk_full) = (request.clone(), error.kind() == PullErrorKind::DiskFull);
        self.run_on_disk(move |disk| {
            disk.forget_failed(request.target())?;
            if is_disk_full {
                double_free_space(&disk.store);
            }
            Ok(())
        })
        .await?;
        Err(match secret_error {
            Some(secret) => PublishError::PullWithoutSecret { error, secret },
            None => PublishError::Pull(error),
        })
    }

    /// Unmounts the volume from its target. If it is not mounted there, this changes nothing.
    pub async fn unpublish(&self, volume: &str, target: &str) -> Result<Effect, UnpublishError> {
        if volume.is_empty() {
            return Err(UnpublishError::MissingField("volume_id"));
        }
        if target.is_empty() {
            return Err(UnpublishError::MissingField("target_path"));
        }
        let target = Target::parse(target)?;
        let busy = || UnpublishError::Busy(target.path().to_owned());
        let target_lock = self.target_locks.try_lock(target.path()).ok_or_else(busy)?;
        // Kubelet unpublishes a volume whose publish has not succeeded yet when the pod was deleted.
        self.pulls.withdraw(&target.path().to_string_lossy());
        let (disk, volume) = (self.disk.clone(), volume.to_owned());
        let work = tokio::task::spawn_blocking(move || {
            let _lock = target_lock;
            disk.unmount(&volume, &target)
        });
        work.await.map_err(|_| UnpublishError::Interrupted)?
    }

    /// Returns the size of a published volume.
    pub async fn stats(&self, volume: &str, path: &str) -> Result<Usage, StatsError> {
        if volume.is_empty() {
            return Err(StatsError::MissingField("volume_id"));
        }
        if path.is_empty() {
            return Err(StatsError::MissingField("volume_path"));
        }
        let (disk, volume, path) = (self.disk.clone(), volume.to_owned(), path.to_owned());
        let work = tokio::task::spawn_blocking(move || disk.stats(&volume, &path));
        work.await.map_err(|_| StatsError::Interrupted)?
    }

    /// Waits until all pulls have ended, after they were told to stop.
    pub async fn drain(&self) {
        self.pulls.drain().await;
    }

    async fn run_on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, PublishError> + Send + 'static,
    ) -> Result<T, PublishError> {
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || work(&disk)).await.map_err(|_| PublishError::Interrupted)?
    }
}

impl Disk {
    /// Reads the state of the target, and removes a mount of this driver that lost its flags.
    fn target_state(&self, request: &PublishRequest, key: &TreeKey) -> Result<TargetState, PublishError> {
        let target = request.target();
        let conflict = |found| PublishError::Conflict { target: target.path().to_owned(), found };
        match self.mounter.look(target, Some(key))? {
            Found::Mounted { tree, .. } if tree != *key => {
                return Err(conflict("a volume of another recipe".to_owned()));
            }
            Found::Mounted { flags: Err(found), .. } => {
                tracing::warn!(target = %target.path().display(), %found, "a mounted volume has lost its read-only, nosuid or nodev flag; mounting it again");
                self.mounter.unpublish(target, None)?;
            }
            Found::Mounted { .. } => {
                return match self.records.get(target)? {
                    Some(record) if record.volume() == request.volume() => Ok(TargetState::Mounted),
                    Some(record) => Err(conflict(format!("the volume \"{}\"", Shown::new(record.volume())))),
                    None => {
                        self.records.put(target, &request.record(key))?;
                        Ok(TargetState::Mounted)
                    }
                };
            }
            Found::Other(found) => {
                return Err(MountError::Foreign { path: target.path().to_owned(), found }.into());
            }
            Found::ForeignMount => {
                let found = "a mount that does not belong to this driver";
                return Err(MountError::Foreign { path: target.path().to_owned(), found }.into());
            }
            Found::NoParent => return Err(target.no_parent().into()),
            Found::Nothing | Found::Empty => {}
        }
        let is_same =
            |record: &Record| record.volume() == request.volume() && record.tree().as_ref() == Some(key);
        let is_recorded = self.records.get(target)?.is_some_and(|record| is_same(&record));
        Ok(if is_recorded { TargetState::Recorded } else { TargetState::New })
    }

    /// Writes the record of the volume, then mounts it.
    fn mount(&self, request: &PublishRequest, tree: &Tree) -> Result<(), PublishError> {
        let (target, key) = (request.target(), tree.key());
        let is_known = self.records.get(target)?.is_some();
        self.records.put(target, &request.record(key))?;
        if let Err(error) = self.mounter.publish(tree, target) {
            self.records.remove(target)?;
            return Err(error.into());
        }
        self.store.mark_used(key);
        if !is_known {
            self.metrics.volumes().inc();
        }
        tracing::info!(volume = request.volume(), id = request.id(), namespace = request.namespace(), tree = %key, target = %target.path().display(), "mounted");
        Ok(())
    }

    /// Removes the mount and the record that an interrupted publish left at the target, because this call fails with a
    /// final error and kubelet may never unpublish.
    fn forget_failed(&self, target: &Target) -> Result<(), PublishError> {
        if self.records.get(target)?.is_some() {
            self.mounter.unpublish(target, None)?;
            self.records.remove(target)?;
            self.metrics.volumes().dec();
        }
        Ok(())
    }

    fn unmount(&self, volume: &str, target: &Target) -> Result<Effect, UnpublishError> {
        let record = self.records.get(target)?;
        if let Some(record) = &record
            && record.volume() != volume
        {
            let found = Shown::new(record.volume());
            return Err(UnpublishError::OtherVolume { target: target.path().to_owned(), found });
        }
        let tree = record.as_ref().and_then(Record::tree);
        self.mounter.unpublish(target, tree.as_ref())?;
        if record.is_none() {
            return Ok(Effect::Unchanged);
        }
        // The age of an unused tree starts when its volume is unmounted.
        if let Some(key) = tree {
            self.store.mark_used(&key);
        }
        self.records.remove(target)?;
        self.metrics.volumes().dec();
        tracing::info!(volume, target = %target.path().display(), "unmounted");
        Ok(Effect::Changed)
    }

    fn stats(&self, volume: &str, path: &str) -> Result<Usage, StatsError> {
        let missing = || StatsError::NotPublished { volume: volume.into(), path: path.into() };
        let target = Target::parse(path).map_err(|_| missing())?;
        let record = self.records.get(&target)?.filter(|record| record.volume() == volume);
        let tree = record.and_then(|record| record.tree()).ok_or_else(missing)?;
        match self.mounter.look(&target, Some(&tree))? {
            Found::Mounted { tree: mounted, .. } if mounted == tree => {}
            _ => return Err(missing()),
        }
        let usage = self.store.tree(&tree)?.map(|tree| tree.usage());
        usage.or_else(|| self.store.quarantined_usage(&tree)).ok_or_else(missing)
    }
}
