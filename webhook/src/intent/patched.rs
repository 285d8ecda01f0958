//! A volume that names a patch, or the artifact of a recipe, and what it comes to once that was read. Pure.

use oras_csi_core::digest::Digest;
use oras_csi_core::patch::{Level, Part, Patch};
use oras_csi_core::recipe::{Layer, Recipe, Step};
use oras_csi_core::reference::Reference;

use super::{Named, Origin, ReadFrom, Registries, Wanted, read_recipe};
use crate::denial::{Code, Denial};

/// What names a patch or the artifact of a recipe.
#[derive(Clone, Debug)]
pub(crate) struct Patched {
    /// The patch or recipe.
    pub(crate) reference: Reference,
    /// Where it is written.
    pub(crate) origin: Origin,
    /// Up to which level, and where that is written.
    pub(crate) level: Option<(Level, Origin)>,
    /// What has to be the base of the patch, and where that is written.
    pub(crate) base: Option<(Reference, Origin)>,
    /// The name for people in the volume's id.
    pub(crate) label: Option<String>,
    /// Resolve past the cache.
    pub(crate) past_cache: bool,
}

impl Patched {
    /// What is named beside it as its base.
    pub(super) fn beside(&self) -> Option<Named> {
        let (reference, origin) = self.base.as_ref()?;
        Some(Named { origin: origin.clone(), reference: reference.clone(), is_patch: false })
    }

    /// What is wanted, by a patch.
    ///
    /// Where what is patched is written beside it, that is the base, as it is written: the patch may name the same
    /// bytes in a repository that nobody here can reach. That they are the same is known once they are resolved.
    pub(crate) fn with_patch(&self, digest: Digest, is_fresh: bool, patch: &Patch) -> Result<Wanted, Denial> {
        let (mut steps, mut origins) = (Vec::new(), Vec::new());
        for (part, step) in patch.steps(self.level.as_ref().map(|(level, _)| *level)) {
            let (step, origin) = match &self.base {
                Some((reference, origin)) if part == Part::Base => {
                    (Step::Add(Layer::new(reference.clone())), origin.clone())
                }
                _ => (step, self.origin.part(part)),
            };
            steps.push(step);
            origins.push(origin);
        }
        let (is_bare, unchecked) = (steps.len() == 1, self.base.is_some().then(|| Box::new(patch.clone())));
        let recipe = Recipe::new(steps).map_err(|error| self.unreadable(error))?;
        self.wanted(recipe, origins, self.from(digest, is_fresh, unchecked, is_bare))
    }

    /// What is wanted, by a recipe.
    pub(crate) fn with_recipe(
        &self,
        digest: Digest,
        is_fresh: bool,
        yaml: &str,
        registries: &dyn Registries,
    ) -> Result<Wanted, Denial> {
        if let Some((level, origin)) = &self.level {
            let rule = "is a level of a patch, and what is named is a recipe";
            return Err(Denial::rewrite(origin.at(), Some(level.as_str()), rule, "remove it"));
        }
        if let Some((reference, origin)) = &self.base {
            let rule = "is the base of a patch, and what is named beside it is a recipe";
            let text = reference.to_string();
            return Err(Denial::rewrite(origin.at(), Some(&text), rule, "remove it: a recipe says all"));
        }
        let (recipe, origins) = read_recipe(yaml, &self.origin, registries).map_err(|denial| {
            denial.because(&format!("so says the artifact of the recipe, {}", self.reference))
        })?;
        self.wanted(recipe, origins, self.from(digest, is_fresh, None, false))
    }

    fn from(&self, digest: Digest, is_fresh: bool, unchecked: Option<Box<Patch>>, is_bare: bool) -> ReadFrom {
        let (reference, origin) = (self.reference.clone(), self.origin.clone());
        ReadFrom { reference, digest, origin, is_fresh, unchecked, is_bare }
    }

    fn wanted(&self, recipe: Recipe, origins: Vec<Origin>, from: ReadFrom) -> Result<Wanted, Denial> {
        let (label, past_cache) = (self.label.clone(), self.past_cache);
        let wanted = Wanted { recipe, origins, label, past_cache, read_from: Some(from) };
        wanted.check_length(self.origin.at())?;
        Ok(wanted)
    }

    /// It was read, and says nothing that can be mounted.
    pub(crate) fn unreadable(&self, problem: impl std::fmt::Display) -> Denial {
        let text = self.reference.to_string();
        Denial::new(Code::Unprocessable, self.origin.at(), Some(&text), problem, "")
    }
}
