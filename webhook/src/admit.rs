//! The whole way of one request, in an order that is fixed: intent, policy on names, network, policy on
//! what was found, patch. Nothing of a pod that policy refuses ever reaches a registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use json_patch::Patch;
use oras_csi_core::digest::Digest;
use oras_csi_core::keys::{annotation, canonical};
use oras_csi_core::recipe::Step;
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{Keyring, Registry, Source};
use oras_csi_core::volume::CanonicalVolume;
use serde_json::Value;
use tokio::time::Instant as Deadline;

use crate::credentials::{CredentialSources, Purse};
use crate::denial::{At, Denial};
use crate::intent::{self, Content, Intent, Named, Origin, Registries, VolumeIntent, Wanted};
use crate::metrics::{Metrics, RequestOutcome};
use crate::patch::{self, PlannedSecret, PlannedVolume};
use crate::policy::judge::{Findings, Opinion, opinions, opinions_of_contents};
use crate::policy::{Policies, Rulebook};
use crate::resolve::{Needs, Resolver, ResolverSettings};
use crate::review::{Review, ReviewResponse, Subject};
use crate::view::Pod;
use crate::workload;

/// The annotation that kubelet gives the API server's copy of a static pod.
const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// How many lookups of one volume, and how many volumes of one pod, may be under way.
const LOOKUPS_AT_ONCE: usize = 8;
const VOLUMES_AT_ONCE: usize = 4;
/// The key of the audit annotation; the API server puts the webhook's name before it.
const AUDIT_PINNED: &str = "pinned";

/// Admits pods.
pub struct Admission {
    resolver: Resolver,
    registries: Arc<dyn Registries>,
    policies: Arc<Policies>,
    metrics: Arc<Metrics>,
    credentials: CredentialSources,
}

/// What becomes of a pod that is admitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    patch: Patch,
    warnings: Vec<String>,
    pinned: Option<String>,
    volumes: Vec<(String, CanonicalVolume)>,
    audit: BTreeMap<String, String>,
}

impl Outcome {
    fn untouched() -> Self {
        Self {
            patch: Patch(Vec::new()),
            warnings: Vec::new(),
            pinned: None,
            volumes: Vec::new(),
            audit: BTreeMap::new(),
        }
    }

    /// What to change; empty where nothing has to be.
    pub fn patch(&self) -> &Patch {
        &self.patch
    }

    /// What to tell the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The value of `oras.land/pinned`; `None` for a pod that has no volume of ours.
    pub fn pinned(&self) -> Option<&str> {
        self.pinned.as_deref()
    }

    /// What is noted in the API server's audit log, by key.
    pub fn audit(&self) -> &BTreeMap<String, String> {
        &self.audit
    }

    /// The canonical volumes by their names in the pod, in the order of [`Admission::asks`].
    pub fn volumes(&self) -> &[(String, CanonicalVolume)] {
        &self.volumes
    }
}

/// A volume that a pod asks for, as far as it is known without asking anybody.
#[derive(Clone, Debug)]
pub struct AskedVolume {
    name: String,
    references: Vec<Asked>,
    pinned: Option<CanonicalVolume>,
}

impl AskedVolume {
    /// Its name in the pod.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its references, in the order of their steps.
    pub fn references(&self) -> &[Asked] {
        &self.references
    }

    /// The canonical volume, where every reference is written with its digest.
    pub fn pinned(&self) -> Option<&CanonicalVolume> {
        self.pinned.as_ref()
    }
}

/// One reference that a pod asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    named: Named,
    denial: Option<Denial>,
    opinions: Vec<Opinion>,
}

impl Asked {
    /// The annotation or attribute it is written in, as a denial names it.
    pub fn place(&self) -> String {
        self.named.origin.at().to_string()
    }

    /// The reference.
    pub fn reference(&self) -> &Reference {
        &self.named.reference
    }

    /// The refusal of the policies, where they have one.
    pub fn denial(&self) -> Option<&Denial> {
        self.denial.as_ref()
    }

    /// What each policy says of its name.
    pub fn opinions(&self) -> &[Opinion] {
        &self.opinions
    }
}

impl Admission {
    /// Over a registry, with what the administrator says of registries, and the policies.
    pub fn new(
        registry: Arc<dyn Registry>,
        registries: Arc<dyn Registries>,
        policies: Arc<Policies>,
        settings: ResolverSettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let resolver = Resolver::new(registry, settings, Arc::clone(&metrics));
        Self { resolver, registries, policies, metrics, credentials: CredentialSources::default() }
    }

