//! From what volumes shall hold to canonical volumes with their seals.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use json_patch::Patch;
use oras_csi_core::digest::Digest;
use oras_csi_core::keys::canonical;
use oras_csi_core::recipe::Step;
use oras_csi_core::reference::Reference;
use oras_csi_core::registry::{Keyring, Source};
use oras_csi_core::seal::Holder;
use oras_csi_core::volume::CanonicalVolume;
use serde_json::Value;
use tokio::time::Instant as Deadline;

use super::notes::{Notes, line};
use super::revision::{Fixed, Fresh, Revision, Writes};
use super::{Admission, Outcome};
use crate::denial::{At, Denial};
use crate::intent::{Content, Origin, ReadFrom, VolumeIntent, Wanted};
use crate::patch::{PlannedSecret, PlannedVolume};
use crate::policy::ApplicablePolicies;
use crate::policy::evaluate::Findings;
use crate::resolve::Needs;
use crate::view::Pod;

/// How many lookups of one volume, and how many volumes of one pod, may be under way.
const LOOKUPS_AT_ONCE: usize = 8;
const VOLUMES_AT_ONCE: usize = 4;

/// For whom volumes are.
pub(super) struct Case<'a> {
    /// Whose policies and Secrets.
    pub(super) namespace: &'a str,
    /// Whose seal.
    pub(super) holder: Holder<'a>,
    /// The pod that has them, where one does.
    pub(super) pod: Option<&'a Pod<'a>>,
    /// The revision that it belongs to, where it has one.
    pub(super) revision: Option<&'a Revision<'a>>,
    pub(super) notes: &'a Notes,
    /// Whether anything may come of it but the answer.
    pub(super) writes: Writes,
    pub(super) deadline: Deadline,
}

/// Who may ask for volumes.
pub(super) struct Credentials<'a> {
    /// One a volume, in their order.
    pub(super) keyrings: &'a [Keyring],
    /// Why some may be missing.
    pub(super) problems: Option<&'a str>,
}

impl Credentials<'_> {
    /// A denial, with why credentials may be missing where that may be the reason.
    pub(super) fn explain(&self, denial: Denial) -> Denial {
        match self.problems {
            Some(problems) if denial.is_of_rights() => denial.because(problems),
            _ => denial,
        }
    }
}

/// Volumes that nothing stands in the way of any more.
#[derive(Default)]
pub(super) struct Settled {
    pub(super) volumes: Vec<Pinned>,
    findings: Findings,
}

/// A volume with its digests and its seal.
pub(super) struct Pinned {
    pub(super) intent: Arc<VolumeIntent>,
    pub(super) canonical: CanonicalVolume,
    pub(super) secret: NeededSecret,
    /// Its references as `oras.land/pinned` shows them.
    pub(super) lines: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// The tags that were looked up.
    pub(super) fresh: Vec<Fresh>,
}

impl Pinned {
    fn planned(&self) -> PlannedVolume<'_> {
        PlannedVolume {
            name: &self.intent.name,
            index: self.intent.index,
            secret: self.secret.planned(),
            attributes: self.canonical.to_attributes(),
            mounts: &self.intent.mounts,
        }
    }
}

/// The Secret that the driver needs for a volume.
pub(super) enum NeededSecret {
    /// What the volume came with: nobody was asked.
    Kept,
    None,
    Named(String),
}

impl NeededSecret {
    fn planned(&self) -> PlannedSecret<'_> {
        match self {
            Self::Kept => PlannedSecret::Kept,
            Self::None => PlannedSecret::Unneeded,
            Self::Named(name) => PlannedSecret::Named(name),
        }
    }
}

impl Settled {
    /// The value of `oras.land/pinned`.
    pub(super) fn pinned(&self) -> Option<String> {
        let lines = self.volumes.iter().map(|volume| (volume.intent.name.clone(), volume.lines.clone()));
        let lines: BTreeMap<String, Vec<String>> = lines.collect();
        if lines.is_empty() { None } else { Some(Value::from_iter(lines).to_string()) }
    }

    /// The value of `oras.land/pinned-patch`: what is noted is the annotations' alone.
    pub(super) fn pinned_patch(&self) -> Option<String> {
        let of_annotations = self.volumes.iter().find(|volume| volume.intent.of_annotations)?;
        match &of_annotations.intent.content {
            Content::Wanted(wanted) if !wanted.read_from.is_empty() => {
                let lines = wanted.read_from.iter().map(|from| line(&from.reference, &from.digest));
                Some(lines.collect::<Vec<_>>().join(" "))
            }
            _ => None,
        }
    }

