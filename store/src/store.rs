//! What a node has: blobs, layer trees, trees, and which volumes use them.
//!
//! ```text
//! STORE/                    0700, its owner's alone
//! ├── lock                  flock, exclusive, for as long as a process has the store open
//! ├── format                "oras-csi store 2": the first thing that is written, refused if newer (see `format`)
//! ├── tmp/NUMBER…           everything unfinished, and what is being deleted; emptied at start, under the lock
//! ├── partial/              big blobs on their way (see `partial`); what nobody goes on with goes after a day
//! ├── set-aside/NAME.N      what was found damaged: KEY.N a tree, layer-KEY.N, sha256-HEX.N; it may be mounted
//! ├── blobs/sha256/HEX      verified files: manifests, and layers that are one file (0444)
//! ├── blobs/sha512/HEX
//! ├── layers/KEY/           a tar layer, unpacked once
//! │   ├── files/            its tree
//! │   ├── sums              checksums of what is in it (see `sums`)
//! │   └── layer.json        how much is in it
//! ├── trees/KEY/            a recipe's tree: hard links to blobs and to files of layers
//! │   ├── files/            what a pod sees
//! │   ├── sums              checksums of its own files: copies, where a link could not be made
//! │   └── tree.json         how much is in it, what it is made of; its mtime is when it was last used
//! ├── volumes/HASH.json     one published volume each (see `records`)
//! ├── unsynced/BOOT/NAME    marks of layers and trees that the disk may not have yet (see `unsynced`)
//! ├── state.json            what the store tells of itself: damage, the last scrub and collection (see `state`)
//! ├── given                 which registries gave which of it (see `givers`); may be absent
//! ├── preload.json          which trees cluster sets want here, whoever uses them (see `wanted`); may be absent
//! └── readonly/             where `trees` is mounted once more, read-only (see `mount`)
//! ```
//!
//! **Commit points.** A blob, a layer and a tree (never over another) come into being by one `rename` out of `tmp`.
//! None waits for the disk: a mark says of a layer and a tree that the disk may not have them yet, is there before
//! them, and goes behind a `syncfs` that brings all that waits to the disk (see `unsynced`). A blob's name says what
//! its bytes are. A volume's record comes into being by a `rename` over the old one, and is not synced: after a power
//! cut its mount is gone as well, and kubelet publishes again.
//!
//! **They end** by one `rename` too: into `tmp`, where they are deleted, or into `set-aside`, where they stay
//! until nothing mounts them. A tree goes before the blobs and layers that only it needs.
//!
//! | killed | leaves | and then |
//! |---|---|---|
//! | while something is written | a file or folder in `tmp`, or in `partial` | deleted at start; gone on from |
//! | between a blob and its tree | a blob that no tree needs | used by the next pull, or collected |
//! | after a tree was renamed away | its folder in `tmp`, blobs that no tree needs | deleted at start; collected |
//! | while something damaged is set aside | the part aside, some of its trees not yet | the scrub finds the trees' bytes wrong, or they go as others do |
//! | between a record and its mount | a record too many | see `records` |
//! | while `preload.json` is written | the old one, and a file in `tmp` | written again once the sets are known |
//! | after it, before what it names is there | a name of nothing | fetched ahead |
//!
//! A crash of the machine leaves the same, and marks: their trees are taken out of sight at start, and what a new one is
//! made of is compared with what it was before it is used (see `trust`).
//!
//! Nothing in `blobs`, `layers` or `trees` is ever written to again, but for the time of a `tree.json`.
//!
//! **Locks.** Between processes: `lock`; `oras-csi store ls` and `verify` read without it. Within one: whoever makes
//! a blob, a layer or a tree holds the lock of its name and of its registry in [`crate::pull`], so that one download
//! serves all who name the same; were two
//! to make the same, either is as good. The mutex of the leases (`lease`) is held for each rename that takes
//! something away and for that which makes a tree visible; one collection at a time holds `collecting`.
//!
//! **Roots** of a collector ([`crate::collect`]): the trees that records in `volumes` name, the trees that
//! `preload.json` names, the trees that are mounted anywhere (mountinfo), and whatever is leased; from a tree, the
//! blobs and layers in its `tree.json`. A name of a file that a tree shares is another link to the same inode: removing a blob
//! or a layer frees nothing that a tree still has, and harms none.
//!
//! Architecture Invariant: nothing is visible under `blobs`, `layers` or `trees` before it is whole and
//! its digests have been verified.
//!
//! Architecture Invariant: what is mounted is never deleted, damaged or not.

