//! The node's own record: what was found damaged, and how the last scrub and the last collection went. For the
//! person on the node (`oras-csi store ls`); nothing depends on it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::disk::DiskError;
use crate::disk::folders::TmpNames;
use crate::layout::Layout;

/// How many findings are kept.
const MAX_DAMAGE: usize = 100;

/// What a store tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeRecord {
    /// The last whole scrub.
    pub scrub: Option<ScrubReport>,
    /// The last collection that took something away.
    pub collection: Option<CollectionReport>,
    /// What was found damaged, the latest last.
    pub damage: Vec<Damage>,
}

/// How a scrub went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ScrubReport {
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// When it ended.
    pub ended: u64,
    /// How much was compared.
    pub blobs: u64,
    /// How much was compared.
    pub layers: u64,
    /// How much was compared.
    pub trees: u64,
    /// How much was read.
    pub bytes: u64,
    /// How much of it was damaged.
    pub damaged: u64,
}

/// What a collection took away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CollectionReport {
    /// When it ended, in seconds since 1970.
    pub ended: u64,
    /// How many trees.
    pub trees: u64,
    /// How many layers.
    pub layers: u64,
    /// How many blobs, whole or in part.
    pub blobs: u64,
    /// How many damaged things that nothing mounts any more.
    #[serde(rename = "aside")]
    pub quarantined: u64,
    /// How many bytes, about.
    pub bytes: u64,
}

/// Something that the disk gave back otherwise than it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// When it was found, in seconds since 1970.
    pub at: u64,
    /// The blob, layer or tree.
    pub what: String,
    /// What was found.
    pub found: String,
    /// The trees that were set aside for it.
    pub trees: Vec<String>,
    /// The volumes that had one of them mounted: they keep it until their pods end.
    pub volumes: Vec<String>,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl NodeRecord {
    /// What a store has written down; nothing, where that cannot be read.
    pub fn read(layout: &Layout) -> Self {
        std::fs::read(layout.node_record())
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }
}

/// The record of an open store.
#[derive(Debug)]
pub(crate) struct NodeRecordFile {
    path: PathBuf,
    tmp: TmpNames,
    record: Mutex<NodeRecord>,
}

impl NodeRecordFile {
    pub(crate) fn read(layout: &Layout, tmp: TmpNames) -> Self {
        Self { path: layout.node_record(), tmp, record: Mutex::new(NodeRecord::read(layout)) }
    }

    /// A copy of the record.
    pub(crate) fn get(&self) -> NodeRecord {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the record and writes it. A write that fails is only logged.
    pub(crate) fn update(&self, change: impl FnOnce(&mut NodeRecord)) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        let too_many = record.damage.len().saturating_sub(MAX_DAMAGE);
        record.damage.drain(..too_many);
        if let Err(error) = self.write(&record) {
            tracing::warn!(%error, "the store's own record cannot be written");
        }
    }

    fn write(&self, record: &NodeRecord) -> Result<(), DiskError> {
        let (unfinished, path) = (self.tmp.next(), &self.path);
        let text =
            serde_json::to_vec_pretty(record).map_err(|error| DiskError::new("describe", path, error))?;
        std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, path)).map_err(|error| {
            let _ = std::fs::remove_file(&unfinished);
            DiskError::new("write", path, error)
        })
    }
}
