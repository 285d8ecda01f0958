//! Decides what each layer of a manifest becomes, from its annotations and media types, without I/O.

use std::collections::BTreeMap;

use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;
use oras_csi_core::manifest::layer_kind::TITLE;
use oras_csi_core::manifest::{Descriptor, ImageManifest, LayerDescriptor, LayerKind};
use oras_csi_core::media_type::{MediaType, essence};

use crate::disk::{EntryPath, NameError};
use crate::layout::LayerShape;
use crate::limits::Limits;

/// The annotation of ORAS with the digest of the uncompressed tar stream.
pub(crate) const CONTENT_DIGEST: &str = "io.deis.oras.content.digest";

/// A layer and what it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedLayer {
    descriptor: Descriptor,
    content: LayerContent,
}

/// What a layer becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LayerContent {
    /// One file at this path.
    File(EntryPath),
    /// A tar archive, unpacked at this path.
    Archive {
        /// The path of the archive's root.
        at: EntryPath,
        /// What its entries are relative to.
        shape: LayerShape,
    },
}

impl PlannedLayer {
    /// Returns the descriptor of the blob.
    pub(crate) fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns what the layer becomes.
    pub(crate) fn content(&self) -> &LayerContent {
        &self.content
    }
}

/// Why a manifest cannot be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No layer is a file or an archive.
    #[error("it has no files: no layer has a title ({TITLE}) and none is a tar archive; it has {layers}")]
    NoFiles {
        /// The media types of the layers.
        layers: String,
    },
    /// No layer has one of the media types that the step selects.
    #[error("no layer has one of the media types {wanted}; it has {layers}")]
    NoMediaType {
        /// The media types that the step selects.
        wanted: String,
        /// The media types of the layers.
        layers: String,
    },
    /// The manifest has more layers than the limit.
    #[error("the manifest has {found} layers: the limit is {limit}")]
    TooManyLayers {
        /// The number of layers.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A title is not a path within a tree.
    #[error("the title of layer {layer} is invalid: {source}")]
    Title {
        /// The position of the layer, counted from 1.
        layer: usize,
        /// What is wrong.
        source: NameError,
    },
    /// Two layers have the same title.
    #[error("two layers, {first} and {second}, have the title \"{path}\"")]
    SameTitle {
        /// The title.
        path: String,
        /// The digest of the first layer.
        first: Digest,
        /// The digest of the second layer.
        second: Digest,
    },
    /// A title is a file and also a directory.
    #[error("the file \"{file}\" of one layer is a directory in another: \"{below}\"")]
    FileAndDirectory {
        /// The file.
        file: String,
        /// The path below it.
        below: String,
    },
    /// Two descriptors of the same blob have different sizes.
    #[error("the blob {digest} has {first} bytes in one layer of the manifest and {second} in another")]
    TwoSizes {
        /// The digest of the blob.
        digest: Digest,
        /// The first size.
        first: u64,
        /// The second size.
        second: u64,
    },
    /// The annotation is not a digest.
    #[error(
        "layer {layer} has the annotation {CONTENT_DIGEST} with the value \"{value}\", which is not a digest"
    )]
    ContentDigest {
        /// The position of the layer, counted from 1.
        layer: usize,
        /// The value of the annotation.
        value: Shown,
    },
}

/// Plans the layers that have one of `media_types`, or all layers if it is empty.
pub(crate) fn plan(
    manifest: &ImageManifest,
    media_types: &[MediaType],
    limits: &Limits,
) -> Result<Vec<PlannedLayer>, PlanError> {
    let layers = manifest.layers();
    if layers.len() > limits.layers() {
        return Err(PlanError::TooManyLayers { found: layers.len(), limit: limits.layers() });
    }
    let wanted = |layer: &LayerDescriptor| {
        let found = essence(layer.descriptor().media_type());
        media_types.is_empty() || media_types.iter().any(|wanted| essence(wanted.as_str()) == found)
    };
    let mut planned = Vec::new();
    let mut kept = 0;
    for (position, layer) in layers.iter().enumerate().filter(|(_, layer)| wanted(layer)) {
        kept += 1;
        if let Some(content) = classify(layer, position + 1, limits)? {
            planned.push(PlannedLayer { descriptor: layer.descriptor().clone(), content });
        }
    }
    if kept == 0 && !media_types.is_empty() {
        let wanted = media_types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(PlanError::NoMediaType { wanted, layers: list_media_types(layers) });
    }
    if planned.is_empty() {
        return Err(PlanError::NoFiles { layers: list_media_types(layers) });
    }
    check_sizes(&planned)?;
    check_paths(&planned)?;
    Ok(planned)
}

