//! What must not be deleted: the trees that volumes use.
//!
//! The store does not know volumes or mounts. The program that mounts trees tells it by a [`GcRoots`].

use std::collections::{BTreeSet, HashSet};
use std::error::Error;
use std::fmt;

use crate::disk::DiskError;
use crate::layout::{Layout, TreeKey};

/// Knows which trees of a store are in use.
pub trait GcRoots: fmt::Debug + Send + Sync {
    /// Reads which trees are in use. Where that cannot be read, nothing is deleted.
    fn read(&self, layout: &Layout) -> Result<TreesInUse, RootsError>;

    /// Returns the volumes that use one of these trees, for reports of damage.
    fn volumes_using(&self, layout: &Layout, trees: &BTreeSet<TreeKey>) -> Result<Vec<String>, DiskError>;
}

/// Why it is not known what is in use: then everything is.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The mounts cannot be read.
    #[error(transparent)]
    Mounts(Box<dyn Error + Send + Sync>),
    /// Records cannot be read, or something cannot be deleted.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store was opened without [`GcRoots`].
    #[error("the store was opened without a list of the trees in use")]
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
    /// Adds a tree that a volume's record names.
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

    /// Whether a volume uses this tree.
    pub fn contains(&self, key: &TreeKey) -> bool {
        self.recorded.contains(key) || self.mounted.contains(key)
    }

    /// Whether a tree is mounted.
    pub fn is_mounted(&self, key: &TreeKey) -> bool {
        self.mounted.contains(key)
    }

    /// Whether something with this name in quarantine is mounted.
    pub fn is_quarantined_mounted(&self, name: &str) -> bool {
        self.mounted_quarantined.contains(name)
    }

    /// How many mounts of trees there are.
    pub fn mounts(&self) -> usize {
        self.mounts
    }
}
