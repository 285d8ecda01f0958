//! The include and exclude globs of a recipe step.

use oras_csi_core::path::Glob;

use crate::disk::EntryPath;

/// Selects paths of an artifact.
///
/// A glob that matches a directory applies to everything beneath it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filter<'a> {
    include: &'a [Glob],
    exclude: &'a [Glob],
}

impl<'a> Filter<'a> {
    /// Keeps the paths that a glob of `include` matches (all if there is none), without those that a glob of
    /// `exclude` matches.
    pub(crate) fn new(include: &'a [Glob], exclude: &'a [Glob]) -> Self {
        Self { include, exclude }
    }

    /// Reports whether all paths are kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    pub(super) fn is_included(&self, path: &EntryPath) -> bool {
        self.include.is_empty() || matches_any(self.include, path)
    }

    pub(super) fn is_excluded(&self, path: &EntryPath) -> bool {
        matches_any(self.exclude, path)
    }

    /// Reports whether a file at this path is kept: the globs match it, or a directory above it.
    pub(crate) fn keeps(&self, path: &EntryPath) -> bool {
        !self.prunes(path)
            && (self.include.is_empty() || with_ancestors(path).any(|path| self.is_included(&path)))
    }

    /// Reports whether nothing at or beneath this path is kept.
    pub(crate) fn prunes(&self, path: &EntryPath) -> bool {
        !self.exclude.is_empty() && with_ancestors(path).any(|path| self.is_excluded(&path))
    }
}

fn matches_any(globs: &[Glob], path: &EntryPath) -> bool {
    if globs.is_empty() {
        return false;
    }
    let text = path.to_text();
    globs.iter().any(|glob| glob.matches(&text))
}

/// Returns the path and the directories above it, without the root.
fn with_ancestors(path: &EntryPath) -> impl Iterator<Item = EntryPath> {
    let named = |path: &EntryPath| !path.is_root();
    std::iter::successors(Some(path.clone()).filter(named), move |path| {
        path.split().map(|(parent, _)| parent).filter(named)
    })
}
