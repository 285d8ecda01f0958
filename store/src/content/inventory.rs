//! The inventory of a store, read without a lock. While a driver is running, it can be slightly out of date.

use std::collections::BTreeMap;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use oras_csi_core::digest::{Algorithm, Digest};

use super::description::{self, LayerDescription, TreeContent, TreeDescription};
use crate::disk::{DiskError, Totals, Usage};
use crate::layout::{LAYER, LayerKey, Layout, TREE, TreeKey};

/// A tree in the store.
#[derive(Clone, Debug)]
pub struct HeldTree {
    pub(crate) key: TreeKey,
    /// `None` if the description cannot be read.
    pub(crate) description: Option<TreeDescription>,
    pub(crate) last_used: SystemTime,
}

/// A layer in the store.
#[derive(Clone, Debug)]
pub struct HeldLayer {
    pub(crate) key: LayerKey,
    pub(crate) totals: Option<Totals>,
    pub(crate) usage: Usage,
    pub(crate) used: SystemTime,
}

/// A blob in the store.
#[derive(Clone, Debug)]
pub struct HeldBlob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) used: SystemTime,
}

/// A file or folder in `partial`, `tmp` or quarantine.
#[derive(Clone, Debug)]
pub struct HeldEntry {
    pub(crate) name: String,
    pub(crate) usage: Usage,
    pub(crate) used: SystemTime,
}

/// The inventory of a store.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub(crate) trees: Vec<HeldTree>,
    pub(crate) layers: Vec<HeldLayer>,
    pub(crate) blobs: Vec<HeldBlob>,
    pub(crate) partial: Vec<HeldEntry>,
    pub(crate) quarantined: Vec<HeldEntry>,
    pub(crate) unfinished: Usage,
}

impl HeldTree {
    /// Returns the key of the tree.
    pub fn key(&self) -> &TreeKey {
        &self.key
    }

    /// Returns the size of the tree, if its description can be read.
    pub fn totals(&self) -> Option<Totals> {
        self.description.as_ref().map(TreeDescription::totals)
    }

    /// Returns what the disk is charged for the tree alone: its directories and names, copies and records. Its files
    /// belong to blobs and layers.
    pub fn own_usage(&self) -> Usage {
        self.description.as_ref().map_or_else(TreeContent::least_usage, |description| description.usage().own)
    }

    /// Returns when the tree was last published or unpublished, or created.
    pub fn last_used(&self) -> SystemTime {
        self.last_used
    }
}

impl HeldLayer {
    /// Returns the key of the layer.
    pub fn key(&self) -> &LayerKey {
        &self.key
    }

    /// Returns the size of the layer, if its description can be read.
    pub fn totals(&self) -> Option<Totals> {
        self.totals
    }

    /// Returns what the disk is charged for the layer.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Returns when the layer was created.
    pub fn created(&self) -> SystemTime {
        self.used
    }
}

impl HeldBlob {
    /// Returns the digest of the blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the size of the blob in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns what the disk is charged for the blob and its provenance.
    pub fn usage(&self) -> Usage {
        Usage::blob(self.size)
    }

    /// Returns when the blob was created.
    pub fn created(&self) -> SystemTime {
        self.used
    }
}

impl HeldEntry {
    /// Returns the file name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the space that the entry uses on the disk, in bytes.
    pub fn size(&self) -> u64 {
        self.usage.bytes
    }
}

