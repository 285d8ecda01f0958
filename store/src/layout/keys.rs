//! Keys of trees and layers in the store: hashes of everything that determines their content, and of nothing
//! else.
//!
//! A key does not include host and repository, so the same content from two registries is one tree
//! (docs/design.md, "Store"). It includes a version, so that a driver that builds trees differently uses
//! other keys.

use std::fmt;

use oras_csi_core::digest::Digest;
use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::{Layer, PinnedRecipe, Step};
use oras_csi_core::reference::PinnedReference;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::shape::LayerShape;
use crate::disk::EntryPath;

/// The version of tree keys. Change it whenever the same recipe produces a different tree.
const TREES: &str = "oras-csi/tree/1";
/// The version of layer keys. Change it whenever the same blob produces a different layer.
const LAYERS: &str = "oras-csi/layer/1";

/// Identifies the tree of a recipe on a platform: 64 hexadecimal characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeKey(String);

/// Identifies an unpacked tar layer and the root of its entries: 64 hexadecimal characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerKey(String);

/// The error for a name that is not a key.
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
    /// Returns the key of the tree of `recipe` on a node of this platform.
    pub fn of(recipe: &PinnedRecipe, node: &Platform) -> Self {
        let layer = |layer: &Layer<PinnedReference>| {
            let mut key = json!([
                layer.reference().digest().to_string(),
                layer.path().as_str(),
                layer.include().iter().map(ToString::to_string).collect::<Vec<_>>(),
                layer.exclude().iter().map(ToString::to_string).collect::<Vec<_>>(),
                layer.media_types().iter().map(ToString::to_string).collect::<Vec<_>>(),
                layer.platform().unwrap_or(node).to_string(),
            ]);
            // At the end, so that trees without a name keep their keys.
            if let (Some(name), Some(key)) = (layer.name(), key.as_array_mut()) {
                key.push(json!(name.as_str()));
            }
            key
        };
        let steps = recipe.steps().iter().map(|step| match step {
            Step::Add(added) => json!(["add", layer(added)]),
            Step::Overlay(laid) => json!(["overlay", layer(laid)]),
            Step::Remove(glob) => json!(["remove", glob.to_string()]),
        });
        Self(hash(&json!([TREES, steps.collect::<Vec<_>>()])))
    }

    /// Returns the key of no recipe, for a test of the kernel.
    pub(crate) fn test() -> Self {
        Self(hash(&json!([TREES, "test"])))
    }

    /// Parses a stored key; `None` if the text is not a key.
    pub fn parse(text: &str) -> Option<Self> {
        is_key(text).then(|| Self(text.to_owned()))
    }

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl LayerKey {
    /// Parses a stored key; `None` if the text is not a key.
    pub fn parse(text: &str) -> Option<Self> {
        is_key(text).then(|| Self(text.to_owned()))
    }

    /// Returns the key of the layer that results from unpacking `blob` in this way.
    pub fn of(blob: &Digest, shape: &LayerShape) -> Self {
        let value = match shape {
            LayerShape::Image => json!([LAYERS, "image", blob.to_string()]),
            LayerShape::Directory { prefix, content } => json!([
                LAYERS,
                "directory",
                blob.to_string(),
                EntryPath::to_text(prefix),
                // Unpacking verifies the digest that the manifest states, so another stated digest is another
                // layer.
                content.as_ref().map(ToString::to_string),
            ]),
        };
        Self(hash(&value))
    }

    /// Returns the key of the same layer as the image of a tree.
    pub(crate) fn of_image(&self, tree: &TreeKey) -> Self {
        Self(hash(&json!([LAYERS, "erofs", self.0, tree.as_str()])))
    }

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Parses the key of a quarantined tree from its name in quarantine, `KEY.NUMBER`.
pub fn quarantined_tree(name: &str) -> Option<TreeKey> {
    TreeKey::parse(name.split_once('.')?.0)
}

fn hash(value: &serde_json::Value) -> String {
    Digest::sha256_of(value.to_string().as_bytes()).hex().to_owned()
}

/// Reports whether a text has the form of a key.
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
