//! Reading what is named where a patch can be: its manifest, and the YAML of a recipe, which is a blob.

use std::sync::Arc;

use futures_util::TryStreamExt as _;
use oras_csi_core::digest::Digest;
use oras_csi_core::display::Printable;
use oras_csi_core::manifest::Descriptor;
use oras_csi_core::patch::{Instructions, Patch, PatchError};
use oras_csi_core::recipe::artifact;
use oras_csi_core::reference::{PinnedReference, Reference};
use oras_csi_core::registry::{Keyring, Registry, RegistryError};
use tokio::time::Instant as Deadline;

use super::{Failure, Resolver, Shared, View, detached};

/// How many bytes of recipes are remembered.
pub(super) const MOST_RECIPES: u64 = 4 << 20;

/// What was read.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// A patch.
    Patch(Box<Patch>),
    /// The YAML of a recipe, not parsed.
    Recipe(Arc<str>),
}

impl Resolver {
    /// What `reference` names, and what that says. A digest that is written wins over a tag beside it.
    pub(crate) async fn instructions(
        &self,
        reference: &Reference,
        keyring: &Keyring,
        past_cache: bool,
        deadline: Deadline,
    ) -> Result<(Digest, Said), Failure> {
        let read = |view: View| async move {
            let digest = match reference.digest() {
                Some(digest) => digest.clone(),
                None => view.digest_of_tag(reference, past_cache, deadline).await?,
            };
            let said = view.said(&reference.pin(digest.clone()), deadline).await?;
            Ok((digest, said))
        };
        self.with_each(reference, keyring, deadline, read).await.map(|(read, _)| read)
    }
}

impl View {
    async fn said(&self, pinned: &PinnedReference, deadline: Deadline) -> Result<Said, Failure> {
        match self.contents(pinned, deadline).await?.instructions(pinned)? {
            Instructions::Patch(patch) => Ok(Said::Patch(Box::new(patch))),
            Instructions::Recipe(layer) => self.recipe(pinned, layer, deadline).await.map(Said::Recipe),
        }
    }

    async fn recipe(
        &self,
        pinned: &PinnedReference,
        layer: Descriptor,
        deadline: Deadline,
    ) -> Result<Arc<str>, Failure> {
        let key = self.manifest(pinned);
        if let Some(yaml) = self.shared.recipes.get(&key).await {
            return Ok(yaml);
        }
        let (shared, registry, from) = (Arc::clone(&self.shared), self.registry(), pinned.clone());
        let _ticket = self.shared.waiting.enter(pinned.registry())?;
        let bytes = detached(deadline, async move {
            let read = shared.ask_for_blob(registry.as_ref(), &from, &layer);
            read.await.map_err(Arc::new)
        });
        let yaml: Arc<str> = artifact::text(bytes.await?).map_err(PatchError::Recipe)?.into();
        self.shared.recipes.insert(key, Arc::clone(&yaml)).await;
        Ok(yaml)
    }
}

impl Shared {
    /// A short blob, whole and verified: its descriptor is not longer than a recipe may be.
    async fn ask_for_blob(
        &self,
        registry: &dyn Registry,
        pinned: &PinnedReference,
        blob: &Descriptor,
    ) -> Result<Vec<u8>, RegistryError> {
        let read = async {
            let mut stream = registry.blob(pinned, blob, 0).await?;
            let mut bytes = Vec::new();
            while let Some(piece) = stream.try_next().await? {
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes)
        };
        let bytes = self.bounded(pinned.registry(), &pinned.name(), read).await?;
        if blob.digest().matches(&bytes) {
            return Ok(bytes);
        }
        Err(RegistryError::Untruthful {
            at: Printable::new(&pinned.name()),
            words: format!("the blob {} has other bytes", blob.digest()).into(),
        })
    }
}
