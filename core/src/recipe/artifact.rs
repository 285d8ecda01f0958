//! A recipe as an artifact: one layer that is its YAML. Pure.
//!
//! `application/vnd.oras.csi.recipe.v1` says what the artifact is, and `…+yaml` (RFC 9512) what its one layer is written
//! in. The layer has a title, so that `oras pull` gives the file back, and `oras push --artifact-type` makes the same.

use serde_json::json;

use super::RecipeError;
use crate::digest::Digest;
use crate::display::Shown;
use crate::manifest::ImageManifest;
use crate::manifest::{Descriptor, media};

/// The artifact type of a recipe.
pub const ARTIFACT_TYPE: &str = "application/vnd.oras.csi.recipe.v1";
/// The media type of its layer.
pub const LAYER_TYPE: &str = "application/vnd.oras.csi.recipe.v1+yaml";
/// The name of the file that `oras pull` makes of it.
const TITLE: &str = "recipe.yaml";

/// Why an artifact has no recipe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// None or several layers.
    #[error("is the artifact of a recipe with {count} layers: it has one, the YAML")]
    Layers {
        /// How many there are.
        count: usize,
    },
    /// A layer of another type.
    #[error("is the artifact of a recipe whose layer is of type \"{found}\": it is of type {LAYER_TYPE}")]
    LayerType {
        /// What it is.
        found: Shown,
    },
    /// More than a recipe can have.
    #[error("is the artifact of a recipe of {size} bytes: at most {} are read", RecipeError::LONGEST)]
    TooLong {
        /// What its descriptor says.
        size: u64,
    },
    /// Bytes that are no text.
    #[error("is the artifact of a recipe that is not UTF-8")]
    NotText,
}

/// The manifest of a recipe's artifact: the same YAML always has the same bytes.
pub fn to_manifest(yaml: &str) -> Vec<u8> {
    let described = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::sha256_of(bytes), "size": bytes.len()});
    let mut layer = described(LAYER_TYPE, yaml.as_bytes());
    layer["annotations"] = json!({"org.opencontainers.image.title": TITLE});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": described(media::EMPTY, b"{}"),
        "layers": [layer],
    });
    manifest.to_string().into_bytes()
}

/// The layer that has the YAML: it is not longer than a recipe may be.
pub fn layer(image: &ImageManifest) -> Result<Descriptor, ArtifactError> {
    let [layer] = image.layers() else {
        return Err(ArtifactError::Layers { count: image.layers().len() });
    };
    let descriptor = layer.descriptor();
    if descriptor.media_type() != LAYER_TYPE {
        return Err(ArtifactError::LayerType { found: descriptor.media_type().into() });
    }
    if descriptor.size() > RecipeError::LONGEST as u64 {
        return Err(ArtifactError::TooLong { size: descriptor.size() });
    }
    Ok(descriptor.clone())
}

/// The YAML that the layer's bytes are.
pub fn text(bytes: Vec<u8>) -> Result<String, ArtifactError> {
    String::from_utf8(bytes).map_err(|_| ArtifactError::NotText)
}