mod blobs;
mod integrity;
pub(crate) mod partial_blobs;
pub(crate) mod preload_index;
mod quarantine;
pub(crate) mod trees;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::disk::folders::{TmpNames, make_private_folder};
use crate::disk::{DiskError, DiskSpace, boot_id};
use crate::layout::format::{self, StoreError};
use crate::layout::{Item, Layout};
use crate::limits::Limits;
use crate::state::durability::{Durability, UnsyncedMarks};
use crate::state::gc_roots::GcRoots;
use crate::state::leases::{Lease, Leases};
use crate::state::node_record::{NodeRecord, NodeRecordFile};
use crate::state::observer::{NoObserver, StoreObserver};
use crate::state::provenance::Provenance;
use crate::state::verified_items::VerifiedItems;

/// Makes this many bytes free in a store, if that is possible. The caller looks whether it was.
pub(crate) type SpaceReclaimer = fn(&Store, u64) -> Result<(), DiskError>;

/// The folder, locked.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    root: OwnedFd,
    limits: Limits,
    is_persistent: bool,
    tmp: TmpNames,
    layout: Layout,
    leases: Leases,
    collecting: Mutex<()>,
    quarantining: Mutex<()>,
    node_record: NodeRecordFile,
    verified: VerifiedItems,
    durability: Durability,
    provenance: Provenance,
    observer: Arc<dyn StoreObserver>,
    roots: Option<Arc<dyn GcRoots>>,
    reclaim_space: Option<SpaceReclaimer>,
    // Closed last, which gives the lock back.
    _lock: OwnedFd,
}

impl Store {
    /// Opens the store in `path`, makes it if the folder is absent or empty, and clears away what an
    /// earlier run left unfinished.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, StoreError> {
        make_private_folder(path)?;
        // Mount points are compared with what the kernel says: no symbolic link in it.
        let path = path.canonicalize().map_err(|error| DiskError::new("find", path, error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| DiskError::new("open", &path, errno))?;
        let lock = lock(&path, &root)?;
        format::take(&path)?;
        let layout = Layout::new(&path);
        let durability = Durability::open(&layout, &root, &boot_id())?;
        let tmp = TmpNames::new(layout.tmp());
        let store = Self {
            root,
            limits,
            is_persistent: true,
            leases: Leases::default(),
            collecting: Mutex::default(),
            quarantining: Mutex::default(),
            node_record: NodeRecordFile::read(&layout, tmp.clone()),
            tmp,
            verified: VerifiedItems::default(),
            durability,
            provenance: Provenance::read(&layout.provenance()),
            observer: Arc::new(NoObserver),
            roots: None,
            reclaim_space: None,
            layout,
            path,
            _lock: lock,
        };
        store.clear_unfinished()?;
        store.forget_stale_partials();
        Ok(store)
    }