    /// With credentials; without any, everything is asked for in nobody's name.
    #[must_use]
    pub fn with_credentials(self, credentials: CredentialSources) -> Self {
        Self { credentials, ..self }
    }

    /// The policies.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Answers a review.
    pub async fn review(&self, review: &Review, deadline: Deadline) -> ReviewResponse {
        let admitted = match review.subject() {
            Subject::Other => {
                self.metrics.request(RequestOutcome::Untouched);
                return review.allow();
            }
            Subject::Workload(workload) => return self.tell(review, workload, deadline).await,
            Subject::Unreadable(denial) => Err(denial.clone()),
            Subject::NewPod(pod) => self.admit_pod(pod, review.namespace(), deadline).await,
        };
        self.metrics.slack(deadline.saturating_duration_since(Deadline::now()));
        match admitted {
            Ok(outcome) => self.answer(review, outcome),
            Err(denial) => {
                self.metrics.request(RequestOutcome::Denied(denial.code()));
                tracing::info!(
                    uid = review.uid(),
                    namespace = review.namespace(),
                    code = denial.code().number(),
                    reason = denial.message(),
                    "denied"
                );
                review.denied(&denial)
            }
        }
    }

    /// What the pods of a workload will meet.
    async fn tell(&self, review: &Review, workload: &Value, deadline: Deadline) -> ReviewResponse {
        let words = match workload::template(workload) {
            None => Vec::new(),
            Some(pod) => {
                let admitted = self.admit_pod(pod, review.namespace(), deadline).await;
                self.metrics.slack(deadline.saturating_duration_since(Deadline::now()));
                workload::tell(workload, admitted.as_ref().map(Outcome::warnings))
            }
        };
        self.metrics.request(if words.is_empty() {
            RequestOutcome::Untouched
        } else {
            RequestOutcome::Warned
        });
        review.warned(words)
    }

    fn answer(&self, review: &Review, outcome: Outcome) -> ReviewResponse {
        let Outcome { patch, warnings, pinned, volumes: _, mut audit } = outcome;
        self.metrics.request(match (&pinned, patch.0.is_empty()) {
            (_, false) => RequestOutcome::Patched,
            (Some(_), true) => RequestOutcome::Unchanged,
            (None, true) => RequestOutcome::Untouched,
        });
        if let Some(pinned) = &pinned {
            tracing::info!(uid = review.uid(), namespace = review.namespace(), pinned, "admitted");
        }
        audit.extend(pinned.map(|pinned| (AUDIT_PINNED.to_owned(), pinned)));
        review.patched(&patch, warnings, audit)
    }

