//! What each layer of a manifest becomes in the store.

pub(crate) use oras_csi_core::manifest::PlanError;
use oras_csi_core::manifest::{Descriptor, FileContent, FileLimits, ImageManifest, LayerSelection};

use crate::disk::EntryPath;
use crate::layout::LayerShape;
use crate::limits::Limits;

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

/// Plans the selected layers of a manifest.
pub(crate) fn plan(
    manifest: &ImageManifest,
    selection: LayerSelection<'_>,
    limits: &Limits,
) -> Result<Vec<PlannedLayer>, PlanError> {
    let limits = FileLimits { layers: limits.layers(), path: limits.into() };
    let planned = manifest.files(selection, limits)?.into_iter().map(|file| {
        let content = match file.content() {
            FileContent::File(path) => LayerContent::File(path.clone()),
            FileContent::Directory { at, content } => LayerContent::Archive {
                at: at.clone(),
                shape: LayerShape::Directory { prefix: at.clone(), content: content.clone() },
            },
            FileContent::Archive => LayerContent::Archive { at: EntryPath::root(), shape: LayerShape::Image },
        };
        PlannedLayer { descriptor: file.descriptor().clone(), content }
    });
    Ok(planned.collect())
}