fn list_media_types(layers: &[LayerDescriptor]) -> String {
    let mut counted = BTreeMap::new();
    for layer in layers {
        *counted.entry(Shown::new(layer.descriptor().media_type())).or_insert(0_usize) += 1;
    }
    if counted.is_empty() {
        return "no layers at all".to_owned();
    }
    let mut shown = counted.iter().take(8).map(|(name, count)| format!("{count} of type {name}"));
    let more = counted.len().saturating_sub(8);
    let list = shown.by_ref().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{list}, and {more} other types") } else { list }
}

fn classify(
    layer: &LayerDescriptor,
    position: usize,
    limits: &Limits,
) -> Result<Option<LayerContent>, PlanError> {
    let parse_title = |title: &str| {
        EntryPath::from_title(title, limits).map_err(|source| PlanError::Title { layer: position, source })
    };
    Ok(Some(match layer.kind() {
        LayerKind::File(name) => {
            let path = parse_title(name)?;
            if path.is_root() {
                return Err(PlanError::Title { layer: position, source: NameError::Empty(name.into()) });
            }
            LayerContent::File(path)
        }
        LayerKind::Directory(title) => {
            let path = parse_title(title)?;
            let annotation = layer.annotations().get(CONTENT_DIGEST).filter(|text| !text.is_empty());
            let content = annotation.map(|text| {
                let value = Shown::new(text);
                text.parse().map_err(|_| PlanError::ContentDigest { layer: position, value })
            });
            let shape = LayerShape::Directory { prefix: path.clone(), content: content.transpose()? };
            LayerContent::Archive { at: path, shape }
        }
        LayerKind::Archive => LayerContent::Archive { at: EntryPath::root(), shape: LayerShape::Image },
        LayerKind::NoFiles => return Ok(None),
    }))
}

/// Checks that the descriptors of the same blob agree on its size. It is downloaded once.
fn check_sizes(planned: &[PlannedLayer]) -> Result<(), PlanError> {
    let mut sizes: BTreeMap<&Digest, u64> = BTreeMap::new();
    for descriptor in planned.iter().map(PlannedLayer::descriptor) {
        let (digest, second) = (descriptor.digest(), descriptor.size());
        if let Some(first) = sizes.insert(digest, second)
            && first != second
        {
            return Err(PlanError::TwoSizes { digest: digest.clone(), first, second });
        }
    }
    Ok(())
}

/// Checks that each path is one file. Layers with the same title and the same digest count as one.
fn check_paths(planned: &[PlannedLayer]) -> Result<(), PlanError> {
    let mut files: BTreeMap<&EntryPath, &Digest> = BTreeMap::new();
    for layer in planned {
        let LayerContent::File(path) = &layer.content else { continue };
        let digest = layer.descriptor.digest();
        if let Some(first) = files.insert(path, digest)
            && first != digest
        {
            return Err(PlanError::SameTitle {
                path: path.to_string(),
                first: first.clone(),
                second: digest.clone(),
            });
        }
    }
    for path in files.keys() {
        let mut above = path.split();
        while let Some((parent, _)) = above {
            if files.contains_key(&parent) {
                return Err(PlanError::FileAndDirectory {
                    file: parent.to_string(),
                    below: path.to_string(),
                });
            }
            above = parent.split().map(|(up, _)| (up, &[][..]));
        }
    }
    Ok(())
}
