//! The descriptions of layers and trees: `layer.json` and `tree.json`.
//!
//! Each description ends with a checksum of itself, which detects damage by a power cut or a file system
//! repair.

use oras_csi_core::digest::Digest;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::disk::Totals;
use crate::layout::{Item, LayerKey};

/// The size and the parts of a tree, for its `tree.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TreeContent {
    pub(crate) totals: Totals,
    pub(crate) manifests: Vec<Digest>,
    pub(crate) blobs: Vec<Digest>,
    pub(crate) layers: Vec<LayerKey>,
}

/// The size of a layer, for its `layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerDescription {
    pub(crate) totals: Totals,
}

/// The content of a tree's `tree.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TreeDescription {
    #[serde(flatten)]
    pub(crate) content: TreeContent,
    /// The largest files of the tree. Format 1 did not have this field.
    #[serde(default)]
    pub(crate) largest: Vec<LargeFile>,
}

/// A file whose size is checked before its tree is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LargeFile {
    pub(crate) path: String,
    pub(crate) bytes: u64,
}

impl TreeDescription {
    pub(crate) fn totals(&self) -> Totals {
        self.content.totals
    }

    /// Returns the items that are needed to build the tree again without a download, including its manifests.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Item> + '_ {
        let manifests = self.content.manifests.iter().cloned().map(Item::Blob);
        manifests.chain(self.content.parts())
    }

    /// Reports whether the tree shares files with this item.
    pub(crate) fn shares(&self, part: &Item) -> bool {
        self.content.parts().any(|own| own == *part)
    }
}

impl TreeContent {
    /// Returns the items that the tree's files are links to.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Item> + '_ {
        let layers = self.layers.iter().cloned().map(Item::Layer);
        self.blobs.iter().cloned().map(Item::Blob).chain(layers)
    }
}

/// Encodes a description as JSON whose last field is a checksum of everything before it.
pub(crate) fn to_text(description: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(description)?;
    // Removes the closing brace.
    text.pop();
    let check = format!(",\"check\":\"{:016x}\"}}", xxh3_64(&text));
    text.extend_from_slice(check.as_bytes());
    Ok(text)
}

/// Decodes a description; `None` if it is damaged. Descriptions of format 1 have no checksum.
pub(crate) fn parse<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Option<T> {
    const CHECK: &[u8] = b",\"check\":\"";
    let (content, end) = text.split_at(text.len().saturating_sub(CHECK.len() + 18));
    if let Some(check) = end.strip_prefix(CHECK)
        && check != format!("{:016x}\"}}", xxh3_64(content)).as_bytes()
    {
        return None;
    }
    serde_json::from_slice(text).ok()
}
