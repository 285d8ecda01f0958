//! Resolves the recipe of a set for the set's status.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oras_csi_core::digest::Digest;
use oras_csi_core::policy::Source;
use oras_csi_core::recipe::{PatchStep, RecipeError, Step, WrittenRecipe};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::Keyring;
use oras_csi_core::volume::CanonicalVolume;
use tokio::time::Instant as Deadline;

use super::credentials::{cluster_set_keyring, namespace_set_keyring};
use super::pinned_annotation::line;
use super::services::Services;
use crate::contents::PatchDocument;
use crate::denial::{At, Denial};
use crate::intent::{Named, Origin, RecipeWithOrigins};
use crate::policy::ApplicablePolicies;
use crate::policy::evaluate::Findings;
use crate::resolve::Requirements;
use crate::sets::recipe;
use crate::sets::{MemorySets, Resolved, SetToResolve, is_current, status_now};

/// How many references of one set are resolved at once.
const LOOKUPS_AT_ONCE: usize = 4;
/// The field of a set that has its steps.
const RECIPE_FIELD: &str = "spec.recipe";

/// Resolves the tags of a set, past every cache.
///
/// A namespace's set is its users': the policies of the namespace are checked before any registry is contacted. A
/// cluster set is the administrator's.
pub(super) async fn resolve_set(
    services: &Services,
    set: SetToResolve<'_>,
    deadline: Deadline,
) -> Result<Resolved, Denial> {
    let SetToResolve { namespace, name, steps, secret } = set;
    let field = At::Field(RECIPE_FIELD);
    let written = recipe::read(steps, services.registries.as_ref())
        .map_err(|error| Denial::bad_request(field, None, error, ""))?;
    let (book, source) = match namespace {
        Some(namespace) => (services.policies.applicable_to(namespace, deadline).await?, Source::Direct),
        None => (services.policies.applicable_to_cluster_objects(), Source::ClusterSet),
    };
    let resolution = SetResolution { services, book, source, deadline };
    let patches: Vec<usize> = written.patches().map(|(number, _)| number).collect();
    for (number, reference) in written.references() {
        resolution.check_name(reference, &step_origin(number), patches.contains(&number))?;
    }
    let at = At::Field("spec.pullSecret.name");
    let keyring = match namespace {
        Some(namespace) => namespace_set_keyring(services, at, namespace, secret, deadline).await?,
        None => cluster_set_keyring(services, at, secret, deadline).await?,
    };
    let recipe = resolution.expand(&written, &keyring).await?;
    let found = resolution.resolve(&recipe, &keyring).await?;
    let (digests, references): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let mut digests = digests.into_iter();
    let incomplete = || Denial::bad_request(field, None, "was not resolved", "");
    let pinned = recipe.recipe().pin(|_| digests.next().ok_or_else(incomplete))?;
    let volume = CanonicalVolume::new(Some(name), pinned);
    let volume = match namespace {
        None => volume.and_then(|volume| volume.with_set(name)),
        Some(_) => volume,
    };
    let volume = volume.map_err(|error| Denial::bad_request(field, None, error, ""))?;
    Ok(Resolved { recipe: volume.recipe().to_json().to_owned(), id: volume.id().to_string(), references })
}

/// Resolves the sets of that name whose status is not that of their spec, and stores the status.
pub(super) async fn update_statuses(services: &Services, sets: &MemorySets, name: &str, deadline: Deadline) {
    for (_, mut set) in sets.cluster_sets().into_iter().filter(|(other, _)| other == name) {
        let generation = set.metadata.generation.unwrap_or_default();
        let secret = set.spec.pull_secret.as_ref().map(|secret| secret.name.as_str());
        if !is_current(set.status.as_ref(), generation) {
            let resolve = SetToResolve { namespace: None, name, steps: &set.spec.recipe, secret };
            let found = resolve_set(services, resolve, deadline).await;
            set.status = Some(status_now(set.status.as_ref(), generation, found));
            sets.put_cluster(name.to_owned(), set);
        }
    }
    for ((namespace, _), mut set) in
        sets.namespaced_sets().into_iter().filter(|((_, other), _)| other == name)
    {
        let generation = set.metadata.generation.unwrap_or_default();
        let secret = set.spec.pull_secret.as_ref().map(|secret| secret.name.as_str());
        if !is_current(set.status.as_ref(), generation) {
            let steps = &set.spec.recipe;
            let resolve = SetToResolve { namespace: Some(&namespace), name, steps, secret };
            let found = resolve_set(services, resolve, deadline).await;
            set.status = Some(status_now(set.status.as_ref(), generation, found));
            sets.put_namespaced(namespace, name.to_owned(), set);
        }
    }
}

