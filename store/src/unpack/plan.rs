//! What each layer of a manifest becomes: pure, from annotations and media types.

use std::collections::BTreeMap;

use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;
use oras_csi_core::manifest::layer_kind::TITLE;
use oras_csi_core::manifest::{Descriptor, ImageManifest, LayerDescriptor, LayerKind};
use oras_csi_core::media_type::{MediaType, essence};

use crate::disk::{EntryPath, NameError};
use crate::layout::LayerShape;
use crate::limits::Limits;

/// ORAS: the digest of the uncompressed tar stream.
pub(crate) const CONTENT_DIGEST: &str = "io.deis.oras.content.digest";
/// A layer and what it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    descriptor: Descriptor,
    content: Content,
}

/// What a layer becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// One file at this path.
    File(EntryPath),
    /// A tar archive, unpacked at this path.
    Archive {
        /// Where its root lies.
        at: EntryPath,
        /// What its entries are relative to.
        shape: LayerShape,
    },
}

impl Piece {
    /// The blob.
    pub(crate) fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// What it becomes.
    pub(crate) fn content(&self) -> &Content {
        &self.content
    }
}

/// Why a manifest gives no files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No layer is a file or an archive.
    #[error(
        "there is nothing in it to mount: no layer has a title ({TITLE}) and none is a tar archive; it has {layers}"
    )]
    Nothing {
        /// The media types there are.
        layers: String,
    },
    /// The filter leaves nothing.
    #[error("no layer has one of the media types {wanted}; it has {layers}")]
    NoMediaType {
        /// What was asked for.
        wanted: String,
        /// The media types there are.
        layers: String,
    },
    /// More layers than the administrator lets a manifest have.
    #[error("the manifest has {found} layers: the limit is {limit}")]
    TooManyLayers {
        /// How many there are.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A title that is no path within a tree.
    #[error("the title of layer {layer}: {source}")]
    Title {
        /// Which layer, from 1 on.
        layer: usize,
        /// What is wrong.
        source: NameError,
    },
    /// Two layers of the same title.
    #[error("two layers, {first} and {second}, have the title \"{path}\"")]
    SameTitle {
        /// The title.
        path: String,
        /// The first blob.
        first: Digest,
        /// The second.
        second: Digest,
    },
    /// A title that is a file and a directory.
    #[error("the file \"{file}\" of one layer is a directory in another: \"{below}\"")]
    FileAndDirectory {
        /// The file.
        file: String,
        /// The path below it.
        below: String,
    },
    /// One blob of two lengths.
    #[error("the blob {digest} has {first} bytes by one layer of the manifest, and {second} by another")]
    TwoSizes {
        /// The blob.
        digest: Digest,
        /// The first length.
        first: u64,
        /// The second.
        second: u64,
    },
    /// The annotation is no digest.
    #[error("layer {layer} has the annotation {CONTENT_DIGEST}, which is no digest: \"{value}\"")]
    ContentDigest {
        /// Which layer, from 1 on.
        layer: usize,
        /// What it says.
        value: Shown,
    },
}

/// What the layers become that have one of `media_types`, or all if none is named.
pub(crate) fn plan(
    manifest: &ImageManifest,
    media_types: &[MediaType],
    limits: &Limits,
) -> Result<Vec<Piece>, PlanError> {
    let layers = manifest.layers();
    if layers.len() > limits.layers() {
        return Err(PlanError::TooManyLayers { found: layers.len(), limit: limits.layers() });
    }
    let wanted = |layer: &LayerDescriptor| {
        let found = essence(layer.descriptor().media_type());
        media_types.is_empty() || media_types.iter().any(|wanted| essence(wanted.as_str()) == found)
    };
    let mut pieces = Vec::new();
    let mut kept = 0;
    for (position, layer) in layers.iter().enumerate().filter(|(_, layer)| wanted(layer)) {
        kept += 1;
        if let Some(content) = content(layer, position + 1, limits)? {
            pieces.push(Piece { descriptor: layer.descriptor().clone(), content });
        }
    }
    if kept == 0 && !media_types.is_empty() {
        let wanted = media_types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(PlanError::NoMediaType { wanted, layers: list(layers) });
    }
    if pieces.is_empty() {
        return Err(PlanError::Nothing { layers: list(layers) });
    }
    check_sizes(&pieces)?;
    check_titles(&pieces)?;
    Ok(pieces)
}

fn list(layers: &[LayerDescriptor]) -> String {
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

fn content(layer: &LayerDescriptor, position: usize, limits: &Limits) -> Result<Option<Content>, PlanError> {
    let titled = |title: &str| {
        EntryPath::from_title(title, limits).map_err(|source| PlanError::Title { layer: position, source })
    };
    Ok(Some(match layer.kind() {
        LayerKind::File(name) => {
            let path = titled(name)?;
            if path.is_root() {
                return Err(PlanError::Title { layer: position, source: NameError::Empty(name.into()) });
            }
            Content::File(path)
        }
        LayerKind::Directory(title) => {
            let path = titled(title)?;
            let annotation = layer.annotations().get(CONTENT_DIGEST).filter(|text| !text.is_empty());
            let content = annotation.map(|text| {
                let value = Shown::new(text);
                text.parse().map_err(|_| PlanError::ContentDigest { layer: position, value })
            });
            let shape = LayerShape::Directory { prefix: path.clone(), content: content.transpose()? };
            Content::Archive { at: path, shape }
        }
        LayerKind::Archive => Content::Archive { at: EntryPath::root(), shape: LayerShape::Image },
        LayerKind::NoFiles => return Ok(None),
    }))
}

/// A blob is fetched once, and its length checked once.
fn check_sizes(pieces: &[Piece]) -> Result<(), PlanError> {
    let mut sizes: BTreeMap<&Digest, u64> = BTreeMap::new();
    for descriptor in pieces.iter().map(Piece::descriptor) {
        let (digest, second) = (descriptor.digest(), descriptor.size());
        if let Some(first) = sizes.insert(digest, second)
            && first != second
        {
            return Err(PlanError::TwoSizes { digest: digest.clone(), first, second });
        }
    }
    Ok(())
}

/// Within one artifact a path has one file; a title that two layers of the same digest have is one.
fn check_titles(pieces: &[Piece]) -> Result<(), PlanError> {
    let mut files: BTreeMap<&EntryPath, &Digest> = BTreeMap::new();
    for piece in pieces {
        let Content::File(path) = &piece.content else { continue };
        let digest = piece.descriptor.digest();
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
