//! The admission of pods and persistent volumes, in a fixed order of work.
//!
//! Intent is read first, then policies check names; only then credentials are read and registries contacted. A pod that
//! a policy refuses never reaches a registry. [`pipeline`] is that order for the volumes of one request; each stage has
//! a module and consumes the volumes of the stage before:
//!
//! | stage | module |
//! |---|---|
//! | requested | [`crate::intent`] |
//! | located: sets looked up | [`locate`] |
//! | with credentials | [`credentials`] |
//! | expanded: patches read | [`expand`] |
//! | pinned to digests, contents checked | [`pin`] |
//! | sealed | [`seal`] |

mod context;
mod credentials;
mod expand;
mod locate;
mod new_sets;
mod outcome;
mod pin;
mod pinned_annotation;
mod pipeline;
mod policy;
mod preview;
mod revision;
mod seal;
mod services;
mod set_status;
mod set_volume;
mod trace;

use std::sync::Arc;

use async_trait::async_trait;
use json_patch::Patch;
use oras_csi_core::keys::DRIVER;
use oras_csi_core::registry::Registry;
use oras_csi_core::seal::Holder;
use serde_json::Value;
use tokio::time::Instant as Deadline;
use tracing::Instrument as _;

use self::context::{CLAIM_NAMESPACE, Context, POD_NAMESPACE, Scope};
use self::pinned_annotation::PinnedAnnotation;
use self::revision::{Revision, Writes};
use self::seal::SealedVolumes;
use self::services::Services;
use crate::credentials::CredentialSources;
use crate::denial::Denial;
use crate::intent::{self, Intent};
use crate::metrics::{Metrics, RequestOutcome};
use crate::patch::{self, PlannedAnnotations};
use crate::pins::Pins;
use crate::pod_template;
use crate::policy::Policies;
use crate::reapply::{self, written};
use crate::registries::Registries;
use crate::resolve::{Resolver, ResolverSettings};
use crate::review::{Review, ReviewResponse, Subject};
use crate::seal::Sealer;
use crate::sets::{MemorySets, Resolved, SetCatalog, SetResolver, SetToResolve};
use crate::view::{Json, PersistentVolume, Pod, Volume};

pub use self::outcome::Outcome;
pub use self::preview::{Preview, ReferencePreview, VolumePreview};

/// The key of the audit annotation; the API server puts the webhook's name before it.
const AUDIT_PINNED: &str = "pinned";

/// Admits pods and persistent volumes.
pub struct Admission {
    services: Services,
}

impl Admission {
    /// An admission over a registry, with the administrator's registry configuration and the policies.
    pub fn new(
        registry: Arc<dyn Registry>,
        registries: Arc<dyn Registries>,
        policies: Arc<Policies>,
        settings: ResolverSettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let services = Services {
            resolver: Resolver::new(registry, settings, Arc::clone(&metrics)),
            registries,
            policies,
            metrics,
            credentials: CredentialSources::default(),
            sealer: Sealer::none(),
            pins: None,
            sets: None,
        };
        Self { services }
    }

    /// Sets the credentials; without any, every request to a registry is anonymous.
    #[must_use]
    pub fn with_credentials(mut self, credentials: CredentialSources) -> Self {
        self.services.credentials = credentials;
        self
    }

    /// Sets the key for seals; without one, volumes have no seal.
    #[must_use]
    pub fn with_sealer(mut self, sealer: Sealer) -> Self {
        self.services.sealer = sealer;
        self
    }

    /// Sets the pins, so that all pods of a revision get the same digests.
    #[must_use]
    pub fn with_pins(mut self, pins: Arc<dyn Pins>) -> Self {
        self.services.pins = Some(pins);
        self
    }

    /// Sets the sets; without them, a volume that names a set is denied.
    #[must_use]
    pub fn with_sets(mut self, sets: SetCatalog) -> Self {
        self.services.sets = Some(sets);
        self
    }