    /// What a pod of a namespace asks for, and what policies say of it. No registry hears of it.
    pub async fn asks(
        &self,
        pod: &Value,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<AskedVolume>, Denial> {
        let pod = Pod::read(pod)?;
        if is_left_alone(&pod) {
            return Ok(Vec::new());
        }
        let intent = intent::read(&pod, self.registries.as_ref())?;
        if intent.volumes.is_empty() {
            return Ok(Vec::new());
        }
        let book = self.policies.rulebook(namespace, deadline).await?;
        let ask = |named: Named| {
            let denial = Findings::default().check_name(&book, &named, &self.metrics).err();
            Asked { denial, opinions: opinions(&book, &named.reference), named }
        };
        let volumes = intent.volumes.into_iter().map(|volume| {
            let references = volume.references().into_iter().map(ask).collect();
            AskedVolume { references, pinned: volume.pinned(), name: volume.name }
        });
        Ok(volumes.collect())
    }

    /// What policies say of a reference in a namespace.
    pub async fn opinions(
        &self,
        reference: &Reference,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<Opinion>, Denial> {
        Ok(opinions(&self.policies.rulebook(namespace, deadline).await?, reference))
    }

    /// The same, of what a registry has under a reference: the opinions of policies that look at contents.
    pub async fn opinions_of_contents(
        &self,
        reference: &Reference,
        pinned: &PinnedReference,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<Opinion>, Denial> {
        let book = self.policies.rulebook(namespace, deadline).await?;
        if !book.looks_at_contents() {
            return Ok(Vec::new());
        }
        let needs = Needs { past_cache: false, platform: None, media_types: &[] };
        let keyring = Keyring::new(self.credentials.administrator.clone());
        let found = self.resolver.found(pinned, &keyring, needs, deadline).await;
        let found = found.map_err(|failure| failure.denial(At::Reference, reference))?;
        Ok(opinions_of_contents(&book, &found))
    }

    /// What becomes of a pod in a namespace: the same for the webhook and for `oras-csi render`.
    pub async fn admit_pod(
        &self,
        pod: &Value,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Outcome, Denial> {
        let pod = Pod::read(pod)?;
        if is_left_alone(&pod) {
            return Ok(Outcome::untouched());
        }
        let Intent { volumes, mut warnings } = intent::read(&pod, self.registries.as_ref())?;
        let mut findings = Findings::default();
        let mut book = None;
        if !volumes.is_empty() {
            let policies = self.policies.rulebook(namespace, deadline).await?;
            for volume in &volumes {
                for named in volume.references() {
                    findings.check_name(&policies, &named, &self.metrics)?;
                }
            }
            tracing::debug!(namespace, volumes = volumes.len(), "intent is allowed");
            book = Some(policies).filter(Rulebook::looks_at_contents);
        }
        let notes = Notes::read(&pod);
        let named_secrets = volumes.iter().filter_map(|volume| volume.secret.as_deref());
        let purse = self.credentials.open(&pod, namespace, named_secrets, deadline);
        let purse = if volumes.is_empty() { None } else { Some(purse.await) };
        let keyrings = volumes.iter().map(|volume| match &purse {
            None => Ok(Keyring::default()),
            Some(purse) => purse.keyring(volume.secret_at(), volume.secret.as_deref()),
        });
        let keyrings = keyrings.collect::<Result<Vec<_>, _>>()?;
        let problems = purse.as_ref().and_then(Purse::problems);
        let lookups: Vec<_> = volumes
            .iter()
            .zip(&keyrings)
            .map(|(volume, keyring)| {
                let (notes, problems) = (&notes, &problems);
                async move {
                    let pinned = self.pin(volume, keyring, notes, deadline).await;
                    pinned.map(|pinned| (pinned, keyring)).map_err(|denial| match problems {
                        Some(problems) if denial.is_of_rights() => denial.because(problems),
                        _ => denial,
                    })
                }
            })
            .collect();
        let mut resolved = stream::iter(lookups).buffered(VOLUMES_AT_ONCE);
        let (mut planned, mut secrets) = (Vec::new(), Vec::new());
        let mut pinned: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut named = Vec::new();
        while let Some(volume) = resolved.next().await {
            let (Pinned { intent, canonical, secret, lines, warnings: more }, keyring) = volume?;
            if let Some(book) = &book {
                self.check_contents(book, intent, &canonical, keyring, &mut findings, deadline).await?;
            }
            pinned.insert(intent.name.clone(), lines);
            warnings.extend(more);
            planned.push(PlannedVolume {
                name: &intent.name,
                index: intent.index,
                secret: PlannedSecret::Kept,
                attributes: attributes(&canonical),
                mounts: &intent.mounts,
            });
            secrets.push(secret);
            named.push((intent.name.clone(), canonical));
        }
        let pinned = if pinned.is_empty() { None } else { Some(Value::from_iter(pinned).to_string()) };
        for (volume, secret) in planned.iter_mut().zip(&secrets) {
            volume.secret = secret.planned();
        }
        let patch = patch::plan(&pod, &planned, pinned.as_deref());
        warnings.extend(findings.take_warnings());
        Ok(Outcome { patch, warnings, pinned, volumes: named, audit: findings.into_audit() })
    }

    /// Asks policies about what the registry has under each digest of a volume.
    async fn check_contents(
        &self,
        book: &Rulebook,
        intent: &VolumeIntent,
        canonical: &CanonicalVolume,
        keyring: &Keyring,
        findings: &mut Findings,
        deadline: Deadline,
    ) -> Result<(), Denial> {
        let layers = canonical.recipe().steps().iter().filter_map(Step::layer);
        for (named, layer) in intent.references().into_iter().zip(layers) {
            let needs =
                Needs { past_cache: false, platform: layer.platform(), media_types: layer.media_types() };
            match self.resolver.found(layer.reference(), keyring, needs, deadline).await {
                Ok(found) => findings.check_found(book, &named, &found, &self.metrics)?,
                Err(failure) if book.enforces_contents() => {
                    return Err(failure.denial(named.origin.at(), &named.reference));
                }
                Err(failure) => findings.not_looked_at(book, &named, &failure),
            }
        }
        Ok(())
    }

    /// The canonical volume of an intent.
    async fn pin<'a>(
        &self,
        intent: &'a VolumeIntent,
        keyring: &Keyring,
        notes: &Notes,
        deadline: Deadline,
    ) -> Result<Pinned<'a>, Denial> {
        let wanted = match &intent.content {
            Content::Wanted(wanted) => wanted,
            Content::Canonical(canonical) => {
                let pinned = canonical.recipe().references().enumerate();
                let lines = pinned.map(|(step, pinned)| notes.line(&intent.name, step, pinned)).collect();
                let (canonical, warnings) = (canonical.clone(), Vec::new());
                return Ok(Pinned { intent, canonical, secret: NeededSecret::Kept, lines, warnings });
            }
        };
        let found = self.resolve(wanted, keyring, deadline).await?;
        let (digests, secret) = self.one_secret(intent, wanted, keyring, found, deadline).await?;
        let (mut lines, mut warnings) = (Vec::new(), Vec::new());
        for ((reference, origin), digest) in wanted.steps().zip(&digests) {
            lines.push(line(reference, digest));
            if let (Some(tag), None) = (reference.tag(), reference.digest()) {
                warnings.push(format!("{}: {}:{tag} is pinned to {digest}", origin.at(), reference.name()));
            }
        }
        // `pin` asks once a reference, in the order of the steps, which is the order of the digests.
        let mut digests = digests.into_iter();
        let at = wanted.origins.first().map_or(At::Volume(&intent.name), Origin::at);
        let incomplete = || Denial::rewrite(at, None, "was not resolved", "");
        let recipe = wanted.recipe.pin(|_| digests.next().ok_or_else(incomplete))?;
        let canonical = CanonicalVolume::new(wanted.label.as_deref(), recipe)
            .map_err(|error| Denial::rewrite(at, None, error, ""))?;
        Ok(Pinned { intent, canonical, secret, lines, warnings })
    }

    /// The one Secret that a recipe needs: kubelet hands the driver no more. Where references were let in by
    /// different ones, one of those may do for all.
    async fn one_secret(
        &self,
        intent: &VolumeIntent,
        wanted: &Wanted,
        keyring: &Keyring,
        found: Vec<(Digest, Source)>,
        deadline: Deadline,
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
            let Ok(again) = self.resolve(wanted, &alone, deadline).await else { continue };
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
        deadline: Deadline,
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
                let found = self.resolver.pin(layer.reference(), keyring, needs, deadline).await;
                found.map_err(|failure| failure.denial(origin.at(), layer.reference()))
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

/// A volume with its digests.
struct Pinned<'a> {
    intent: &'a VolumeIntent,
    canonical: CanonicalVolume,
    secret: NeededSecret,
    /// Its references as `oras.land/pinned` shows them.
    lines: Vec<String>,
    warnings: Vec<String>,
}

/// The Secret that the driver needs for a volume.
enum NeededSecret {
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

/// Whether nothing of ours is done with a pod, whatever it asks for. A deletion timestamp says nothing: the API
/// server wipes one that a server-side apply creates a pod with, but only behind the webhooks.
fn is_left_alone(pod: &Pod<'_>) -> bool {
    pod.annotation(MIRROR_POD).is_some()
}

/// The attributes to write. A seal that came with the request is nobody's word: it goes.
fn attributes(volume: &CanonicalVolume) -> BTreeMap<&'static str, String> {
    let mut attributes = volume.to_attributes();
    attributes.remove(canonical::SEAL);
    attributes
}

/// `host/repository:tag@digest`, as people read it.
fn line(reference: &Reference, digest: &Digest) -> String {
    match reference.tag() {
        Some(tag) => format!("{}:{tag}@{digest}", reference.name()),
        None => format!("{}@{digest}", reference.name()),
    }
}

/// What `oras.land/pinned` said when the pod came: of use only for the tags beside digests that the pod
/// really has.
struct Notes(BTreeMap<String, Vec<Option<Reference>>>);

impl Notes {
    fn read(pod: &Pod<'_>) -> Self {
        let text = pod.annotation(annotation::PINNED).unwrap_or("{}");
        let written: BTreeMap<String, Vec<String>> = serde_json::from_str(text).unwrap_or_default();
        let parse = |lines: Vec<String>| lines.iter().map(|line| line.parse().ok()).collect();
        Self(written.into_iter().map(|(volume, lines)| (volume, parse(lines))).collect())
    }

    fn line(&self, volume: &str, step: usize, pinned: &PinnedReference) -> String {
        let is_it = |noted: &&Reference| {
            noted.registry() == pinned.registry()
                && noted.repository() == pinned.repository()
                && noted.digest() == Some(pinned.digest())
        };
        let lines = self.0.get(volume).map(Vec::as_slice).unwrap_or_default();
        let noted = lines.get(step).and_then(Option::as_ref).filter(is_it);
        noted.map_or_else(|| pinned.to_string(), |noted| line(noted, pinned.digest()))
    }
}
