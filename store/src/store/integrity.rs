//! Before something that is there becomes part of a new tree it is compared with what it was: once a process, since
//! that takes as long as reading it does. What this process unpacked itself is not compared again.
//!
//! A tree that is there already is looked at, not read (see [`Store::tree`]): a warm publish must not take longer
//! the more is in it.

use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};

use super::lease::Item;
use super::read::AtOnce;
use super::{DiskError, Store};
use crate::scrub::{self, Verdict};

/// What was compared with its digests by this process.
#[derive(Debug, Default)]
pub(super) struct Trusted {
    /// How often the disk had refused something before.
    refusals: u64,
    items: HashSet<Item>,
}

impl Store {
    /// Whether a blob or a layer is what it was. If it is not, it is set aside.
    pub(crate) fn is_whole(&self, item: &Item) -> Result<bool, DiskError> {
        if !self.kept || self.trusted().items.contains(item) {
            return Ok(true);
        }
        let verdict = match item {
            Item::Blob(digest) => scrub::blob(&self.layout, digest, &mut AtOnce),
            Item::Layer(name) => scrub::layer(&self.layout, name, &mut AtOnce)?,
            Item::Tree(_) => Verdict::Good,
        };
        match verdict {
            Verdict::Good | Verdict::NoSums => {
                self.trust(item.clone());
                Ok(true)
            }
            Verdict::Damaged(found) => {
                self.set_aside(item, &found)?;
                Ok(false)
            }
            Verdict::Gone | Verdict::Stopped => Ok(false),
        }
    }

    /// Notes that something is what it was.
    pub(super) fn trust(&self, item: Item) {
        self.trusted().items.insert(item);
    }

    pub(super) fn distrust(&self, item: &Item) {
        self.trusted().items.remove(item);
    }

    /// Since the disk last refused what was written: then nobody knows what it has.
    fn trusted(&self) -> MutexGuard<'_, Trusted> {
        let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        let refusals = self.unsynced.refusals();
        if trusted.refusals != refusals {
            *trusted = Trusted { refusals, items: HashSet::new() };
        }
        trusted
    }
}