    /// Returns the policies.
    pub fn policies(&self) -> &Policies {
        &self.services.policies
    }

    /// Reports whether the key for seals is loaded, where seals are made.
    pub(crate) fn has_key(&self) -> bool {
        self.services.sealer.is_ready()
    }

    /// Shows what an object requests, without admitting it.
    pub fn preview(&self) -> Preview<'_> {
        Preview { services: &self.services }
    }

    /// Answers a review.
    pub async fn review(&self, review: &Review, deadline: Deadline) -> ReviewResponse {
        let metrics = &self.services.metrics;
        let writes = if review.is_dry_run() { Writes::No } else { Writes::Yes };
        let admitted = match review.subject() {
            Subject::Other => {
                metrics.request(RequestOutcome::Untouched);
                return review.allow();
            }
            Subject::Workload(workload) => return self.warn(review, workload, deadline).await,
            Subject::Unreadable(denial) => Err(denial.clone()),
            Subject::AnnotatedPod(change) => {
                let warnings = reapply::warnings(change);
                metrics.request(RequestOutcome::Warned);
                return review.warned(warnings);
            }
            Subject::NewPod(pod) => self.pod(pod, review.namespace(), writes, deadline).await,
            Subject::NewPersistentVolume(volume) => self.persistent_volume(volume, writes, deadline).await,
            Subject::ChangedPod(change) => reapply::restore_pod(change).map(Outcome::restored),
            Subject::ChangedPersistentVolume(change) => {
                reapply::restore_persistent_volume(change).map(Outcome::restored)
            }
        };
        metrics.slack(deadline.saturating_duration_since(Deadline::now()));
        match admitted {
            Ok(outcome) => self.allow(review, outcome),
            Err(denial) => self.deny(review, &denial),
        }
    }

    /// Admits a pod as the webhook does, but creates neither pins nor sets. Existing pins apply.
    pub async fn admit_pod(
        &self,
        pod: &Value,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Outcome, Denial> {
        self.pod(pod, namespace, Writes::No, deadline).await
    }

    /// Admits a `PersistentVolume` for the namespace of its claim, but creates no set.
    pub async fn admit_persistent_volume(
        &self,
        object: &Value,
        deadline: Deadline,
    ) -> Result<Outcome, Denial> {
        self.persistent_volume(object, Writes::No, deadline).await
    }

    /// Resolves the sets of that name whose status is not that of their spec. This is for streams of manifests, where
    /// no controller writes a status.
    pub async fn update_set_statuses(&self, sets: &MemorySets, name: &str, deadline: Deadline) {
        set_status::update_statuses(&self.services, sets, name, deadline).await;
    }

    async fn pod(
        &self,
        object: &impl Json,
        namespace: &str,
        writes: Writes,
        deadline: Deadline,
    ) -> Result<Outcome, Denial> {
        let pod = Pod::read(object)?;
        if pod.is_mirror_pod() {
            return Ok(Outcome::untouched());
        }
        let span = trace::admission_of(&pod, namespace);
        let admitted =
            self.pod_in_span(object, &pod, namespace, writes, deadline).instrument(span.clone()).await;
        trace::record(&span, &admitted);
        admitted
    }

    async fn pod_in_span(
        &self,
        object: &impl Json,
        pod: &Pod<'_>,
        namespace: &str,
        writes: Writes,
        deadline: Deadline,
    ) -> Result<Outcome, Denial> {
        let Intent { volumes, warnings } = intent::read(pod, self.services.registries.as_ref())?;
        let sealed = if volumes.is_empty() {
            SealedVolumes::default()
        } else {
            let scope = Scope::new(POD_NAMESPACE, namespace, Holder::pod(namespace), deadline)?;
            let revision = match self.services.pins.as_deref() {
                Some(pins) => Revision::of(pins, &self.services.metrics, pod, writes, scope)?,
                None => None,
            };
            let pinned_annotation = PinnedAnnotation::read(pod);
            let context = Context { scope, pod: Some(pod), revision, pinned_annotation, writes };
            pipeline::run(&self.services, volumes, &context).await?
        };
        let (pinned, patch) = (sealed.pinned(), sealed.pinned_patch());
        let annotations = PlannedAnnotations { pinned: pinned.as_deref(), patch: patch.as_deref() };
        let trace = trace::of_volumes(pod);
        let mut patch = patch::plan(pod, &sealed.planned(trace), annotations);
        let is_of_driver = |volume: &Volume<'_>| volume.csi.as_ref().is_some_and(|csi| csi.driver == DRIVER);
        if pod.volumes().iter().any(is_of_driver) {
            written::record_pod(&object.to_value(), &mut patch);
        }
        Ok(Outcome::new(patch, warnings, pinned, sealed))
    }

    async fn persistent_volume(
        &self,
        object: &Value,
        writes: Writes,
        deadline: Deadline,
    ) -> Result<Outcome, Denial> {
        let Some(volume) = PersistentVolume::read(object)? else { return Ok(Outcome::untouched()) };
        let mut warnings = Vec::new();
        let registries = self.services.registries.as_ref();
        let (requested, namespace) = intent::read_persistent(&volume, registries, &mut warnings)?;
        let context = Context {
            scope: Scope::new(CLAIM_NAMESPACE, namespace, Holder::claim(namespace, volume.handle), deadline)?,
            pod: None,
            revision: None,
            pinned_annotation: PinnedAnnotation::default(),
            writes,
        };
        let span = trace::admission_of_persistent_volume(namespace);
        let sealed = pipeline::run(&self.services, vec![requested], &context).instrument(span.clone()).await;
        let sealed = sealed.inspect_err(|denial| trace::record_denial(&span, denial))?;
        let pinned = sealed.pinned();
        trace::record_pinned(&span, pinned.as_deref());
        // Pods that share a volume do not share a trace.
        let planned = sealed.planned(None);
        let patches = planned.iter().map(|planned| patch::plan_persistent(&volume, planned, namespace).0);
        let mut patch = Patch(patches.flatten().collect());
        written::record_persistent_volume(object, &mut patch);
        Ok(Outcome::new(patch, warnings, pinned, sealed))
    }

    /// Warns about what the pods of a workload will meet.
    async fn warn(&self, review: &Review, workload: &Value, deadline: Deadline) -> ReviewResponse {
        let metrics = &self.services.metrics;
        let warnings = match pod_template::template(workload) {
            None => Vec::new(),
            Some(pod) => {
                let admitted = self.admit_pod(pod, review.namespace(), deadline).await;
                metrics.slack(deadline.saturating_duration_since(Deadline::now()));
                pod_template::warnings(workload, admitted.as_ref().map(Outcome::warnings))
            }
        };
        let is_silent = warnings.is_empty();
        metrics.request(if is_silent { RequestOutcome::Untouched } else { RequestOutcome::Warned });
        review.warned(warnings)
    }

    fn allow(&self, review: &Review, outcome: Outcome) -> ReviewResponse {
        let Outcome { patch, warnings, pinned, mut audit, .. } = outcome;
        self.services.metrics.request(match (&pinned, patch.0.is_empty()) {
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

    fn deny(&self, review: &Review, denial: &Denial) -> ReviewResponse {
        self.services.metrics.request(RequestOutcome::Denied(denial.code()));
        tracing::info!(
            uid = review.uid(),
            namespace = review.namespace(),
            code = denial.code().number(),
            reason = denial.message(),
            "denied"
        );
        review.denied(denial)
    }
}

#[async_trait]
impl SetResolver for Admission {
    async fn resolve_set(&self, set: SetToResolve<'_>, deadline: Deadline) -> Result<Resolved, Denial> {
        set_status::resolve_set(&self.services, set, deadline).await
    }
}
