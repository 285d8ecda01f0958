//! Third stage: reads the patches and recipe artifacts that volumes name, and expands them into plain recipes.
//!
//! Expansion ends after two reads: a recipe artifact may have patches in its steps, and what a patch names is content,
//! which is not read as a patch again. Policies check each name before anything is read under it.

use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::Keyring;
use oras_csi_core::volume::CanonicalVolume;

use super::context::Context;
use super::credentials::{KeyedVolume, VolumeCredentials};
use super::locate::Located;
use super::policy::PolicyChecks;
use super::revision::TagPins;
use super::services::Services;
use super::set_volume::SetVolume;
use crate::denial::Denial;
use crate::intent::{
    ArtifactRequest, ArtifactSource, FetchedPatch, Named, NewSet, Origin, PatchRequest, RecipeSource,
    RecipeWithPatches, UnpinnedRecipe, VolumeTarget, canonical_references, check_count,
};

/// A volume with every reference known.
#[derive(Clone, Debug)]
pub(super) struct ExpandedVolume {
    pub(super) target: Arc<VolumeTarget>,
    pub(super) credentials: Arc<VolumeCredentials>,
    pub(super) content: Expanded,
}

/// What an expanded volume has.
#[derive(Clone, Debug)]
pub(super) enum Expanded {
    /// A recipe whose tags have to be resolved.
    Recipe(Box<ExpandedRecipe>),
    /// A canonical volume that was admitted for this very holder, and stays as it is.
    Admitted(CanonicalVolume),
    /// The recipe of a set.
    Set(Box<SetVolume>),
}

/// A plain recipe, with what is known of earlier admissions.
#[derive(Clone, Debug)]
pub(super) struct ExpandedRecipe {
    pub(super) recipe: UnpinnedRecipe,
    /// The canonical volume that the object already has for its annotations. It is untrusted input.
    pub(super) earlier: Option<CanonicalVolume>,
    /// The set to create with the volume.
    pub(super) new_set: Option<NewSet>,
}

impl ExpandedVolume {
    /// Returns the patches and recipe artifacts that were read.
    pub(super) fn patches(&self) -> Vec<(Named, Option<Digest>)> {
        match &self.content {
            Expanded::Recipe(expanded) => expanded.recipe.patches(),
            Expanded::Admitted(_) | Expanded::Set(_) => Vec::new(),
        }
    }

    /// Returns the references whose files are mounted.
    pub(super) fn references(&self) -> Vec<Named> {
        match &self.content {
            Expanded::Recipe(expanded) => expanded.recipe.references(),
            Expanded::Admitted(canonical) => canonical_references(&self.target.name, canonical),
            Expanded::Set(set) => set.references(),
        }
    }

    /// Returns the canonical volume, where every step is written with its digest.
    pub(super) fn pinned(&self) -> Option<CanonicalVolume> {
        match &self.content {
            Expanded::Recipe(expanded) => expanded.recipe.pinned(),
            Expanded::Admitted(canonical) => Some(canonical.clone()),
            Expanded::Set(set) => set.canonical().ok(),
        }
    }
}

/// A volume between the two reads.
struct OnceRead {
    target: Arc<VolumeTarget>,
    credentials: Arc<VolumeCredentials>,
    content: OnceReadContent,
}

enum OnceReadContent {
    Recipe(Box<OnceReadRecipe>),
    Admitted(CanonicalVolume),
    Set(Box<SetVolume>),
}

struct OnceReadRecipe {
    source: RecipeSource,
    earlier: Option<CanonicalVolume>,
    new_set: Option<NewSet>,
}

/// Reads patches for one request.
struct Reader<'a> {
    services: &'a Services,
    context: &'a Context<'a>,
}

/// A patch or recipe artifact to read.
#[derive(Clone, Copy)]
struct PatchName<'a> {
    reference: &'a Reference,
    origin: &'a Origin,
    bypass_cache: bool,
}

/// Expands all volumes, and adds to `pins` the digests that the revision has for the tags that were found.
pub(super) async fn expand(
    services: &Services,
    volumes: Vec<KeyedVolume>,
    policy: &mut PolicyChecks<'_>,
    pins: &mut TagPins,
    context: &Context<'_>,
) -> Result<Vec<ExpandedVolume>, Denial> {
    let reader = Reader { services, context };
    let volumes = reader.read_named_patches(volumes, policy, pins).await?;
    reader.read_patches_in_recipes(volumes, policy, pins).await
}

