//! Publishing: a canonical volume becomes a read-only mount at kubelet's path, and goes again.
//!
//! ```text
//! request ─► seal ─► target_lock ─► look at the target ─► right ─► tree (store, else pull) ─► record ─► mount
//! ```
//!
//! Whether the pod may have the bytes is asked before anybody looks for them ([`authorization`](RightError)). Three do without:
//! what is mounted already; a volume that has a record of the same tree, as after a reboot of the node; and one whose
//! seal names a cluster set, which is the administrator's word for everybody.
//!
//! Each step can be the last before a crash: see [`crate::volume_records`] for why the next call repairs it.
//! A publish that fails leaves neither a directory nor a record; the pull that it waited for goes on.

mod authorization;
mod fetching;
mod recovery;
mod request;
mod seal;
mod stale_volumes;
mod target_lock;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oras_csi_core::display::Shown;
use oras_csi_core::registry::Keyring;
use oras_csi_core::volume::VolumeError;
use oras_csi_store::gc::double_free_space;
use oras_csi_store::pull::{ProgressSnapshot, PullError, PullStatus, Pulls};
use oras_csi_store::{DiskError, Item, PullErrorKind, Store, Totals, TreeKey};

pub use self::authorization::RightError;
use self::authorization::Rights;
pub use self::request::{PublishRequest, SecretError};
pub use self::seal::{SealRefusal, Seals};
pub use self::target_lock::TargetLocks;
use crate::metrics::Metrics;
use crate::mount::{Found, MountError, Mounter, Target};
use crate::preload::{SetSecretError, SetSecrets};
use crate::volume_records::{Record, Records};

/// Why a volume is not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A field of the request is empty.
    #[error("the request has no {0}: this is no request of kubelet's")]
    Missing(&'static str),
    /// A block volume.
    #[error("the volume is asked for as a block device: this driver gives files; use volumeMode: Filesystem")]
    Block,
    /// Without a namespace nobody knows whose volume it is.
    #[error(
        "the request does not say which pod it is for (no {}): the CSIDriver object csi.oras.land must have podInfoOnMount: true", .0
    )]
    Namespace(&'static str),
    /// Not a canonical volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The Secret of the request is none for registries.
    #[error("the volume's pull secret (nodePublishSecretRef) cannot be used: {0}")]
    Secret(#[from] SecretError),
    /// No webhook admitted it for this pod.
    #[error(transparent)]
    Seal(#[from] SealRefusal),
    /// The pod may not have it, or nobody can say.
    #[error(transparent)]
    Right(#[from] RightError),
    /// The question takes long.
    #[error("asking the registries whether the pod may have {id} takes longer than {} s; it is tried again", .after.as_secs())]
    Asking {
        /// The volume's safe id.
        id: String,
        /// How long it has taken.
        after: Duration,
    },
    /// Another call for the same target.
    #[error("another call for {} is being worked on; it is tried again", .0.display())]
    Busy(PathBuf),
    /// The pull goes on.
    #[error("pulling {id}: {reading}; the pull goes on, and the volume is mounted when it is done")]
    Pulling {
        /// The volume's safe id.
        id: String,
        /// How far it is.
        reading: ProgressSnapshot,
    },
    /// The pull failed.
    #[error("{0}")]
    Pull(Arc<PullError>),
    /// The pull failed, and might not have with the pull secret of its set.
    #[error("{error}; {secret}")]
    PullWithoutSecret {
        /// Why it failed.
        error: Arc<PullError>,
        /// Why without the secret.
        secret: Box<SetSecretError>,
    },
    /// Something else is mounted there.
    #[error(
        "{} has {found} mounted already: it has to be unpublished before another can take its place",
        .target.display()
    )]
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
    /// The task is gone.
    #[error("the driver stopped in the middle of the call; it is tried again")]
    Interrupted,
}

/// Why a volume is not unpublished.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishError {
    /// A field of the request is empty.
    #[error("the request has no {0}: this is no request of kubelet's")]
    Missing(&'static str),
    /// Another call for the same target.
    #[error("another call for {} is being worked on; it is tried again", .0.display())]
    Busy(PathBuf),
    /// The target has another volume.
    #[error("the volume at {} is \"{found}\", not the one that is to be unpublished", .target.display())]
    Other {
        /// The target.
        target: PathBuf,
        /// Whose it is.
        found: Shown,
    },
    /// Unmounting failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The store's disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The task is gone.
    #[error("the driver stopped in the middle of the call; it is tried again")]
    Interrupted,
}

/// Why there are no figures about a volume.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// A field of the request is empty.
    #[error("the request has no {0}: this is no request of kubelet's")]
    Missing(&'static str),
    /// No such volume, or not there.
    #[error("the volume \"{volume}\" is not published at \"{path}\"")]
    NotPublished {
        /// The volume.
        volume: Shown,
        /// The path.
        path: Shown,
    },
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Looking failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The task is gone.
    #[error("the driver stopped in the middle of the call; it is tried again")]
    Interrupted,
}

/// How a publish or an unpublish ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// By doing something.
    Now,
    /// It was so already.
    Already,
}

