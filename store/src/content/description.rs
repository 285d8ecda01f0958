//! The descriptions of layers and trees: `layer.json` and `tree.json`.
//!
//! Each description ends with a checksum of itself, which detects damage by a power cut or a file system
//! repair.

use oras_csi_core::digest::Digest;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::disk::{Totals, Usage};
use crate::layout::{Item, LayerKey};

/// What the disk is charged for a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TreeUsage {
    /// What deleting the tree alone frees: its directories and names, copies, and the records beside it.
    pub(crate) own: Usage,
    /// The same, and its blobs and layers.
    pub(crate) with_parts: Usage,
}

/// The EROFS image of a layer or a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageDescription {
    /// The size of the image.
    pub(crate) bytes: u64,
    /// The XXH3 of all bytes, 128 bits in hexadecimal.
    pub(crate) xxh3: String,
}

/// The size and the parts of a tree, for its `tree.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TreeContent {
    pub(crate) totals: Totals,
    pub(crate) manifests: Vec<Digest>,
    pub(crate) blobs: Vec<Digest>,
    pub(crate) layers: Vec<LayerKey>,
    /// Earlier versions did not write this field.
    #[serde(default)]
    pub(crate) disk: Option<TreeUsage>,
    /// The image of the tree, a link to that of its only layer. Only trees of many small files have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<ImageDescription>,
}

/// The size of a layer, for its `layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerDescription {
    pub(crate) totals: Totals,
    /// What the disk is charged for the layer and the records beside it. Earlier versions did not write this field.
    #[serde(default)]
    pub(crate) disk: Option<Usage>,
    /// The image of the layer. Only layers of many small files have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<ImageDescription>,
}

impl LayerDescription {
    /// Returns what the disk is charged for the layer, and an estimate for a layer of an earlier version.
    pub(crate) fn usage(&self) -> Usage {
        self.disk.unwrap_or_else(|| Usage::estimate(self.totals))
    }
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

    /// Returns what the disk is charged for the tree. For a tree of an earlier version, whose directories were not
    /// counted, this is what its records and its root take, and an estimate with its parts.
    pub(crate) fn usage(&self) -> TreeUsage {
        self.content.disk.unwrap_or_else(|| TreeUsage {
            own: TreeContent::least_usage(),
            with_parts: Usage::estimate(self.totals()),
        })
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
    /// The folder of a tree, the root of its files, its two records and its provenance.
    const LEAST_INODES: usize = 5;

    /// Returns what every tree takes at least.
    pub(crate) fn least_usage() -> Usage {
        std::iter::repeat_n(Usage::file(0), Self::LEAST_INODES).sum()
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_of_an_earlier_version_have_an_estimated_usage() {
        let layer: LayerDescription = parse(br#"{"totals":{"bytes":10000,"inodes":3}}"#).unwrap();
        assert_eq!(layer.usage(), Usage { bytes: 10_000 + 3 * 4_096, inodes: 3 });
        let old =
            br#"{"totals":{"bytes":10000,"inodes":3},"manifests":[],"blobs":[],"layers":[],"largest":[]}"#;
        let tree: TreeDescription = parse(old).unwrap();
        assert_eq!(tree.usage().own, Usage { bytes: 5 * 4_096, inodes: 5 });
        assert_eq!(tree.usage().with_parts, layer.usage());

        let usage = Usage { bytes: 5, inodes: 1 };
        let new = LayerDescription { disk: Some(usage), ..layer };
        assert_eq!(parse::<LayerDescription>(&to_text(&new).unwrap()).unwrap().usage(), usage);
    }
}
