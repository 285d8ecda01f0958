//! Fourth stage: finds the digest of every tag, and checks the policies on contents.

use futures_util::{StreamExt as _, stream};
use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::Step;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{Keyring, Source};
use oras_csi_core::volume::CanonicalVolume;

use super::context::Context;
use super::expand::{Expanded, ExpandedRecipe, ExpandedVolume};
use super::pinned_annotation::line;
use super::policy::PolicyChecks;
use super::revision::{NewPin, TagPins};
use super::services::Services;
use super::set_volume::{SetPin, SetVolume};
use crate::denial::{At, Denial};
use crate::intent::{AppliedPatch, Origin, RecipeOptions, UnpinnedRecipe, VolumeTarget};
use crate::patch::PlannedSecret;
use crate::resolve::Requirements;

/// How many references of one volume, and how many volumes of one pod, are resolved at once.
const LOOKUPS_AT_ONCE: usize = 8;
const VOLUMES_AT_ONCE: usize = 4;

/// A volume that is pinned to digests.
pub(super) struct PinnedVolume {
    pub(super) expanded: ExpandedVolume,
    pub(super) pinned: Pinned,
}

/// What a volume was pinned to.
pub(super) struct Pinned {
    /// The canonical volume. Its seal, if it has one, is that of the request.
    pub(super) canonical: CanonicalVolume,
    pub(super) secret: NeededSecret,
    /// The references as `oras.land/pinned` shows them.
    pub(super) lines: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// The tags that were resolved for this request.
    pub(super) new_pins: Vec<NewPin>,
}

/// The Secret that the driver needs for a volume.
pub(super) enum NeededSecret {
    /// The one that the volume came with: no registry was contacted.
    Unchanged,
    /// None.
    None,
    /// The one of this name.
    Named(String),
}

impl NeededSecret {
    pub(super) fn planned(&self) -> PlannedSecret<'_> {
        match self {
            Self::Unchanged => PlannedSecret::Unchanged,
            Self::None => PlannedSecret::None,
            Self::Named(name) => PlannedSecret::Named(name),
        }
    }
}

/// Pins all volumes, in their order; the first failure in that order ends the request.
pub(super) async fn pin_volumes(
    services: &Services,
    volumes: Vec<ExpandedVolume>,
    policy: &mut PolicyChecks<'_>,
    pins: &TagPins,
    context: &Context<'_>,
) -> Result<Vec<PinnedVolume>, Denial> {
    let stage = Pinner { services, pins, context };
    // Collected first: the compiler does not see that a stream of closures that borrow is `Send`.
    let lookups: Vec<_> = volumes.into_iter().map(|volume| stage.pin(volume)).collect();
    let mut lookups = stream::iter(lookups).buffered(VOLUMES_AT_ONCE);
    let mut pinned = Vec::new();
    while let Some(volume) = lookups.next().await {
        let volume = volume?;
        if policy.book.looks_at_contents() {
            stage.check_contents(&volume, policy).await?;
        }
        pinned.push(volume);
    }
    Ok(pinned)
}

/// Pins the volumes of one request.
struct Pinner<'a> {
    services: &'a Services,
    pins: &'a TagPins,
    context: &'a Context<'a>,
}

