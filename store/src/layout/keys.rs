//! The names under which trees and layers are kept: hashes of everything that decides their content,
//! and of nothing else.
//!
//! Host and repository are left out: the same bytes from two registries are one tree. The version of the
//! format is in, so that a driver which would lay out a tree differently gives it another name.

use std::fmt;

use oras_csi_core::digest::Digest;
use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::PinnedReference;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::shape::LayerShape;
use crate::disk::EntryPath;

/// Changes whenever the same recipe would give another tree.
const TREES: &str = "oras-csi/tree/1";
/// Changes whenever the same blob would give another layer tree.
const LAYERS: &str = "oras-csi/layer/1";

/// A recipe on a platform: 64 hexadecimal characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeKey(String);

/// A tar layer, and what its entries are relative to: 64 hexadecimal characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerKey(String);

/// A name that is not a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name is not a key of 64 hexadecimal characters")]
pub struct KeyError;

impl TryFrom<String> for LayerKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        if is_key(&text) { Ok(Self(text)) } else { Err(KeyError) }
    }
}

impl From<LayerKey> for String {
    fn from(key: LayerKey) -> Self {
        key.0
    }
}

impl TreeKey {
    /// The tree that `recipe` gives on a node of this platform.
    pub fn of(recipe: &PinnedRecipe, node: &Platform) -> Self {
        let layer = |layer: &Layer<PinnedReference>| {
            json!([
                layer.reference().digest().to_string(),
                layer.path().as_str(),
                layer.include().iter().map(ToString::to_string).collect::<Vec<_>>(),
                layer.exclude().iter().map(ToString::to_string).collect::<Vec<_>>(),
                layer.media_types().iter().map(ToString::to_string).collect::<Vec<_>>(),
                layer.platform().unwrap_or(node).to_string(),
            ])
        };
        let steps = recipe.steps().iter().map(|step| match step {
            Step::Add(added) => json!(["add", layer(added)]),
            Step::Overlay(laid) => json!(["overlay", layer(laid)]),
            Step::Remove(glob) => json!(["remove", glob.to_string()]),
        });
        Self(hash(&json!([TREES, steps.collect::<Vec<_>>()])))
    }

    /// A key that was written down before; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        is_key(text).then(|| Self(text.to_owned()))
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl LayerKey {
    /// A key that was written down before; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        is_key(text).then(|| Self(text.to_owned()))
    }

    /// The tree that a blob gives when it is unpacked in this way.
    pub fn of(blob: &Digest, shape: &LayerShape) -> Self {
        let value = match shape {
            LayerShape::Image => json!([LAYERS, "image", blob.to_string()]),
            LayerShape::Directory { prefix, content } => json!([
                LAYERS,
                "directory",
                blob.to_string(),
                EntryPath::to_text(prefix),
                // A digest that a manifest claims is verified by unpacking: a claim not yet seen is another layer.
                content.as_ref().map(ToString::to_string),
            ]),
        };
        Self(hash(&value))
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The tree that was quarantined under this name: `KEY.NUMBER`.
pub fn quarantined_tree(name: &str) -> Option<TreeKey> {
    TreeKey::parse(name.split_once('.')?.0)
}

fn hash(value: &serde_json::Value) -> String {
    Digest::sha256_of(value.to_string().as_bytes()).hex().to_owned()
}

/// Whether a name is one that a hash gave.
fn is_key(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for TreeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
