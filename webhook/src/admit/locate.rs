//! First stage: looks up the sets that volumes name, and verifies the seals of canonical volumes in the request.

use std::sync::Arc;

use oras_csi_core::digest::Digest;
use oras_csi_core::keys::canonical;
use oras_csi_core::volume::CanonicalVolume;
use tokio::time::timeout_at;

use super::context::{Context, Scope};
use super::pinned_annotation::PinnedAnnotation;
use super::services::Services;
use super::set_volume::{SetPin, SetVolume};
use crate::denial::Denial;
use crate::intent::{
    ArtifactRequest, ArtifactSource, Named, NewSet, Origin, RecipeSource, Requested, RequestedVolume,
    SetRequest, UnpinnedRecipe, VolumeTarget, canonical_references,
};
use crate::registries::Registries;
use crate::sets::{FoundSet, SetCatalog, SetError, Taken};

/// A volume whose set, if it names one, has been looked up.
#[derive(Clone)]
pub(super) struct LocatedVolume {
    pub(super) target: Arc<VolumeTarget>,
    pub(super) content: Located,
}

/// What a located volume has.
#[derive(Clone)]
pub(super) enum Located {
    /// References to resolve.
    Artifacts(Box<ArtifactRequest>),
    /// A canonical volume that was admitted for this very holder, and stays as it is.
    Admitted(CanonicalVolume),
    /// The recipe of a set.
    Set(Box<SetVolume>),
}

impl LocatedVolume {
    /// Returns every reference of the volume: policies check all of them.
    pub(super) fn names(&self) -> Vec<Named> {
        match &self.content {
            Located::Artifacts(request) => request.source.names(),
            Located::Admitted(canonical) => canonical_references(&self.target.name, canonical),
            Located::Set(set) => set.patches().into_iter().chain(set.references()).collect(),
        }
    }

    /// Returns the patches and recipe artifacts that the object itself names.
    pub(super) fn patches(&self) -> Vec<(Named, Option<Digest>)> {
        match &self.content {
            Located::Artifacts(request) => request.source.patches(),
            Located::Admitted(_) | Located::Set(_) => Vec::new(),
        }
    }

    /// Returns the references whose files are mounted, as far as they are known.
    pub(super) fn references(&self) -> Vec<Named> {
        match &self.content {
            Located::Artifacts(request) => request.source.references(),
            Located::Admitted(canonical) => canonical_references(&self.target.name, canonical),
            Located::Set(set) => set.references(),
        }
    }

    /// Returns the canonical volume, where it is known without contacting a registry.
    pub(super) fn pinned(&self) -> Option<CanonicalVolume> {
        match &self.content {
            Located::Artifacts(request) => request.source.pinned(),
            Located::Admitted(canonical) => Some(canonical.clone()),
            Located::Set(set) => set.canonical().ok(),
        }
    }

    /// Reports whether a cluster set provides the content.
    pub(super) fn is_of_cluster_set(&self) -> bool {
        match &self.content {
            Located::Artifacts(_) => false,
            Located::Admitted(canonical) => canonical.set().is_some(),
            Located::Set(set) => set.found.is_cluster_set(),
        }
    }
}

/// Looks up the set of each volume that names one. `annotation` has the tags of the volumes that the object already has.
pub(super) async fn look_up_sets(
    services: &Services,
    volumes: Vec<RequestedVolume>,
    annotation: &PinnedAnnotation,
    scope: Scope<'_>,
) -> Result<Vec<LocatedVolume>, Denial> {
    let mut located = Vec::new();
    for RequestedVolume { target, content } in volumes {
        let content = match content {
            Requested::Artifacts(request) => Located::Artifacts(Box::new(request)),
            Requested::Set(request) => {
                let SetRequest { name, origin, earlier } = request;
                let found = find_set(services, &name, &origin, scope).await?;
                let sealed = earlier.as_ref().filter(|earlier| {
                    earlier.seal().is_some() && services.is_admitted(earlier, scope.holder)
                });
                let kept = sealed.and_then(|sealed| keep(&found, &target, &origin, annotation, sealed));
                Located::Set(Box::new(kept.unwrap_or_else(|| of_set(found, origin, earlier.as_ref()))))
            }
            Requested::Canonical(canonical) if services.is_admitted(&canonical, scope.holder) => {
                check_grant(services, &target.name, &canonical, scope).await?;
                Located::Admitted(canonical)
            }
            Requested::Canonical(canonical) => {
                readmit_canonical(services, &target.name, &canonical, scope).await?
            }
        };
        located.push(LocatedVolume { target, content });
    }
    Ok(located)
}

