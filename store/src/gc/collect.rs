//! One garbage collection: reads which items are in use, then deletes unused items until the goal is reached.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::CWD;

use super::candidates::{Candidates, Deletable};
use super::roots::Roots;
use super::watermarks::Watermarks;
use crate::content::inventory::Inventory;
use crate::disk::{DiskError, DiskSpace, Resource, Usage};
use crate::layout::{Item, quarantined_tree};
use crate::state::gc_roots::{GcRoots, RootsError};
use crate::state::node_record::{CollectionReport, now};
use crate::store::Store;

impl Store {
    /// Returns the store with garbage collection, which deletes unused items when the disk is full. `roots`
    /// reports the trees in use.
    #[must_use]
    pub fn with_garbage_collection(self, roots: Arc<dyn GcRoots>) -> Self {
        self.with_reclaimer(roots, free_disk_space)
    }
}

/// The goal of a garbage collection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal<'a> {
    /// If usage is above the high watermark, deletes until it is below the low watermark.
    Watermarks(&'a Watermarks),
    /// Deletes until this many bytes and inodes are free.
    Free(Usage),
    /// Deletes until the store has at most this many bytes.
    MaxBytes(u64),
    /// Deletes until the free space has doubled: the free bytes or the free inodes, whichever is scarcer.
    DoubleFreeSpace,
    /// Deletes all unused items.
    All,
}

/// Deletes unused items until `goal` is reached. Items that were used within `age` stay.
pub fn collect(store: &Store, goal: Goal<'_>, age: Duration) -> Result<CollectionReport, RootsError> {
    let _one = store.gc_lock().lock().unwrap_or_else(PoisonError::into_inner);
    // Before records and mounts are read: items that are leased from here on stay.
    let _watch = store.leases().begin();
    // Also before mounts are read: an item that is quarantined later has another path in the list of mounts.
    let quarantined = quarantined_names(store)?;
    let roots = Roots::read(store.roots().ok_or(RootsError::Unknown)?.as_ref(), store.layout())?;
    let mut report = CollectionReport::default();
    for name in quarantined {
        // A publish may have cloned the tree's mount and not attached it yet.
        let is_leased = quarantined_tree(&name).is_some_and(|key| store.leases().is_taken(&Item::Tree(key)));
        if !is_leased && !roots.is_quarantined_mounted(&name) {
            delete(&store.layout().quarantine().join(name));
            report.quarantined += 1;
        }
    }
    let mut progress =
        Progress { store, goal, usage: None, doubled: doubled(DiskSpace::measure(store.root())?) };
    if progress.is_reached(true)? {
        return Ok(finish(store, report));
    }
    store.provenance().forget_missing();
    let inventory = Inventory::read(store.layout())?;
    progress.usage = Some(inventory.usage());
    if progress.is_reached(true)? {
        return Ok(finish(store, report));
    }
    let oldest = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut candidates = Candidates::select(&inventory, &roots, store.leases(), oldest);
    if let Goal::Free(wanted) = goal
        && !DiskSpace::measure(store.root())?.has_free(wanted.minus(candidates.usage()))
    {
        // Deletes nothing for a pull that will not fit anyway, because a manifest can claim any size.
        return Ok(finish(store, report));
    }
    while let Some(candidate) = candidates.pop() {
        let freed = candidates.delete(&candidate, |part| remove(store, part, &mut report))?;
        report.bytes += freed.bytes;
        report.inodes += freed.inodes;
        progress.usage = progress.usage.map(|usage| usage.minus(freed));
        if progress.is_reached(false)? {
            break;
        }
    }
    Ok(finish(store, report))
}

/// Doubles the free space after a pull ran out of disk space, because the unpacked size of an archive is not
/// known in advance. So each attempt has twice as much space as the one before, as long as there are unused
/// items.
pub fn double_free_space(store: &Store) {
    if let Err(error) = collect(store, Goal::DoubleFreeSpace, store.limits().minimum_age()) {
        tracing::warn!(%error, "cannot free more disk space now; the next attempt of the pull tries again");
    }
}

/// Returns twice the free bytes or the free inodes, whichever is scarcer.
fn doubled(space: DiskSpace) -> Usage {
    match space.scarcer() {
        Resource::Bytes => Usage { bytes: space.free().saturating_mul(2), inodes: 0 },
        Resource::Inodes => {
            Usage { bytes: 0, inodes: space.free_inodes().unwrap_or_default().saturating_mul(2) }
        }
    }
}

