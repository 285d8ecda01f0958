//! The content-addressed store of a node: blobs, layers and trees, and the state that belongs to them.
//!
//! See docs/design.md, "Store".
//!
//! ```text
//! STORE/                    0700, accessible to its owner only
//! ├── lock                  flock, exclusive, held while a process has the store open
//! ├── format                "oras-csi store 3": written first; a newer format is refused (see `layout::format`)
//! ├── tmp/NUMBER…           unfinished work, and items being deleted; emptied at startup, under the lock
//! ├── partial/              large blobs being downloaded (see `partial_blobs`); removed after a day without progress
//! ├── set-aside/NAME.N      quarantine for damaged items: KEY.N is a tree, also layer-KEY.N and sha256-HEX.N;
//! │                         a quarantined tree can still be mounted
//! ├── blobs/sha256/HEX      verified files: manifests, and layers that are a single file (0444)
//! ├── blobs/sha512/HEX
//! ├── layers/KEY/           a tar layer, unpacked once
//! │   ├── files/            its files
//! │   ├── image             an EROFS image with the files in place of `files/` and `sums`, if there are many small ones
//! │   ├── sums              checksums of its files (see `content::checksums`)
//! │   ├── served-by         which registry and repository served it (see `state::provenance`); optional
//! │   └── layer.json        its size, and what the disk is charged for it
//! ├── trees/KEY/            the tree of a recipe: hard links to blobs and to files of layers
//! │   ├── files/            the files that a pod sees
//! │   ├── image             another link to the image of the only layer, in place of `files/` and `sums`
//! │   ├── sums              checksums of the files that belong to the tree alone: copies, where linking failed
//! │   ├── served-by         from which repositories all of it came; optional
//! │   └── tree.json         its size and its parts; the mtime is the time of the last use
//! ├── volumes/HASH.json     one record for each published volume (the driver's `volume_records`)
//! ├── unsynced/BOOT/pull-N  marks for layers and trees that may not be on the disk yet (see `state::durability`)
//! ├── state.json            damage, last scrub, last garbage collection (see `state::node_record`)
//! ├── served-by/sha256/HEX  which registry and repository served a blob (see `state::provenance`); optional
//! ├── served-by/sha512/HEX
//! ├── given                 the same for all content, by an earlier version; optional, read and later deleted
//! ├── preload.json          the trees that cluster sets preload on this node (see `preload_index`); optional
//! └── readonly/             a second, read-only mount of `trees` (the driver's `mount`)
//! ```
//!
//! **Commit points.** One `rename` out of `tmp` creates a blob, a layer or a tree; a layer or a tree never
//! replaces an existing one. The rename does not wait for the disk. Instead, a mark for each layer and tree
//! records that it may not be on the disk yet. The mark is durable before the rename, and is removed after a
//! `syncfs` has written everything that waits (see `state::durability`). A blob needs no mark, because its
//! name is the digest of its bytes. A volume record is created by a `rename` over the previous one and is not
//! synced: a power cut removes the mount as well, and kubelet publishes the volume again.
//!
//! **Removal** is one `rename` too: into `tmp`, where the item is deleted, or into `set-aside` (quarantine),
//! where it stays until it is no longer mounted. A tree is removed before the blobs and layers that only this
//! tree needs.
//!
//! | killed | left behind | what happens next |
//! |---|---|---|
//! | while an item is written | a file or folder in `tmp`, or a file in `partial` | deleted at startup; or the download resumes |
//! | between a blob and its tree | a blob that no tree needs | the next pull uses it, or garbage collection deletes it |
//! | after a tree was renamed away | its folder in `tmp`, and blobs that no tree needs | deleted at startup; garbage-collected |
//! | while a damaged item is quarantined | the item in quarantine, some of its trees still in `trees` | the scrubber detects the damage in these trees, or garbage collection deletes them |
//! | between a volume record and its mount | a record without a mount | the next publish mounts the tree, or the next unpublish removes the record |
//! | while `preload.json` is written | the previous file, and a file in `tmp` | written again when the sets are known |
//! | after `preload.json`, before its trees exist | an entry without a tree | the tree is preloaded |
//!
//! A crash of the machine leaves the same, and marks. At startup the store moves the marked trees out of
//! `trees`. It compares their blobs and layers with the recorded digests and checksums before it uses them in
//! a new tree (see `integrity`).
//!
//! Files in `blobs`, `layers` and `trees` are never written again, except for `served-by`. The mtime of a `tree.json`
//! changes as well.
//!
//! **Locks.** Between processes: `lock`. `oras-csi store ls` and `verify` read the store without it. Within a
//! process: the task that creates a blob, a layer or a tree holds the lock for its name and its registry in
//! [`crate::pull`], so that one download serves every request for the same content. If two tasks create the
//! same item anyway, either copy is correct. Renames run without the mutex of the leases (`state::leases`): each
//! one marks the items that it removes or makes visible, and only a lease on the same item waits for its end.
//! `gc_lock` is held by the one garbage collection that runs.
//!
//! **GC roots** ([`crate::gc`]) are: the trees that records in `volumes` name, the trees that `preload.json`
//! names, the trees that are mounted anywhere (mountinfo), and all leased items. A tree that stays also keeps
//! the blobs and layers in its `tree.json`. A file that a tree shares with a blob or a layer is another link
//! to the same inode. So deleting a blob or a layer does not affect trees, and frees no space that a tree
//! still uses.
//!
//! Architecture Invariant: an item is visible under `blobs`, `layers` or `trees` only when it is complete and
//! its digests have been verified.
//!
//! Architecture Invariant: a mounted tree is never deleted, damaged or not.

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
use crate::disk::reservations::{Reservation, Reservations};
use crate::disk::selinux::SelinuxLabel;
use crate::disk::{DiskError, DiskSpace, Usage, boot_id};
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

