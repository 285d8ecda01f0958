//! The steps of a recipe after their manifests were read: what each adds, and which layers can be skipped.
//!
//! | step | an existing file at the same path | whiteouts |
//! |---|---|---|
//! | `add` | an error that names both references | in layers of images, for files of the same image |
//! | `overlay` | is replaced, as by a layer of an image | in every layer, for all files beneath the path of the step |
//! | `remove` | is deleted, a directory with all its contents | |
//!
//! In an ORAS directory or a titled file, `add` treats a `.wh.` name as an ordinary name and `overlay` treats it as a
//! whiteout, because an artifact that patches another one has no other way to delete a file.
//!
//! A `remove` that matches nothing is an error, because a typing error would leave the file in the volume without
//! notice. `exclude` is for files that may be absent.

use oras_csi_core::digest::Digest;
use oras_csi_core::path::Glob;
use oras_csi_core::recipe::Layer as RecipeLayer;
use oras_csi_core::reference::PinnedReference;

use super::error::PullError;
use crate::disk::EntryPath;
use crate::layout::{LayerKey, LayerShape, TreeKey};
use crate::unpack::filter::Filter;
use crate::unpack::image::ImagePlan;
use crate::unpack::plan::{LayerContent, PlannedLayer};
use crate::unpack::tree_builder::{MergeMode, TreeBuildError, is_whiteout};

/// A step whose manifest was read.
pub(super) enum ResolvedStep {
    Artifact(Box<ArtifactStep>),
    Remove(Glob),
}

/// The artifact of an `add` or `overlay` step.
pub(super) struct ArtifactStep {
    step: RecipeLayer<PinnedReference>,
    mode: MergeMode,
    manifests: Vec<Digest>,
    layers: Vec<PlannedLayer>,
    /// The media types of layers that give no file, a few of them.
    unnamed: Vec<String>,
    /// How many of the first layers an earlier step has applied already.
    applied: usize,
}

impl ResolvedStep {
    pub(super) fn artifact(&self) -> Option<&ArtifactStep> {
        match self {
            Self::Artifact(artifact) => Some(artifact),
            Self::Remove(_) => None,
        }
    }
}

impl ArtifactStep {
    pub(super) fn new(
        step: RecipeLayer<PinnedReference>,
        mode: MergeMode,
        manifests: Vec<Digest>,
        layers: Vec<PlannedLayer>,
        unnamed: Vec<String>,
    ) -> Self {
        Self { step, mode, manifests, layers, unnamed, applied: 0 }
    }

    pub(super) fn step(&self) -> &RecipeLayer<PinnedReference> {
        &self.step
    }

    /// Returns the media types of layers that give no file, because they have no name.
    pub(super) fn unnamed(&self) -> &[String] {
        &self.unnamed
    }

    pub(super) fn reference(&self) -> &PinnedReference {
        self.step.reference()
    }

    /// Returns whether the step adds to the tree or overlays it.
    pub(super) fn mode(&self) -> MergeMode {
        self.mode
    }

    /// Returns the digests of the index and the manifest.
    pub(super) fn manifests(&self) -> &[Digest] {
        &self.manifests
    }

    /// Returns the path of the step in the volume.
    pub(super) fn path(&self) -> EntryPath {
        EntryPath::from(self.step.path())
    }

