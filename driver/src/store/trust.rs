//! Before something that is there becomes part of a new tree it is compared with what it was: once a process, since
//! that takes as long as reading it does. What this process unpacked itself is not compared again.
//!
//! A tree that is there already is looked at, not read (see [`Store::tree`]): a warm publish must not take longer
//! the more is in it.

use std::sync::PoisonError;

use super::lease::Item;
use super::read::AtOnce;
use super::{DiskError, Store};
use crate::scrub::{self, Verdict};

impl Store {
    /// Whether a blob or a layer is what it was. If it is not, it is set aside.
    pub(crate) fn is_whole(&self, item: &Item) -> Result<bool, DiskError> {
        if !self.kept || self.trusted.lock().unwrap_or_else(PoisonError::into_inner).contains(item) {
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
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner).insert(item);
    }

    pub(super) fn distrust(&self, item: &Item) {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner).remove(item);
    }
}
