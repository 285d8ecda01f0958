//! The steps of a recipe once their manifests were read: what each lays, and which layers need not be there.
//!
//! | step | a file that is there already | whiteouts |
//! |---|---|---|
//! | `add` | an error that names both references | of an image's layers, for that image alone |
//! | `overlay` | replaced, as by a layer of an image | in every layer, for all that lies beneath the step's path |
//! | `remove` | goes, a directory with all beneath | |
//!
//! In an ORAS directory or a titled file a `.wh.` name is an ordinary name to `add`, and a whiteout to `overlay`: how
//! else would an artifact that patches another say that a file goes?
//!
//! A `remove` that matches nothing is an error: the one who wrote it counts on the file being gone, and a typing error
//! would leave it there without a word. `exclude` is for what may or may not be there.

use oras_csi_core::digest::Digest;
use oras_csi_core::path::Glob;
use oras_csi_core::recipe::Layer as RecipeLayer;
use oras_csi_core::reference::PinnedReference;

use super::error::PullError;
use crate::disk::EntryPath;
use crate::layout::LayerShape;
use crate::unpack::filter::Filter;
use crate::unpack::graft::{GraftError, Laying, is_whiteout};
use crate::unpack::plan::{Content, Piece};

/// A step, ready to be done.
pub(super) enum Work {
    Lay(Source),
    Remove(Glob),
}

/// An artifact whose manifest was read.
pub(super) struct Source {
    step: RecipeLayer<PinnedReference>,
    laying: Laying,
    manifests: Vec<Digest>,
    pieces: Vec<Piece>,
    /// How many pieces, from the first on, an earlier step has laid already.
    laid: usize,
}

impl Work {
    pub(super) fn source(&self) -> Option<&Source> {
        match self {
            Self::Lay(source) => Some(source),
            Self::Remove(_) => None,
        }
    }
}

impl Source {
    pub(super) fn new(
        step: RecipeLayer<PinnedReference>,
        laying: Laying,
        manifests: Vec<Digest>,
        pieces: Vec<Piece>,
    ) -> Self {
        Self { step, laying, manifests, pieces, laid: 0 }
    }

    pub(super) fn step(&self) -> &RecipeLayer<PinnedReference> {
        &self.step
    }

    pub(super) fn reference(&self) -> &PinnedReference {
        self.step.reference()
    }

    /// Whether it lies over what is there, or beside it.
    pub(super) fn laying(&self) -> Laying {
        self.laying
    }

    /// The digests of index and manifest.
    pub(super) fn manifests(&self) -> &[Digest] {
        &self.manifests
    }

    /// Where in the volume it lies.
    pub(super) fn at(&self) -> EntryPath {
        EntryPath::from(self.step.path())
    }

    pub(super) fn filter(&self) -> Filter<'_> {
        Filter::new(self.step.include(), self.step.exclude())
    }

    /// The pieces that it lays itself, in the order of the manifest.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces[self.laid..]
    }

    /// Whether an earlier step has laid some of it.
    pub(super) fn has_laid_before(&self) -> bool {
        self.laid > 0
    }

    /// Whether the bytes of a piece are needed: a filter may leave nothing of it, and a whiteout has none.
    pub(super) fn needs(&self, piece: &Piece) -> bool {
        match piece.content() {
            Content::File(path) => !self.hides(path) && self.filter().keeps(path),
            Content::Archive { at, .. } => !self.filter().prunes(at),
        }
    }

    /// Whether a file of this title is a whiteout.
    pub(super) fn hides(&self, path: &EntryPath) -> bool {
        self.laying == Laying::Over && is_whiteout(path)
    }

    pub(super) fn failed(&self, source: GraftError) -> PullError {
        let reference = || self.reference().clone().into();
        match source {
            GraftError::Disk(error) => PullError::Disk(error),
            source @ (GraftError::TooManyEntries { .. }
            | GraftError::TooManyBytes { .. }
            | GraftError::Name(_)) => PullError::TooMuch { reference: reference(), source },
            source => PullError::Layers { reference: reference(), source },
        }
    }
}

/// Marks the layers at the beginning of each overlay that an earlier step at the same path begins with as well: an
/// image that was made from another brings only what lies above it. To lay them again would undo what the steps
/// between have done.
pub(super) fn mark_laid(steps: &mut [Work]) {
    for position in 1..steps.len() {
        let (before, rest) = steps.split_at_mut(position);
        let Some(Work::Lay(overlay)) = rest.first_mut() else { continue };
        if overlay.laying == Laying::Over {
            let counts = before.iter().filter_map(Work::source).map(|earlier| common(earlier, overlay));
            overlay.laid = counts.max().unwrap_or(0);
        }
    }
}

/// How many layers of an image both begin with, where the earlier one laid all of them that the later one would.
fn common(earlier: &Source, later: &Source) -> usize {
    let same_filter =
        earlier.step.include() == later.step.include() && earlier.step.exclude() == later.step.exclude();
    if earlier.step.path() != later.step.path() || !(earlier.filter().is_empty() || same_filter) {
        return 0;
    }
    let pairs = earlier.pieces.iter().zip(&later.pieces);
    pairs.take_while(|(one, other)| is_image_layer(one) && is_image_layer(other) && same(one, other)).count()
}

fn is_image_layer(piece: &Piece) -> bool {
    matches!(piece.content(), Content::Archive { shape: LayerShape::Image, .. })
}

/// Media types may differ, as those of Docker's and OCI's manifest of one image do.
fn same(one: &Piece, other: &Piece) -> bool {
    one.descriptor().digest() == other.descriptor().digest() && one.content() == other.content()
}