    pub(super) fn planned(&self) -> Vec<PlannedVolume<'_>> {
        self.volumes.iter().map(Pinned::planned).collect()
    }

    pub(super) fn outcome(self, patch: Patch, warnings: Vec<String>, pinned: Option<String>) -> Outcome {
        let Self { volumes, mut findings } = self;
        let mut outcome = Outcome { patch, warnings, pinned, ..Outcome::untouched() };
        for volume in volumes {
            outcome.warnings.extend(volume.warnings);
            outcome.volumes.push((volume.intent.name.clone(), volume.canonical));
            outcome.intents.push(volume.intent);
        }
        outcome.warnings.extend(findings.take_warnings());
        outcome.audit = findings.into_audit_annotations();
        outcome
    }
}

impl Admission {
    /// Looks for what the revision has for the tags of volumes.
    pub(super) async fn find_pins(
        &self,
        volumes: &[Arc<VolumeIntent>],
        fixed: &mut Fixed,
        case: &Case<'_>,
    ) -> Result<(), Denial> {
        let Some(revision) = case.revision else { return Ok(()) };
        let written = volumes.iter().filter(|volume| {
            matches!(volume.content, Content::Wanted(_) | Content::Patched(_) | Content::Steps(_))
        });
        let tags = written.flat_map(|volume| volume.names()).map(|named| (named.reference, named.origin));
        let tags: Vec<_> = tags.filter(|(reference, _)| !fixed.contains_key(reference)).collect();
        fixed.extend(revision.find(&tags).await?);
        Ok(())
    }

    /// Each volume with its digests, and what policies say of those; no seals yet.
    pub(super) async fn round(
        &self,
        volumes: &[Arc<VolumeIntent>],
        credentials: &Credentials<'_>,
        book: &ApplicablePolicies,
        fixed: &Fixed,
        case: &Case<'_>,
        mut findings: Findings,
    ) -> Result<Settled, Denial> {
        let lookups = volumes.iter().zip(credentials.keyrings).map(|(volume, keyring)| async move {
            let pinned = self.pin(volume, keyring, fixed, case).await;
            pinned.map(|pinned| (pinned, keyring)).map_err(|denial| credentials.explain(denial))
        });
        // Collected first: a stream of closures that borrow is not `Send` to the compiler.
        let lookups: Vec<_> = lookups.collect();
        let mut resolved = stream::iter(lookups).buffered(VOLUMES_AT_ONCE);
        let mut volumes = Vec::new();
        while let Some(resolved) = resolved.next().await {
            let (pinned, keyring) = resolved?;
            if book.looks_at_contents() {
                self.check_contents(book, &pinned, keyring, &mut findings, case.deadline).await?;
            }
            volumes.push(pinned);
        }
        Ok(Settled { volumes, findings })
    }

    /// Asks policies about what the registry has under each digest of a volume.
    async fn check_contents(
        &self,
        book: &ApplicablePolicies,
        pinned: &Pinned,
        keyring: &Keyring,
        findings: &mut Findings,
        deadline: Deadline,
    ) -> Result<(), Denial> {
        let layers = pinned.canonical.recipe().steps().iter().filter_map(Step::layer);
        for (named, layer) in pinned.intent.references().into_iter().zip(layers) {
            let needs =
                Needs { past_cache: false, platform: layer.platform(), media_types: layer.media_types() };
            match self.resolver.found(layer.reference(), keyring, needs, deadline).await {
                Ok(found) => findings.check_found(book, &named, &found, &self.metrics)?,
                Err(failure) if book.enforces_contents() => {
                    return Err(failure.denial(named.origin.at(), &named.reference));
                }
                Err(failure) => findings.record_unchecked(book, &named, &failure),
            }
        }
        Ok(())
    }