impl Pinner<'_> {
    async fn pin(&self, expanded: ExpandedVolume) -> Result<PinnedVolume, Denial> {
        let ExpandedVolume { target, credentials, content } = &expanded;
        let pinned = match content {
            Expanded::Admitted(canonical) => Ok(self.unchanged(target, canonical)),
            Expanded::Set(set) => self.pin_set(target, set, &credentials.keyring),
            Expanded::Recipe(recipe) => self.pin_recipe(target, recipe, &credentials.keyring).await,
        };
        let pinned = pinned.map_err(|denial| credentials.explain(denial))?;
        Ok(PinnedVolume { expanded, pinned })
    }

    /// Leaves a volume as it is, without contacting a registry.
    fn unchanged(&self, target: &VolumeTarget, canonical: &CanonicalVolume) -> Pinned {
        Pinned {
            canonical: canonical.clone(),
            secret: NeededSecret::Unchanged,
            lines: self.context.pinned_annotation.lines(&target.name, canonical),
            warnings: Vec::new(),
            new_pins: Vec::new(),
        }
    }

    async fn pin_recipe(
        &self,
        target: &VolumeTarget,
        expanded: &ExpandedRecipe,
        keyring: &Keyring,
    ) -> Result<Pinned, Denial> {
        let ExpandedRecipe { recipe, earlier, .. } = expanded;
        let annotation = &self.context.pinned_annotation;
        let rendered;
        let recipe =
            match earlier.as_ref().filter(|earlier| annotation.confirms(&target.name, recipe, earlier)) {
                Some(earlier)
                    if earlier.seal().is_some()
                        && self.services.is_admitted(earlier, self.context.scope.holder) =>
                {
                    return Ok(self.unchanged(target, earlier));
                }
                // A volume without a seal is from `oras-csi render`: the user may keep its digests in Git.
                Some(earlier) if earlier.seal().is_none() => {
                    rendered = recipe.with_digests_of(earlier);
                    &rendered
                }
                _ => recipe,
            };
        let found = self.resolve(recipe, keyring).await?;
        let (digests, secret) = self.find_one_secret(target, recipe, keyring, found).await?;
        let (mut lines, mut warnings, mut new_pins) = (Vec::new(), Vec::new(), Vec::new());
        for patch in &recipe.applied_patches {
            check_base(patch, recipe, &digests)?;
            warn_of_patch(patch, &mut warnings);
            if patch.is_fresh {
                let (reference, digest, origin) =
                    (patch.reference.clone(), patch.digest.clone(), patch.origin.clone());
                new_pins.push(NewPin { reference, digest, origin });
            }
        }
        for (step, ((reference, origin), digest)) in recipe.steps().zip(&digests).enumerate() {
            lines.push(if recipe.is_from_canonical {
                annotation.line(&target.name, step, &reference.pin(digest.clone()))
            } else {
                line(reference, digest)
            });
            if let (Some(tag), None) = (reference.tag(), reference.digest()) {
                warnings.push(format!("{}: {}:{tag} is pinned to {digest}", origin.at(), reference.name()));
                if !self.pins.contains_key(reference) {
                    let (reference, digest, origin) = (reference.clone(), digest.clone(), origin.clone());
                    new_pins.push(NewPin { reference, digest, origin });
                }
            }
        }
        let at = recipe.origins.first().map_or(At::Volume(&target.name), Origin::at);
        let canonical = canonical_volume(recipe, digests, at)?;
        Ok(Pinned { canonical, secret, lines, warnings, new_pins })
    }

    /// Gives a volume the recipe of its set, without contacting a registry.
    fn pin_set(&self, target: &VolumeTarget, set: &SetVolume, keyring: &Keyring) -> Result<Pinned, Denial> {
        if let Some(earlier) = set.earlier.as_ref().filter(|earlier| earlier.seal().is_some())
            && self.services.is_admitted(earlier, self.context.scope.holder)
            && self.is_volume_of_set(target, set, earlier)
        {
            return Ok(self.unchanged(target, earlier));
        }
        let found = &set.found;
        let canonical =
            set.canonical().map_err(|error| Denial::bad_request(set.origin.at(), None, error, ""))?;
        let pinned = found.pinned.references();
        let lines = found.references.iter().zip(pinned);
        let lines = lines.map(|(written, pinned)| line(written, pinned.digest())).collect();
        let mut warnings = Vec::new();
        if set.pin == SetPin::Forgotten {
            warnings.push(format!(
                "{}: the history of {} no longer has the recipe that the first pod of this revision got: this pod gets the \
                 current recipe",
                set.origin.at(),
                found.place
            ));
        }
        let secret = if found.is_cluster_set() {
            if let Some(name) = &target.secret {
                warnings.push(format!(
                    "{}: secret {name} is ignored: {} names its own pull secret",
                    target.secret_at(),
                    found.place
                ));
            }
            NeededSecret::None
        } else {
            secret_for_set(target, set, keyring)
        };
        Ok(Pinned { canonical, secret, lines, warnings, new_pins: Vec::new() })
    }

    /// Reports whether a volume with a valid seal is one that this set gave.
    fn is_volume_of_set(&self, target: &VolumeTarget, set: &SetVolume, canonical: &CanonicalVolume) -> bool {
        if set.found.is_cluster_set() {
            // Otherwise a set that was created again under the name would grant what only the deleted set granted.
            return canonical.set() == Some(set.found.name.as_str())
                && set.found.has_or_had(&canonical.recipe().digest());
        }
        let Some(recipe) = set.found.written.plain() else { return false };
        let requested = UnpinnedRecipe {
            origins: vec![set.origin.clone(); recipe.references().count()],
            recipe,
            options: RecipeOptions::default(),
            applied_patches: Vec::new(),
            is_from_canonical: false,
        };
        self.context.pinned_annotation.confirms(&target.name, &requested, canonical)
    }

    /// Returns the digests of a recipe, and the one Secret that all of it can be pulled with: kubelet hands the driver
    /// no more than one. Where the registries accepted different Secrets, one of them may be accepted for all.
    async fn find_one_secret(
        &self,
        target: &VolumeTarget,
        recipe: &UnpinnedRecipe,
        keyring: &Keyring,
        found: Vec<(Digest, Source)>,
    ) -> Result<(Vec<Digest>, NeededSecret), Denial> {
        let mut needed: Vec<&str> = Vec::new();
        for (_, source) in &found {
            match source {
                Source::Secret(name) if !needed.contains(&name.as_str()) => needed.push(name),
                _ => {}
            }
        }
        match needed.as_slice() {
            [] => return Ok((digests(found), NeededSecret::None)),
            [name] => {
                let secret = NeededSecret::Named((*name).to_owned());
                return Ok((digests(found), secret));
            }
            _ => {}
        }
        for name in &needed {
            let alone = keyring.only(&Source::Secret((*name).to_owned()));
            let Ok(again) = self.resolve(recipe, &alone).await else { continue };
            let is_same = again.iter().zip(&found).all(|((one, _), (other, _))| one == other);
            if is_same {
                return Ok((digests(again), NeededSecret::Named((*name).to_owned())));
            }
        }
        let rule = format!(
            "needs {} different pull secrets ({}), but a volume can have only one",
            needed.len(),
            needed.join(", ")
        );
        let instead = "merge their entries into the .dockerconfigjson of one Secret, and name that Secret";
        Err(Denial::bad_request(target.secret_at(), None, rule, instead))
    }

    /// Returns the digest of each reference, in their order, and the source of the credential that was accepted.
    async fn resolve(
        &self,
        recipe: &UnpinnedRecipe,
        keyring: &Keyring,
    ) -> Result<Vec<(Digest, Source)>, Denial> {
        let (resolver, deadline) = (&self.services.resolver, self.context.scope.deadline);
        let layers = recipe.recipe.steps().iter().filter_map(Step::layer);
        let lookups: Vec<_> = layers
            .zip(&recipe.origins)
            .map(|(layer, origin)| async move {
                let requirements = Requirements {
                    bypass_cache: recipe.options.bypass_cache,
                    platform: layer.platform(),
                    media_types: layer.media_types(),
                };
                let reference = layer.reference();
                let Some(digest) = self.pins.get(reference) else {
                    let found = resolver.resolve(reference, keyring, requirements, deadline).await;
                    return found.map_err(|failure| failure.denial(origin.at(), reference));
                };
                let pinned: Reference = reference.pin(digest.clone()).into();
                let found = resolver.resolve(&pinned, keyring, requirements, deadline).await;
                found.map_err(|failure| {
                    self.context.explain_pin(failure.denial(origin.at(), &pinned), reference)
                })
            })
            .collect();
        let mut lookups = stream::iter(lookups).buffered(LOOKUPS_AT_ONCE);
        let mut found = Vec::new();
        while let Some(lookup) = lookups.next().await {
            found.push(lookup?);
        }
        Ok(found)
    }

    /// Checks the policies on types and sizes against what the registry has under each digest of a volume.
    async fn check_contents(
        &self,
        PinnedVolume { expanded, pinned }: &PinnedVolume,
        policy: &mut PolicyChecks<'_>,
    ) -> Result<(), Denial> {
        let (keyring, deadline) = (&expanded.credentials.keyring, self.context.scope.deadline);
        let layers = pinned.canonical.recipe().steps().iter().filter_map(Step::layer);
        for (named, layer) in expanded.references().into_iter().zip(layers) {
            let requirements = Requirements {
                bypass_cache: false,
                platform: layer.platform(),
                media_types: layer.media_types(),
            };
            let resolver = &self.services.resolver;
            match resolver.contents_for_policy(layer.reference(), keyring, requirements, deadline).await {
                Ok(found) => policy.findings.check_found(policy.book, &named, &found, policy.metrics)?,
                Err(failure) if policy.book.enforces_contents() => {
                    return Err(failure.denial(named.origin.at(), &named.reference));
                }
                Err(failure) => policy.findings.record_unchecked(policy.book, &named, &failure),
            }
        }
        Ok(())
    }
}

