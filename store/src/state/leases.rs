//! Leases: what is in use although no record says so yet.
//!
//! A publish holds a lease on its tree from before it looks for the tree until its record is written. A pull holds a
//! lease on its tree and on every blob and layer that it links, from before it looks which of them exist.
//!
//! The garbage collector first calls [`Leases::begin`], then reads records and mounts, and then removes one item at a
//! time with [`Leases::remove`]. An item that was leased at any time after `begin` is not removed: its volume is in no
//! list that was read before. An item that was leased and released before `begin` has its record, which is in the list.
//!
//! **Renames run without the mutex.** A rename can hang as long as the disk does, and calls of other volumes take the
//! same mutex on runtime threads. So a rename that removes an item marks it as `moving`, one that makes a tree visible
//! marks its parts as `committing`, and the mutex is released while the system call runs:
//!
//! | operation | waits for | on |
//! |---|---|---|
//! | [`Lease::add`], [`Lease::add_blocking`] | a rename that removes the same item | a task; a blocking thread |
//! | [`Leases::remove`] | another removal of the same item | a blocking thread |
//! | [`Leases::remove_damaged`] | a removal of the same item, a commit of a tree that contains it | a blocking thread |
//! | [`Leases::commit`] | nothing | |
//!
//! Architecture Invariant: an item leaves `blobs`, `layers` or `trees` only while it is marked as `moving`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::disk::DiskError;
use crate::layout::Item;

#[derive(Debug, Default)]
struct Table {
    held: HashMap<Item, usize>,
    /// The items leased since a collection began.
    seen: Option<HashSet<Item>>,
    /// The items found damaged while they were leased, and when. A tree that was begun before must not contain them.
    damaged: HashMap<Item, Instant>,
    /// The items whose removal is in progress.
    moving: HashSet<Item>,
    /// The parts of trees that are being made visible, with the number of these trees.
    committing: HashMap<Item, usize>,
}

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    /// Wakes blocking threads when a rename has ended.
    renamed: Condvar,
    /// Wakes tasks when a rename has ended.
    renamed_async: Notify,
}

/// All leases on the items of a store.
#[derive(Clone, Debug, Default)]
pub struct Leases(Arc<Shared>);

/// Protects the items it names from garbage collection for as long as it lives.
#[derive(Debug)]
pub struct Lease {
    all: Leases,
    items: Vec<Item>,
}

/// Records every leased item for as long as it lives.
#[derive(Debug)]
pub(crate) struct Watch(Leases);

/// Clears the marks of a rename when it has ended, even by a panic.
struct Renaming<'a> {
    all: &'a Leases,
    moving: Option<Item>,
    committing: Vec<Item>,
}

impl Leases {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, on a blocking thread, until `is_clear` holds.
    fn wait<'a>(
        &self,
        mut table: MutexGuard<'a, Table>,
        is_clear: impl Fn(&Table) -> bool,
    ) -> MutexGuard<'a, Table> {
        while !is_clear(&table) {
            table = self.0.renamed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        table
    }

    /// Returns a lease that names no item yet.
    pub fn lease(&self) -> Lease {
        Lease { all: self.clone(), items: Vec::new() }
    }

    /// Returns the number of leased items.
    pub fn count(&self) -> usize {
        self.table().held.len()
    }

    /// Starts to record which items are leased. Only one collection at a time calls this.
    pub(crate) fn begin(&self) -> Watch {
        let mut table = self.table();
        table.seen = Some(table.held.keys().cloned().collect());
        Watch(self.clone())
    }

    /// Reports whether the garbage collector must leave the item.
    pub(crate) fn is_taken(&self, item: &Item) -> bool {
        self.table().is_taken(item)
    }

    /// Runs `rename`, which removes the item, unless the item is leased or was leased since the collection began.
    /// Returns whether the item was removed. Blocks while the disk does.
    pub(crate) fn remove(
        &self,
        item: &Item,
        rename: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<bool, DiskError> {
        let mut table = self.wait(self.table(), |table| !table.moving.contains(item));
        if table.is_taken(item) {
            return Ok(false);
        }
        let _renaming = self.mark_moving(&mut table, item);
        drop(table);
        rename().map(|()| true)
    }

    /// Runs `rename`, which moves a damaged item away, leased or not. A tree that is being built from it cannot be
    /// committed afterwards. Blocks while the disk does.
    pub(crate) fn remove_damaged(
        &self,
        item: &Item,
        rename: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut table = self
            .wait(self.table(), |table| !table.moving.contains(item) && !table.committing.contains_key(item));
        table.mark_damaged(item);
        let _renaming = self.mark_moving(&mut table, item);
        drop(table);
        let renamed = rename();
        // Again, because a tree that was begun during the rename can contain the item.
        self.table().mark_damaged(item);
        renamed
    }

    /// Runs `rename`, which makes a tree visible that was begun at `begun` and consists of `parts`. Fails if one of the
    /// parts was found damaged since, or is being moved away: a part that was found damaged earlier has been downloaded
    /// again.
    pub(crate) fn commit(
        &self,
        begun: Instant,
        parts: impl IntoIterator<Item = Item>,
        rename: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let parts: Vec<Item> = parts.into_iter().collect();
        let mut table = self.table();
        let is_damaged = |part: &&Item| {
            table.moving.contains(*part) || table.damaged.get(*part).is_some_and(|found| *found >= begun)
        };
        if let Some(part) = parts.iter().find(is_damaged) {
            return Err(DiskError::Damaged { what: part.to_string() });
        }
        for part in &parts {
            *table.committing.entry(part.clone()).or_default() += 1;
        }
        drop(table);
        let _renaming = Renaming { all: self, moving: None, committing: parts };
        rename()
    }

    fn mark_moving(&self, table: &mut Table, item: &Item) -> Renaming<'_> {
        table.moving.insert(item.clone());
        Renaming { all: self, moving: Some(item.clone()), committing: Vec::new() }
    }
}

