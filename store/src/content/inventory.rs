//! What is in a store, read without a lock: beside a running driver it is what there was a moment ago.

use std::collections::BTreeMap;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use oras_csi_core::digest::{Algorithm, Digest};

use super::description::{self, LayerDescription, TreeDescription};
use crate::disk::{DiskError, Totals};
use crate::layout::{LAYER, LayerKey, Layout, TREE, TreeKey};

/// A recipe's tree.
#[derive(Clone, Debug)]
pub struct HeldTree {
    pub(crate) key: TreeKey,
    /// `None` where its description cannot be read.
    pub(crate) made: Option<TreeDescription>,
    pub(crate) used: SystemTime,
}

/// A layer.
#[derive(Clone, Debug)]
pub struct HeldLayer {
    pub(crate) key: LayerKey,
    pub(crate) totals: Option<Totals>,
    pub(crate) used: SystemTime,
}

/// A blob.
#[derive(Clone, Debug)]
pub struct HeldBlob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) used: SystemTime,
}

/// Something under a name that says no more.
#[derive(Clone, Debug)]
pub struct HeldEntry {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) used: SystemTime,
}

/// All that is in a store.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub(crate) trees: Vec<HeldTree>,
    pub(crate) layers: Vec<HeldLayer>,
    pub(crate) blobs: Vec<HeldBlob>,
    pub(crate) partial: Vec<HeldEntry>,
    pub(crate) quarantined: Vec<HeldEntry>,
    pub(crate) unfinished: u64,
}

impl HeldTree {
    /// Its name.
    pub fn key(&self) -> &TreeKey {
        &self.key
    }

    /// How much is in it, if that can be read.
    pub fn totals(&self) -> Option<Totals> {
        self.made.as_ref().map(TreeDescription::totals)
    }

    /// When it was last published or unpublished, or made.
    pub fn used(&self) -> SystemTime {
        self.used
    }
}

impl HeldLayer {
    /// Its name.
    pub fn key(&self) -> &LayerKey {
        &self.key
    }

    /// How much is in it, if that can be read.
    pub fn totals(&self) -> Option<Totals> {
        self.totals
    }

    /// When it was made.
    pub fn made(&self) -> SystemTime {
        self.used
    }
}

impl HeldBlob {
    /// Its name.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// How long it is.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// When it was made.
    pub fn made(&self) -> SystemTime {
        self.used
    }
}