/// Frees this many bytes and inodes in a store, if possible. The caller must check whether it was.
pub(crate) type SpaceReclaimer = fn(&Store, Usage) -> Result<(), DiskError>;

/// An open store. Its folder stays locked until the value is dropped.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    root: OwnedFd,
    limits: Limits,
    is_persistent: bool,
    /// Whether the process can mount EROFS images.
    has_images: bool,
    tmp: TmpNames,
    layout: Layout,
    leases: Leases,
    gc_lock: Mutex<()>,
    quarantine_lock: Mutex<()>,
    node_record: NodeRecordFile,
    verified: VerifiedItems,
    durability: Durability,
    provenance: Provenance,
    reservations: Reservations,
    /// The label that each new file gets, where the kernel does not pass on the label of its folder.
    label: Option<SelinuxLabel>,
    observer: Arc<dyn StoreObserver>,
    roots: Option<Arc<dyn GcRoots>>,
    reclaim_space: Option<SpaceReclaimer>,
    // The last field, so that the lock is released last.
    _lock: OwnedFd,
}

impl Store {
    /// Opens the store in `path` and deletes unfinished work of earlier runs. Creates the store if the folder
    /// is absent or empty.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, StoreError> {
        make_private_folder(path)?;
        // The driver compares mount points with mountinfo, which contains no symbolic links.
        let path = path.canonicalize().map_err(|error| DiskError::new("resolve the path", path, error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| DiskError::new("open", &path, errno))?;
        let lock = lock(&path, &root)?;
        format::create_or_upgrade(&path)?;
        let layout = Layout::new(&path);
        let durability = Durability::open(&layout, &root, &boot_id())?;
        let tmp = TmpNames::new(layout.tmp());
        let store = Self {
            root,
            limits,
            is_persistent: true,
            has_images: false,
            leases: Leases::default(),
            gc_lock: Mutex::default(),
            quarantine_lock: Mutex::default(),
            node_record: NodeRecordFile::read(&layout, tmp.clone()),
            tmp,
            verified: VerifiedItems::default(),
            durability,
            provenance: Provenance::open(&layout),
            reservations: Reservations::default(),
            label: None,
            observer: Arc::new(NoObserver),
            roots: None,
            reclaim_space: None,
            layout,
            path,
            _lock: lock,
        };
        store.clear_unfinished()?;
        store.delete_stale_partials();
        Ok(store)
    }