    /// The canonical volume of an intent.
    async fn pin(
        &self,
        intent: &Arc<VolumeIntent>,
        keyring: &Keyring,
        fixed: &Fixed,
        case: &Case<'_>,
    ) -> Result<Pinned, Denial> {
        let written;
        let (wanted, is_written) = match &intent.content {
            Content::Canonical(there) if self.keeps(there, case.holder) => {
                return Ok(kept(intent, there, case.notes));
            }
            // It was admitted for somebody else, or by nobody: what it says counts as if its owner had written it.
            Content::Canonical(there) => {
                check_no_set(intent, there)?;
                written = Wanted::of_canonical(there, &intent.name);
                (&written, true)
            }
            Content::Patched(patched) => return Err(patched.unreadable("was not read")),
            Content::Set(set) => {
                return Err(Denial::rewrite(set.origin.at(), Some(&set.name), "was not looked up", ""));
            }
            Content::OfSet(of) => return self.pin_set(intent, of, keyring, case),
            Content::Steps(steps) => return Err(steps.unread()),
            Content::Wanted(wanted) => {
                match intent.earlier.as_ref().filter(|there| is_that(intent, wanted, there, case.notes)) {
                    Some(there) if there.seal().is_some() && self.keeps(there, case.holder) => {
                        return Ok(kept(intent, there, case.notes));
                    }
                    // `oras-csi render` wrote it, and somebody keeps its digests in Git.
                    Some(there) if there.seal().is_none() => {
                        let Wanted { recipe, .. } = Wanted::of_canonical(there, &intent.name);
                        let (origins, read_from) = (wanted.origins.clone(), wanted.read_from.clone());
                        written = Wanted { recipe, origins, label: None, past_cache: false, read_from };
                        (&written, true)
                    }
                    _ => (wanted, false),
                }
            }
        };
        let found = self.resolve(wanted, keyring, fixed, case).await?;
        let (digests, secret) = self.one_secret(intent, wanted, keyring, fixed, found, case).await?;
        let (mut lines, mut warnings, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
        for from in &wanted.read_from {
            check_base(from, wanted, &digests)?;
            from.tell(&mut warnings);
            if from.is_fresh {
                let (reference, digest, origin) =
                    (from.reference.clone(), from.digest.clone(), from.origin.clone());
                fresh.push(Fresh { reference, digest, origin });
            }
        }
        for (step, ((reference, origin), digest)) in wanted.steps().zip(&digests).enumerate() {
            let pinned = reference.pin(digest.clone());
            lines.push(if is_written {
                case.notes.line(&intent.name, step, &pinned)
            } else {
                line(reference, digest)
            });
            if let (Some(tag), None) = (reference.tag(), reference.digest()) {
                warnings.push(format!("{}: {}:{tag} is pinned to {digest}", origin.at(), reference.name()));
                if !fixed.contains_key(reference) {
                    let (reference, digest, origin) = (reference.clone(), digest.clone(), origin.clone());
                    fresh.push(Fresh { reference, digest, origin });
                }
            }
        }
        // `pin` asks once a reference, in the order of the steps, which is the order of the digests.
        let mut digests = digests.into_iter();
        let at = wanted.origins.first().map_or(At::Volume(&intent.name), Origin::at);
        let incomplete = || Denial::rewrite(at, None, "was not resolved", "");
        let recipe = wanted.recipe.pin(|_| digests.next().ok_or_else(incomplete))?;
        let canonical = CanonicalVolume::new(wanted.label.as_deref(), recipe)
            .map_err(|error| Denial::rewrite(at, None, error, ""))?;
        let intent = Arc::clone(intent);
        Ok(Pinned { intent, canonical, secret, lines, warnings, fresh })
    }

    /// Whether a canonical volume that came with a request stays as it is: it bears our word for this very holder.
    /// Where no seals are made there is no such word, and none is asked for but of a set's.
    pub(super) fn keeps(&self, there: &CanonicalVolume, holder: Holder<'_>) -> bool {
        let needs_none = !self.sealer.is_sealing() && there.set().is_none();
        needs_none || self.sealer.has_valid_seal(there, holder)
    }

    /// The one Secret that a recipe needs: kubelet hands the driver no more. Where references were let in by
    /// different ones, one of those may do for all.
    async fn one_secret(
        &self,
        intent: &VolumeIntent,
        wanted: &Wanted,
        keyring: &Keyring,
        fixed: &Fixed,
        found: Vec<(Digest, Source)>,
        case: &Case<'_>,
    ) -> Result<(Vec<Digest>, NeededSecret), Denial> {
        let digests = |found: Vec<(Digest, Source)>| found.into_iter().map(|(digest, _)| digest).collect();
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
                let name = (*name).to_owned();
                return Ok((digests(found), NeededSecret::Named(name)));
            }
            _ => {}
        }
        for name in &needed {
            let alone = keyring.only(&Source::Secret((*name).to_owned()));
            let Ok(again) = self.resolve(wanted, &alone, fixed, case).await else { continue };
            let is_same = again.iter().zip(&found).all(|((one, _), (other, _))| one == other);
            if is_same {
                return Ok((digests(again), NeededSecret::Named((*name).to_owned())));
            }
        }
        let rule = format!(
            "needs {} different pull secrets ({}), and a volume has one",
            needed.len(),
            needed.join(", ")
        );
        let instead = "put the entries of both into the .dockerconfigjson of one Secret, and name that one";
        Err(Denial::rewrite(intent.secret_at(), None, rule, instead))
    }

    /// The digests of a recipe's references, in their order, and whose credential was let in; the first failure in
    /// that order.
    async fn resolve(
        &self,
        wanted: &Wanted,
        keyring: &Keyring,
        fixed: &Fixed,
        case: &Case<'_>,
    ) -> Result<Vec<(Digest, Source)>, Denial> {
        let layers = wanted.recipe.steps().iter().filter_map(Step::layer);
        let lookups: Vec<_> = layers
            .zip(&wanted.origins)
            .map(|(layer, origin)| async move {
                let needs = Needs {
                    past_cache: wanted.past_cache,
                    platform: layer.platform(),
                    media_types: layer.media_types(),
                };
                let reference = layer.reference();
                let Some(digest) = fixed.get(reference) else {
                    let found = self.resolver.pin(reference, keyring, needs, case.deadline).await;
                    return found.map_err(|failure| failure.denial(origin.at(), reference));
                };
                let pinned: Reference = reference.pin(digest.clone()).into();
                let found = self.resolver.pin(&pinned, keyring, needs, case.deadline).await;
                found.map_err(|failure| {
                    let denial = failure.denial(origin.at(), &pinned);
                    match case.revision.and_then(|revision| revision.place(reference)) {
                        Some(place) => denial.because(&format!(
                            "that is what {reference} was for the first pod of this revision: delete {place} to have what \
                             it is now"
                        )),
                        None => denial,
                    }
                })
            })
            .collect();
        let mut lookups = stream::iter(lookups).buffered(LOOKUPS_AT_ONCE);
        let mut digests = Vec::new();
        while let Some(digest) = lookups.next().await {
            digests.push(digest?);
        }
        Ok(digests)
    }
}