impl Table {
    fn is_taken(&self, item: &Item) -> bool {
        self.held.contains_key(item) || self.seen.as_ref().is_some_and(|seen| seen.contains(item))
    }

    /// Records that an item was found damaged now. It matters only while the item is leased.
    fn mark_damaged(&mut self, item: &Item) {
        if self.held.contains_key(item) {
            self.damaged.insert(item.clone(), Instant::now());
        }
    }

    fn is_moving(&self, items: &[Item]) -> bool {
        !self.moving.is_empty() && items.iter().any(|item| self.moving.contains(item))
    }
}

impl Lease {
    /// Leases more items. Waits for the end of a removal of one of them that is in progress, so that the caller can
    /// look afterwards whether the item exists.
    pub async fn add(&mut self, items: impl IntoIterator<Item = Item>) {
        let first = self.register(items);
        loop {
            let renamed = self.all.0.renamed_async.notified();
            tokio::pin!(renamed);
            // Registered before the check, so that no notification is missed.
            renamed.as_mut().enable();
            if !self.all.table().is_moving(&self.items[first..]) {
                return;
            }
            renamed.await;
        }
    }

    /// Does the same as [`Lease::add`] on a thread that may block.
    pub fn add_blocking(&mut self, items: impl IntoIterator<Item = Item>) {
        let first = self.register(items);
        let added = &self.items[first..];
        drop(self.all.wait(self.all.table(), |table| !table.is_moving(added)));
    }