impl Inventory {
    /// Reads the inventory of the store with this layout.
    pub fn read(layout: &Layout) -> Result<Self, DiskError> {
        let mut found = Self::default();
        for_each_entry(&layout.trees(), |entry, metadata| {
            let name = entry.file_name();
            let Some(key) = name.to_str().and_then(TreeKey::parse) else { return Ok(()) };
            let path = entry.path().join(TREE);
            let used = std::fs::symlink_metadata(&path).and_then(|found| found.modified());
            let used = used.or_else(|_| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let description = std::fs::read(&path).ok().and_then(|bytes| description::parse(&bytes));
            found.trees.push(HeldTree { key, description, last_used: used });
            Ok(())
        })?;
        for_each_entry(&layout.layers(), |entry, metadata| {
            let name = entry.file_name();
            let Some(key) = name.to_str().and_then(LayerKey::parse) else { return Ok(()) };
            let text = std::fs::read(entry.path().join(LAYER)).ok();
            let description = text.and_then(|bytes| description::parse::<LayerDescription>(&bytes));
            let totals = description.as_ref().map(|description| description.totals);
            let usage = description.as_ref().map(LayerDescription::usage).unwrap_or_default();
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.layers.push(HeldLayer { key, totals, usage, used });
            Ok(())
        })?;
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for_each_entry(&layout.blobs(algorithm), |entry, metadata| {
                let digest = format!("{}:{}", algorithm.name(), entry.file_name().to_string_lossy()).parse();
                let Ok(digest) = digest else { return Ok(()) };
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.blobs.push(HeldBlob { digest, size: metadata.len(), used });
                Ok(())
            })?;
        }
        found.partial = partial(&layout.partial())?;
        found.quarantined = entries(&layout.quarantine())?;
        let mut unfinished = entries(&layout.tmp())?;
        for boot in entries(&layout.unsynced())? {
            unfinished.extend(entries(&layout.unsynced().join(boot.name))?);
        }
        found.unfinished = unfinished.iter().map(|entry| entry.usage).sum();
        found.trees.sort_by(|a, b| a.key.cmp(&b.key));
        found.layers.sort_by(|a, b| a.key.cmp(&b.key));
        found.blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        found.quarantined.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Rotates each list by `number`, so that every scrub starts at another item.
    pub(crate) fn rotate(&mut self, number: u64) {
        fn rotate_list<T>(list: &mut [T], number: u64) {
            if let Some(place) =
                usize::try_from(number).ok().and_then(|number| number.checked_rem(list.len()))
            {
                list.rotate_left(place);
            }
        }
        rotate_list(&mut self.blobs, number);
        rotate_list(&mut self.layers, number);
        rotate_list(&mut self.trees, number);
    }

    /// Returns the trees, sorted by key.
    pub fn trees(&self) -> &[HeldTree] {
        &self.trees
    }

    /// Returns the layers, sorted by key.
    pub fn layers(&self) -> &[HeldLayer] {
        &self.layers
    }

    /// Returns the blobs, sorted by digest.
    pub fn blobs(&self) -> &[HeldBlob] {
        &self.blobs
    }

    /// Returns the quarantined items, sorted by name.
    pub fn quarantined(&self) -> &[HeldEntry] {
        &self.quarantined
    }

    /// Returns the partially downloaded blobs and their journals.
    pub fn partial(&self) -> &[HeldEntry] {
        &self.partial
    }

    /// Returns what the disk is charged for each state. A tree counts only with its own directories, copies and
    /// records, because its files are links to blobs and layers.
    pub fn usage_by_state(&self) -> BTreeMap<State, Usage> {
        let entries = |entries: &[HeldEntry]| entries.iter().map(|entry| entry.usage).sum();
        BTreeMap::from([
            (State::Blobs, self.blobs.iter().map(HeldBlob::usage).sum()),
            (State::Layers, self.layers.iter().map(HeldLayer::usage).sum()),
            (State::Trees, self.trees.iter().map(HeldTree::own_usage).sum()),
            (State::Quarantined, entries(&self.quarantined)),
            (State::Partial, entries(&self.partial)),
            (State::Unfinished, self.unfinished),
        ])
    }

    /// Returns what the disk is charged for the store.
    pub fn usage(&self) -> Usage {
        self.usage_by_state().into_values().sum()
    }
}

/// The states of content in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Verified blobs.
    Blobs,
    /// Unpacked layers.
    Layers,
    /// The directories, copies and records of trees.
    Trees,
    /// Quarantined items: damaged, and possibly still mounted.
    Quarantined,
    /// Partially downloaded blobs.
    Partial,
    /// Unfinished work in `tmp`, and marks of content that is not synced.
    Unfinished,
}

impl State {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Blobs, Self::Layers, Self::Trees, Self::Quarantined, Self::Partial, Self::Unfinished];

    /// Returns the name of the state, for a metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blobs => "blobs",
            Self::Layers => "layers",
            Self::Trees => "trees",
            Self::Quarantined => "set_aside",
            Self::Partial => "partial",
            Self::Unfinished => "unfinished",
        }
    }
}

/// Calls `visit` for every entry of a folder. Skips entries that are deleted meanwhile. A missing folder has
/// no entries.
fn for_each_entry(
    folder: &Path,
    mut visit: impl FnMut(&DirEntry, &Metadata) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let failed = |error| DiskError::new("list", folder, error);
    let listed = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for entry in listed {
        let entry = entry.map_err(failed)?;
        match entry.metadata() {
            Ok(metadata) => visit(&entry, &metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(DiskError::new("inspect", entry.path(), error)),
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<HeldEntry>, DiskError> {
    let mut found = Vec::new();
    for_each_entry(folder, |entry, metadata| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        found.push(HeldEntry { name, usage: usage(&entry.path(), metadata), used });
        Ok(())
    })?;
    Ok(found)
}

/// Lists the files in `partial`, also those in a subfolder for a digest algorithm.
fn partial(folder: &Path) -> Result<Vec<HeldEntry>, DiskError> {
    let mut found = Vec::new();
    for entry in entries(folder)? {
        if [Algorithm::Sha256, Algorithm::Sha512].iter().any(|algorithm| algorithm.name() == entry.name) {
            let below = entries(&folder.join(&entry.name))?.into_iter();
            found.extend(
                below.map(|file| HeldEntry { name: format!("{}/{}", entry.name, file.name), ..file }),
            );
        } else {
            found.push(entry);
        }
    }
    Ok(found)
}

/// Returns the disk usage of a file, or of a folder with its content. Ignores entries that cannot be read.
fn usage(path: &Path, metadata: &Metadata) -> Usage {
    let own = Usage { bytes: metadata.blocks().saturating_mul(512), inodes: 1 };
    if !metadata.is_dir() {
        return own;
    }
    let listed = std::fs::read_dir(path).into_iter().flatten().flatten();
    let below: Usage =
        listed.filter_map(|entry| entry.metadata().ok().map(|found| usage(&entry.path(), &found))).sum();
    own.plus(below)
}
