//! The node record, `state.json`: detected damage, the last scrub and the last garbage collection. It is
//! informational (`oras-csi store ls`): no decision depends on it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::disk::DiskError;
use crate::disk::folders::TmpNames;
use crate::layout::Layout;

/// The maximum number of recorded damage reports.
const MAX_DAMAGE: usize = 100;

/// What a store reports about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeRecord {
    /// The last complete scrub.
    pub scrub: Option<ScrubReport>,
    /// The last garbage collection that deleted an item.
    pub collection: Option<CollectionReport>,
    /// Detected damage, the latest last.
    pub damage: Vec<Damage>,
}

/// The result of a scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ScrubReport {
    /// When the scrub started, in seconds since 1970.
    pub began: u64,
    /// When the scrub ended, in seconds since 1970.
    pub ended: u64,
    /// The number of verified blobs.
    pub blobs: u64,
    /// The number of verified layers.
    pub layers: u64,
    /// The number of verified trees.
    pub trees: u64,
    /// The number of bytes read.
    pub bytes: u64,
    /// The number of damaged items.
    pub damaged: u64,
}

/// The result of a garbage collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CollectionReport {
    /// When the collection ended, in seconds since 1970.
    pub ended: u64,
    /// The number of deleted trees.
    pub trees: u64,
    /// The number of deleted layers.
    pub layers: u64,
    /// The number of deleted blobs, complete or partial.
    pub blobs: u64,
    /// The number of deleted items that were in quarantine and no longer mounted.
    #[serde(rename = "aside")]
    pub quarantined: u64,
    /// The approximate number of deleted bytes.
    pub bytes: u64,
    /// The approximate number of deleted inodes. Earlier versions did not write this field.
    #[serde(default)]
    pub inodes: u64,
}

/// A damaged item: the disk returned other data than was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// When the damage was found, in seconds since 1970.
    pub at: u64,
    /// The damaged blob, layer or tree.
    pub what: String,
    /// The kind of damage.
    pub found: String,
    /// The trees that were quarantined because of it.
    pub trees: Vec<String>,
    /// The volumes that had one of these trees mounted. They keep it until their pods end.
    pub volumes: Vec<String>,
}

/// Returns the current time in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl NodeRecord {
    /// Reads the record of a store; an empty record if it cannot be read.
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

    /// Returns a copy of the record.
    pub(crate) fn get(&self) -> NodeRecord {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the record and writes it. A failed write is only logged.
    pub(crate) fn update(&self, change: impl FnOnce(&mut NodeRecord)) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        let too_many = record.damage.len().saturating_sub(MAX_DAMAGE);
        record.damage.drain(..too_many);
        if let Err(error) = self.write(&record) {
            tracing::warn!(%error, "cannot write the node record (state.json); `oras-csi store ls` shows older information");
        }
    }

    fn write(&self, record: &NodeRecord) -> Result<(), DiskError> {
        let (unfinished, path) = (self.tmp.next(), &self.path);
        let text =
            serde_json::to_vec_pretty(record).map_err(|error| DiskError::new("encode", path, error))?;
        std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, path)).map_err(|error| {
            let _ = std::fs::remove_file(&unfinished);
            DiskError::new("write", path, error)
        })
    }
}
