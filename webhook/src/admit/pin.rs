//! Fourth stage: finds the digest of every tag, and checks the policies on contents.

use futures_util::{StreamExt as _, stream};
use oras_csi_core::digest::Digest;
use oras_csi_core::recipe::{Layer, Step};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{Keyring, Source};
use oras_csi_core::volume::CanonicalVolume;

use super::context::Context;
use super::expand::{Expanded, ExpandedRecipe, ExpandedVolume};
use super::pinned_annotation::line;
use super::policy::PolicyChecks;
use super::revision::{NewPin, TagPins};
use super::services::Services;
use super::set_volume::{SetPin, SetVolume};
use crate::denial::{At, Code, Denial, listed};
use crate::intent::{AppliedPatch, Named, Origin, UnpinnedRecipe, VolumeTarget};
use crate::patch::PlannedSecret;
use crate::resolve::{Requirements, Resolution};

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

/// A layer of a recipe with the digest of its reference.
struct ResolvedLayer<'a> {
    /// The reference as it is written.
    reference: &'a Reference,
    /// Where it is written.
    origin: &'a Origin,
    digest: Digest,
    /// The source of the credential that was accepted.
    source: Source,
    /// The types of its layers that are not mounted, because they have no file name.
    unnamed: Vec<String>,
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
        let PinnedVolume { expanded, pinned: Pinned { canonical, .. } } = &volume;
        let layers = checked_layers(&expanded.target.name, expanded.references(), canonical)?;
        if policy.book.looks_at_contents() {
            stage.check_contents(&layers, &expanded.credentials.keyring, policy).await?;
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
        let pinned = pinned.map_err(|denial| {
            let names = expanded.references();
            credentials.explain(denial, target, names.iter().map(|name| &name.reference))
        })?;
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
        let recipe = match earlier
            .as_ref()
            .filter(|earlier| annotation.confirms(&target.name, recipe.recipe.recipe(), earlier))
        {
            Some(earlier)
                if earlier.seal().is_some()
                    && self.services.is_admitted(earlier, self.context.scope.holder) =>
            {
                return Ok(self.unchanged(target, earlier));
            }
            // A volume without a seal is from `oras-csi render`: the user may keep its digests in Git.
            Some(earlier) if earlier.seal().is_none() => {
                rendered = recipe.with_digests_of(earlier, &target.name);
                &rendered
            }
            _ => recipe,
        };
        let found = self.resolve(recipe, keyring).await?;
        let (found, secret) = self.find_one_secret(target, recipe, keyring, found).await?;
        let (mut lines, mut warnings, mut new_pins) = (Vec::new(), Vec::new(), Vec::new());
        for patch in &recipe.applied_patches {
            check_base(patch, found.first())?;
            warn_of_patch(patch, &mut warnings);
            if patch.is_fresh {
                let (reference, digest, origin) =
                    (patch.reference.clone(), patch.digest.clone(), patch.origin.clone());
                new_pins.push(NewPin { reference, digest, origin });
            }
        }
        for (step, ResolvedLayer { reference, origin, digest, unnamed, .. }) in found.iter().enumerate() {
            if !unnamed.is_empty() {
                warnings.push(format!(
                    "{}: {reference} has layers that are not mounted, because they have no file name (org.opencontainers.image.title): {}. In oras.land/recipe, mediaTypes and as give one layer a name",
                    origin.at(),
                    listed(unnamed.iter().map(String::as_str))
                ));
            }
            lines.push(if recipe.is_from_canonical {
                annotation.line(&target.name, step, &reference.pin(digest.clone()))
            } else {
                line(reference, digest)
            });
            if let (Some(tag), None) = (reference.tag(), reference.digest()) {
                warnings.push(format!("{}: {}:{tag} is pinned to {digest}", origin.at(), reference.name()));
                if !self.pins.contains_key(reference) {
                    let (reference, digest) = ((*reference).clone(), digest.clone());
                    let origin = (*origin).clone();
                    new_pins.push(NewPin { reference, digest, origin });
                }
            }
        }
        let at = found.first().map_or(At::Volume(&target.name), |first| first.origin.at());
        let canonical = canonical_volume(recipe, &found, at)?;
        Ok(Pinned { canonical, secret, lines, warnings, new_pins })
    }

    /// Gives a volume the recipe of its set, without contacting a registry.
    fn pin_set(&self, target: &VolumeTarget, set: &SetVolume, keyring: &Keyring) -> Result<Pinned, Denial> {
        if let Some(kept) = &set.kept {
            return Ok(self.unchanged(target, kept));
        }
        let found = &set.found;
        let canonical =
            set.canonical().map_err(|error| Denial::bad_request(set.origin.at(), None, error, ""))?;
        let lines = found.recipe.layers().map(|layer| line(layer.reference, layer.pinned.digest())).collect();
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

    /// Returns the digests of a recipe, and the one Secret that all of it can be pulled with: kubelet hands the driver
    /// no more than one. Where the registries accepted different Secrets, one of them may be accepted for all.
    async fn find_one_secret<'r>(
        &self,
        target: &VolumeTarget,
        recipe: &'r UnpinnedRecipe,
        keyring: &Keyring,
        found: Vec<ResolvedLayer<'r>>,
    ) -> Result<(Vec<ResolvedLayer<'r>>, NeededSecret), Denial> {
        let mut needed: Vec<String> = Vec::new();
        for ResolvedLayer { source, .. } in &found {
            match source {
                Source::Secret(name) if !needed.contains(name) => needed.push(name.clone()),
                _ => {}
            }
        }
        match needed.as_slice() {
            [] => return Ok((found, NeededSecret::None)),
            [name] => return Ok((found, NeededSecret::Named(name.clone()))),
            _ => {}
        }
        for name in &needed {
            let alone = keyring.only(&Source::Secret(name.clone()));
            let Ok(again) = self.resolve(recipe, &alone).await else { continue };
            let digests = |layers: &[ResolvedLayer<'_>]| -> Vec<Digest> {
                layers.iter().map(|layer| layer.digest.clone()).collect()
            };
            if digests(&again) == digests(&found) {
                return Ok((again, NeededSecret::Named(name.clone())));
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

    /// Resolves each layer, in their order.
    async fn resolve<'r>(
        &self,
        recipe: &'r UnpinnedRecipe,
        keyring: &Keyring,
    ) -> Result<Vec<ResolvedLayer<'r>>, Denial> {
        let (resolver, deadline) = (&self.services.resolver, self.context.scope.deadline);
        let lookups: Vec<_> = recipe
            .recipe
            .layers()
            .map(|(layer, origin)| async move {
                let requirements = Requirements {
                    bypass_cache: recipe.options.bypass_cache,
                    platform: layer.platform(),
                    selection: layer.selection(),
                };
                let reference = layer.reference();
                let layer_of = |Resolution { digest, source, unnamed }| ResolvedLayer {
                    reference,
                    origin,
                    digest,
                    source,
                    unnamed,
                };
                let Some(digest) = self.pins.get(reference) else {
                    let found = resolver.resolve(reference, keyring, requirements, deadline).await;
                    return found.map(layer_of).map_err(|failure| failure.denial(origin.at(), reference));
                };
                let pinned: Reference = reference.pin(digest.clone()).into();
                let found = resolver.resolve(&pinned, keyring, requirements, deadline).await;
                found.map(layer_of).map_err(|failure| {
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
        layers: &[CheckedLayer<'_>],
        keyring: &Keyring,
        policy: &mut PolicyChecks<'_>,
    ) -> Result<(), Denial> {
        let deadline = self.context.scope.deadline;
        for CheckedLayer { named, layer } in layers {
            let requirements = Requirements {
                bypass_cache: false,
                platform: layer.platform(),
                selection: layer.selection(),
            };
            let resolver = &self.services.resolver;
            match resolver.contents_for_policy(layer.reference(), keyring, requirements, deadline).await {
                Ok(found) => policy.findings.check_found(policy.book, named, &found, policy.metrics)?,
                Err(failure) if policy.book.enforces_contents() => {
                    return Err(failure.denial(named.origin.at(), &named.reference));
                }
                Err(failure) => policy.findings.record_unchecked(policy.book, named, &failure),
            }
        }
        Ok(())
    }
}

/// A layer that is mounted, with the reference that policies evaluated for it.
struct CheckedLayer<'a> {
    named: Named,
    layer: &'a Layer<PinnedReference>,
}

/// Pairs each layer of a canonical volume with the reference that policies evaluated for it. Denies the volume unless both
/// lists have the same artifacts: content that no policy has evaluated must not be mounted.
fn checked_layers<'a>(
    volume: &str,
    evaluated: Vec<Named>,
    canonical: &'a CanonicalVolume,
) -> Result<Vec<CheckedLayer<'a>>, Denial> {
    let mut left = evaluated.into_iter();
    let layers = canonical.recipe().steps().iter().filter_map(Step::layer);
    let paired: Option<Vec<_>> = layers
        .map(|layer| {
            let named = left.next().filter(|one| one.is_of(layer.reference()))?;
            Some(CheckedLayer { named, layer })
        })
        .collect();
    paired.filter(|_| left.next().is_none()).ok_or_else(|| {
        let rule = "has other artifacts than those that the policies evaluated";
        let instead = "report this as a bug of oras-csi";
        Denial::new(Code::Forbidden, At::Volume(volume), None, rule, instead)
    })
}

/// Makes the canonical volume of a recipe. `found` has one entry for each reference, in the order of the steps.
fn canonical_volume(
    recipe: &UnpinnedRecipe,
    found: &[ResolvedLayer<'_>],
    at: At<'_>,
) -> Result<CanonicalVolume, Denial> {
    let mut digests = found.iter().map(|layer| layer.digest.clone());
    let incomplete = || Denial::bad_request(at, None, "was not resolved", "");
    let pinned = recipe.recipe.recipe().pin(|_| digests.next().ok_or_else(incomplete))?;
    CanonicalVolume::new(recipe.options.label.as_deref(), pinned)
        .map_err(|error| Denial::bad_request(at, None, error, ""))
}

/// Checks that what is written beside a patch, the first layer, is the patch's base.
fn check_base(patch: &AppliedPatch, first: Option<&ResolvedLayer<'_>>) -> Result<(), Denial> {
    let (Some(document), Some(ResolvedLayer { reference, origin, digest, .. })) =
        (&patch.unchecked_base, first)
    else {
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
        .recipe
        .pinned()
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

#[cfg(test)]
mod tests {
    use oras_csi_core::recipe::PinnedRecipe;
    use rstest::rstest;

    use super::*;

    fn pinned(text: &str) -> PinnedReference {
        text.parse::<Reference>().unwrap().pin(Digest::sha256_of(text.as_bytes()))
    }

    #[rstest]
    #[case::tags(&["r.io/a:1", "r.io/b:1"], true)]
    #[case::too_few(&["r.io/a:1"], false)]
    #[case::too_many(&["r.io/a:1", "r.io/b:1", "r.io/c:1"], false)]
    #[case::order(&["r.io/b:1", "r.io/a:1"], false)]
    #[case::another_registry(&["r.io/a:1", "q.io/b:1"], false)]
    fn a_layer_without_the_name_that_policies_evaluated_is_denied(
        #[case] names: &[&str],
        #[case] is_allowed: bool,
    ) {
        let steps = ["r.io/a:1", "r.io/b:1"].map(|text| Step::Add(Layer::new(pinned(text))));
        let recipe = PinnedRecipe::new(steps.to_vec()).unwrap();
        let canonical = CanonicalVolume::new(Some("model"), recipe).unwrap();
        let origin = Origin::Field("spec".to_owned());
        let named = |text: &&str| Named::content(text.parse().unwrap(), origin.clone());
        let names: Vec<Named> = names.iter().map(named).collect();
        match checked_layers("in", names, &canonical) {
            Ok(layers) => assert!(is_allowed && layers.len() == 2),
            Err(denial) => assert!(!is_allowed && denial.message().starts_with("volume in: "), "{denial}"),
        }
    }

    #[test]
    fn a_name_with_another_digest_is_denied() {
        let recipe = PinnedRecipe::new(vec![Step::Add(Layer::new(pinned("r.io/a:1")))]).unwrap();
        let canonical = CanonicalVolume::new(None, recipe).unwrap();
        let named = |digest: &PinnedReference| {
            vec![Named::content(digest.clone().into(), Origin::Field("spec".to_owned()))]
        };
        assert!(checked_layers("in", named(&pinned("r.io/a:1")), &canonical).is_ok());
        let other = pinned("r.io/a:1").with_digest(Digest::sha256_of(b"other"));
        assert!(checked_layers("in", named(&other), &canonical).is_err());
    }
}