/// Publishes and unpublishes.
pub struct Publisher {
    disk: Arc<Disk>,
    pulls: Arc<Pulls>,
    target_locks: TargetLocks,
    keyring: Keyring,
    rights: Rights,
    set_secrets: Option<SetSecrets>,
    wait: Duration,
}

/// What blocks: used from threads that may.
struct Disk {
    store: Arc<Store>,
    records: Records,
    mounter: Mounter,
    seals: Seals,
    metrics: Metrics,
}

/// What is at a target before a publish.
enum Before {
    Mounted,
    /// A record says that it was mounted for this very volume.
    Recorded,
    Nothing,
}

impl Publisher {
    /// Publishes what `pulls` brings, from its store, by `mounter`; waits at most `wait` for a pull. `keyring` has
    /// what the administrator gave; `grace` is how long a right counts that cannot be asked for.
    pub fn new(
        pulls: Arc<Pulls>,
        mounter: Mounter,
        seals: Seals,
        keyring: Keyring,
        wait: Duration,
        grace: Duration,
        metrics: Metrics,
    ) -> Self {
        let store = pulls.fetcher().store().clone();
        let records = Records::new(store.clone());
        let disk = Arc::new(Disk { store, records, mounter, seals, metrics });
        let (target_locks, rights) = (TargetLocks::default(), Rights::new(grace));
        Self { disk, pulls, target_locks, keyring, rights, set_secrets: None, wait }
    }

    /// The same, with the pull secrets of cluster sets for their volumes.
    #[must_use]
    pub fn with_set_secrets(self, set_secrets: Option<SetSecrets>) -> Self {
        Self { set_secrets, ..self }
    }

