//! Which paths of an artifact a step takes.

use oras_csi_core::path::Glob;

use crate::disk::EntryPath;

/// Which paths of an artifact are kept.
///
/// A glob that names a directory stands for everything beneath it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filter<'a> {
    include: &'a [Glob],
    exclude: &'a [Glob],
}

impl<'a> Filter<'a> {
    /// Keeps what one of `include` names (all, if there is none), less what one of `exclude` names.
    pub(crate) fn new(include: &'a [Glob], exclude: &'a [Glob]) -> Self {
        Self { include, exclude }
    }

    /// Whether everything is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    pub(super) fn included(&self, path: &EntryPath) -> bool {
        self.include.is_empty() || self.include.iter().any(|glob| glob.matches(&path.to_text()))
    }

    pub(super) fn excluded(&self, path: &EntryPath) -> bool {
        self.exclude.iter().any(|glob| glob.matches(&path.to_text()))
    }

    /// Whether a file at this path is kept: it, or a directory above it, is named.
    pub(crate) fn keeps(&self, path: &EntryPath) -> bool {
        !self.prunes(path) && (self.include.is_empty() || from_here_up(path).any(|path| self.included(&path)))
    }

    /// Whether nothing at or beneath this path is kept.
    pub(crate) fn prunes(&self, path: &EntryPath) -> bool {
        !self.exclude.is_empty() && from_here_up(path).any(|path| self.excluded(&path))
    }
}

/// A path and the directories above it, without the root.
fn from_here_up(path: &EntryPath) -> impl Iterator<Item = EntryPath> {
    let named = |path: &EntryPath| !path.is_root();
    std::iter::successors(Some(path.clone()).filter(named), move |path| {
        path.split().map(|(parent, _)| parent).filter(named)
    })
}