/// Frees `wanted` bytes and inodes by deleting unused items, if possible. The caller must check the free space
/// afterwards.
fn free_disk_space(store: &Store, wanted: Usage) -> Result<(), DiskError> {
    let age = store.limits().minimum_age();
    match collect(store, Goal::Free(wanted), age) {
        Ok(_) => Ok(()),
        Err(RootsError::Disk(error)) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "the disk is full, and garbage collection cannot run because the trees in use are not known");
            Ok(())
        }
    }
}

fn finish(store: &Store, mut report: CollectionReport) -> CollectionReport {
    report.ended = now();
    let taken = report.trees + report.layers + report.blobs + report.quarantined;
    if taken > 0 {
        tracing::info!(
            trees = report.trees,
            layers = report.layers,
            blobs = report.blobs,
            quarantined = report.quarantined,
            bytes = report.bytes,
            inodes = report.inodes,
            "garbage collection deleted unused items"
        );
        store.observer().collected(&report);
        let report = report.clone();
        store.update_node_record(|record| record.collection = Some(report));
    }
    report
}

/// Lists the names in quarantine.
fn quarantined_names(store: &Store) -> Result<Vec<String>, DiskError> {
    let folder = store.layout().quarantine();
    let failed = |error| DiskError::new("list", &folder, error);
    let listed = std::fs::read_dir(&folder).map_err(failed)?;
    listed.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Deletes an item, unless it is leased. Reports whether it did.
fn remove(store: &Store, what: &Deletable, report: &mut CollectionReport) -> Result<bool, DiskError> {
    let layout = store.layout();
    let (path, item, count): (PathBuf, Option<Item>, _) = match what {
        Deletable::Tree(key) => (layout.tree(key), Some(Item::Tree(key.clone())), &mut report.trees),
        Deletable::Layer(key) => (layout.layer(key), Some(Item::Layer(key.clone())), &mut report.layers),
        Deletable::Blob(digest) => (layout.blob(digest), Some(Item::Blob(digest.clone())), &mut report.blobs),
        Deletable::Partial(name, item) => (layout.partial().join(name), item.clone(), &mut report.blobs),
    };
    let doomed = store.tmp_path();
    let move_to_tmp = || {
        match rustix::fs::renameat(CWD, &path, CWD, &doomed) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(DiskError::new("delete", &path, errno)),
        }
        // Before the item can be leased again, so that the facts of a new download stay.
        if let (Some(item), Deletable::Blob(_)) = (&item, what) {
            store.provenance().forget(item);
        }
        Ok(())
    };
    let deleted = match &item {
        Some(item) => store.leases().remove(item, move_to_tmp)?,
        None => move_to_tmp().map(|()| true)?,
    };
    if deleted {
        // After the rename, without the leases' mutex: deleting a hundred thousand files takes time.
        delete(&doomed);
        *count += 1;
    }
    Ok(deleted)
}

/// Deletes a file or a folder that is no longer in use. If that fails, it is deleted at the next start.
fn delete(path: &Path) {
    let deleted = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => return,
    };
    if let Err(error) = deleted {
        tracing::warn!(path = %path.display(), %error, "cannot delete an unused item; a later garbage collection or the next start deletes it");
    }
}

/// Checks whether the goal is reached.
struct Progress<'a> {
    store: &'a Store,
    goal: Goal<'a>,
    /// What the disk is charged for the store, once it was counted.
    usage: Option<Usage>,
    /// Twice the free space at the start.
    doubled: Usage,
}

impl Progress<'_> {
    /// Reports whether the goal is reached. `before` the first deletion the high watermark applies,
    /// afterwards the low one.
    fn is_reached(&self, before: bool) -> Result<bool, DiskError> {
        Ok(match self.goal {
            Goal::All => false,
            Goal::Free(wanted) => DiskSpace::measure(self.store.root())?.has_free(wanted),
            Goal::DoubleFreeSpace => DiskSpace::measure(self.store.root())?.has_free(self.doubled),
            Goal::MaxBytes(most) => self.usage.is_some_and(|usage| usage.bytes <= most),
            Goal::Watermarks(marks) => {
                // The limit on the store's own size can be checked only after its bytes were counted.
                let counted = self.usage.is_some() || marks.max_bytes().is_none();
                let space = DiskSpace::measure(self.store.root())?;
                counted && !marks.is_above(space, self.usage.map(|usage| usage.bytes), before)
            }
        })
    }
}
