//! The GC roots: the trees that volumes use, and those in the preload index.

use std::collections::HashSet;

use crate::layout::{Layout, TreeKey};
use crate::state::gc_roots::{GcRoots, RootsError, TreesInUse};
use crate::store::preload_index::{PreloadEntry, read_preload_index};

/// The trees that must not be deleted.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    preloaded: HashSet<TreeKey>,
    in_use: TreesInUse,
}

impl Roots {
    /// Reads the preload index and the trees that `roots` reports.
    pub fn read(roots: &dyn GcRoots, layout: &Layout) -> Result<Self, RootsError> {
        let preloaded = read_preload_index(layout)?.iter().filter_map(PreloadEntry::tree).collect();
        Ok(Self { preloaded, in_use: roots.read(layout)? })
    }

    /// Reports whether a tree must stay.
    pub fn contains(&self, key: &TreeKey) -> bool {
        self.preloaded.contains(key) || self.in_use.contains(key)
    }

    /// Reports whether a tree is mounted.
    pub fn is_mounted(&self, key: &TreeKey) -> bool {
        self.in_use.is_mounted(key)
    }

    /// Reports whether the quarantined tree with this name is mounted.
    pub fn is_quarantined_mounted(&self, name: &str) -> bool {
        self.in_use.is_quarantined_mounted(name)
    }

    /// Returns the number of mounts of trees.
    pub fn mounts(&self) -> usize {
        self.in_use.mounts()
    }
}