/// A volume that stays as it is, and of which nobody is asked.
pub(super) fn kept(intent: &Arc<VolumeIntent>, there: &CanonicalVolume, notes: &Notes) -> Pinned {
    let pinned = there.recipe().references().enumerate();
    let lines = pinned.map(|(step, pinned)| notes.line(&intent.name, step, pinned)).collect();
    Pinned {
        intent: Arc::clone(intent),
        canonical: there.clone(),
        secret: NeededSecret::Kept,
        lines,
        warnings: Vec::new(),
        fresh: Vec::new(),
    }
}

/// Whether a volume is what annotations ask for: the same steps, each with the digest that is written, or noted
/// beside the tag that is.
pub(super) fn is_that(
    intent: &VolumeIntent,
    wanted: &Wanted,
    there: &CanonicalVolume,
    notes: &Notes,
) -> bool {
    let mut references = there.recipe().references().enumerate();
    let again = wanted.recipe.pin(|written| {
        let (step, pinned) = references.next().ok_or(())?;
        let agrees = notes.agree(&intent.name, step, pinned, written);
        if agrees { Ok(pinned.digest().clone()) } else { Err(()) }
    });
    there.set().is_none() && again.as_ref() == Ok(there.recipe())
}

/// What is written beside a patch is its base.
fn check_base(from: &ReadFrom, wanted: &Wanted, digests: &[Digest]) -> Result<(), Denial> {
    let first = wanted.steps().zip(digests).next();
    let (Some(patch), Some(((reference, origin), digest))) = (&from.unchecked, first) else { return Ok(()) };
    patch.check_base(digest).map_err(|error| {
        Denial::rewrite(origin.at(), Some(&reference.to_string()), error, "")
            .because(&format!("the patch is {}", line(&from.reference, &from.digest)))
    })
}

/// A set's volume is its set's alone to give.
fn check_no_set(intent: &VolumeIntent, there: &CanonicalVolume) -> Result<(), Denial> {
    let Some(set) = there.set() else { return Ok(()) };
    let at = At::Attribute { volume: &intent.name, key: canonical::SET };
    let rule = "was not admitted for this namespace";
    Err(Denial::rewrite(at, Some(set), rule, "ask for the set by its name alone"))
}
