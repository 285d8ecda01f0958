//! What an object requests and what the policies decide about it, without an admission.

use oras_csi_core::digest::Digest;
use oras_csi_core::manifest::LayerSelection;
use oras_csi_core::policy::Source;
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::Keyring;
use oras_csi_core::seal::Holder;
use oras_csi_core::volume::CanonicalVolume;
use serde_json::Value;
use tokio::time::Instant as Deadline;

use super::context::{CLAIM_NAMESPACE, POD_NAMESPACE, Scope};
use super::expand::ExpandedVolume;
use super::locate::{LocatedVolume, look_up_sets};
use super::outcome::Outcome;
use super::pinned_annotation::PinnedAnnotation;
use super::services::Services;
use crate::denial::{At, Denial};
use crate::intent::{self, Named, RequestedVolume};
use crate::metrics::Metrics;
use crate::policy::ApplicablePolicies;
use crate::policy::evaluate::{Evaluation, Findings, evaluate_contents, evaluate_reference};
use crate::resolve::Requirements;
use crate::view::{PersistentVolume, Pod};

/// Shows what an object requests and what the policies decide about it, for `oras-csi explain`.
#[derive(Clone, Copy)]
pub struct Preview<'a> {
    pub(super) services: &'a Services,
}

impl Preview<'_> {
    /// Returns what a pod requests in a namespace. No registry is contacted.
    pub async fn pod(
        &self,
        pod: &Value,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<VolumePreview>, Denial> {
        let pod = Pod::read(pod)?;
        if pod.is_mirror_pod() {
            return Ok(Vec::new());
        }
        let requested = intent::read(&pod, self.services.registries.as_ref())?;
        let holder = Holder::pod(namespace);
        let scope = Scope::new(POD_NAMESPACE, namespace, holder, deadline)?;
        self.requested(requested.volumes, &PinnedAnnotation::read(&pod), scope).await
    }

    /// Returns what a `PersistentVolume` requests. No registry is contacted.
    pub async fn persistent_volume(
        &self,
        volume: &Value,
        deadline: Deadline,
    ) -> Result<Vec<VolumePreview>, Denial> {
        let Some(volume) = PersistentVolume::read(volume)? else { return Ok(Vec::new()) };
        let registries = self.services.registries.as_ref();
        let (requested, namespace) = intent::read_persistent(&volume, registries, &mut Vec::new())?;
        let holder = Holder::claim(namespace, volume.handle);
        let scope = Scope::new(CLAIM_NAMESPACE, namespace, holder, deadline)?;
        self.requested(vec![requested], &PinnedAnnotation::default(), scope).await
    }

    /// Returns what an admitted object requests, with the references that its patches and recipe artifacts name.
    pub async fn admitted(
        &self,
        outcome: &Outcome,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<VolumePreview>, Denial> {
        if outcome.expanded.is_empty() {
            return Ok(Vec::new());
        }
        let book = self.services.policies.applicable_to(namespace, deadline).await?;
        let preview = |volume: &ExpandedVolume| VolumePreview {
            patches: self.references(volume.patches(), &book),
            references: self.references(with_written_digests(volume.references()), &book),
            pinned: volume.pinned(),
            name: volume.target.name.clone(),
        };
        Ok(outcome.expanded.iter().map(preview).collect())
    }

    /// Returns each policy's opinion about a reference's registry, repository and tag in a namespace.
    pub async fn evaluate_reference(
        &self,
        reference: &Reference,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<Evaluation>, Denial> {
        let book = self.services.policies.applicable_to(namespace, deadline).await?;
        Ok(evaluate_reference(&book, reference, Source::Direct))
    }

    /// Returns the opinions of the policies that check contents about what the registry has under a reference.
    pub async fn evaluate_contents(
        &self,
        reference: &Reference,
        pinned: &PinnedReference,
        namespace: &str,
        deadline: Deadline,
    ) -> Result<Vec<Evaluation>, Denial> {
        let book = self.services.policies.applicable_to(namespace, deadline).await?;
        if !book.looks_at_contents() {
            return Ok(Vec::new());
        }
        let requirements =
            Requirements { bypass_cache: false, platform: None, selection: LayerSelection::default() };
        let keyring = Keyring::new(self.services.credentials.administrator.clone());
        let resolver = &self.services.resolver;
        let found = resolver.contents_for_policy(pinned, &keyring, requirements, deadline).await;
        let found = found.map_err(|failure| failure.denial(At::Reference, reference))?;
        Ok(evaluate_contents(&book, &found))
    }

    async fn requested(
        &self,
        volumes: Vec<RequestedVolume>,
        annotation: &PinnedAnnotation,
        scope: Scope<'_>,
    ) -> Result<Vec<VolumePreview>, Denial> {
        let located = look_up_sets(self.services, volumes, annotation, scope).await?;
        if located.is_empty() {
            return Ok(Vec::new());
        }
        let book = self.services.policies.applicable_to(scope.namespace(), scope.deadline).await?;
        let preview = |volume: &LocatedVolume| VolumePreview {
            patches: self.references(volume.patches(), &book),
            references: self.references(with_written_digests(volume.references()), &book),
            pinned: volume.pinned(),
            name: volume.target.name.clone(),
        };
        Ok(located.iter().map(preview).collect())
    }

    fn references(
        self,
        names: Vec<(Named, Option<Digest>)>,
        book: &ApplicablePolicies,
    ) -> Vec<ReferencePreview> {
        let metrics = &self.services.metrics;
        names.into_iter().map(|(named, digest)| ReferencePreview::new(named, digest, book, metrics)).collect()
    }
}

fn with_written_digests(names: Vec<Named>) -> Vec<(Named, Option<Digest>)> {
    let with_digest = |named: Named| {
        let digest = named.reference.digest().cloned();
        (named, digest)
    };
    names.into_iter().map(with_digest).collect()
}

/// One volume that an object requests.
#[derive(Clone, Debug)]
pub struct VolumePreview {
    name: String,
    patches: Vec<ReferencePreview>,
    references: Vec<ReferencePreview>,
    pinned: Option<CanonicalVolume>,
}

impl VolumePreview {
    /// Returns the volume's name in the pod, or the name of the `PersistentVolume`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the patches and recipe artifacts that determine the content.
    pub fn patches(&self) -> &[ReferencePreview] {
        &self.patches
    }

    /// Returns all references that are named for the volume.
    pub fn names(&self) -> impl Iterator<Item = &ReferencePreview> {
        self.patches.iter().chain(&self.references)
    }

    /// Returns the references in the order of their steps. Of a patch that has not been read, that is at most its base.
    pub fn references(&self) -> &[ReferencePreview] {
        &self.references
    }

    /// Returns the canonical volume, where every reference is written with its digest.
    pub fn pinned(&self) -> Option<&CanonicalVolume> {
        self.pinned.as_ref()
    }
}

/// One reference that an object requests.
#[derive(Clone, Debug)]
pub struct ReferencePreview {
    named: Named,
    digest: Option<Digest>,
    denial: Option<Denial>,
    opinions: Vec<Evaluation>,
}

impl ReferencePreview {
    fn new(named: Named, digest: Option<Digest>, book: &ApplicablePolicies, metrics: &Metrics) -> Self {
        let denial = Findings::default().check_name(book, &named, metrics).err();
        Self { denial, opinions: evaluate_reference(book, &named.reference, named.source), named, digest }
    }

    /// Returns the annotation or attribute that has the reference, as a denial names it.
    pub fn place(&self) -> String {
        self.named.origin.at().to_string()
    }

    /// Returns the reference.
    pub fn reference(&self) -> &Reference {
        &self.named.reference
    }

    /// Returns the digest, where it is known without contacting a registry.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns the denial of the policies, if they deny the reference.
    pub fn denial(&self) -> Option<&Denial> {
        self.denial.as_ref()
    }

    /// Returns each policy's opinion about the registry, repository and tag.
    pub fn evaluations(&self) -> &[Evaluation] {
        &self.opinions
    }
}
