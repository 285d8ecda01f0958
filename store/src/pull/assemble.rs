//! Puts a tree together from what the store has. What is added is put together apart, then merged, so that a whiteout
//! of one artifact cannot reach the files of another; what is laid over goes right into the tree, where its whiteouts
//! reach all that earlier steps laid beneath the same path.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::error::PullError;
use super::steps::{Source, Work};
use crate::content::description::TreeContent;
use crate::disk::beneath::open_beneath;
use crate::disk::{DiskError, EntryPath};
use crate::layout::{LayerKey, LayerShape, TreeKey};
use crate::store::Store;
use crate::unpack::graft::{GraftError, Grafter, Laying};
use crate::unpack::plan::{Content, Piece};

/// Makes the tree `key` of these steps; everything that they need is in the store.
pub(super) fn assemble(store: &Store, key: &TreeKey, steps: &[Work]) -> Result<(), PullError> {
    let staging = store.stage()?;
    let mut tree = Grafter::new(staging.files(), store.limits());
    for (position, work) in steps.iter().enumerate() {
        match work {
            Work::Lay(source) if source.laying() == Laying::Over => lay_over(store, source, &mut tree)?,
            Work::Lay(source) => lay_beside(store, source, &steps[..position], steps.len() == 1, &mut tree)?,
            Work::Remove(glob) => {
                if tree.remove(glob).map_err(of_whole)? == 0 {
                    return Err(PullError::RemovesNothing { glob: glob.clone() });
                }
            }
        }
    }
    for source in steps.iter().filter_map(Work::source) {
        if !tree.has_something_at(&source.at()).map_err(of_whole)? {
            let reference = source.reference().clone().into();
            return Err(PullError::Emptied { reference, path: source.at().to_string() });
        }
    }
    let sources = || steps.iter().filter_map(Work::source);
    let made = TreeContent {
        totals: tree.totals(),
        manifests: sources().flat_map(|source| source.manifests().iter().cloned()).collect(),
        blobs: sources().flat_map(blobs).collect(),
        layers: sources().flat_map(layers).collect(),
    };
    Ok(staging.commit_tree(key, &made)?)
}

/// An error of a step that has no artifact.
fn of_whole(error: GraftError) -> PullError {
    match error {
        GraftError::Disk(error) => PullError::Disk(error),
        other => PullError::Whole(other),
    }
}

fn lay_over(store: &Store, source: &Source, tree: &mut Grafter<'_>) -> Result<(), PullError> {
    tree.enter(source.at());
    lay(store, source, Handover::Linked, tree)?;
    // What an earlier step has laid already is there.
    if tree.changes() == 0 && !source.has_laid_before() {
        return Err(nothing(source));
    }
    Ok(())
}

fn lay_beside(
    store: &Store,
    source: &Source,
    earlier: &[Work],
    is_alone: bool,
    tree: &mut Grafter<'_>,
) -> Result<(), PullError> {
    let apart = store.stage()?;
    let mut step = Grafter::apart(apart.files(), store.limits(), source.at());
    lay(store, source, Handover::of(store, source, is_alone), &mut step)?;
    if step.totals().inodes <= 1 {
        return Err(nothing(source));
    }
    tree.merge(apart.files(), step.totals(), &source.at()).map_err(|error| match error {
        GraftError::Taken { path } => {
            let mut before = earlier.iter().rev().filter_map(Work::source);
            match before.find(|before| gives(store, before, &path)) {
                Some(first) => PullError::Conflict {
                    path: path.to_string(),
                    first: first.reference().clone().into(),
                    second: source.reference().clone().into(),
                },
                None => source.failed(GraftError::Taken { path }),
            }
        }
        error => source.failed(error),
    })
}

/// The digests of the file layers that are in the tree.
fn blobs(source: &Source) -> impl Iterator<Item = oras_csi_core::digest::Digest> {
    needed(source).filter_map(|piece| match piece.content() {
        Content::File(_) => Some(piece.descriptor().digest().clone()),
        Content::Archive { .. } => None,
    })
}

fn layers(source: &Source) -> impl Iterator<Item = LayerKey> {
    needed(source).filter_map(|piece| match piece.content() {
        Content::Archive { shape, .. } => Some(LayerKey::of(piece.descriptor().digest(), shape)),
        Content::File(_) => None,
    })
}

fn needed(source: &Source) -> impl Iterator<Item = &Piece> {
    source.pieces().iter().filter(|piece| source.needs(piece))
}

/// What becomes of the layers of a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handover {
    /// They stay, for other trees.
    Linked,
    /// They are the tree from now on.
    Taken,
}

impl Handover {
    /// Of a step that is laid beside. They may be taken where nobody comes after: not this step, which would have to lay
    /// one twice or only a part of it, and no other.
    fn of(store: &Store, source: &Source, is_alone: bool) -> Self {
        let mut seen = BTreeSet::new();
        let once = layers(source).all(|layer| seen.insert(layer));
        let whole = source.filter().is_empty() && source.at().is_root();
        if !store.is_persistent() && is_alone && once && whole { Self::Taken } else { Self::Linked }
    }
}

/// Lays one step's pieces, in the order of the manifest.
fn lay(store: &Store, source: &Source, handover: Handover, tree: &mut Grafter<'_>) -> Result<(), PullError> {
    let filter = source.filter();
    let mut files = BTreeSet::new();
    for piece in source.pieces() {
        let digest = piece.descriptor().digest();
        match piece.content() {
            Content::File(path) if source.hides(path) => {
                tree.whiteout(path, filter).map_err(|error| source.failed(error))?;
            }
            _ if !source.needs(piece) => {}
            // The same blob under the same title twice is one file.
            Content::File(path) if !files.insert(path) => {}
            Content::File(path) => {
                let blobs = store.open_blobs(digest.algorithm())?;
                tree.file(&blobs, digest.hex(), piece.descriptor().size(), path, source.laying())
                    .map_err(|error| source.failed(error))?;
            }
            Content::Archive { at, shape } => {
                let key = LayerKey::of(digest, shape);
                let gone = || DiskError::new("find the layer", key.as_str(), Errno::NOENT);
                let layer = store.layer(&key)?.ok_or_else(gone)?;
                if *shape != LayerShape::Image && handover == Handover::Taken {
                    let taken = tree.take(layer.files(), layer.totals(), at);
                    taken.map_err(|error| source.failed(error))?;
                    continue;
                }
                let laying = if *shape == LayerShape::Image { Laying::Over } else { source.laying() };
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
    let filters = [list("include", source.step().include()), list("exclude", source.step().exclude())];
    let filters = filters.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    PullError::Filtered { reference, filters }
}

/// Whether an earlier step has something at this path of the tree; for the words of a conflict.
fn gives(store: &Store, source: &Source, path: &EntryPath) -> bool {
    let Some(path) = path.beneath(&source.at()) else { return source.at().beneath(path).is_some() };
    source.pieces().iter().filter(|piece| source.needs(piece)).any(|piece| match piece.content() {
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
