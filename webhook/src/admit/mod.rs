//! The whole way of one request, in an order that is fixed: intent, policy on names, network, policy on
//! what was found, patch. Nothing of a pod that policy refuses ever reaches a registry.

mod asked;
mod expand;
mod notes;
mod outcome;
mod revision;
mod sets;
mod settle;
mod volumes;

use std::sync::Arc;

use json_patch::Patch;
use oras_csi_core::policy::Source;
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{Keyring, Registry};
use oras_csi_core::seal::Holder;
use serde_json::Value;
use tokio::time::Instant as Deadline;

use self::notes::Notes;
use self::revision::{Revision, Writes};
use self::volumes::{Case, Settled};
use crate::credentials::CredentialSources;
use crate::denial::{At, Denial};
use crate::intent::{self, Intent, Registries, VolumeIntent};
use crate::metrics::{Metrics, RequestOutcome};
use crate::patch::{self, PlannedNotes};
use crate::pins::Pins;
use crate::policy::Policies;
use crate::policy::evaluate::{Evaluation, evaluate_contents, evaluate_reference};
use crate::resolve::{Needs, Resolver, ResolverSettings};
use crate::review::{Review, ReviewResponse, Subject};
use crate::seal::Sealer;
use crate::sets::SetCatalog;
use crate::view::{PersistentVolume, Pod};
use crate::workload;

pub use self::asked::{Asked, AskedVolume};
pub use self::outcome::Outcome;

/// The annotation that kubelet gives the API server's copy of a static pod.
const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// The key of the audit annotation; the API server puts the webhook's name before it.
const AUDIT_PINNED: &str = "pinned";