fn digests(found: Vec<(Digest, Source)>) -> Vec<Digest> {
    found.into_iter().map(|(digest, _)| digest).collect()
}

/// Makes the canonical volume of a recipe. `digests` has one entry for each reference, in the order of the steps.
fn canonical_volume(
    recipe: &UnpinnedRecipe,
    digests: Vec<Digest>,
    at: At<'_>,
) -> Result<CanonicalVolume, Denial> {
    let mut digests = digests.into_iter();
    let incomplete = || Denial::bad_request(at, None, "was not resolved", "");
    let pinned = recipe.recipe.pin(|_| digests.next().ok_or_else(incomplete))?;
    CanonicalVolume::new(recipe.options.label.as_deref(), pinned)
        .map_err(|error| Denial::bad_request(at, None, error, ""))
}

/// Checks that what is written beside a patch is the patch's base.
fn check_base(patch: &AppliedPatch, recipe: &UnpinnedRecipe, digests: &[Digest]) -> Result<(), Denial> {
    let first = recipe.steps().zip(digests).next();
    let (Some(document), Some(((reference, origin), digest))) = (&patch.unchecked_base, first) else {
        return Ok(());
    };
    document.check_base(digest).map_err(|error| {
        Denial::bad_request(origin.at(), Some(&reference.to_string()), error, "")
            .with_detail(&format!("the patch is {}", line(&patch.reference, &patch.digest)))
    })
}

