//! Assembles a tree from blobs and layers that are in the store.
//!
//! The files of an `add` step are assembled in a staging directory of their own and then merged into the tree, so
//! that a whiteout in one artifact cannot remove files of another. An `overlay` step is linked directly into the
//! tree, where its whiteouts apply to all files that earlier steps put beneath the same path.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::error::PullError;
use super::steps::{ArtifactStep, ImageSource, ResolvedStep};
use crate::content::description::{TreeContent, TreeUsage};
use crate::disk::beneath::open_beneath;
use crate::disk::{DiskError, EntryPath, Usage};
use crate::layout::{LayerKey, LayerShape, TreeKey};
use crate::store::Store;
use crate::store::trees::Layer;
use crate::unpack::budget::Budget;
use crate::unpack::plan::{LayerContent, PlannedLayer};
use crate::unpack::tree_builder::{MergeMode, TreeBuildError, TreeBuilder};

/// Assembles the tree `key` from these steps. All blobs and layers that they need are in the store, and were counted
/// in `budget`.
pub(super) fn assemble(
    store: &Store,
    key: &TreeKey,
    steps: &[ResolvedStep],
    budget: &Budget,
) -> Result<(), PullError> {
    if let Some(source) = ImageSource::of(key, steps)
        && store.has_images()
        && let Some(layer) = store.layer(&source.image_key())?
    {
        return commit_image(store, key, steps, &source.image_key(), &layer);
    }
    let staging = store.stage()?;
    let mut tree = TreeBuilder::new(staging.files(), store.limits(), budget).map_err(assemble_error)?;
    for (position, step) in steps.iter().enumerate() {
        match step {
            ResolvedStep::Artifact(artifact) if artifact.mode() == MergeMode::Overlay => {
                apply_overlay(store, artifact, &mut tree)?;
            }
            ResolvedStep::Artifact(artifact) => {
                apply_add(store, artifact, &steps[..position], steps.len() == 1, budget, &mut tree)?;
            }
            ResolvedStep::Remove(glob) => {
                if tree.remove_matching(glob).map_err(assemble_error)? == 0 {
                    return Err(PullError::RemovesNothing { glob: glob.clone() });
                }
            }
        }
    }
    for artifact in steps.iter().filter_map(ResolvedStep::artifact) {
        if !tree.has_entries_at(&artifact.path()).map_err(assemble_error)? {
            let reference = artifact.reference().clone().into();
            return Err(PullError::Emptied { reference, path: artifact.path().to_string() });
        }
    }
    let artifacts = || steps.iter().filter_map(ResolvedStep::artifact);
    let content = TreeContent {
        totals: tree.totals(),
        manifests: artifacts().flat_map(|artifact| artifact.manifests().iter().cloned()).collect(),
        blobs: artifacts().flat_map(blobs).collect(),
        layers: artifacts().flat_map(layers).collect(),
        disk: None,
        image: None,
    };
    let own = tree.usage();
    let with_parts = own.plus(usage_of_parts(store, steps)?);
    Ok(staging.commit_tree(key, &content, TreeUsage { own, with_parts })?)
}

/// Makes the image of the only layer the tree.
fn commit_image(
    store: &Store,
    key: &TreeKey,
    steps: &[ResolvedStep],
    layer_key: &LayerKey,
    layer: &Layer,
) -> Result<(), PullError> {
    let staging = store.stage()?;
    staging.link_image(layer_key)?;
    let artifacts = steps.iter().filter_map(ResolvedStep::artifact);
    let content = TreeContent {
        totals: layer.totals(),
        manifests: artifacts.flat_map(|artifact| artifact.manifests().iter().cloned()).collect(),
        blobs: Vec::new(),
        layers: vec![layer_key.clone()],
        disk: None,
        image: layer.image().cloned(),
    };
    Ok(staging.commit_tree(
        key,
        &content,
        TreeUsage { own: Usage::directory(), with_parts: layer.usage() },
    )?)
}

