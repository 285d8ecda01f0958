//! A volume that names a patch, or the artifact of a recipe, or whose recipe has patches in it; and what it comes to once
//! that was read. Pure.

use oras_csi_core::digest::Digest;
use oras_csi_core::patch::{Level, Part, Patch};
use oras_csi_core::policy::Source;
use oras_csi_core::recipe::{Layer, PatchStep, Recipe, RecipeError, Step, WrittenRecipe, WrittenStep};
use oras_csi_core::reference::Reference;

use super::{Content, Named, Origin, ReadFrom, Registries, Wanted, read_recipe};
use crate::denial::{Code, Denial};
use crate::resolve::Said;

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
        let (origin, reference) = (origin.clone(), reference.clone());
        Some(Named { origin, reference, is_patch: false, source: Source::Direct })
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

    /// What is wanted, by a recipe: [`Content::Steps`] where there are patches in it.
    pub(crate) fn with_recipe(
        &self,
        digest: Digest,
        is_fresh: bool,
        yaml: &str,
        registries: &dyn Registries,
    ) -> Result<Content, Denial> {
        if let Some((level, origin)) = &self.level {
            let rule = "is a level of a patch, and what is named is a recipe";
            return Err(Denial::rewrite(origin.at(), Some(level.as_str()), rule, "remove it"));
        }
        if let Some((reference, origin)) = &self.base {
            let rule = "is the base of a patch, and what is named beside it is a recipe";
            let text = reference.to_string();
            return Err(Denial::rewrite(origin.at(), Some(&text), rule, "remove it: a recipe says all"));
        }
        let so_says = |denial: Denial| {
            denial.because(&format!("so says the artifact of the recipe, {}", self.reference))
        };
        let recipe = read_recipe(yaml, &self.origin, registries).map_err(so_says)?;
        let steps = Steps {
            recipe,
            origin: self.origin.clone(),
            label: self.label.clone(),
            past_cache: self.past_cache,
            read_from: vec![self.from(digest, is_fresh, None, false)],
        };
        steps.into_content().map_err(so_says)
    }

    fn from(&self, digest: Digest, is_fresh: bool, unchecked: Option<Box<Patch>>, is_bare: bool) -> ReadFrom {
        let (reference, origin) = (self.reference.clone(), self.origin.clone());
        ReadFrom { reference, digest, origin, is_fresh, unchecked, is_bare }
    }

    fn wanted(&self, recipe: Recipe, origins: Vec<Origin>, from: ReadFrom) -> Result<Wanted, Denial> {
        let (label, past_cache) = (self.label.clone(), self.past_cache);
        let wanted = Wanted { recipe, origins, label, past_cache, read_from: vec![from] };
        wanted.check_length(self.origin.at())?;
        Ok(wanted)
    }

    /// It was read, and says nothing that can be mounted.
    pub(crate) fn unreadable(&self, problem: impl std::fmt::Display) -> Denial {
        let text = self.reference.to_string();
        Denial::new(Code::Unprocessable, self.origin.at(), Some(&text), problem, "")
    }
}

/// A recipe that is written, or that was read.
#[derive(Clone, Debug)]
pub(crate) struct Steps {
    pub(crate) recipe: WrittenRecipe,
    /// Where it is written, or what it was read from.
    pub(crate) origin: Origin,
    /// The name for people in the volume's id.
    pub(crate) label: Option<String>,
    /// Resolve past the cache.
    pub(crate) past_cache: bool,
    /// The artifact that it was read from, where it was.
    pub(crate) read_from: Vec<ReadFrom>,
}

/// What was read where a step of a recipe names a patch.
pub(crate) struct Read {
    /// Its digest.
    pub(crate) digest: Digest,
    /// Whether its tag was looked up for this very request.
    pub(crate) is_fresh: bool,
    /// What it says.
    pub(crate) said: Said,
}