fn warn_of_patch(patch: &AppliedPatch, warnings: &mut Vec<String>) {
    let (at, reference) = (patch.origin.at(), &patch.reference);
    if let (Some(tag), None) = (reference.tag(), reference.digest()) {
        warnings.push(format!("{at}: {}:{tag} is pinned to {}", reference.name(), patch.digest));
    }
    if patch.is_base_only {
        warnings.push(format!(
            "{at}: {reference} has no patch up to the requested level: its base is mounted unchanged"
        ));
    }
}

/// Returns the Secret that the driver needs for a volume of a namespace's set: the one that is named, else the first of
/// the pod's with an entry for all repositories that any of them has an entry for. No registry is contacted, so this
/// does not say whether the Secret is accepted.
fn secret_for_set(target: &VolumeTarget, set: &SetVolume, keyring: &Keyring) -> NeededSecret {
    if let Some(name) = &target.secret {
        return NeededSecret::Named(name.clone());
    }
    let entries = set
        .found
        .pinned
        .references()
        .map(|pinned| keyring.secrets_for(pinned.registry(), pinned.repository()).collect::<Vec<_>>());
    let entries: Vec<_> = entries.filter(|sources| !sources.is_empty()).collect();
    let Some(first) = entries.first() else { return NeededSecret::None };
    let has_all = |source: &&&Source| entries.iter().all(|sources| sources.contains(*source));
    match first.iter().find(has_all).or(first.first()) {
        Some(Source::Secret(name)) => NeededSecret::Named(name.clone()),
        _ => NeededSecret::None,
    }
}