impl Reader<'_> {
    /// First read: the patch or recipe artifact that a volume names, and the patches in the recipe that it has.
    async fn read_named_patches(
        &self,
        volumes: Vec<KeyedVolume>,
        policy: &mut PolicyChecks<'_>,
        pins: &mut TagPins,
    ) -> Result<Vec<OnceRead>, Denial> {
        let (mut expanded, mut read) = (Vec::new(), NewNames::default());
        for KeyedVolume { target, content, credentials } in volumes {
            let content = match content {
                Located::Admitted(canonical) => OnceReadContent::Admitted(canonical),
                Located::Set(set) => OnceReadContent::Set(set),
                Located::Artifacts(request) => {
                    let ArtifactRequest { source, earlier, new_set } = *request;
                    let patches = VolumePatches {
                        target: &target,
                        credentials: &credentials,
                        earlier: earlier.as_ref(),
                    };
                    let source = match source {
                        ArtifactSource::Recipe(plain @ RecipeSource::Plain(_)) => plain,
                        ArtifactSource::Recipe(RecipeSource::WithPatches(recipe)) => {
                            read.add(RecipeSource::Plain(self.expand_recipe(&recipe, &patches, pins).await?))
                        }
                        ArtifactSource::Patch(request) => {
                            read.add(self.expand_patch(&request, &patches, pins).await?)
                        }
                    };
                    OnceReadContent::Recipe(Box::new(OnceReadRecipe { source, earlier, new_set }))
                }
            };
            expanded.push(OnceRead { target, credentials, content });
        }
        self.check(read, policy, pins).await?;
        Ok(expanded)
    }

    /// Second read: the patches in the recipe artifacts that were read first.
    async fn read_patches_in_recipes(
        &self,
        volumes: Vec<OnceRead>,
        policy: &mut PolicyChecks<'_>,
        pins: &mut TagPins,
    ) -> Result<Vec<ExpandedVolume>, Denial> {
        let (mut expanded, mut read) = (Vec::new(), NewNames::default());
        for OnceRead { target, credentials, content } in volumes {
            let content = match content {
                OnceReadContent::Admitted(canonical) => Expanded::Admitted(canonical),
                OnceReadContent::Set(set) => Expanded::Set(set),
                OnceReadContent::Recipe(recipe) => {
                    let OnceReadRecipe { source, earlier, new_set } = *recipe;
                    let patches = VolumePatches {
                        target: &target,
                        credentials: &credentials,
                        earlier: earlier.as_ref(),
                    };
                    let recipe = match source {
                        RecipeSource::Plain(recipe) => recipe,
                        RecipeSource::WithPatches(recipe) => {
                            read.add_plain(self.expand_recipe(&recipe, &patches, pins).await?)
                        }
                    };
                    Expanded::Recipe(Box::new(ExpandedRecipe { recipe, earlier, new_set }))
                }
            };
            expanded.push(ExpandedVolume { target, credentials, content });
        }
        self.check(read, policy, pins).await?;
        Ok(expanded)
    }

    /// Checks the number and the names of what was read, before anything is read under those names.
    async fn check(
        &self,
        read: NewNames,
        policy: &mut PolicyChecks<'_>,
        pins: &mut TagPins,
    ) -> Result<(), Denial> {
        check_count(read.all.iter().cloned())?;
        policy.check_names(read.unchecked)?;
        find_tag_pins(read.all, pins, self.context).await
    }

    /// Expands a patch, or a recipe artifact, that a volume names.
    ///
    /// Where the object already has a canonical volume, the digest that its annotation has for the patch is tried first:
    /// if that patch expands to this very volume, the volume keeps its digests although the tag may have moved.
    async fn expand_patch(
        &self,
        request: &PatchRequest,
        volume: &VolumePatches<'_>,
        pins: &TagPins,
    ) -> Result<RecipeSource, Denial> {
        let bypass_cache = request.options.bypass_cache;
        let name = PatchName { reference: &request.reference, origin: &request.origin, bypass_cache };
        let keyring = &volume.credentials.keyring;
        let registries = self.services.registries.as_ref();
        if let Some(earlier) = volume.earlier
            && let Some(digest) = self.context.pinned_annotation.patch_digest(&request.reference)
            && let Ok(fetched) = self.fetch_at(name, Some(digest), keyring).await
            && let Ok(RecipeSource::Plain(recipe)) = request.expand(fetched, registries)
            && self.context.pinned_annotation.confirms(&volume.target.name, recipe.recipe.recipe(), earlier)
        {
            return Ok(RecipeSource::Plain(recipe));
        }
        let expanded = match self.fetch(name, keyring, pins).await {
            Ok(fetched) => request.expand(fetched, registries),
            Err(denial) => Err(denial),
        };
        expanded.map_err(|denial| volume.credentials.explain(denial, volume.target, [&request.reference]))
    }

    /// Expands the patches in a recipe; see [`Self::expand_patch`].
    async fn expand_recipe(
        &self,
        recipe: &RecipeWithPatches,
        volume: &VolumePatches<'_>,
        pins: &TagPins,
    ) -> Result<UnpinnedRecipe, Denial> {
        let patches: Vec<_> = recipe.patches().map(|(origin, step)| (origin, step.reference())).collect();
        let bypass_cache = recipe.options.bypass_cache;
        let (keyring, registries) = (&volume.credentials.keyring, self.services.registries.as_ref());
        if let Some(earlier) = volume.earlier
            && let Some(fetched) = self.fetch_annotated(&patches, bypass_cache, keyring).await
            && let Ok(expanded) = recipe.expand(fetched, registries)
            && self.context.pinned_annotation.confirms(&volume.target.name, expanded.recipe.recipe(), earlier)
        {
            return Ok(expanded);
        }
        let explain = |denial| {
            let references = patches.iter().map(|(_, reference)| *reference);
            volume.credentials.explain(denial, volume.target, references)
        };
        let mut fetched = Vec::new();
        for (origin, reference) in &patches {
            let name = PatchName { reference, origin, bypass_cache };
            fetched.push(self.fetch(name, keyring, pins).await.map_err(explain)?);
        }
        recipe.expand(fetched, registries).map_err(explain)
    }

    /// Reads all patches of a recipe by the digests that the annotation has for them; `None` where that fails.
    async fn fetch_annotated(
        &self,
        patches: &[(Origin, &Reference)],
        bypass_cache: bool,
        keyring: &Keyring,
    ) -> Option<Vec<FetchedPatch>> {
        let mut fetched = Vec::new();
        for (origin, reference) in patches {
            let digest = self.context.pinned_annotation.patch_digest(reference)?;
            let name = PatchName { reference, origin, bypass_cache };
            fetched.push(self.fetch_at(name, Some(digest), keyring).await.ok()?);
        }
        Some(fetched)
    }

    /// Reads a patch by the digest that the revision has for its tag, if any.
    async fn fetch(
        &self,
        name: PatchName<'_>,
        keyring: &Keyring,
        pins: &TagPins,
    ) -> Result<FetchedPatch, Denial> {
        let digest = pins.get(name.reference);
        let is_fresh = digest.is_none() && name.reference.digest().is_none();
        Ok(FetchedPatch { is_fresh, ..self.fetch_at(name, digest, keyring).await? })
    }

    async fn fetch_at(
        &self,
        name: PatchName<'_>,
        digest: Option<&Digest>,
        keyring: &Keyring,
    ) -> Result<FetchedPatch, Denial> {
        let PatchName { reference, origin, bypass_cache } = name;
        let effective: Reference =
            digest.map_or_else(|| reference.clone(), |digest| reference.pin(digest.clone()).into());
        let deadline = self.context.scope.deadline;
        let found = self.services.resolver.read_patch(&effective, keyring, bypass_cache, deadline).await;
        let (digest, document) = found.map_err(|failure| {
            let denial = failure.denial(origin.at(), &effective);
            if effective == *reference { denial } else { self.context.explain_pin(denial, reference) }
        })?;
        Ok(FetchedPatch { digest, is_fresh: false, document })
    }
}

