//! Sets in an admission: which one a name means, what it gives, which one comes to be; and what a set stands for, for
//! whoever keeps its status.

use std::sync::Arc;

use kube::api::ObjectMeta;
use oras_csi_core::keys::canonical;
use oras_csi_core::policy::Source;
use oras_csi_core::recipe::{PatchStep, RecipeError, Step, WrittenRecipe};
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{Keyring, Source as CredentialSource};
use oras_csi_core::seal::Holder;
use oras_csi_core::volume::CanonicalVolume;
use tokio::time::{Instant as Deadline, timeout_at};

use super::Admission;
use super::notes::line;
use super::revision::Writes;
use super::volumes::{Case, NeededSecret, Pinned, is_that, kept};
use crate::credentials::{Secret, Secrets};
use crate::denial::{At, Code, Denial};
use crate::intent::{Content, Kept, Named, NewSet, OfSet, Origin, SetName, VolumeIntent, Wanted};
use crate::policy::ApplicablePolicies;
use crate::policy::evaluate::Findings;
use crate::resolve::{Needs, Said};
use crate::sets::object::{ArtifactSet, ArtifactSetSpec, SecretName};
use crate::sets::recipe::{self, SetStep, steps_of};
use crate::sets::{
    FoundSet, MemorySets, Resolved, SetCatalog, SetError, Taken, is_current, resolved_now, status_now,
};

const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "oras-csi");

impl Admission {
    fn book_of_sets(&self) -> Result<&SetCatalog, SetError> {
        self.sets.as_ref().ok_or(SetError::Off)
    }

    /// The volumes with what the sets have that they name. One that bears our word for its holder stays as it is.
    pub(super) async fn look_up(
        &self,
        volumes: Vec<Arc<VolumeIntent>>,
        namespace: &str,
        holder: Holder<'_>,
        deadline: Deadline,
    ) -> Result<Vec<Arc<VolumeIntent>>, Denial> {
        let mut known = Vec::new();
        for volume in volumes {
            let of = match &volume.content {
                Content::Set(SetName { name, origin }) => {
                    let found = self.find_set(name, origin, namespace, deadline).await?;
                    // `oras-csi render` wrote it, and somebody keeps what the set was then in Git.
                    let rendered = volume.earlier.as_ref().filter(|there| there.seal().is_none());
                    match rendered.and_then(|there| found.as_of(&there.recipe().digest())) {
                        Some(found) => OfSet { found, origin: origin.clone(), kept: Kept::Written },
                        None => OfSet { found, origin: origin.clone(), kept: Kept::Nothing },
                    }
                }
                Content::Canonical(there) if !self.keeps(there, holder) => {
                    let Some(set) = there.set() else {
                        known.push(volume);
                        continue;
                    };
                    let origin =
                        Origin::Attribute { volume: volume.name.clone(), key: canonical::SET, step: None };
                    let found = self.find_set(set, &origin, namespace, deadline).await?;
                    let found = written_of(found, there).map_err(|error| error.denial(origin.at(), set))?;
                    OfSet { found, origin, kept: Kept::Written }
                }
                _ => {
                    known.push(volume);
                    continue;
                }
            };
            let content = Content::OfSet(Box::new(of));
            known.push(Arc::new(VolumeIntent { content, ..VolumeIntent::clone(&volume) }));
        }
        Ok(known)
    }

