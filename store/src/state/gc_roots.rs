//! GC roots from outside the store: the trees that volumes use.
//!
//! The store does not know volumes or mounts. The program that mounts trees reports them by implementing
//! [`GcRoots`].

use std::collections::{BTreeSet, HashSet};
use std::error::Error;
use std::fmt;

use crate::disk::DiskError;
use crate::layout::{Layout, TreeKey};

/// Reports which trees of a store are in use.
pub trait GcRoots: fmt::Debug + Send + Sync {
    /// Reads which trees are in use. On an error nothing is deleted.
    fn read(&self, layout: &Layout) -> Result<TreesInUse, RootsError>;

    /// Returns the volumes that use one of these trees, for damage reports.
    fn volumes_using(&self, layout: &Layout, trees: &BTreeSet<TreeKey>) -> Result<Vec<String>, DiskError>;
}

/// The reason why the trees in use are not known. Then all trees count as in use.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The mounts cannot be read.
    #[error(transparent)]
    Mounts(Box<dyn Error + Send + Sync>),
    /// The volume records cannot be read, or an item cannot be deleted.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store was opened without [`GcRoots`].
    #[error("cannot collect garbage: the store was opened without a list of the trees in use")]
    Unknown,
}

/// The trees that volumes use.
#[derive(Clone, Debug, Default)]
pub struct TreesInUse {
    recorded: HashSet<TreeKey>,
    mounted: HashSet<TreeKey>,
    mounted_quarantined: HashSet<String>,
    mounts: usize,
}

impl TreesInUse {
    /// Adds a tree that a volume record names.
    pub fn add_recorded(&mut self, key: TreeKey) {
        self.recorded.insert(key);
    }

    /// Adds a mount of a tree.
    pub fn add_mount(&mut self, key: TreeKey) {
        self.mounts += 1;
        self.mounted.insert(key);
    }

    /// Adds a mount of a tree that was quarantined under this name.
    pub fn add_quarantined_mount(&mut self, name: String) {
        self.mounts += 1;
        self.mounted_quarantined.insert(name);
    }

    /// Reports whether a volume uses this tree.
    pub fn contains(&self, key: &TreeKey) -> bool {
        self.recorded.contains(key) || self.mounted.contains(key)
    }

    /// Reports whether a tree is mounted.
    pub fn is_mounted(&self, key: &TreeKey) -> bool {
        self.mounted.contains(key)
    }

    /// Reports whether the quarantined tree with this name is mounted.
    pub fn is_quarantined_mounted(&self, name: &str) -> bool {
        self.mounted_quarantined.contains(name)
    }

    /// Returns the number of mounts of trees.
    pub fn mounts(&self) -> usize {
        self.mounts
    }
}