/// Returns the volume of a set, with the recipe that the set has now.
fn of_set(found: FoundSet, origin: Origin, earlier: Option<&CanonicalVolume>) -> SetVolume {
    // A volume without a seal is from `oras-csi render`: the user may keep an earlier recipe of the set in Git.
    let rendered = earlier.filter(|earlier| earlier.seal().is_none());
    let (found, pin) = match rendered.and_then(|rendered| found.as_of(&rendered.recipe().digest())) {
        Some(found) => (found, SetPin::Unneeded),
        None => (found, SetPin::Missing),
    };
    SetVolume { found, origin, pin, kept: None }
}

/// Returns the volume with a valid seal that the object already has, if this set gave it. Policies then evaluate the recipe
/// of that volume, and not the one that the set has now.
fn keep(
    found: &FoundSet,
    target: &VolumeTarget,
    origin: &Origin,
    annotation: &PinnedAnnotation,
    sealed: &CanonicalVolume,
) -> Option<SetVolume> {
    let found = if found.is_cluster_set() {
        // Otherwise a set that was created again under the name would grant what only the deleted set granted.
        let is_of_set = sealed.set() == Some(found.name.as_str());
        found.as_of(&sealed.recipe().digest()).filter(|_| is_of_set)?
    } else {
        let is_of_set = annotation.confirms(&target.name, &found.written.plain()?, sealed);
        is_of_set.then(|| found.with_recipe(sealed.recipe().clone()))?
    };
    Some(SetVolume { found, origin: origin.clone(), pin: SetPin::Missing, kept: Some(sealed.clone()) })
}

/// Checks that the cluster set of a volume with a valid seal still grants its content. The seal proves that the set
/// granted it once, and users can copy the volume into a new pod at any later time. Only CREATE is checked: a pod that
/// exists is mounted again after a reboot without the webhook.
async fn check_grant(
    services: &Services,
    name: &str,
    canonical: &CanonicalVolume,
    scope: Scope<'_>,
) -> Result<(), Denial> {
    let Some(set) = canonical.set() else { return Ok(()) };
    let check = async {
        let sets = services.sets.as_ref().ok_or(SetError::Off)?;
        sets.check_grant(scope.namespace(), set, canonical.recipe()).await
    };
    let checked = timeout_at(scope.deadline, check).await.unwrap_or_else(|_| Err(timed_out()));
    checked.map_err(|error| error.denial(set_origin(name).at(), set))
}

fn set_origin(volume: &str) -> Origin {
    Origin::Attribute { volume: volume.to_owned(), key: canonical::SET, step: None }
}

/// Accepts the content of a canonical volume without a valid seal. Where it names a cluster set, the set must have or
/// have had that recipe.
async fn readmit_canonical(
    services: &Services,
    name: &str,
    canonical: &CanonicalVolume,
    scope: Scope<'_>,
) -> Result<Located, Denial> {
    let Some(set) = canonical.set() else {
        let recipe = UnpinnedRecipe::of_canonical(canonical, name);
        let source = ArtifactSource::Recipe(RecipeSource::Plain(recipe));
        let request = ArtifactRequest { source, earlier: None, new_set: None };
        return Ok(Located::Artifacts(Box::new(request)));
    };
    let origin = set_origin(name);
    let found = find_set(services, set, &origin, scope).await?;
    let found = find_recipe(found, canonical).map_err(|error| error.denial(origin.at(), set))?;
    Ok(Located::Set(Box::new(SetVolume { found, origin, pin: SetPin::Unneeded, kept: None })))
}