/// Returns what the disk is charged for the blobs and layers of a tree, each once.
fn usage_of_parts(store: &Store, steps: &[ResolvedStep]) -> Result<Usage, DiskError> {
    let artifacts = || steps.iter().filter_map(ResolvedStep::artifact);
    let blobs: BTreeMap<_, _> = artifacts()
        .flat_map(needed_layers)
        .filter(|layer| matches!(layer.content(), LayerContent::File(_)))
        .map(|layer| (layer.descriptor().digest(), Usage::blob(layer.descriptor().size())))
        .collect();
    let mut usage = blobs.into_values().sum::<Usage>();
    for key in artifacts().flat_map(layers).collect::<BTreeSet<_>>() {
        usage = usage.plus(store.layer(&key)?.map(|layer| layer.usage()).unwrap_or_default());
    }
    Ok(usage)
}

/// Converts an error that no single artifact caused.
fn assemble_error(error: TreeBuildError) -> PullError {
    match error {
        TreeBuildError::Disk(error) => PullError::Disk(error),
        other => PullError::Assemble(other),
    }
}

fn apply_overlay(
    store: &Store,
    artifact: &ArtifactStep,
    tree: &mut TreeBuilder<'_>,
) -> Result<(), PullError> {
    tree.set_base(artifact.path());
    apply_layers(store, artifact, LayerUse::Linked, tree)?;
    // An overlay whose layers were all applied by an earlier step changes nothing.
    if tree.changes() == 0 && !artifact.has_applied_layers() {
        return Err(no_files_error(artifact));
    }
    Ok(())
}

fn apply_add(
    store: &Store,
    artifact: &ArtifactStep,
    earlier: &[ResolvedStep],
    is_alone: bool,
    budget: &Budget,
    tree: &mut TreeBuilder<'_>,
) -> Result<(), PullError> {
    let part = store.stage()?;
    let mut step = TreeBuilder::new_part(part.files(), store.limits(), budget, artifact.path())
        .map_err(|error| artifact.pull_error(error))?;
    apply_layers(store, artifact, LayerUse::of(store, artifact, is_alone), &mut step)?;
    if step.totals().inodes <= 1 {
        return Err(no_files_error(artifact));
    }
    let size = (step.totals(), step.usage());
    tree.merge_tree(part.files(), size, &artifact.path()).map_err(|error| match error {
        TreeBuildError::Exists { path } => {
            let mut before = earlier.iter().rev().filter_map(ResolvedStep::artifact);
            match before.find(|before| has_entry_at(store, before, &path)) {
                Some(first) => PullError::Conflict {
                    path: path.to_string(),
                    first: first.reference().clone().into(),
                    second: artifact.reference().clone().into(),
                },
                None => artifact.pull_error(TreeBuildError::Exists { path }),
            }
        }
        error => artifact.pull_error(error),
    })
}

/// Returns the digests of the layers that are single files of the tree.
fn blobs(artifact: &ArtifactStep) -> impl Iterator<Item = oras_csi_core::digest::Digest> {
    needed_layers(artifact).filter_map(|layer| match layer.content() {
        LayerContent::File(_) => Some(layer.descriptor().digest().clone()),
        LayerContent::Archive { .. } => None,
    })
}

fn layers(artifact: &ArtifactStep) -> impl Iterator<Item = LayerKey> {
    needed_layers(artifact).filter_map(|layer| match layer.content() {
        LayerContent::Archive { shape, .. } => Some(LayerKey::of(layer.descriptor().digest(), shape)),
        LayerContent::File(_) => None,
    })
}

fn needed_layers(artifact: &ArtifactStep) -> impl Iterator<Item = &PlannedLayer> {
    artifact.layers().iter().filter(|layer| artifact.needs(layer))
}

/// What happens to the unpacked layers of a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LayerUse {
    /// The layers stay in the store and are hard-linked into the tree, so that other trees can use them.
    Linked,
    /// The layers are moved into the tree.
    Moved,
}