fn step_origin(number: usize) -> Origin {
    Origin::Field(format!("{RECIPE_FIELD}[{}]", number - 1))
}

struct SetResolution<'a> {
    services: &'a Services,
    book: ApplicablePolicies,
    source: Source,
    deadline: Deadline,
}

impl SetResolution<'_> {
    fn check_name(&self, reference: &Reference, origin: &Origin, is_patch: bool) -> Result<(), Denial> {
        let named =
            Named { origin: origin.clone(), reference: reference.clone(), is_patch, source: self.source };
        Findings::default().check_name(&self.book, &named, &self.services.metrics)
    }

    /// Returns the recipe with its patches expanded, and the written step of each reference.
    async fn expand(&self, written: &WrittenRecipe, keyring: &Keyring) -> Result<RecipeWithOrigins, Denial> {
        let mut read = Vec::new();
        for (number, patch) in written.patches() {
            let origin = step_origin(number);
            let steps = self.steps_of_patch(patch, &origin, keyring).await?;
            for layer in steps.iter().filter_map(Step::layer) {
                self.check_name(layer.reference(), &origin, false)?;
            }
            read.push(steps);
        }
        let mut read = read.into_iter();
        let expanded = written.expand(|_, _| Ok::<_, RecipeError>(read.next().unwrap_or_default()));
        let (recipe, numbers) = expanded
            .map_err(|error: RecipeError| Denial::bad_request(At::Field(RECIPE_FIELD), None, error, ""))?;
        let origins: Vec<_> = numbers.into_iter().map(step_origin).collect();
        Ok(RecipeWithOrigins::new(recipe, &origins, &Origin::Field(RECIPE_FIELD.to_owned())))
    }

    /// Returns the digest of each reference of a recipe, and its line in the status.
    async fn resolve(
        &self,
        recipe: &RecipeWithOrigins,
        keyring: &Keyring,
    ) -> Result<Vec<(Digest, String)>, Denial> {
        let (resolver, deadline) = (&self.services.resolver, self.deadline);
        let lookups: Vec<_> = recipe
            .layers()
            .map(|(layer, origin)| async move {
                let requirements = Requirements {
                    bypass_cache: true,
                    platform: layer.platform(),
                    selection: layer.selection(),
                };
                let reference = layer.reference();
                let found = resolver.resolve(reference, keyring, requirements, deadline).await;
                let digest = found.map_err(|failure| failure.denial(origin.at(), reference))?.digest;
                let line = line(reference, &digest);
                Ok((digest, line))
            })
            .collect();
        stream::iter(lookups).buffered(LOOKUPS_AT_ONCE).try_collect().await
    }

    /// Returns the steps that a patch, or a recipe artifact, stands for.
    async fn steps_of_patch(
        &self,
        patch: &PatchStep,
        origin: &Origin,
        keyring: &Keyring,
    ) -> Result<Vec<Step<Reference>>, Denial> {
        let (reference, registries) = (patch.reference(), self.services.registries.as_ref());
        let read = self.services.resolver.read_patch(reference, keyring, true, self.deadline).await;
        let (_, document) = read.map_err(|failure| failure.denial(origin.at(), reference))?;
        let text = reference.to_string();
        match document {
            PatchDocument::Patch(document) => Ok(document.steps_for(patch)),
            PatchDocument::Recipe(yaml) => {
                let recipe = WrittenRecipe::from_yaml(&yaml, &|host| registries.names(host));
                let recipe =
                    recipe.map_err(|error| Denial::bad_request(origin.at(), Some(&text), error, ""))?;
                let steps = patch.steps_from(&recipe);
                steps.map_err(|error| Denial::bad_request(origin.at(), Some(&text), error, ""))
            }
        }
    }
}