    /// The same store for one pull, removed behind it: nothing needs to survive a power cut, and nothing
    /// waits for the disk.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        self.is_persistent = false;
        self.provenance = self.provenance.in_memory();
        self
    }

    /// The same store, which reports to `observer`.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn StoreObserver>) -> Self {
        self.observer = observer;
        self
    }

    /// The same store, in which `roots` says what is in use, and `reclaim` deletes the rest where the disk is full.
    pub(crate) fn with_reclaimer(mut self, roots: Arc<dyn GcRoots>, reclaim: SpaceReclaimer) -> Self {
        (self.roots, self.reclaim_space) = (Some(roots), Some(reclaim));
        self
    }

    /// Whether what is in it may be needed after this pull.
    pub(crate) fn is_persistent(&self) -> bool {
        self.is_persistent
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The limits on what is put into it.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A lease on nothing yet: what is added to it is not collected for as long as it lives.
    pub fn lease(&self) -> Lease {
        self.leases.lease()
    }

    /// All leases.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The names of what is in it.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// When the store was made, or taken over from an older version, in seconds since 1970.
    pub(crate) fn since(&self) -> u64 {
        let made = std::fs::metadata(self.path.join("format")).and_then(|found| found.modified());
        let made = made.ok().and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
        made.map_or(0, |made| made.as_secs())
    }

    /// Who hears what happens.
    pub(crate) fn observer(&self) -> &Arc<dyn StoreObserver> {
        &self.observer
    }

    /// Who knows which trees are in use.
    pub(crate) fn roots(&self) -> Option<&Arc<dyn GcRoots>> {
        self.roots.as_ref()
    }

    /// Which registries served what.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// What the store reports of itself.
    pub fn node_record(&self) -> NodeRecord {
        self.node_record.get()
    }

    /// Changes what the store reports of itself.
    pub(crate) fn update_node_record(&self, change: impl FnOnce(&mut NodeRecord)) {
        self.node_record.update(change);
    }

    /// Held by the one collection that runs.
    pub(crate) fn collecting(&self) -> &Mutex<()> {
        &self.collecting
    }

    /// The folder as it is open.
    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// A name for something unfinished.
    pub fn tmp_path(&self) -> PathBuf {
        self.tmp.next()
    }

    /// Fails where `wanted` more bytes would leave less than the reserve, and where collecting what nobody uses
    /// does not help either.
    pub(crate) fn check_free_space(&self, wanted: u64) -> Result<(), DiskError> {
        let reserve = self.limits.reserve();
        let space = DiskSpace::measure(&self.root)?;
        if wanted == 0 || space.check(wanted, reserve).is_ok() {
            return Ok(());
        }
        if let Some(reclaim) = self.reclaim_space {
            reclaim(self, space.needed(wanted, reserve))?;
        }
        DiskSpace::measure(&self.root)?.check(wanted, reserve)
    }

    /// Marks what is about to be made, so that it can be seen before the disk has it.
    pub(crate) fn mark_unsynced(&self, items: &[Item]) -> Result<UnsyncedMarks, DiskError> {
        if !self.is_persistent {
            return Ok(UnsyncedMarks::none());
        }
        match self.durability.mark(items) {
            // Some file systems sync no folder. Then everything is on the disk before it can be seen.
            Err(error) if !error.is_full() && !matches!(error, DiskError::ReadOnly { .. }) => {
                tracing::debug!(%error, "what is made is brought to the disk first");
                Ok(UnsyncedMarks::none())
            }
            marked => marked,
        }
    }

    /// Brings everything written so far to the disk.
    fn sync(&self) -> Result<(), DiskError> {
        if !self.is_persistent {
            return Ok(());
        }
        rustix::fs::syncfs(&self.root).map_err(|errno| DiskError::new("sync", &self.path, errno))
    }

    fn clear_unfinished(&self) -> Result<(), DiskError> {
        let tmp = self.layout.tmp();
        let failed = |error| DiskError::new("clear away", &tmp, error);
        for entry in std::fs::read_dir(&tmp).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_folder = entry.file_type().map_err(failed)?.is_dir();
            let removed = if is_folder {
                std::fs::remove_dir_all(entry.path())
            } else {
                std::fs::remove_file(entry.path())
            };
            removed.map_err(failed)?;
        }
        Ok(())
    }
}

fn lock(path: &Path, root: &OwnedFd) -> Result<OwnedFd, StoreError> {
    // Not to be written to: a disk that is made read-only must not wait for us.
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::openat(root, "lock", flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| DiskError::new("open", path.join("lock"), errno))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(StoreError::Locked(path.to_owned())),
        Err(errno) => Err(DiskError::new("lock", path, errno).into()),
    }
}

/// Makes sure that there is a store in `path` which can be read without its lock.
pub fn look_at(path: &Path) -> Result<Layout, StoreError> {
    let path = path.canonicalize().map_err(|error| DiskError::new("find", path, error))?;
    match format::read(&path)? {
        Some(_) => Ok(Layout::new(path)),
        None => Err(StoreError::Missing(path)),
    }
}

#[cfg(test)]
mod durability_tests;
#[cfg(test)]
mod tests;