/// The volume that patches are read for.
struct VolumePatches<'a> {
    target: &'a VolumeTarget,
    credentials: &'a VolumeCredentials,
    earlier: Option<&'a CanonicalVolume>,
}

/// The references of the recipes that were just expanded.
#[derive(Default)]
struct NewNames {
    all: Vec<Named>,
    /// Those that policies have not checked yet.
    unchecked: Vec<Named>,
}

impl NewNames {
    fn add(&mut self, source: RecipeSource) -> RecipeSource {
        self.all.extend(source.names());
        self.unchecked.extend(source.newly_named());
        source
    }

    fn add_plain(&mut self, recipe: UnpinnedRecipe) -> UnpinnedRecipe {
        self.all.extend(recipe.names());
        self.unchecked.extend(recipe.references());
        recipe
    }
}

/// Looks up the digests that the revision has for tags, except for those in `pins`.
pub(super) async fn find_tag_pins(
    names: Vec<Named>,
    pins: &mut TagPins,
    context: &Context<'_>,
) -> Result<(), Denial> {
    let Some(revision) = &context.revision else { return Ok(()) };
    let names = names.into_iter().map(|named| (named.reference, named.origin));
    let tags: Vec<_> = names.filter(|(reference, _)| !pins.contains_key(reference)).collect();
    pins.extend(revision.find_pins(&tags).await?);
    Ok(())
}
