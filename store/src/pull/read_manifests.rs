//! Reads the manifests of a recipe and plans what their layers become, and checks pull permissions with them.
//!
//! A manifest can have 4 MiB and thousands of layers, and needs several times that much memory while it is parsed. So
//! it is parsed on threads that may block, a few at a time for each namespace, and only the plan of it is kept. The
//! number of planned layers that the pulls of one namespace keep is limited as well ([`super::tenant_turns`]).

use oras_csi_core::manifest::{Descriptor, Index, Manifest, VerifiedManifest};
use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::{Layer as RecipeLayer, PinnedRecipe, Step};
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::Limits as RegistryLimits;
use tokio::sync::OwnedSemaphorePermit;

use super::error::PullError;
use super::fetch::Fetcher;
use super::priority::Priority;
use super::steps::{ArtifactStep, ResolvedStep, mark_applied_layers};
use super::tenant_turns::{LEAST_PLANNED_LAYERS, MAX_PLANNED_LAYERS};
use crate::disk::DiskError;
use crate::layout::Item;
use crate::limits::Limits;
use crate::state::provenance::ServedBy;
use crate::unpack::plan::{PlannedLayer, plan};
use crate::unpack::tree_builder::MergeMode;

/// How many layers a recipe may have at first. A recipe with more is planned again when its namespace may keep as many.
const PLANNED_AT_FIRST: u32 = 1_024;

/// How many media types of layers without files are kept for a message.
const MAX_UNNAMED: usize = 8;

/// A manifest that a step needs.
#[derive(Clone)]
struct Wanted {
    step: RecipeLayer<PinnedReference>,
    reference: PinnedReference,
    platform: Platform,
    /// The size in the index that selected the manifest; `None` for the manifest that the step names.
    size: Option<u64>,
    /// How many indexes led to it.
    depth: usize,
}

/// What a manifest is for a step.
enum Content {
    /// The layers of the artifact, and the media types of those that give no file.
    Layers(Vec<PlannedLayer>, Vec<String>),
    /// The manifest that an index selects.
    Child(Descriptor),
}

impl Wanted {
    /// Plans the layers of a manifest, or selects one from an index. Takes seconds of processor time for hostile
    /// manifests.
    fn interpret(&self, manifest: VerifiedManifest, limits: &Limits) -> Result<Content, PullError> {
        let found = manifest.descriptor().size();
        if let Some(wanted) = self.size.filter(|wanted| *wanted != found) {
            return Err(PullError::ManifestSize { reference: self.reference.clone().into(), wanted, found });
        }
        match manifest.into_manifest() {
            Manifest::Image(image) => {
                let planned = plan(&image, self.step.selection(), limits);
                let refused =
                    |source| PullError::Plan { reference: self.step.reference().clone().into(), source };
                let unnamed = image.unnamed(self.step.selection()).into_iter().take(MAX_UNNAMED).collect();
                Ok(Content::Layers(planned.map_err(refused)?, unnamed))
            }
            Manifest::Index(_) if self.depth >= Index::MAX_DEPTH => {
                Err(PullError::Nested { reference: self.step.reference().clone().into() })
            }
            Manifest::Index(index) => {
                let selected = index.select(&self.platform);
                let refused =
                    |source| PullError::Platform { reference: self.reference.clone().into(), source };
                Ok(Content::Child(selected.map_err(refused)?.descriptor().clone()))
            }
        }
    }
}

impl Fetcher {
    /// Checks with the registry that the reference may be pulled.
    ///
    /// If this registry has served the manifest to this node before, a HEAD request is enough. Any other registry has
    /// to send the manifest: otherwise a registry could claim to have the content of a private one and so give access
    /// to it.
    pub async fn check_pull_permission(&self, reference: &PinnedReference) -> Result<(), PullError> {
        match self.manifest_served_by(reference).await? {
            ServedBy::ThisRepository | ServedBy::ThisHost => self.check_manifest_exists(reference).await,
            ServedBy::Unknown => self.get_manifest(reference).await.map(drop),
        }
    }

    /// Reads the manifests of all steps, in order. Also returns the permit for the planned layers.
    pub(super) async fn read_steps(
        &self,
        recipe: &PinnedRecipe,
        priority: &Priority,
    ) -> Result<(Vec<ResolvedStep>, Option<OwnedSemaphorePermit>), PullError> {
        let mut allowed = PLANNED_AT_FIRST;
        loop {
            let mut permit = self.shared.tenant_limits.plans.acquire_many("", allowed, priority).await;
            let mut steps = Vec::with_capacity(recipe.steps().len());
            for step in recipe.steps() {
                steps.push(match step {
                    Step::Add(layer) => {
                        ResolvedStep::Artifact(Box::new(self.read_step(layer, MergeMode::Add).await?))
                    }
                    Step::Overlay(layer) => {
                        ResolvedStep::Artifact(Box::new(self.read_step(layer, MergeMode::Overlay).await?))
                    }
                    Step::Remove(glob) => ResolvedStep::Remove(glob.clone()),
                });
            }
            let layers = steps.iter().filter_map(ResolvedStep::artifact).map(|step| step.layers().len());
            let needed = u32::try_from(layers.sum::<usize>()).unwrap_or(u32::MAX);
            let needed = needed.clamp(LEAST_PLANNED_LAYERS, MAX_PLANNED_LAYERS);
            if let Some(surplus) = allowed.checked_sub(needed) {
                drop(permit.as_mut().and_then(|permit| permit.split(surplus as usize)));
                mark_applied_layers(&mut steps);
                return Ok((steps, permit));
            }
            // Nothing is kept while this pull waits.
            allowed = needed;
        }
    }

