//! Leases on items that are in use before a volume record names them.
//!
//! A publish holds a lease on its tree from before it looks the tree up until its record is written. A pull
//! holds a lease on its tree and on every blob and layer that it links, from before it checks which of them
//! the store has.
//!
//! Garbage collection first calls [`Leases::begin`], then reads records and mounts, and then deletes one item
//! at a time with [`Leases::take_away`]. An item that is leased after `begin`, even briefly, stays, because a
//! volume that is published meanwhile is missing in the lists that were read. An item whose lease ended
//! before `begin` has a record, and is in these lists.
//!
//! Architecture Invariant: an item is removed from `blobs`, `layers` or `trees` only under the mutex of the
//! leases.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use oras_csi_core::digest::Digest;

use crate::disk::DiskError;
use crate::layout::{Item, LayerKey, TreeKey};

#[derive(Debug, Default)]
struct Table {
    held: HashMap<Item, usize>,
    /// What was leased since a collection began.
    seen: Option<HashSet<Item>>,
    /// What was found damaged while it was leased, and when: nothing may be visible that was begun before.
    damaged: HashMap<Item, Instant>,
}

/// All leases on a store's things.
#[derive(Clone, Debug, Default)]
pub struct Leases(Arc<Mutex<Table>>);

/// While this is there, what it names is not taken away by a collector.
#[derive(Debug)]
pub struct Lease {
    all: Leases,
    items: Vec<Item>,
}

/// While this is there, whatever is leased is remembered.
#[derive(Debug)]
pub(crate) struct Watch(Leases);

impl Leases {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease on nothing yet.
    pub fn lease(&self) -> Lease {
        Lease { all: self.clone(), items: Vec::new() }
    }

    /// How many things are leased.
    pub fn count(&self) -> usize {
        self.table().held.len()
    }

    /// Begins to remember what is leased; only one collector at a time does.
    pub(crate) fn begin(&self) -> Watch {
        let mut table = self.table();
        table.seen = Some(table.held.keys().cloned().collect());
        Watch(self.clone())
    }

    /// Whether a collector has to leave it.
    pub(crate) fn is_taken(&self, item: &Item) -> bool {
        self.table().is_taken(item)
    }

    /// Does `away` unless the thing is leased, or was since the collection began. Says whether it did.
    pub(crate) fn take_away(
        &self,
        item: &Item,
        away: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<bool, DiskError> {
        let table = self.table();
        if table.is_taken(item) {
            return Ok(false);
        }
        away().map(|()| true)
    }

    /// Does `away` with something damaged, leased or not; what is being made of it comes to nothing.
    pub(crate) fn take_damaged(
        &self,
        item: &Item,
        away: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut table = self.table();
        if table.held.contains_key(item) {
            table.damaged.insert(item.clone(), Instant::now());
        }
        away()
    }

    /// Does `keep`, which makes something of `parts` visible that was begun at a time, unless one of them was
    /// found damaged since: what was found before that is fetched again by now.
    pub(crate) fn keep(
        &self,
        begun: Instant,
        parts: impl IntoIterator<Item = Item>,
        keep: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let table = self.table();
        if !table.damaged.is_empty()
            && let Some(part) =
                parts.into_iter().find(|part| table.damaged.get(part).is_some_and(|found| *found >= begun))
        {
            return Err(DiskError::Damaged { what: part.to_string() });
        }
        keep()
    }
}

impl Table {
    fn is_taken(&self, item: &Item) -> bool {
        self.held.contains_key(item) || self.seen.as_ref().is_some_and(|seen| seen.contains(item))
    }
}

impl Lease {
    /// Leases a tree as well.
    pub fn tree(&mut self, key: &TreeKey) -> &mut Self {
        self.add(Item::Tree(key.clone()))
    }

    /// Leases a layer as well.
    pub fn layer(&mut self, key: &LayerKey) -> &mut Self {
        self.add(Item::Layer(key.clone()))
    }

    /// Leases a blob as well.
    pub fn blob(&mut self, digest: &Digest) -> &mut Self {
        self.add(Item::Blob(digest.clone()))
    }

    fn add(&mut self, item: Item) -> &mut Self {
        let mut table = self.all.table();
        *table.held.entry(item.clone()).or_default() += 1;
        if let Some(seen) = &mut table.seen {
            seen.insert(item.clone());
        }
        drop(table);
        self.items.push(item);
        self
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

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &[u8]) -> Item {
        Item::Blob(Digest::sha256_of(text))
    }

    fn goes(leases: &Leases, item: &Item) -> bool {
        leases.take_away(item, || Ok(())).unwrap()
    }

    #[test]
    fn what_is_leased_stays_and_what_was_leased_meanwhile_too() {
        let leases = Leases::default();
        let (a, b, c) = (Digest::sha256_of(b"a"), Digest::sha256_of(b"b"), item(b"c"));
        let mut before = leases.lease();
        before.blob(&a);
        let watch = leases.begin();
        let mut short = leases.lease();
        short.blob(&b).blob(&b);
        assert_eq!(leases.count(), 2);
        drop((short, before));
        assert_eq!(leases.count(), 0);
        assert!(!goes(&leases, &item(b"a")) && !goes(&leases, &item(b"b")) && goes(&leases, &c));
        drop(watch);
        assert!(goes(&leases, &item(b"a")) && goes(&leases, &item(b"b")));
    }

    #[test]
    fn nothing_is_made_of_what_was_damaged_meanwhile() {
        let leases = Leases::default();
        let digest = Digest::sha256_of(b"a");
        let (mut lease, begun) = (leases.lease(), Instant::now());
        lease.blob(&digest);
        leases.take_damaged(&item(b"a"), || Ok(())).unwrap();
        leases.take_damaged(&item(b"b"), || Ok(())).unwrap();
        let error = leases.keep(begun, [item(b"b"), item(b"a")], || Ok(())).unwrap_err().to_string();
        assert!(error.contains(digest.hex()), "{error}");
        leases.keep(begun, [item(b"b")], || Ok(())).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
        leases.keep(Instant::now(), [item(b"a")], || Ok(())).unwrap();
        drop(lease);
        leases.keep(begun, [item(b"a")], || Ok(())).unwrap();
    }
}