    async fn find_set(
        &self,
        name: &str,
        origin: &Origin,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<FoundSet, Denial> {
        let find = async { self.book_of_sets()?.find(namespace, name, self.registries.as_ref()).await };
        let found = timeout_at(deadline, find).await.unwrap_or_else(|_| Err(too_late()));
        found.map_err(|error| error.denial(origin.at(), name))
    }

    /// The volumes that name what they hold, once it is clear that they may. Where the set is there already and ready,
    /// what it has is what they hold.
    pub(super) async fn claim_names(
        &self,
        volumes: Vec<Arc<VolumeIntent>>,
        case: &Case<'_>,
    ) -> Result<Vec<Arc<VolumeIntent>>, Denial> {
        let Some(book) = &self.sets else { return Ok(volumes) };
        let mut claimed: Vec<Arc<VolumeIntent>> = Vec::new();
        for volume in volumes {
            let Some(new) = &volume.makes else {
                claimed.push(volume);
                continue;
            };
            let mut others = claimed.iter().filter_map(|other| other.makes.as_ref());
            if others.any(|other| other.name == new.name && other.recipe != new.recipe) {
                let rule = "is the name of two recipes in this pod";
                return Err(Denial::rewrite(
                    new.at(),
                    Some(&new.name),
                    rule,
                    "choose another for one of them",
                ));
            }
            let past_cache = match &volume.content {
                Content::Wanted(wanted) => wanted.past_cache,
                Content::Steps(steps) => steps.past_cache,
                _ => false,
            };
            let taken = book.taken(case.namespace, &new.name, &new.recipe, self.registries.as_ref());
            let taken = timeout_at(case.deadline, taken).await.unwrap_or_else(|_| Err(too_late()));
            claimed.push(match taken.map_err(|error| error.denial(new.at(), &new.name))? {
                // The pins of a revision are of its tags: the pod that made the set had no other.
                Taken::Same(Some(found)) if !past_cache && case.revision.is_none() => {
                    let (origin, kept) = (new.origin.clone(), Kept::Nothing);
                    let content = Content::OfSet(Box::new(OfSet { found: *found, origin, kept }));
                    Arc::new(VolumeIntent { content, makes: None, ..VolumeIntent::clone(&volume) })
                }
                Taken::Same(_) => Arc::new(VolumeIntent { makes: None, ..VolumeIntent::clone(&volume) }),
                Taken::Free => volume,
            });
        }
        Ok(claimed)
    }

    /// The volumes of sets as the revision of the pod has them: what its first pod had.
    pub(super) async fn find_kept(
        &self,
        volumes: Vec<Arc<VolumeIntent>>,
        case: &Case<'_>,
    ) -> Result<Vec<Arc<VolumeIntent>>, Denial> {
        let Some(revision) = case.revision else { return Ok(volumes) };
        let mut kept = Vec::new();
        for volume in volumes {
            let Content::OfSet(of) = &volume.content else {
                kept.push(volume);
                continue;
            };
            // What is written with its digests needs no pin.
            if of.kept == Kept::Written {
                kept.push(volume);
                continue;
            }
            let Some(digest) = revision.find_set(of).await? else {
                kept.push(volume);
                continue;
            };
            let of = match of.found.as_of(&digest) {
                Some(found) => OfSet { found, origin: of.origin.clone(), kept: Kept::This },
                None => OfSet { kept: Kept::Forgotten, ..OfSet::clone(of) },
            };
            let content = Content::OfSet(Box::new(of));
            kept.push(Arc::new(VolumeIntent { content, ..VolumeIntent::clone(&volume) }));
        }
        Ok(kept)
    }

    /// Keeps for the revision what its first pod gets of sets. Says whether that is what these volumes have; if it is
    /// not, another pod was first.
    pub(super) async fn keep_sets(&self, volumes: &[Pinned], case: &Case<'_>) -> Result<bool, Denial> {
        let Some(revision) = case.revision else { return Ok(true) };
        let mut is_first = true;
        for volume in volumes {
            if let Content::OfSet(of) = &volume.intent.content
                && of.kept == Kept::Nothing
            {
                let digest = volume.canonical.recipe().digest();
                is_first &= revision.keep_set(of, &digest).await? == digest;
            }
        }
        Ok(is_first)
    }

    /// Makes the sets that come to be with these volumes.
    pub(super) async fn make_sets(&self, volumes: &[Pinned], case: &Case<'_>) -> Result<(), Denial> {
        let Some(book) = self.sets.as_ref().filter(|_| case.writes == Writes::Yes) else { return Ok(()) };
        for volume in volumes {
            let Some(new) = &volume.intent.makes else { continue };
            let set = new_set(new, case.namespace, volume);
            let make = book.create(case.namespace, &set, &new.recipe, self.registries.as_ref());
            let outcome = timeout_at(case.deadline, make).await.unwrap_or_else(|_| Err(too_late()));
            outcome.map_err(|error| error.denial(new.at(), &new.name))?;
        }
        Ok(())
    }

    /// What a set gives. Nobody is asked.
    pub(super) fn pin_set(
        &self,
        intent: &Arc<VolumeIntent>,
        of: &OfSet,
        keyring: &Keyring,
        case: &Case<'_>,
    ) -> Result<Pinned, Denial> {
        if let Some(there) = intent.earlier.as_ref().filter(|there| there.seal().is_some())
            && self.keeps(there, case.holder)
            && is_of(intent, of, there, case)
        {
            return Ok(kept(intent, there, case.notes));
        }
        let found = &of.found;
        let canonical = of.canonical().map_err(|error| Denial::rewrite(of.origin.at(), None, error, ""))?;
        let pinned = found.pinned.references();
        let lines = found.references.iter().zip(pinned).map(|(told, pinned)| line(told, pinned.digest()));
        let lines = lines.collect();
        let mut warnings = Vec::new();
        if of.kept == Kept::Forgotten {
            warnings.push(format!(
                "{}: {} no longer knows the recipe that the first pod of this revision had, and this one has another",
                of.origin.at(),
                found.place
            ));
        }
        let secret = if found.is_cluster_set() {
            if let Some(name) = &intent.secret {
                warnings.push(format!(
                    "{}: secret {name} is of no use, {} names its own",
                    intent.secret_at(),
                    found.place
                ));
            }
            NeededSecret::None
        } else {
            secret_for(intent, of, keyring)
        };
        let (intent, fresh) = (Arc::clone(intent), Vec::new());
        Ok(Pinned { intent, canonical, secret, lines, warnings, fresh })
    }

    /// Who may look at what a cluster set holds, where a policy wants to.
    pub(super) async fn keyring_of_set(
        &self,
        of: &OfSet,
        book: &ApplicablePolicies,
        deadline: Deadline,
    ) -> Result<Keyring, Denial> {
        let secret = of.found.secret.as_deref().filter(|_| book.looks_at_contents());
        self.keyring_with(of.origin.at(), None, secret, deadline).await
    }

    /// The administrator's credentials behind those of a Secret: of a namespace, or of a cluster set.
    async fn keyring_with(
        &self,
        at: At<'_>,
        namespace: Option<&str>,
        secret: Option<&str>,
        deadline: Deadline,
    ) -> Result<Keyring, Denial> {
        let keyring = Keyring::new(self.credentials.administrator.clone());
        let Some(name) = secret else { return Ok(keyring) };
        let (secrets, namespace): (&dyn Secrets, &str) = match (namespace, &self.sets) {
            (Some(namespace), _) => (self.credentials.secrets.as_ref(), namespace),
            (None, Some(sets)) => sets.secrets(),
            (None, None) => return Ok(keyring),
        };
        let read = timeout_at(deadline, secrets.secret(namespace, name)).await;
        let source = CredentialSource::Secret(name.to_owned());
        let refuse = |code, words: &dyn std::fmt::Display, instead: &str| {
            let rule = format!("is a pull secret of namespace {namespace} that cannot be used ({words})");
            Err(Denial::new(code, at, Some(name), rule, instead))
        };
        match read {
            Ok(Ok(Secret::Known(config))) => Ok(keyring.with_secret(source, config)),
            Ok(Ok(Secret::Unknown)) => Ok(keyring.in_place_of(source)),
            Ok(Ok(Secret::Missing)) => {
                refuse(Code::NotFound, &"it does not exist", "make it: kubectl create secret docker-registry")
            }
            Ok(Err(error)) => refuse(
                Code::Forbidden,
                &error,
                "name it in the chart's values: clusterSets.pullSecrets for cluster sets, webhook.pullSecrets for others",
            ),
            Err(_) => refuse(Code::Unavailable, &"no answer in time", "try again later"),
        }
    }

    /// What a set stands for now, past every cache. The set of a namespace is its people's, and its policies are asked
    /// before any registry is; a cluster set is the administrator's.
    pub(crate) async fn resolve_set(
        &self,
        namespace: Option<&str>,
        name: &str,
        steps: &[SetStep],
        secret: Option<&str>,
        deadline: Deadline,
    ) -> Result<Resolved, Denial> {
        let field = At::Field("spec.recipe");
        let written = recipe::read(steps, self.registries.as_ref())
            .map_err(|error| Denial::rewrite(field, None, error, ""))?;
        let (book, source) = match namespace {
            Some(namespace) => (self.policies.applicable_to(namespace, deadline).await?, Source::Direct),
            None => (self.policies.applicable_to_cluster_objects(), Source::ClusterSet),
        };
        let check = |reference: &Reference, origin: &Origin, is_patch| {
            let named = Named { origin: origin.clone(), reference: reference.clone(), is_patch, source };
            Findings::default().check_name(&book, &named, &self.metrics)
        };
        let origin = |number: usize| Origin::Field(format!("spec.recipe[{}]", number - 1));
        let patches: Vec<usize> = written.patches().map(|(number, _)| number).collect();
        for (number, reference) in written.references() {
            check(reference, &origin(number), patches.contains(&number))?;
        }
        let keyring =
            self.keyring_with(At::Field("spec.pullSecret.name"), namespace, secret, deadline).await?;
        let mut read = Vec::new();
        for (number, patch) in written.patches() {
            let steps = self.steps_of_patch(patch, &origin(number), &keyring, deadline).await?;
            for layer in steps.iter().filter_map(Step::layer) {
                check(layer.reference(), &origin(number), false)?;
            }
            read.push(steps);
        }
        let mut read = read.into_iter();
        let expanded = written.expand(|_, _| Ok::<_, RecipeError>(read.next().unwrap_or_default()));
        let (recipe, numbers) = expanded.map_err(|error| Denial::rewrite(field, None, error, ""))?;
        let (mut digests, mut references) = (Vec::new(), Vec::new());
        let layers = recipe.steps().iter().filter_map(Step::layer);
        for (layer, number) in layers.zip(numbers) {
            let origin = origin(number);
            let needs =
                Needs { past_cache: true, platform: layer.platform(), media_types: layer.media_types() };
            let found = self.resolver.pin(layer.reference(), &keyring, needs, deadline).await;
            let (digest, _) = found.map_err(|failure| failure.denial(origin.at(), layer.reference()))?;
            references.push(line(layer.reference(), &digest));
            digests.push(digest);
        }
        let mut digests = digests.into_iter();
        let incomplete = || Denial::rewrite(field, None, "was not resolved", "");
        let pinned = recipe.pin(|_| digests.next().ok_or_else(incomplete))?;
        let volume = CanonicalVolume::new(Some(name), pinned);
        let volume = match namespace {
            None => volume.and_then(|volume| volume.with_set(name)),
            Some(_) => volume,
        };
        let volume = volume.map_err(|error| Denial::rewrite(field, None, error, ""))?;
        Ok(Resolved { recipe: volume.recipe().to_json().to_owned(), id: volume.id().to_string(), references })
    }

    /// Says in the status of the sets of that name what they stand for now, where it does not yet: for streams of
    /// manifests, of which nobody else keeps any status.
    pub async fn resolve_stated(&self, sets: &MemorySets, name: &str, deadline: Deadline) {
        for (_, mut set) in sets.cluster_sets().into_iter().filter(|(other, _)| other == name) {
            let generation = set.metadata.generation.unwrap_or_default();
            let secret = set.spec.pull_secret.as_ref().map(|secret| secret.name.as_str());
            if !is_current(set.status.as_ref(), generation) {
                let found = self.resolve_set(None, name, &set.spec.recipe, secret, deadline).await;
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
                let found =
                    self.resolve_set(Some(&namespace), name, &set.spec.recipe, secret, deadline).await;
                set.status = Some(status_now(set.status.as_ref(), generation, found));
                sets.put_namespaced(namespace, name.to_owned(), set);
            }
        }
    }

    /// The steps that a patch, or the artifact of a recipe, stands for.
    async fn steps_of_patch(
        &self,
        patch: &PatchStep,
        origin: &Origin,
        keyring: &Keyring,
        deadline: Deadline,
    ) -> Result<Vec<Step<Reference>>, Denial> {
        let reference = patch.reference();
        let read = self.resolver.instructions(reference, keyring, true, deadline).await;
        let (_, said) = read.map_err(|failure| failure.denial(origin.at(), reference))?;
        let text = reference.to_string();
        match said {
            Said::Patch(said) => Ok(patch.steps(&said)),
            Said::Recipe(yaml) => {
                let recipe = WrittenRecipe::from_yaml(&yaml, &|host| self.registries.names(host));
                let recipe = recipe.map_err(|error| Denial::rewrite(origin.at(), Some(&text), error, ""))?;
                let steps = patch.steps_of(&recipe);
                steps.map_err(|error| Denial::rewrite(origin.at(), Some(&text), error, ""))
            }
        }
    }
}

/// Whether a volume that bears our word is one that this set gave.
fn is_of(intent: &VolumeIntent, of: &OfSet, there: &CanonicalVolume, case: &Case<'_>) -> bool {
    if of.found.is_cluster_set() {
        return there.set() == Some(of.found.name.as_str());
    }
    let Some(recipe) = of.found.written.plain() else { return false };
    let origins = vec![of.origin.clone(); recipe.references().count()];
    let wanted = Wanted { recipe, origins, label: None, past_cache: false, read_from: Vec::new() };
    is_that(intent, &wanted, there, case.notes)
}

/// A cluster set as a volume has it that came without our word for it: as a copy from another namespace, or from
/// `oras-csi render`. It counts for what it says, as far as the set says or said the same.
fn written_of(found: FoundSet, there: &CanonicalVolume) -> Result<FoundSet, SetError> {
    if !found.is_cluster_set() {
        return Err(SetError::NoClusterSet { place: found.place });
    }
    found.as_of(&there.recipe().digest()).ok_or(SetError::UnknownRecipe { place: found.place })
}

fn too_late() -> SetError {
    SetError::Unavailable("no answer in time".into())
}

/// The Secret that the driver gets: the one that is named, else the first of the pod's with an entry for all
/// repositories that any of them has one for. No registry says here whether it lets that one in.
fn secret_for(intent: &VolumeIntent, of: &OfSet, keyring: &Keyring) -> NeededSecret {
    if let Some(name) = &intent.secret {
        return NeededSecret::Named(name.clone());
    }
    let entries = of
        .found
        .pinned
        .references()
        .map(|pinned| keyring.secrets_for(pinned.registry(), pinned.repository()).collect::<Vec<_>>());
    let entries: Vec<_> = entries.filter(|sources| !sources.is_empty()).collect();
    let Some(first) = entries.first() else { return NeededSecret::None };
    let has_all = |source: &&&CredentialSource| entries.iter().all(|sources| sources.contains(*source));
    match first.iter().find(has_all).or(first.first()) {
        Some(CredentialSource::Secret(name)) => NeededSecret::Named(name.clone()),
        _ => NeededSecret::None,
    }
}

/// The set of a volume that says what it holds and how that is called.
fn new_set(new: &NewSet, namespace: &str, volume: &Pinned) -> ArtifactSet {
    let pull_secret = match &volume.secret {
        NeededSecret::Named(name) => Some(SecretName { name: name.clone() }),
        NeededSecret::None | NeededSecret::Kept => None,
    };
    let spec = ArtifactSetSpec { recipe: steps_of(&new.recipe), refresh_interval: None, pull_secret };
    let (label, value) = MANAGED_BY;
    let metadata = ObjectMeta {
        name: Some(new.name.clone()),
        namespace: Some(namespace.to_owned()),
        labels: Some([(label.to_owned(), value.to_owned())].into()),
        generation: Some(1),
        ..ObjectMeta::default()
    };
    let resolved = Resolved {
        recipe: volume.canonical.recipe().to_json().to_owned(),
        id: volume.canonical.id().to_string(),
        references: volume.lines.clone(),
    };
    ArtifactSet { metadata, spec, status: Some(resolved_now(1, resolved)) }
}
