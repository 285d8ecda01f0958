//! Recipe artifacts: a recipe stored in a registry as an artifact with one layer, its YAML (docs/design.md,
//! "Patches"). This module does no I/O.
//!
//! The artifact type is `application/vnd.oras.csi.recipe.v1`, the media type of the layer the same with `+yaml`
//! (RFC 9512). The layer has a title, so `oras pull` writes the file `recipe.yaml`, and `oras push --artifact-type`
//! can create such an artifact too.

use serde_json::json;

use super::Recipe;
use crate::digest::Digest;
use crate::display::Shown;
use crate::manifest::{Descriptor, ImageManifest, media};

/// The artifact type of a recipe artifact.
pub const ARTIFACT_TYPE: &str = "application/vnd.oras.csi.recipe.v1";
/// The media type of its layer.
pub const LAYER_TYPE: &str = "application/vnd.oras.csi.recipe.v1+yaml";
/// The title of the layer: the name of the file that `oras pull` writes.
const TITLE: &str = "recipe.yaml";

/// The error for a recipe artifact that is invalid. The message continues a sentence whose subject is the artifact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// The artifact has no layer, or several.
    #[error("is a recipe artifact with {count} layers: it must have exactly one layer, the YAML")]
    Layers {
        /// The number of layers.
        count: usize,
    },
    /// The layer has another media type.
    #[error("is a recipe artifact whose layer has the media type \"{found}\": it must be {LAYER_TYPE}")]
    LayerType {
        /// The media type of the layer.
        found: Shown,
    },
    /// The layer is larger than a recipe can be.
    #[error("is a recipe artifact of {size} bytes: the maximum is {}", Recipe::MAX_BYTES)]
    TooLong {
        /// The size in the descriptor of the layer.
        size: u64,
    },
    /// The layer is not UTF-8.
    #[error("is a recipe artifact whose layer is not UTF-8 text")]
    NotText,
}

/// Returns the manifest of a recipe artifact. The same YAML always gives the same bytes.
pub fn to_manifest(yaml: &str) -> Vec<u8> {
    let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::sha256_of(bytes), "size": bytes.len()});
    let mut layer = descriptor(LAYER_TYPE, yaml.as_bytes());
    layer["annotations"] = json!({"org.opencontainers.image.title": TITLE});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": descriptor(media::EMPTY, b"{}"),
        "layers": [layer],
    });
    manifest.to_string().into_bytes()
}

/// Returns the layer with the YAML, after a check of its media type and size.
pub fn layer(image: &ImageManifest) -> Result<Descriptor, ArtifactError> {
    let [layer] = image.layers() else {
        return Err(ArtifactError::Layers { count: image.layers().len() });
    };
    let descriptor = layer.descriptor();
    if descriptor.media_type() != LAYER_TYPE {
        return Err(ArtifactError::LayerType { found: descriptor.media_type().into() });
    }
    if descriptor.size() > Recipe::MAX_BYTES as u64 {
        return Err(ArtifactError::TooLong { size: descriptor.size() });
    }
    Ok(descriptor.clone())
}

/// Decodes the bytes of the layer to YAML.
pub fn text(bytes: Vec<u8>) -> Result<String, ArtifactError> {
    String::from_utf8(bytes).map_err(|_| ArtifactError::NotText)
}