async fn find_set(
    services: &Services,
    name: &str,
    origin: &Origin,
    scope: Scope<'_>,
) -> Result<FoundSet, Denial> {
    let find = async {
        let sets = services.sets.as_ref().ok_or(SetError::Off)?;
        sets.find(scope.namespace(), name, services.registries.as_ref()).await
    };
    let found = timeout_at(scope.deadline, find).await.unwrap_or_else(|_| Err(timed_out()));
    found.map_err(|error| error.denial(origin.at(), name))
}

/// Returns the cluster set with the recipe of the volume.
fn find_recipe(found: FoundSet, canonical: &CanonicalVolume) -> Result<FoundSet, SetError> {
    if !found.is_cluster_set() {
        return Err(SetError::NoClusterSet { place: found.place });
    }
    found.as_of(&canonical.recipe().digest()).ok_or(SetError::UnknownRecipe { place: found.place })
}

/// Checks that each volume that creates a set may have that name. Where the namespace already has the same set, and the
/// set is ready, the volume gets the set's recipe.
pub(super) async fn check_new_sets(
    services: &Services,
    volumes: Vec<LocatedVolume>,
    context: &Context<'_>,
) -> Result<Vec<LocatedVolume>, Denial> {
    let mut checked: Vec<LocatedVolume> = Vec::new();
    for LocatedVolume { target, content } in volumes {
        let located = match (content, &services.sets) {
            (Located::Artifacts(mut request), Some(sets)) => match request.new_set.take() {
                Some(new) => {
                    check_name_is_unique(&checked, &new)?;
                    check_new_set(sets, services.registries.as_ref(), request, new, context).await?
                }
                None => Located::Artifacts(request),
            },
            (other, _) => other,
        };
        checked.push(LocatedVolume { target, content: located });
    }
    Ok(checked)
}

async fn check_new_set(
    sets: &SetCatalog,
    registries: &dyn Registries,
    mut request: Box<ArtifactRequest>,
    new: NewSet,
    context: &Context<'_>,
) -> Result<Located, Denial> {
    let taken = sets.taken(context.scope.namespace(), &new.name, &new.recipe, registries);
    let taken = timeout_at(context.scope.deadline, taken).await.unwrap_or_else(|_| Err(timed_out()));
    Ok(match taken.map_err(|error| error.denial(new.at(), &new.name))? {
        // The pins of a revision are those of its tags: the pod that created the set had no others.
        Taken::Same(Some(found)) if !request.source.bypasses_cache() && context.revision.is_none() => {
            Located::Set(Box::new(of_set(*found, new.origin, None)))
        }
        Taken::Same(_) => Located::Artifacts(request),
        Taken::Free => {
            request.new_set = Some(new);
            Located::Artifacts(request)
        }
    })
}

fn check_name_is_unique(volumes: &[LocatedVolume], new: &NewSet) -> Result<(), Denial> {
    let mut others = volumes.iter().filter_map(|volume| match &volume.content {
        Located::Artifacts(request) => request.new_set.as_ref(),
        Located::Admitted(_) | Located::Set(_) => None,
    });
    if others.any(|other| other.name == new.name && other.recipe != new.recipe) {
        let rule = "is the name of two different recipes in this pod";
        return Err(Denial::bad_request(new.at(), Some(&new.name), rule, "rename one of them"));
    }
    Ok(())
}

/// Gives each volume of a set the recipe that the first pod of the revision got.
pub(super) async fn apply_set_pins(
    mut volumes: Vec<LocatedVolume>,
    context: &Context<'_>,
) -> Result<Vec<LocatedVolume>, Denial> {
    let Some(revision) = &context.revision else { return Ok(volumes) };
    for volume in &mut volumes {
        let Located::Set(set) = &mut volume.content else { continue };
        if set.pin == SetPin::Unneeded {
            continue;
        }
        if let Some(digest) = revision.find_set_pin(set).await? {
            set.apply_pin(&digest);
        }
    }
    Ok(volumes)
}

pub(super) fn timed_out() -> SetError {
    SetError::Unavailable("the API server did not answer in time".into())
}
