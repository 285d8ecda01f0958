//! Puts a tree together from what the store has: every step apart, then merged, so that a whiteout of
//! one artifact cannot reach the files of another.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::Layer as RecipeLayer;
use oras_csi_core::reference::PinnedReference;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::error::PullError;
use crate::store::{DiskError, LayerKey, Made, Store, TreeKey};
use crate::unpack::Shape;
use crate::unpack::graft::{Filter, GraftError, Grafter, Laying};
use crate::unpack::name::EntryPath;
use crate::unpack::plan::{Content, Piece};
use crate::unpack::write::open_beneath;

/// A step whose manifest was read.
pub(super) struct Source {
    pub(super) step: RecipeLayer<PinnedReference>,
    pub(super) manifests: Vec<Digest>,
    pub(super) pieces: Vec<Piece>,
}

impl Source {
    pub(super) fn reference(&self) -> &PinnedReference {
        self.step.reference()
    }

    fn filter(&self) -> Filter<'_> {
        Filter::new(self.step.include(), self.step.exclude())
    }

    fn failed(&self, source: GraftError) -> PullError {
        match source {
            GraftError::Disk(error) => PullError::Disk(error),
            source => PullError::Layers { reference: self.reference().clone().into(), source },
        }
    }
}

/// Makes the tree `key` of these steps; everything that they need is in the store.
pub(super) fn assemble(store: &Store, key: &TreeKey, sources: &[Source]) -> Result<(), PullError> {
    let staging = store.stage()?;
    let mut tree = Grafter::new(staging.files());
    for (position, source) in sources.iter().enumerate() {
        let apart = store.stage()?;
        let mut step = Grafter::new(apart.files());
        lay(store, source, &mut step)?;
        if step.totals().inodes <= 1 {
            return Err(nothing(source));
        }
        let at = EntryPath::from(source.step.path());
        tree.merge(apart.files(), step.totals(), &at).map_err(|error| match error {
            GraftError::Taken { path } => {
                let earlier = sources[..position].iter();
                let first = earlier.rev().find(|earlier| gives(store, earlier, &path)).unwrap_or(&sources[0]);
                PullError::Conflict {
                    path: path.to_string(),
                    first: first.reference().clone().into(),
                    second: source.reference().clone().into(),
                }
            }
            error => source.failed(error),
        })?;
    }
    let made = Made {
        totals: tree.totals(),
        manifests: sources.iter().flat_map(|source| source.manifests.iter().cloned()).collect(),
        blobs: sources.iter().flat_map(|source| super::fetch::blobs(source).cloned()).collect(),
        layers: sources.iter().flat_map(layers).map(|key| key.to_string()).collect(),
    };
    Ok(staging.commit_tree(key, &made)?)
}

fn layers(source: &Source) -> impl Iterator<Item = LayerKey> {
    source.pieces.iter().filter_map(|piece| match piece.content() {
        Content::Archive { shape, .. } => Some(LayerKey::of(piece.descriptor().digest(), shape)),
        Content::File(_) => None,
    })
}

/// Lays one step's pieces, in the order of the manifest.
fn lay(store: &Store, source: &Source, tree: &mut Grafter<'_>) -> Result<(), PullError> {
    let filter = source.filter();
    let mut files = std::collections::BTreeSet::new();
    for piece in &source.pieces {
        let digest = piece.descriptor().digest();
        match piece.content() {
            // The same blob under the same title twice is one file.
            Content::File(path) if !filter.keeps(path) || !files.insert(path) => {}
            Content::File(path) => {
                let blobs = store.blobs(digest.algorithm())?;
                tree.file(&blobs, digest.hex(), piece.descriptor().size(), path)
                    .map_err(|error| source.failed(error))?;
            }
            Content::Archive { at, shape } => {
                let key = LayerKey::of(digest, shape);
                let gone = || DiskError::new("find the layer", key.as_str(), Errno::NOENT);
                let layer = store.layer(&key)?.ok_or_else(gone)?;
                let laying = if *shape == Shape::Image { Laying::Over } else { Laying::Beside };
                tree.tree(layer.files(), at, filter, laying).map_err(|error| source.failed(error))?;
            }
        }
    }
    Ok(())
}

fn nothing(source: &Source) -> PullError {
    let reference = source.reference().clone().into();
    if source.filter().is_empty() {
        return PullError::Empty { reference };
    }
    let list = |name: &str, globs: &[oras_csi_core::path::Glob]| {
        let globs = globs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if globs.is_empty() { String::new() } else { format!("{name} {globs}") }
    };
    let filters = [list("include", source.step.include()), list("exclude", source.step.exclude())];
    let filters = filters.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    PullError::Filtered { reference, filters }
}

/// Whether an earlier step has something at this path of the tree; for the words of a conflict.
fn gives(store: &Store, source: &Source, path: &EntryPath) -> bool {
    let Some(path) = path.beneath(&EntryPath::from(source.step.path())) else { return false };
    source.pieces.iter().any(|piece| match piece.content() {
        Content::File(file) => file.beneath(&path).is_some() || path.beneath(file).is_some(),
        Content::Archive { at, shape } => {
            let Some(inside) = path.beneath(at) else { return at.beneath(&path).is_some() };
            let Ok(Some(layer)) = store.layer(&LayerKey::of(piece.descriptor().digest(), shape)) else {
                return false;
            };
            let Some((parent, name)) = inside.split() else { return true };
            open_beneath(layer.files(), &parent).is_ok_and(|folder| {
                rustix::fs::statat(folder, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW).is_ok()
            })
        }
    })
}
