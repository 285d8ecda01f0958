//! The GC roots of a node: trees that a volume record names, and trees that are mounted.

use std::collections::BTreeSet;

use oras_csi_store::{DiskError, GcRoots, Layout, RootsError, TreeKey, TreesInUse};

use crate::mount::mounted;
use crate::volume_records::{Record, read_all};

/// Reads the trees in use from the volume records and from mountinfo.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeRoots;

impl GcRoots for NodeRoots {
    fn read(&self, layout: &Layout) -> Result<TreesInUse, RootsError> {
        let mut trees = TreesInUse::default();
        // Records must be read first: a publish writes its record before it mounts, and an unpublish removes it after it
        // unmounts.
        for key in read_all(&layout.volumes())?.iter().filter_map(Record::tree) {
            trees.add_recorded(key);
        }
        for mount in mounted().map_err(|error| RootsError::Mounts(Box::new(error)))? {
            match mount.quarantined_as() {
                Some(name) => trees.add_quarantined_mount(name.to_owned()),
                None => trees.add_mount(mount.tree().clone()),
            }
        }
        Ok(trees)
    }

    fn volumes_using(&self, layout: &Layout, trees: &BTreeSet<TreeKey>) -> Result<Vec<String>, DiskError> {
        let volumes = read_all(&layout.volumes())?;
        let volumes = volumes.iter().filter(|record| record.tree().is_some_and(|key| trees.contains(&key)));
        Ok(volumes.map(|record| record.volume().to_owned()).collect())
    }
}