    pub(super) fn filter(&self) -> Filter<'_> {
        Filter::new(self.step.include(), self.step.exclude())
    }

    /// Returns the layers that this step applies, in the order of the manifest.
    pub(super) fn layers(&self) -> &[PlannedLayer] {
        &self.layers[self.applied..]
    }

    /// Reports whether an earlier step has applied some of its layers.
    pub(super) fn has_applied_layers(&self) -> bool {
        self.applied > 0
    }

    /// Reports whether the content of a layer is needed. It is not if the filters exclude it, or if it is a whiteout.
    pub(super) fn needs(&self, layer: &PlannedLayer) -> bool {
        match layer.content() {
            LayerContent::File(path) => !self.is_whiteout(path) && self.filter().keeps(path),
            LayerContent::Archive { at, .. } => !self.filter().prunes(at),
        }
    }

    /// Reports whether a file with this title is a whiteout.
    pub(super) fn is_whiteout(&self, path: &EntryPath) -> bool {
        self.mode == MergeMode::Overlay && is_whiteout(path)
    }

    /// Converts an error of this step to a [`PullError`] that names its reference.
    pub(super) fn pull_error(&self, source: TreeBuildError) -> PullError {
        let reference = || self.reference().clone().into();
        match source {
            TreeBuildError::Disk(error) => PullError::Disk(error),
            source @ (TreeBuildError::TooManyEntries { .. }
            | TreeBuildError::TooManyBytes { .. }
            | TreeBuildError::TooMuchDisk { .. }
            | TreeBuildError::Name(_)) => PullError::LimitExceeded { reference: reference(), source },
            source => PullError::Layers { reference: reference(), source },
        }
    }
}

/// The image that the tree of these steps can be, and the layer that it is made from.
pub(super) struct ImageSource {
    pub(super) plan: ImagePlan,
    /// The key of the layer if it is unpacked into files.
    pub(super) layer: LayerKey,
}

impl ImageSource {
    /// Returns the image of a tree that consists of one ORAS directory and nothing else. Other trees are composed of hard
    /// links, which cannot lead into an image.
    pub(super) fn of(tree: &TreeKey, steps: &[ResolvedStep]) -> Option<Self> {
        let [ResolvedStep::Artifact(artifact)] = steps else { return None };
        let [layer] = artifact.layers() else { return None };
        let LayerContent::Archive { at, shape: shape @ LayerShape::Directory { .. } } = layer.content()
        else {
            return None;
        };
        if artifact.mode() != MergeMode::Add || !artifact.filter().is_empty() {
            return None;
        }
        let plan = ImagePlan { tree: tree.clone(), at: artifact.path().join(at) };
        Some(Self { plan, layer: LayerKey::of(layer.descriptor().digest(), shape) })
    }

    /// Returns the key of the layer if it is the image of the tree.
    pub(super) fn image_key(&self) -> LayerKey {
        self.layer.of_image(&self.plan.tree)
    }
}

/// Marks the first layers of each overlay that an earlier step at the same path has as well. An image that was built
/// from another one then applies only the layers above it. Applying them again would undo the steps in between.
pub(super) fn mark_applied_layers(steps: &mut [ResolvedStep]) {
    for position in 1..steps.len() {
        let (before, rest) = steps.split_at_mut(position);
        let Some(ResolvedStep::Artifact(overlay)) = rest.first_mut() else { continue };
        if overlay.mode == MergeMode::Overlay {
            let counts = before
                .iter()
                .filter_map(ResolvedStep::artifact)
                .map(|earlier| count_shared_layers(earlier, overlay));
            overlay.applied = counts.max().unwrap_or(0);
        }
    }
}

/// Returns how many first layers two images share, if the earlier step applied them with the same filter or without
/// one.
fn count_shared_layers(earlier: &ArtifactStep, later: &ArtifactStep) -> usize {
    let same_filter =
        earlier.step.include() == later.step.include() && earlier.step.exclude() == later.step.exclude();
    if earlier.step.path() != later.step.path() || !(earlier.filter().is_empty() || same_filter) {
        return 0;
    }
    let pairs = earlier.layers.iter().zip(&later.layers);
    pairs
        .take_while(|(one, other)| {
            is_image_layer(one) && is_image_layer(other) && has_same_content(one, other)
        })
        .count()
}

fn is_image_layer(layer: &PlannedLayer) -> bool {
    matches!(layer.content(), LayerContent::Archive { shape: LayerShape::Image, .. })
}

/// Media types may differ: the Docker manifest and the OCI manifest of the same image use different ones.
fn has_same_content(one: &PlannedLayer, other: &PlannedLayer) -> bool {
    one.descriptor().digest() == other.descriptor().digest() && one.content() == other.content()
}