impl HeldEntry {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How much it takes on the disk.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Inventory {
    /// Reads what there is.
    pub fn read(layout: &Layout) -> Result<Self, DiskError> {
        let mut found = Self::default();
        each(&layout.trees(), |entry, metadata| {
            let name = entry.file_name();
            let Some(key) = name.to_str().and_then(TreeKey::parse) else { return Ok(()) };
            let note = entry.path().join(TREE);
            let used = std::fs::symlink_metadata(&note).and_then(|found| found.modified());
            let used = used.or_else(|_| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let made = std::fs::read(&note).ok().and_then(|bytes| description::parse(&bytes));
            found.trees.push(HeldTree { key, made, used });
            Ok(())
        })?;
        each(&layout.layers(), |entry, metadata| {
            let name = entry.file_name();
            let Some(key) = name.to_str().and_then(LayerKey::parse) else { return Ok(()) };
            let note = std::fs::read(entry.path().join(LAYER)).ok();
            let totals =
                note.and_then(|bytes| description::parse::<LayerDescription>(&bytes)).map(|note| note.totals);
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.layers.push(HeldLayer { key, totals, used });
            Ok(())
        })?;
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            each(&layout.blobs(algorithm), |entry, metadata| {
                let digest = format!("{}:{}", algorithm.name(), entry.file_name().to_string_lossy()).parse();
                let Ok(digest) = digest else { return Ok(()) };
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.blobs.push(HeldBlob { digest, size: metadata.len(), used });
                Ok(())
            })?;
        }
        found.partial = partial(&layout.partial())?;
        found.quarantined = entries(&layout.quarantine())?;
        found.unfinished = entries(&layout.tmp())?.iter().map(HeldEntry::size).sum();
        found.trees.sort_by(|a, b| a.key.cmp(&b.key));
        found.layers.sort_by(|a, b| a.key.cmp(&b.key));
        found.blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        found.quarantined.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Begins each list at another place.
    pub(crate) fn begin_at(&mut self, number: u64) {
        fn turn<T>(list: &mut [T], number: u64) {
            if let Some(place) =
                usize::try_from(number).ok().and_then(|number| number.checked_rem(list.len()))
            {
                list.rotate_left(place);
            }
        }
        turn(&mut self.blobs, number);
        turn(&mut self.layers, number);
        turn(&mut self.trees, number);
    }

    /// Trees by name.
    pub fn trees(&self) -> &[HeldTree] {
        &self.trees
    }

    /// Layers by name.
    pub fn layers(&self) -> &[HeldLayer] {
        &self.layers
    }

    /// Blobs by digest.
    pub fn blobs(&self) -> &[HeldBlob] {
        &self.blobs
    }

    /// What was set quarantined.
    pub fn quarantined(&self) -> &[HeldEntry] {
        &self.quarantined
    }

    /// Blobs that came in part.
    pub fn partial(&self) -> &[HeldEntry] {
        &self.partial
    }

    /// How many bytes there are, by state. Trees are names of what layers and blobs have, and count nothing.
    pub fn sizes(&self) -> BTreeMap<State, u64> {
        let entries = |entries: &[HeldEntry]| entries.iter().map(HeldEntry::size).sum();
        BTreeMap::from([
            (State::Blobs, self.blobs.iter().map(HeldBlob::size).sum()),
            (
                State::Layers,
                self.layers.iter().filter_map(HeldLayer::totals).map(|totals| totals.bytes).sum(),
            ),
            (State::Quarantined, entries(&self.quarantined)),
            (State::Partial, entries(&self.partial)),
            (State::Unfinished, self.unfinished),
        ])
    }

    /// How many bytes there are in all.
    pub fn bytes(&self) -> u64 {
        self.sizes().values().sum()
    }
}

/// What bytes of a store are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Verified files.
    Blobs,
    /// Unpacked archives.
    Layers,
    /// Damaged, and perhaps mounted.
    Quarantined,
    /// Blobs of which a part has come.
    Partial,
    /// In the making.
    Unfinished,
}

impl State {
    /// Its name, for a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blobs => "blobs",
            Self::Layers => "layers",
            Self::Quarantined => "set_aside",
            Self::Partial => "partial",
            Self::Unfinished => "unfinished",
        }
    }
}

/// Shows every entry of a folder; one that goes meanwhile is not shown, and a folder that is not there has none.
fn each(
    folder: &Path,
    mut show: impl FnMut(&DirEntry, &Metadata) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let failed = |error| DiskError::new("list", folder, error);
    let listed = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for entry in listed {
        let entry = entry.map_err(failed)?;
        match entry.metadata() {
            Ok(metadata) => show(&entry, &metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(DiskError::new("look at", entry.path(), error)),
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<HeldEntry>, DiskError> {
    let mut found = Vec::new();
    each(folder, |entry, metadata| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        found.push(HeldEntry { name, size: size(&entry.path(), metadata), used });
        Ok(())
    })?;
    Ok(found)
}

/// The files in `partial`, also where they lie in a folder for each algorithm.
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

/// How much something takes on the disk, with all beneath it; what cannot be read counts nothing.
fn size(path: &Path, metadata: &Metadata) -> u64 {
    if !metadata.is_dir() {
        return metadata.blocks() * 512;
    }
    let listed = std::fs::read_dir(path).into_iter().flatten().flatten();
    listed.filter_map(|entry| entry.metadata().ok().map(|found| size(&entry.path(), &found))).sum()
}