    /// Returns the store as an ephemeral store: for one pull, and deleted afterwards. Its content does not
    /// need to survive a power cut, so nothing is synced.
    #[must_use]
    pub fn ephemeral(mut self) -> Self {
        self.is_persistent = false;
        self.provenance = self.provenance.in_memory();
        self
    }

    /// Returns the store with `observer`, which receives its events.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn StoreObserver>) -> Self {
        self.observer = observer;
        self
    }

    /// Returns the store with an SELinux label on its folders and on everything in them. With `on_each_file`, each new
    /// file gets it as well; without, the kernel passes it on.
    pub fn with_selinux_label(mut self, label: SelinuxLabel, on_each_file: bool) -> Result<Self, DiskError> {
        if !label.is_of(&self.path) {
            tracing::info!(path = %self.path.display(), %label, "setting the SELinux label of the store");
            label.set_all(&self.path)?;
        }
        self.label = Some(label).filter(|_| on_each_file);
        Ok(self)
    }

    /// Sets the label of a new file or folder, with everything beneath it.
    fn label(&self, path: &Path) -> Result<(), DiskError> {
        match &self.label {
            Some(label) if path.is_dir() => label.set_all(path),
            Some(label) => label.set(path),
            None => Ok(()),
        }
    }

    /// Returns the store with `roots`, which lists the trees in use, and `reclaim`, which deletes unused
    /// items when the disk is full.
    pub(crate) fn with_reclaimer(mut self, roots: Arc<dyn GcRoots>, reclaim: SpaceReclaimer) -> Self {
        (self.roots, self.reclaim_space) = (Some(roots), Some(reclaim));
        self
    }

    /// Reports whether the content must survive this process. An ephemeral store's content need not.
    pub(crate) fn is_persistent(&self) -> bool {
        self.is_persistent
    }

    /// Returns the store for a process that can mount EROFS images. Archives with many small files become images then.
    #[must_use]
    pub fn with_images(mut self) -> Self {
        self.has_images = true;
        self
    }

    /// Reports whether each file gets an SELinux label.
    pub fn has_selinux_label(&self) -> bool {
        self.label.is_some()
    }

    /// Writes an image with one file to `path`, and returns the path of the file in it.
    pub fn write_test_image(&self, path: &Path, content: &[u8]) -> std::io::Result<PathBuf> {
        crate::unpack::image::write_test_image(&self.root, path, content).map_err(std::io::Error::other)
    }

    /// Reports whether the process can mount EROFS images.
    pub(crate) fn has_images(&self) -> bool {
        self.has_images
    }

    /// Returns the folder of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the limits on content from registries.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns an empty lease. Garbage collection does not delete items that are added to it until it is
    /// dropped.
    pub fn lease(&self) -> Lease {
        self.leases.lease()
    }

    /// Returns the leases of this store.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Returns the paths in this store.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns when the store was created, or upgraded from an older format, in seconds since 1970.
    pub(crate) fn created_at(&self) -> u64 {
        let created = std::fs::metadata(self.path.join("format")).and_then(|metadata| metadata.modified());
        let created = created.ok().and_then(|created| created.duration_since(std::time::UNIX_EPOCH).ok());
        created.map_or(0, |created| created.as_secs())
    }

    /// Returns the observer, which receives events.
    pub(crate) fn observer(&self) -> &Arc<dyn StoreObserver> {
        &self.observer
    }

    /// Returns the list of the trees in use, if the store was opened with one.
    pub(crate) fn roots(&self) -> Option<&Arc<dyn GcRoots>> {
        self.roots.as_ref()
    }

    /// Returns the record of which registry and repository served which digest.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Returns the node record: damage, the last scrub and the last garbage collection.
    pub fn node_record(&self) -> NodeRecord {
        self.node_record.get()
    }

    /// Changes the node record and writes it to the disk.
    pub(crate) fn update_node_record(&self, change: impl FnOnce(&mut NodeRecord)) {
        self.node_record.update(change);
    }

    /// Returns the mutex that the one running garbage collection holds.
    pub(crate) fn gc_lock(&self) -> &Mutex<()> {
        &self.gc_lock
    }

    /// Returns the open folder of the store.
    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Returns a new path in `tmp` for unfinished work.
    pub fn tmp_path(&self) -> PathBuf {
        self.tmp.next()
    }

    /// Returns what running work has reserved on the disk.
    pub(crate) fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// Returns the size of the file system of the store, and how much of it an unprivileged process can still write, in
    /// bytes.
    pub fn capacity_and_free_space(&self) -> Result<(u64, u64), DiskError> {
        let space = DiskSpace::measure(&self.root)?;
        Ok((space.capacity(), space.free()))
    }

    /// Reserves `wanted` bytes and inodes, which are free without the reserves and without the reservations of others.
    /// Runs garbage collection if there is not enough.
    pub(crate) fn reserve(&self, wanted: Usage) -> Result<Reservation, DiskError> {
        if wanted == Usage::default() {
            return Ok(Reservation::none());
        }
        let reserve = || self.reservations.reserve(&self.root, &self.limits, wanted);
        let error = match reserve() {
            Err(error) if error.is_full() => error,
            reserved => return reserved,
        };
        let Some(reclaim) = self.reclaim_space else { return Err(error) };
        let space = DiskSpace::measure(&self.root)?;
        reclaim(self, space.needed(wanted.plus(self.reservations.outstanding()), &self.limits))?;
        reserve()
    }

    /// Marks items that are about to be created as not yet synced, so that they can become visible before
    /// they are on the disk.
    pub(crate) fn mark_unsynced(&self, items: &[Item]) -> Result<UnsyncedMarks, DiskError> {
        /// The longest line of a mark.
        const LINE: u64 = 80;
        if !self.is_persistent {
            return Ok(UnsyncedMarks::none());
        }
        let _space = self.reserve(Usage::file(LINE * items.len() as u64))?;
        match self.durability.mark(items) {
            // Some file systems cannot sync a folder. Then items are synced before they become visible.
            Err(error) if !error.is_full() && !matches!(error, DiskError::ReadOnly { .. }) => {
                tracing::debug!(%error, "cannot mark items as not yet synced; they are synced before they become visible");
                Ok(UnsyncedMarks::none())
            }
            marked => marked,
        }
    }

    /// Syncs everything written so far to the disk.
    fn sync(&self) -> Result<(), DiskError> {
        if !self.is_persistent {
            return Ok(());
        }
        rustix::fs::syncfs(&self.root).map_err(|errno| DiskError::new("sync", &self.path, errno))
    }

    fn clear_unfinished(&self) -> Result<(), DiskError> {
        let tmp = self.layout.tmp();
        let failed = |error| DiskError::new("empty the folder", &tmp, error);
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
    // Opened for reading: a file open for writing would prevent a remount as read-only.
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::openat(root, "lock", flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| DiskError::new("open", path.join("lock"), errno))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(StoreError::Locked(path.to_owned())),
        Err(errno) => Err(DiskError::new("lock", path, errno).into()),
    }
}

/// Finds the store in `path` for reading without its lock.
pub fn locate_store(path: &Path) -> Result<Layout, StoreError> {
    let path = path.canonicalize().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => StoreError::Missing(path.to_owned()),
        _ => DiskError::new("resolve the path", path, error).into(),
    })?;
    match format::read(&path)? {
        Some(_) => Ok(Layout::new(path)),
        None => Err(StoreError::Missing(path)),
    }
}

#[cfg(test)]
mod durability_tests;
#[cfg(test)]
mod tests;
