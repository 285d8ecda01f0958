//! What stands beside the files of a layer and of a tree: `layer.json` and `tree.json`.
//!
//! Each description ends with a checksum of itself, which finds what a power cut or a repaired file system leaves.

use oras_csi_core::digest::Digest;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::disk::Totals;
use crate::layout::{Item, LayerKey};

/// What a tree is made of, for its `tree.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TreeContent {
    pub(crate) totals: Totals,
    pub(crate) manifests: Vec<Digest>,
    pub(crate) blobs: Vec<Digest>,
    pub(crate) layers: Vec<LayerKey>,
}

/// How much is in a layer, for its `layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerDescription {
    pub(crate) totals: Totals,
}

/// A tree's `tree.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TreeDescription {
    #[serde(flatten)]
    pub(crate) content: TreeContent,
    /// Its largest files. Format 1 had none.
    #[serde(default)]
    pub(crate) largest: Vec<LargeFile>,
}

/// A file that is looked at before its tree is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LargeFile {
    pub(crate) path: String,
    pub(crate) bytes: u64,
}

impl TreeDescription {
    pub(crate) fn totals(&self) -> Totals {
        self.content.totals
    }

    /// What a tree that stays needs to be made again without a download. Its manifests are among it.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Item> + '_ {
        let manifests = self.content.manifests.iter().cloned().map(Item::Blob);
        manifests.chain(self.content.parts())
    }

    /// Whether it shares bytes with this.
    pub(crate) fn has(&self, part: &Item) -> bool {
        self.content.parts().any(|own| own == *part)
    }
}

impl TreeContent {
    /// What its files are links to.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Item> + '_ {
        let layers = self.layers.iter().cloned().map(Item::Layer);
        self.blobs.iter().cloned().map(Item::Blob).chain(layers)
    }
}

/// The note as text: JSON whose last field is a checksum of all before it.
pub(crate) fn to_text(description: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(description)?;
    // The brace that closes it.
    text.pop();
    let check = format!(",\"check\":\"{:016x}\"}}", xxh3_64(&text));
    text.extend_from_slice(check.as_bytes());
    Ok(text)
}

/// Reads a note; `None` if it is not what was written. One without a checksum is format 1's.
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