    /// Leases the items and returns the index of the first.
    fn register(&mut self, items: impl IntoIterator<Item = Item>) -> usize {
        let first = self.items.len();
        self.items.extend(items);
        let mut table = self.all.table();
        for item in &self.items[first..] {
            *table.held.entry(item.clone()).or_default() += 1;
            if let Some(seen) = &mut table.seen {
                seen.insert(item.clone());
            }
        }
        first
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut table = self.all.table();
        for item in self.items.drain(..) {
            let Some(count) = table.held.get_mut(&item) else { continue };
            *count -= 1;
            if *count == 0 {
                table.held.remove(&item);
                table.damaged.remove(&item);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.table().seen = None;
    }
}

impl Drop for Renaming<'_> {
    fn drop(&mut self) {
        let mut table = self.all.table();
        if let Some(item) = self.moving.take() {
            table.moving.remove(&item);
        }
        for part in self.committing.drain(..) {
            let Some(count) = table.committing.get_mut(&part) else { continue };
            *count -= 1;
            if *count == 0 {
                table.committing.remove(&part);
            }
        }
        drop(table);
        self.all.0.renamed.notify_all();
        self.all.0.renamed_async.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use oras_csi_core::digest::Digest;

    use super::*;

    fn item(text: &[u8]) -> Item {
        Item::Blob(Digest::sha256_of(text))
    }

    fn is_removed(leases: &Leases, item: &Item) -> bool {
        leases.remove(item, || Ok(())).unwrap()
    }

    #[test]
    fn keeps_leased_items_and_items_leased_during_a_collection() {
        let leases = Leases::default();
        let (a, b, c) = (item(b"a"), item(b"b"), item(b"c"));
        let mut before = leases.lease();
        before.add_blocking([a.clone()]);
        let watch = leases.begin();
        let mut short = leases.lease();
        short.add_blocking([b.clone(), b.clone()]);
        assert_eq!(leases.count(), 2);
        drop((short, before));
        assert_eq!(leases.count(), 0);
        assert!(!is_removed(&leases, &a) && !is_removed(&leases, &b) && is_removed(&leases, &c));
        drop(watch);
        assert!(is_removed(&leases, &a) && is_removed(&leases, &b));
    }

    #[test]
    fn refuses_to_commit_a_tree_whose_part_was_found_damaged_since_it_was_begun() {
        let leases = Leases::default();
        let digest = Digest::sha256_of(b"a");
        let (mut lease, begun) = (leases.lease(), Instant::now());
        lease.add_blocking([item(b"a")]);
        leases.remove_damaged(&item(b"a"), || Ok(())).unwrap();
        leases.remove_damaged(&item(b"b"), || Ok(())).unwrap();
        let error = leases.commit(begun, [item(b"b"), item(b"a")], || Ok(())).unwrap_err().to_string();
        assert!(error.contains(digest.hex()), "{error}");
        leases.commit(begun, [item(b"b")], || Ok(())).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        leases.commit(Instant::now(), [item(b"a")], || Ok(())).unwrap();
        drop(lease);
        leases.commit(begun, [item(b"a")], || Ok(())).unwrap();
    }

    /// A rename that hangs: what else can go on, and what waits for its end.
    #[tokio::test(flavor = "current_thread")]
    async fn a_hanging_removal_delays_only_leases_on_the_same_item() {
        let leases = Leases::default();
        let (started, has_started) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let remover = leases.clone();
        let hanging = std::thread::spawn(move || {
            remover.remove(&item(b"a"), || {
                started.send(()).unwrap();
                released.recv().unwrap();
                Ok(())
            })
        });
        has_started.recv().unwrap();

        leases.lease().add([item(b"b")]).await;
        leases.commit(Instant::now(), [item(b"b")], || Ok(())).unwrap();
        assert!(is_removed(&leases, &item(b"b")));

        let mut lease = leases.lease();
        {
            let waiting = lease.add([item(b"a")]);
            tokio::pin!(waiting);
            let early = tokio::time::timeout(Duration::from_millis(20), waiting.as_mut()).await;
            assert!(early.is_err(), "the item may still be visible");
            release.send(()).unwrap();
            waiting.await;
        }
        assert!(hanging.join().unwrap().unwrap());
        assert!(!is_removed(&leases, &item(b"a")), "it is leased now");
    }

    #[test]
    fn a_tree_that_is_begun_while_a_damaged_part_is_moved_is_not_committed() {
        let leases = Leases::default();
        let mut lease = leases.lease();
        lease.add_blocking([item(b"a")]);
        let commit = |begun| leases.commit(begun, [item(b"a")], || Ok(()));
        let mut begun = None;
        leases
            .remove_damaged(&item(b"a"), || {
                begun = Some(Instant::now());
                assert!(commit(Instant::now()).is_err(), "the part is still visible");
                Ok(())
            })
            .unwrap();
        assert!(commit(begun.unwrap()).is_err(), "the tree can contain the part");
        // A tree that is begun afterwards contains the part that was downloaded again.
        commit(Instant::now()).unwrap();
    }

    #[test]
    fn a_damaged_part_is_moved_only_after_a_commit_in_progress() {
        let leases = Leases::default();
        let (started, has_started) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let committer = leases.clone();
        let committing = std::thread::spawn(move || {
            committer.commit(Instant::now(), [item(b"a")], || {
                started.send(()).unwrap();
                released.recv().unwrap();
                Ok(())
            })
        });
        has_started.recv().unwrap();
        let (moved, has_moved) = mpsc::channel();
        let for_removal = leases.clone();
        let moving = std::thread::spawn(move || {
            for_removal.remove_damaged(&item(b"a"), || {
                moved.send(()).unwrap();
                Ok(())
            })
        });
        assert!(has_moved.recv_timeout(Duration::from_millis(50)).is_err());
        release.send(()).unwrap();
        committing.join().unwrap().unwrap();
        has_moved.recv().unwrap();
        moving.join().unwrap().unwrap();
    }
}