    /// Makes the volume appear at its target. Doing it twice is doing it once.
    pub async fn publish(&self, request: PublishRequest) -> Result<Done, PublishError> {
        let target = request.target().clone();
        let request = Arc::new(request);
        {
            let request = request.clone();
            self.disk(move |disk| Ok(disk.seals.check(&request)?)).await?;
        }
        let busy = || PublishError::Busy(target.path().to_owned());
        let target_lock = self.target_locks.try_lock(target.path()).ok_or_else(busy)?;
        let key = self.pulls.fetcher().key(request.recipe());
        // From before anybody looks for the tree until its record is written nobody takes it away.
        let mut lease = self.disk.store.lease();
        lease.add([Item::Tree(key.clone())]).await;
        let before = {
            let (request, key) = (request.clone(), key.clone());
            self.disk(move |disk| disk.before(&request, &key)).await?
        };
        if matches!(before, Before::Mounted) {
            return Ok(Done::Already);
        }
        let began = Instant::now();
        let fetcher = Arc::new(self.pulls.fetcher().with_credentials(Arc::new(self.keyring_of(&request))));
        if matches!(before, Before::Nothing) && !self.disk.seals.vouch_for(&request) {
            let asked = self.rights.check(&fetcher, request.secret(), request.recipe());
            let asked = tokio::time::timeout(self.wait, asked).await;
            let asked =
                asked.map_err(|_| PublishError::Asking { id: request.id().to_owned(), after: self.wait })?;
            if let Err(refused) = asked {
                if matches!(refused, RightError::Refused(_)) {
                    self.disk(move |disk| disk.forget_failed(&target)).await?;
                }
                return Err(refused.into());
            }
        }
        // A tree that others brought is not there for a pod whose own registries never gave what is in it.
        let is_known = matches!(before, Before::Recorded) || self.disk.seals.vouch_for(&request);
        let is_there = (is_known || self.disk.store.provenance().has_tree(&key, request.recipe())) && {
            let key = key.clone();
            self.disk(move |disk| Ok(disk.store.tree(&key)?.is_some())).await?
        };
        self.disk.metrics.looked_up(is_there);
        if !is_there {
            let (fetcher, without) = self.with_credentials_of_its_set(&request, fetcher).await;
            let wait = self.wait.saturating_sub(began.elapsed());
            match self.pulled(&request, &key, &fetcher, wait).await? {
                PullStatus::Ready(_) => {}
                PullStatus::Pulling(reading) => {
                    return Err(PublishError::Pulling { id: request.id().to_owned(), reading });
                }
                PullStatus::Failed(error) => {
                    let no_room = error.kind() == PullErrorKind::DiskFull;
                    self.disk(move |disk| {
                        disk.forget_failed(&target)?;
                        if no_room {
                            double_free_space(&disk.store);
                        }
                        Ok(())
                    })
                    .await?;
                    return Err(match without {
                        Some(secret) => PublishError::PullWithoutSecret { error, secret },
                        None => PublishError::Pull(error),
                    });
                }
            }
        }
        // The target_lock goes with the work: a caller that hangs up does not let another in between.
        self.disk(move |disk| {
            let _held = (target_lock, lease);
            disk.mount(&request, &key)
        })
        .await?;
        Ok(Done::Now)
    }

    /// Takes the volume away from its target. What is not there is gone already.
    pub async fn unpublish(&self, volume: &str, target: &str) -> Result<Done, UnpublishError> {
        if volume.is_empty() {
            return Err(UnpublishError::Missing("volume_id"));
        }
        if target.is_empty() {
            return Err(UnpublishError::Missing("target_path"));
        }
        let target = Target::parse(target)?;
        let busy = || UnpublishError::Busy(target.path().to_owned());
        let target_lock = self.target_locks.try_lock(target.path()).ok_or_else(busy)?;
        let (disk, volume) = (self.disk.clone(), volume.to_owned());
        let work = tokio::task::spawn_blocking(move || {
            let _lock = target_lock;
            disk.unmount(&volume, &target)
        });
        work.await.map_err(|_| UnpublishError::Interrupted)?
    }

    /// How much is in a published volume.
    pub async fn stats(&self, volume: &str, path: &str) -> Result<Totals, StatsError> {
        if volume.is_empty() {
            return Err(StatsError::Missing("volume_id"));
        }
        if path.is_empty() {
            return Err(StatsError::Missing("volume_path"));
        }
        let (disk, volume, path) = (self.disk.clone(), volume.to_owned(), path.to_owned());
        let work = tokio::task::spawn_blocking(move || disk.stats(&volume, &path));
        work.await.map_err(|_| StatsError::Interrupted)?
    }

    /// Waits until no pull is left, after the token that stops them.
    pub async fn drain(&self) {
        self.pulls.drain().await;
    }

    async fn disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, PublishError> + Send + 'static,
    ) -> Result<T, PublishError> {
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || work(&disk)).await.map_err(|_| PublishError::Interrupted)?
    }
}

