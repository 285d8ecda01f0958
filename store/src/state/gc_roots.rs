//! What must stay: what records name, what cluster sets want, and what is mounted.

use std::collections::HashSet;

use crate::mount::{MountError, mounted};
use crate::records;
use crate::store::{DiskError, Layout, TreeKey, WantedTree, read_wanted};

/// Why it is not known what must stay: then everything does.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// Mounts cannot be read.
    #[error(transparent)]
    Mounts(#[from] MountError),
    /// Records cannot be read, or something cannot be taken away.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The trees that stay whatever happens.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    recorded: HashSet<TreeKey>,
    wanted: HashSet<TreeKey>,
    mounted: HashSet<TreeKey>,
    aside: HashSet<String>,
    mounts: usize,
}

impl Roots {
    /// Reads records and mountinfo.
    pub fn read(layout: &Layout) -> Result<Self, RootsError> {
        // Records first: a publish writes its record before it mounts, an unpublish removes it afterwards.
        let recorded =
            records::read_all(&layout.volumes())?.iter().filter_map(records::Record::tree).collect();
        let wanted = read_wanted(layout)?.iter().filter_map(WantedTree::tree).collect();
        let mut roots = Self { recorded, wanted, ..Self::default() };
        for mount in mounted()? {
            roots.mounts += 1;
            match mount.aside() {
                Some(name) => roots.aside.insert(name.to_owned()),
                None => roots.mounted.insert(mount.tree().clone()),
            };
        }
        Ok(roots)
    }

    /// Whether a tree must stay.
    pub fn has(&self, key: &TreeKey) -> bool {
        self.recorded.contains(key) || self.wanted.contains(key) || self.mounted.contains(key)
    }

    /// Whether a tree is mounted.
    pub fn is_mounted(&self, key: &TreeKey) -> bool {
        self.mounted.contains(key)
    }

    /// Whether something with this name in `set-aside` is mounted.
    pub fn has_aside(&self, name: &str) -> bool {
        self.aside.contains(name)
    }

    /// How many mounts of trees there are.
    pub fn mounts(&self) -> usize {
        self.mounts
    }
}