/// Admits pods and persistent volumes.
pub struct Admission {
    resolver: Resolver,
    registries: Arc<dyn Registries>,
    policies: Arc<Policies>,
    metrics: Arc<Metrics>,
    credentials: CredentialSources,
    sealer: Sealer,
    pins: Option<Arc<dyn Pins>>,
    sets: Option<SetCatalog>,
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
        let (credentials, sealer) = (CredentialSources::default(), Sealer::none());
        Self { resolver, registries, policies, metrics, credentials, sealer, pins: None, sets: None }
    }

    /// With credentials; without any, everything is asked for in nobody's name.
    #[must_use]
    pub fn with_credentials(self, credentials: CredentialSources) -> Self {
        Self { credentials, ..self }
    }

    /// With seals; without, volumes have none.
    #[must_use]
    pub fn with_sealer(self, sealer: Sealer) -> Self {
        Self { sealer, ..self }
    }

    /// With pins, so that all pods of a revision have the same; without, each has what its tag is when it comes.
    #[must_use]
    pub fn with_pins(self, pins: Arc<dyn Pins>) -> Self {
        Self { pins: Some(pins), ..self }
    }

    /// With sets; without, whoever names one is denied.
    #[must_use]
    pub fn with_sets(self, sets: SetCatalog) -> Self {
        Self { sets: Some(sets), ..self }
    }

    /// The policies.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Whether it can make the seals that it is to make.
    pub(crate) fn has_key(&self) -> bool {
        self.sealer.is_ready()
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
            Subject::NewPod(pod) => {
                let writes = if review.is_dry_run() { Writes::No } else { Writes::Yes };
                self.admit(pod, review.namespace(), writes, deadline).await
            }
            Subject::NewPersistentVolume(volume) => {
                let writes = if review.is_dry_run() { Writes::No } else { Writes::Yes };
                self.admit_volume(volume, writes, deadline).await
            }
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
        let Outcome { patch, warnings, pinned, volumes: _, intents: _, mut audit } = outcome;
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
        let volumes = intent.volumes.into_iter().map(Arc::new).collect();
        let volumes = self.look_up(volumes, namespace, Holder::pod(namespace), deadline).await?;
        self.judge_names(&volumes, namespace, deadline).await
    }

    /// The same of a `PersistentVolume`.
    pub async fn persistent_volume_asks(
        &self,
        volume: &Value,
        deadline: Deadline,
    ) -> Result<Vec<AskedVolume>, Denial> {
        let Some(volume) = PersistentVolume::read(volume)? else { return Ok(Vec::new()) };
        let (intent, namespace) =
            intent::read_persistent(&volume, self.registries.as_ref(), &mut Vec::new())?;
        let holder = Holder::claim(namespace, volume.handle);
        let volumes = self.look_up(vec![Arc::new(intent)], namespace, holder, deadline).await?;
        self.judge_names(&volumes, namespace, deadline).await
    }

    /// The same, once patches and the artifacts of recipes were read.
    pub async fn asked_in_all(
        &self,
        outcome: &Outcome,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<AskedVolume>, Denial> {
        self.judge_names(&outcome.intents, namespace, deadline).await
    }

    async fn judge_names(
        &self,
        volumes: &[Arc<VolumeIntent>],
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<AskedVolume>, Denial> {
        if volumes.is_empty() {
            return Ok(Vec::new());
        }
        let book = self.policies.applicable_to(namespace, deadline).await?;
        Ok(volumes.iter().map(|volume| AskedVolume::new(volume, &book, &self.metrics)).collect())
    }

    /// What policies say of a reference in a namespace.
    pub async fn opinions(
        &self,
        reference: &Reference,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<Evaluation>, Denial> {
        Ok(evaluate_reference(
            &self.policies.applicable_to(namespace, deadline).await?,
            reference,
            Source::Direct,
        ))
    }

    /// The same, of what a registry has under a reference: the opinions of policies that look at contents.
    pub async fn evaluate_contents(
        &self,
        reference: &Reference,
        pinned: &PinnedReference,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<Evaluation>, Denial> {
        let book = self.policies.applicable_to(namespace, deadline).await?;
        if !book.looks_at_contents() {
            return Ok(Vec::new());
        }
        let needs = Needs { past_cache: false, platform: None, media_types: &[] };
        let keyring = Keyring::new(self.credentials.administrator.clone());
        let found = self.resolver.found(pinned, &keyring, needs, deadline).await;
        let found = found.map_err(|failure| failure.denial(At::Reference, reference))?;
        Ok(evaluate_contents(&book, &found))
    }

    /// What becomes of a pod in a namespace: the same for the webhook and for `oras-csi render`. Pins are obeyed, and
    /// none is made.
    pub async fn admit_pod(
        &self,
        pod: &Value,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Outcome, Denial> {
        self.admit(pod, namespace, Writes::No, deadline).await
    }

    async fn admit(
        &self,
        pod: &Value,
        namespace: &str,
        writes: Writes,
        deadline: Deadline,
    ) -> Result<Outcome, Denial> {
        let pod = Pod::read(pod)?;
        if is_left_alone(&pod) {
            return Ok(Outcome::untouched());
        }
        let Intent { volumes, warnings } = intent::read(&pod, self.registries.as_ref())?;
        let notes = Notes::read(&pod);
        let pins = self.pins.as_deref();
        let revision = pins.and_then(|pins| Revision::of(pins, &pod, namespace, writes, deadline));
        let (holder, revision) = (Holder::pod(namespace), revision.as_ref());
        let case = Case { namespace, holder, pod: Some(&pod), revision, notes: &notes, writes, deadline };
        let settled = if volumes.is_empty() {
            Settled::default()
        } else {
            self.settle(volumes.into_iter().map(Arc::new).collect(), &case).await?
        };
        let (pinned, patch) = (settled.pinned(), settled.pinned_patch());
        let notes = PlannedNotes { pinned: pinned.as_deref(), patch: patch.as_deref() };
        let patch = patch::plan(&pod, &settled.planned(), notes);
        Ok(settled.outcome(patch, warnings, pinned))
    }

    /// What becomes of a `PersistentVolume`, for the namespace of its claim. No set is made.
    pub async fn admit_persistent_volume(
        &self,
        object: &Value,
        deadline: Deadline,
    ) -> Result<Outcome, Denial> {
        self.admit_volume(object, Writes::No, deadline).await
    }

    async fn admit_volume(
        &self,
        object: &Value,
        writes: Writes,
        deadline: Deadline,
    ) -> Result<Outcome, Denial> {
        let Some(volume) = PersistentVolume::read(object)? else { return Ok(Outcome::untouched()) };
        let mut warnings = Vec::new();
        let (intent, namespace) = intent::read_persistent(&volume, self.registries.as_ref(), &mut warnings)?;
        let (volumes, notes) = (vec![Arc::new(intent)], Notes::default());
        let holder = Holder::claim(namespace, volume.handle);
        let case = Case { namespace, holder, pod: None, revision: None, notes: &notes, writes, deadline };
        let settled = self.settle(volumes, &case).await?;
        let pinned = settled.pinned();
        let planned = settled.planned();
        let patches = planned.iter().map(|planned| patch::plan_persistent(&volume, planned, namespace).0);
        let patch = Patch(patches.flatten().collect());
        Ok(settled.outcome(patch, warnings, pinned))
    }
}

/// Whether nothing of ours is done with a pod, whatever it asks for. A deletion timestamp says nothing: the API
/// server wipes one that a server-side apply creates a pod with, but only behind the webhooks.
fn is_left_alone(pod: &Pod<'_>) -> bool {
    pod.annotation(MIRROR_POD).is_some()
}
