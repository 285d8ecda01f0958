//! What each layer of a manifest becomes: pure, from annotations and media types.

use std::collections::BTreeMap;

use oras_csi_core::digest::Digest;
use oras_csi_core::media_type::{MediaType, essence};
use oras_csi_core::registry::{Descriptor, ImageManifest, LayerDescriptor};
use oras_csi_core::text::Shown;

use super::Shape;
use super::name::{EntryPath, NameError};
use crate::settings::Limits;

/// The name of a layer's file or directory (OCI image-spec, annotations.md).
pub const TITLE: &str = "org.opencontainers.image.title";
/// ORAS: the layer is a directory, packed as tar and gzip.
pub const UNPACK: &str = "io.deis.oras.content.unpack";
/// ORAS: the digest of the uncompressed tar stream.
pub const CONTENT_DIGEST: &str = "io.deis.oras.content.digest";
/// ModelPack: the path of a model's file, before and after the project moved.
pub const MODEL_PATHS: [&str; 2] = ["org.cncf.model.filepath", "org.cnai.model.filepath"];

/// A layer and what it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    descriptor: Descriptor,
    content: Content,
}

/// What a layer becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// One file at this path.
    File(EntryPath),
    /// A tar archive, unpacked at this path.
    Archive {
        /// Where its root lies.
        at: EntryPath,
        /// What its entries are relative to.
        shape: Shape,
    },
}

impl Piece {
    /// The blob.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// What it becomes.
    pub fn content(&self) -> &Content {
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
pub fn plan(
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
    let annotation = |key: &str| layer.annotations().get(key).map(String::as_str);
    let archive = is_archive(layer.descriptor().media_type());
    let titled = |title: &str| {
        EntryPath::from_title(title, limits).map_err(|source| PlanError::Title { layer: position, source })
    };
    if let Some(title) = annotation(TITLE).filter(|title| !title.is_empty()) {
        let path = titled(title)?;
        if annotation(UNPACK) == Some("true") {
            let content = annotation(CONTENT_DIGEST).filter(|text| !text.is_empty());
            let content = content.map(|text| {
                text.parse().map_err(|_| PlanError::ContentDigest { layer: position, value: text.into() })
            });
            let shape = Shape::Directory { prefix: path.clone(), content: content.transpose()? };
            return Ok(Some(Content::Archive { at: path, shape }));
        }
        if path.is_root() {
            return Err(PlanError::Title { layer: position, source: NameError::Empty(title.into()) });
        }
        return Ok(Some(Content::File(path)));
    }
    if archive {
        return Ok(Some(Content::Archive { at: EntryPath::root(), shape: Shape::Image }));
    }
    match MODEL_PATHS.iter().find_map(|key| annotation(key)).filter(|path| !path.is_empty()) {
        Some(path) => Ok(Some(Content::File(titled(path)?))
            .filter(|content| !matches!(content, Content::File(path) if path.is_root()))),
        // A config, a signature, an empty layer: nothing that has a name.
        None => Ok(None),
    }
}

/// Whether an untitled layer of this type is a tar archive.
fn is_archive(media_type: &str) -> bool {
    let essence = essence(media_type);
    let ending =
        |ending: &str| essence.strip_suffix(ending).is_some_and(|rest| rest.ends_with(['.', '/', '+', '-']));
    ["tar", "tar+gzip", "tar+zstd", "tar.gzip", "tar.gz", "tar.zstd", "tgz"].iter().any(|name| ending(name))
        || matches!(essence.as_str(), "application/gzip" | "application/x-gzip" | "application/x-gtar")
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