    /// Reads the manifest of a step, through an image index if there is one, and plans what its layers become.
    async fn read_step(
        &self,
        step: &RecipeLayer<PinnedReference>,
        mode: MergeMode,
    ) -> Result<ArtifactStep, PullError> {
        let mut wanted = Wanted {
            step: step.clone(),
            reference: step.reference().clone(),
            platform: step.platform().unwrap_or(&self.node).clone(),
            size: None,
            depth: 0,
        };
        let mut manifests = Vec::new();
        loop {
            manifests.push(wanted.reference.digest().clone());
            match self.content(&wanted).await? {
                Content::Layers(layers, unnamed) => {
                    return Ok(ArtifactStep::new(step.clone(), mode, manifests, layers, unnamed));
                }
                Content::Child(child) => {
                    wanted.reference = wanted.reference.with_digest(child.digest().clone());
                    wanted.size = Some(child.size());
                    wanted.depth += 1;
                }
            }
        }
    }

    /// Reads a manifest by digest, from the store if this registry has served it, else from the registry.
    async fn content(&self, wanted: &Wanted) -> Result<Content, PullError> {
        // Cached content must not be used for a registry that has not shown that it serves it.
        let served_by = self.manifest_served_by(&wanted.reference).await?;
        if served_by == ServedBy::ThisHost {
            self.check_manifest_exists(&wanted.reference).await?;
        }
        if served_by != ServedBy::Unknown {
            let stored = wanted.clone();
            let _turn = self.shared.tenant_limits.parsing.acquire(&self.priority).await;
            let read = self.blocking(move |store| {
                let (digest, limit) = (stored.reference.digest(), RegistryLimits::default().manifest());
                let Some(bytes) = store.read_blob(digest, limit)? else { return Ok(None) };
                let manifest = VerifiedManifest::verify(digest, None, bytes.into());
                let refused =
                    |source| PullError::Manifest { reference: stored.reference.clone().into(), source };
                stored.interpret(manifest.map_err(refused)?, store.limits()).map(Some)
            });
            if let Some(content) = read.await? {
                return Ok(content);
            }
        }
        let (manifest, permit) = self.get_manifest(&wanted.reference).await?;
        let wanted = wanted.clone();
        self.blocking(move |store| {
            let content = wanted.interpret(manifest, store.limits());
            drop(permit);
            content
        })
        .await
    }

    /// Downloads a manifest and stores it. Also returns the permit for the memory that the manifest takes.
    async fn get_manifest(
        &self,
        reference: &PinnedReference,
    ) -> Result<(VerifiedManifest, Option<OwnedSemaphorePermit>), PullError> {
        let (manifest, permit) = {
            let host = reference.registry().to_string();
            let limits = &self.shared.tenant_limits;
            let _request = limits.requests.acquire_many(&host, 1, &self.priority).await;
            let permit = limits.manifests.acquire(&self.priority).await;
            (self.registry.manifest(reference).await, permit)
        };
        let manifest =
            manifest.map_err(|source| PullError::Registry { reference: reference.clone().into(), source })?;
        // A manifest that can be read only with the media type of its response is not stored, but downloaded each
        // time.
        if manifest.is_self_described() {
            let (reference, bytes) = (reference.clone(), manifest.bytes().clone());
            self.blocking(move |store| {
                let digest = reference.digest();
                store.put_blob(digest, &bytes)?;
                store.provenance().record(&reference, digest, &Item::Blob(digest.clone()));
                Ok::<_, DiskError>(())
            })
            .await?;
        }
        Ok((manifest, permit))
    }

    /// Checks with a HEAD request that the registry still serves the manifest under this reference.
    async fn check_manifest_exists(&self, reference: &PinnedReference) -> Result<(), PullError> {
        let resolved = {
            let host = reference.registry().to_string();
            let _request = self.shared.tenant_limits.requests.acquire_many(&host, 1, &self.priority).await;
            self.registry.resolve(&Reference::from(reference.clone())).await
        };
        resolved.map_err(|source| PullError::Registry { reference: reference.clone().into(), source })?;
        self.record_manifest(reference).await
    }

    /// Records that the repository served the manifest, on a thread that may block on the disk.
    async fn record_manifest(&self, reference: &PinnedReference) -> Result<(), PullError> {
        let reference = reference.clone();
        self.blocking(move |store| {
            let digest = reference.digest();
            store.provenance().record(&reference, digest, &Item::Blob(digest.clone()));
            Ok::<_, DiskError>(())
        })
        .await
    }

    /// Returns whether the repository served the manifest to this node before.
    async fn manifest_served_by(&self, reference: &PinnedReference) -> Result<ServedBy, PullError> {
        let reference = reference.clone();
        self.blocking(move |store| {
            let digest = reference.digest();
            Ok::<_, DiskError>(store.provenance().of(&reference, digest, &Item::Blob(digest.clone())))
        })
        .await
    }
}