impl Steps {
    /// What can be pinned at once, where there is no patch in it.
    pub(super) fn into_content(self) -> Result<Content, Denial> {
        let Some(recipe) = self.recipe.plain() else { return Ok(Content::Steps(self)) };
        let origins = self.recipe.references().map(|(number, _)| self.origin.step(number)).collect();
        self.wanted(recipe, origins, self.read_from.clone()).map(Content::Wanted)
    }

    /// The patches in it, with where each is written.
    pub(crate) fn patches(&self) -> impl Iterator<Item = (Origin, &PatchStep)> {
        self.recipe.patches().map(|(number, step)| (self.origin.step(number), step))
    }

    /// What is named in it besides.
    pub(super) fn plain_references(&self) -> Vec<Named> {
        let named = |number, reference: &Reference| Named {
            source: Source::Direct,
            origin: self.origin.step(number),
            reference: reference.clone(),
            is_patch: false,
        };
        let plain = (1..).zip(self.recipe.steps()).filter_map(|(number, step)| match step {
            WrittenStep::Plain(step) => step.layer().map(|layer| named(number, layer.reference())),
            WrittenStep::Patch(_) => None,
        });
        plain.collect()
    }

    /// Nobody has read the patches in it.
    pub(crate) fn unread(&self) -> Denial {
        Denial::new(Code::Unprocessable, self.origin.at(), None, "has patches that were not read", "")
    }

    /// What is wanted, once each of its patches was read, in their order.
    pub(crate) fn with(&self, read: Vec<Read>, registries: &dyn Registries) -> Result<Wanted, Denial> {
        let (mut read, mut read_from) = (read.into_iter(), self.read_from.clone());
        let expanded = self.recipe.expand(|number, step| {
            let (origin, reference) = (self.origin.step(number), step.reference());
            let refuse = |problem: &dyn std::fmt::Display| {
                Denial::new(Code::Unprocessable, origin.at(), Some(&reference.to_string()), problem, "")
            };
            let Some(Read { digest, is_fresh, said }) = read.next() else {
                return Err(Unwritten::Denied(refuse(&"was not read")));
            };
            let (steps, is_bare) = match &said {
                Said::Patch(patch) => {
                    let steps = patch.steps_for(step);
                    let is_bare = steps.len() == 1;
                    (steps, is_bare)
                }
                Said::Recipe(yaml) => {
                    let recipe = read_recipe(yaml, &origin, registries).map_err(|denial| {
                        denial.because(&format!("so says the artifact of the recipe, {reference}"))
                    })?;
                    (step.steps_from(&recipe).map_err(|error| refuse(&error))?, false)
                }
            };
            read_from.push(ReadFrom {
                reference: reference.clone(),
                digest,
                origin,
                is_fresh,
                unchecked: None,
                is_bare,
            });
            Ok::<_, Unwritten>(steps)
        });
        let (recipe, numbers) = expanded.map_err(|error| match error {
            Unwritten::Denied(denial) => denial,
            Unwritten::Recipe(error) => Denial::rewrite(self.origin.at(), None, error, "")
                .because("so it is with the patches in it that were read"),
        })?;
        let origins = numbers.into_iter().map(|number| self.origin.step(number)).collect();
        self.wanted(recipe, origins, read_from)
    }

    fn wanted(
        &self,
        recipe: Recipe,
        origins: Vec<Origin>,
        read_from: Vec<ReadFrom>,
    ) -> Result<Wanted, Denial> {
        let (label, past_cache) = (self.label.clone(), self.past_cache);
        let wanted = Wanted { recipe, origins, label, past_cache, read_from };
        wanted.check_length(self.origin.at())?;
        Ok(wanted)
    }
}

/// Why a recipe with its patches read comes to nothing.
enum Unwritten {
    Denied(Denial),
    Recipe(RecipeError),
}

impl From<Denial> for Unwritten {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<RecipeError> for Unwritten {
    fn from(error: RecipeError) -> Self {
        Self::Recipe(error)
    }
}