impl Disk {
    fn before(&self, request: &PublishRequest, key: &TreeKey) -> Result<Before, PublishError> {
        let target = request.target();
        let conflict = |found| PublishError::Conflict { target: target.path().to_owned(), found };
        match self.mounter.look(target)? {
            Found::Mounted { tree, .. } if tree != *key => {
                return Err(conflict("a volume of another recipe".to_owned()));
            }
            Found::Mounted { flags: Err(found), .. } => {
                tracing::warn!(target = %target.path().display(), %found, "a volume lost its flags; it is mounted anew");
                self.mounter.unpublish(target)?;
            }
            Found::Mounted { .. } => {
                return match self.records.get(target)? {
                    Some(record) if record.volume() == request.volume() => Ok(Before::Mounted),
                    Some(record) => Err(conflict(format!("the volume \"{}\"", Shown::new(record.volume())))),
                    None => {
                        self.records.put(target, &request.record(key))?;
                        Ok(Before::Mounted)
                    }
                };
            }
            Found::Other(found) => {
                return Err(MountError::Foreign { path: target.path().to_owned(), found }.into());
            }
            Found::ForeignMount => {
                let found = "a mount of something else";
                return Err(MountError::Foreign { path: target.path().to_owned(), found }.into());
            }
            Found::NoParent => return Err(target.no_parent().into()),
            Found::Nothing | Found::Empty => {}
        }
        let is_same =
            |record: &Record| record.volume() == request.volume() && record.tree().as_ref() == Some(key);
        let recorded = self.records.get(target)?.is_some_and(|record| is_same(&record));
        Ok(if recorded { Before::Recorded } else { Before::Nothing })
    }

    fn mount(&self, request: &PublishRequest, key: &TreeKey) -> Result<(), PublishError> {
        let target = request.target();
        let known = self.records.get(target)?.is_some();
        self.records.put(target, &request.record(key))?;
        if let Err(error) = self.mounter.publish(key, target) {
            self.records.remove(target)?;
            return Err(error.into());
        }
        self.store.mark_used(key);
        if !known {
            self.metrics.volumes().inc();
        }
        tracing::info!(volume = request.volume(), id = request.id(), namespace = request.namespace(), tree = %key, target = %target.path().display(), "mounted");
        Ok(())
    }

    /// Clears what an interrupted publish of the same target left, now that this one fails for good.
    fn forget_failed(&self, target: &Target) -> Result<(), PublishError> {
        if self.records.get(target)?.is_some() {
            self.mounter.unpublish(target)?;
            self.records.remove(target)?;
            self.metrics.volumes().dec();
        }
        Ok(())
    }

    fn unmount(&self, volume: &str, target: &Target) -> Result<Done, UnpublishError> {
        let record = self.records.get(target)?;
        if let Some(record) = &record
            && record.volume() != volume
        {
            let found = Shown::new(record.volume());
            return Err(UnpublishError::Other { target: target.path().to_owned(), found });
        }
        self.mounter.unpublish(target)?;
        let Some(record) = record else { return Ok(Done::Already) };
        // From now on it counts as unused.
        if let Some(key) = record.tree() {
            self.store.mark_used(&key);
        }
        self.records.remove(target)?;
        self.metrics.volumes().dec();
        tracing::info!(volume, target = %target.path().display(), "unmounted");
        Ok(Done::Now)
    }

    fn stats(&self, volume: &str, path: &str) -> Result<Totals, StatsError> {
        let missing = || StatsError::NotPublished { volume: volume.into(), path: path.into() };
        let target = Target::parse(path).map_err(|_| missing())?;
        let record = self.records.get(&target)?.filter(|record| record.volume() == volume);
        let tree = record.and_then(|record| record.tree()).ok_or_else(missing)?;
        match self.mounter.look(&target)? {
            Found::Mounted { tree: mounted, .. } if mounted == tree => {}
            _ => return Err(missing()),
        }
        let there = self.store.tree(&tree)?.map(|tree| tree.totals());
        there.or_else(|| self.store.quarantined_totals(&tree)).ok_or_else(missing)
    }
}