impl LayerUse {
    /// Chooses for an `add` step. Its layers may be moved only if nothing uses them afterwards: the store is
    /// ephemeral, the recipe has no other step, and the step uses each layer once and whole, at the root.
    fn of(store: &Store, artifact: &ArtifactStep, is_alone: bool) -> Self {
        let mut seen = BTreeSet::new();
        let are_unique = layers(artifact).all(|layer| seen.insert(layer));
        let are_whole = artifact.filter().is_empty() && artifact.path().is_root();
        if !store.is_persistent() && is_alone && are_unique && are_whole { Self::Moved } else { Self::Linked }
    }
}

/// Adds the layers of one step to `tree`, in the order of the manifest.
fn apply_layers(
    store: &Store,
    artifact: &ArtifactStep,
    layer_use: LayerUse,
    tree: &mut TreeBuilder<'_>,
) -> Result<(), PullError> {
    let filter = artifact.filter();
    let mut files = BTreeSet::new();
    for layer in artifact.layers() {
        let digest = layer.descriptor().digest();
        match layer.content() {
            LayerContent::File(path) if artifact.is_whiteout(path) => {
                tree.apply_whiteout(path, filter).map_err(|error| artifact.pull_error(error))?;
            }
            _ if !artifact.needs(layer) => {}
            // The same blob with the same title twice is one file.
            LayerContent::File(path) if !files.insert(path) => {}
            LayerContent::File(path) => {
                let blobs = store.open_blobs(digest.algorithm())?;
                tree.link_file(&blobs, digest.hex(), layer.descriptor().size(), path, artifact.mode())
                    .map_err(|error| artifact.pull_error(error))?;
            }
            LayerContent::Archive { at, shape } => {
                let key = LayerKey::of(digest, shape);
                let missing = || DiskError::new("find the layer", key.as_str(), Errno::NOENT);
                let layer = store.layer(&key)?.ok_or_else(missing)?;
                if *shape != LayerShape::Image && layer_use == LayerUse::Moved {
                    let moved = tree.move_tree(layer.files(), (layer.totals(), layer.usage()), at);
                    moved.map_err(|error| artifact.pull_error(error))?;
                    continue;
                }
                let mode = if *shape == LayerShape::Image { MergeMode::Overlay } else { artifact.mode() };
                tree.link_tree(layer.files(), at, filter, mode)
                    .map_err(|error| artifact.pull_error(error))?;
            }
        }
    }
    Ok(())
}

fn no_files_error(artifact: &ArtifactStep) -> PullError {
    let reference = artifact.reference().clone().into();
    if artifact.filter().is_empty() {
        return PullError::Empty { reference };
    }
    let list = |name: &str, globs: &[oras_csi_core::path::Glob]| {
        let globs = globs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if globs.is_empty() { String::new() } else { format!("{name} {globs}") }
    };
    let filters = [list("include", artifact.step().include()), list("exclude", artifact.step().exclude())];
    let filters = filters.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    PullError::Filtered { reference, filters }
}

/// Reports whether a step has an entry at this path of the tree. Used to name both steps in the message of a
/// conflict.
fn has_entry_at(store: &Store, artifact: &ArtifactStep, path: &EntryPath) -> bool {
    let Some(path) = path.beneath(&artifact.path()) else { return artifact.path().beneath(path).is_some() };
    artifact.layers().iter().filter(|layer| artifact.needs(layer)).any(|layer| match layer.content() {
        LayerContent::File(file) => file.beneath(&path).is_some() || path.beneath(file).is_some(),
        LayerContent::Archive { at, shape } => {
            let Some(inside) = path.beneath(at) else { return at.beneath(&path).is_some() };
            let Ok(Some(layer)) = store.layer(&LayerKey::of(layer.descriptor().digest(), shape)) else {
                return false;
            };
            let Some((parent, name)) = inside.split() else { return true };
            open_beneath(layer.files(), &parent).is_ok_and(|folder| {
                rustix::fs::statat(folder, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW).is_ok()
            })
        }
    })
}
