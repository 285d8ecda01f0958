//! One collection: reads what is in use, then deletes until the goal is reached.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::CWD;

use super::candidates::{Candidates, What};
use super::roots::Roots;
use super::watermarks::Watermarks;
use crate::content::inventory::Inventory;
use crate::disk::{DiskError, DiskSpace};
use crate::layout::{Item, quarantined_tree};
use crate::state::gc_roots::{GcRoots, RootsError};
use crate::state::node_record::{CollectionReport, now};
use crate::store::Store;

impl Store {
    /// The same store, which deletes what nobody uses where the disk is full. `roots` says what is in use.
    #[must_use]
    pub fn with_garbage_collection(self, roots: Arc<dyn GcRoots>) -> Self {
        self.with_reclaimer(roots, make_space)
    }
}

/// How far a collection goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal<'a> {
    /// Below the low watermark, if above the high one.
    Watermarks(&'a Watermarks),
    /// Until so many bytes are free.
    Free(u64),
    /// Until the store has no more bytes than this.
    To(u64),
    /// Until twice as much is free as at the beginning.
    Twice,
    /// All that may go.
    All,
}

/// Takes away what may go, until `goal` is reached; what was used within `age` stays.
pub fn collect(store: &Store, goal: Goal<'_>, age: Duration) -> Result<CollectionReport, RootsError> {
    let _one = store.collecting().lock().unwrap_or_else(PoisonError::into_inner);
    // Before records and mounts are read: what is leased from here on stays.
    let _watch = store.leases().begin();
    // Before mounts are read, too: what is set aside afterwards would be mounted under another name there.
    let quarantined = quarantined_names(store)?;
    let roots = Roots::read(store.roots().ok_or(RootsError::Unknown)?.as_ref(), store.layout())?;
    let mut done = CollectionReport::default();
    for name in quarantined {
        // A publish may hold a clone of the tree that it has not attached yet.
        let is_leased = quarantined_tree(&name).is_some_and(|key| store.leases().is_taken(&Item::Tree(key)));
        if !is_leased && !roots.is_quarantined_mounted(&name) {
            delete(&store.layout().quarantine().join(name));
            done.quarantined += 1;
        }
    }
    let mut gauge =
        Gauge { store, goal, bytes: None, twice: DiskSpace::measure(store.root())?.free().saturating_mul(2) };
    if gauge.is_reached(true)? {
        return Ok(finish(store, done));
    }
    let inventory = Inventory::read(store.layout())?;
    gauge.bytes = Some(inventory.bytes());
    if gauge.is_reached(true)? {
        return Ok(finish(store, done));
    }
    let oldest = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut candidates = Candidates::of(&inventory, &roots, store.leases(), oldest);
    if let Goal::Free(wanted) = goal
        && DiskSpace::measure(store.root())?.free().saturating_add(candidates.bytes()) < wanted
    {
        // Nothing is lost for a pull that will not fit: a manifest may claim any size.
        return Ok(finish(store, done));
    }
    while let Some(candidate) = candidates.pop() {
        let freed = candidates.take(&candidate, |part| remove(store, part, &mut done))?;
        done.bytes += freed;
        gauge.bytes = gauge.bytes.map(|bytes| bytes.saturating_sub(freed));
        if gauge.is_reached(false)? {
            break;
        }
    }
    Ok(finish(store, done))
}

/// After a pull that ran out of room in the middle: how much an archive unpacks to is not known before. Each time the
/// next attempt finds twice as much room, for as long as there is something that nobody uses.
pub fn make_more_space(store: &Store) {
    if let Err(error) = collect(store, Goal::Twice, store.limits().minimum_age()) {
        tracing::warn!(%error, "no more room can be made now");
    }
}

/// Makes `wanted` bytes free, if that is possible by taking away what nobody uses. Whether it was is for the caller
/// to look at.
fn make_space(store: &Store, wanted: u64) -> Result<(), DiskError> {
    let age = store.limits().minimum_age();
    match collect(store, Goal::Free(wanted), age) {
        Ok(_) => Ok(()),
        Err(RootsError::Disk(error)) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "nothing is collected, though there is no room: what is in use is not known");
            Ok(())
        }
    }
}

fn finish(store: &Store, mut done: CollectionReport) -> CollectionReport {
    done.ended = now();
    let taken = done.trees + done.layers + done.blobs + done.quarantined;
    if taken > 0 {
        tracing::info!(
            trees = done.trees,
            layers = done.layers,
            blobs = done.blobs,
            set_aside = done.quarantined,
            bytes = done.bytes,
            "collected what nobody uses"
        );
        store.observer().collected(&done);
        let report = done.clone();
        store.update_node_record(|record| record.collection = Some(report));
    }
    done
}

/// What is set aside.
fn quarantined_names(store: &Store) -> Result<Vec<String>, DiskError> {
    let folder = store.layout().quarantine();
    let failed = |error| DiskError::new("list", &folder, error);
    let listed = std::fs::read_dir(&folder).map_err(failed)?;
    listed.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Takes one thing away, unless it is leased; says whether it did.
fn remove(store: &Store, what: &What, done: &mut CollectionReport) -> Result<bool, DiskError> {
    let layout = store.layout();
    let (path, item, count): (PathBuf, Option<Item>, _) = match what {
        What::Tree(key) => (layout.tree(key), Some(Item::Tree(key.clone())), &mut done.trees),
        What::Layer(key) => (layout.layer(key), Some(Item::Layer(key.clone())), &mut done.layers),
        What::Blob(digest) => (layout.blob(digest), Some(Item::Blob(digest.clone())), &mut done.blobs),
        What::Partial(name, item) => (layout.partial().join(name), item.clone(), &mut done.blobs),
    };
    let grave = store.tmp_path();
    let away = || match rustix::fs::renameat(CWD, &path, CWD, &grave) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(DiskError::new("take away", &path, errno)),
    };
    let gone = match &item {
        Some(item) => store.leases().remove(item, away)?,
        None => away().map(|()| true)?,
    };
    if gone {
        // Out of sight already: deleting a hundred thousand files holds nobody up.
        delete(&grave);
        *count += 1;
    }
    Ok(gone)
}

/// Deletes a file or a folder that nobody can see any more. What cannot be deleted now is at the next start.
fn delete(path: &Path) {
    let deleted = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => return,
    };
    if let Err(error) = deleted {
        tracing::warn!(path = %path.display(), %error, "cannot delete what was collected; a later collection or the next start does");
    }
}

/// How near the goal is.
struct Gauge<'a> {
    store: &'a Store,
    goal: Goal<'a>,
    /// How much the store has, once that was counted.
    bytes: Option<u64>,
    /// Twice of what was free at the beginning.
    twice: u64,
}

impl Gauge<'_> {
    /// Whether there is nothing (more) to do; `before` anything was taken away the high watermark counts.
    fn is_reached(&self, before: bool) -> Result<bool, DiskError> {
        Ok(match self.goal {
            Goal::All => false,
            Goal::Free(wanted) => DiskSpace::measure(self.store.root())?.free() >= wanted,
            Goal::Twice => DiskSpace::measure(self.store.root())?.free() >= self.twice,
            Goal::To(most) => self.bytes.is_some_and(|bytes| bytes <= most),
            Goal::Watermarks(marks) => {
                // A limit on the store itself can be looked at only once it was counted.
                let counted = self.bytes.is_some() || marks.most_bytes().is_none();
                let space = DiskSpace::measure(self.store.root())?;
                counted && !marks.is_above(space, self.bytes, before)
            }
        })
    }
}
